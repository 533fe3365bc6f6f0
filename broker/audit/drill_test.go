//go:build drill && (linux || darwin)

package audit_test

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// TestDrillVerify verifies a million records, or as many as RECORDS says, and
// tells how long ten million take.
func TestDrillVerify(t *testing.T) {
	n := 1_000_000
	if s := os.Getenv("RECORDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	var kept []audit.Known
	for i := 0; i < n; {
		events := make([]audit.Event, min(5000, n-i))
		for j := range events {
			events[j] = event(i)
			i++
		}
		refs := add(t, l, events...)
		kept = append(kept, audit.Known{Ref: refs[len(refs)-1]})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	begun, used := time.Now(), cpuTime(t)
	r, err := audit.VerifyKnown(t.Context(), dir, kept)
	took, used := time.Since(begun), cpuTime(t)-used
	if err != nil || r.Records != uint64(n) || r.Confirmed != len(kept) {
		t.Fatalf("%+v, %v", r, err)
	}
	ten := took * 10_000_000 / time.Duration(n)
	t.Logf("%d records in %d files, %d heads: %s, %s of CPU; ten million at that pace: %s", n, r.Files, r.Confirmed, took.Round(time.Millisecond), used.Round(time.Millisecond), ten.Round(time.Second))
	if ten > time.Minute {
		t.Errorf("ten million would take %s", ten)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
