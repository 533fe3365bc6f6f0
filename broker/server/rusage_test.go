package server_test

import (
	"syscall"
	"testing"
	"time"
)

// rusage is the CPU that this process has used.
type rusage struct{ cpu time.Duration }

func (r *rusage) read(t *testing.T) {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	r.cpu = time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
