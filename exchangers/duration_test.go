package exchangers_test

import (
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
)

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 90 * time.Minute: "1h30m", 15 * time.Minute: "15m", 100 * time.Second: "1m40s", 0: "0s", 10 * time.Hour: "10h", 30 * time.Second: "30s",
		time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := exchangers.Brief(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
