//go:build drill

package server_test

import (
	"os"
	"strconv"
	"testing"
)

// TestDrillQuiet is TestSteadyState with 10 and with 5,000 agents, or as many as
// AGENTS says.
func TestDrillQuiet(t *testing.T) {
	n := 5000
	if s := os.Getenv("AGENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{10, n} {
		t.Run(strconv.Itoa(n), func(t *testing.T) { steady(t, n, 1) })
	}
}
