//go:build linux || darwin

package audit_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/credence-id/credence/broker/audit"
)

const rlimitDir = "AUDIT_TEST_RLIMIT_DIR"

// TestFileSizeLimit fills a record under RLIMIT_FSIZE in a process of its own,
// lifts the limit, and goes on without a restart.
func TestFileSizeLimit(t *testing.T) {
	if dir := os.Getenv(rlimitDir); dir != "" {
		underLimit(t, dir)
		return
	}
	dir := newDir(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileSizeLimit$", "-test.v")
	cmd.Env = append(os.Environ(), rlimitDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), "confirmed ")
	digits, _, _ := strings.Cut(rest, "\n")
	confirmed, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || confirmed < 5 {
		t.Fatalf("confirmed %q\n%s", digits, out)
	}
	l := open(t, audit.Config{Dir: dir})
	if r := verified(t, dir); r.Records != confirmed || r.Head != l.Head() || r.Torn != 0 {
		t.Errorf("%d records were confirmed, the report is %+v", confirmed, r)
	}
}

func underLimit(t *testing.T, dir string) {
	l := open(t, audit.Config{Dir: dir})
	limit(t, 4000)
	confirmed, refused := 0, 0
	for i := range 20 {
		_, err := l.Append(t.Context(), event(i))
		if err == nil {
			confirmed++
			continue
		}
		refused++
		if !errors.Is(err, audit.ErrFull) || !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), one) {
			t.Fatalf("append: %v", err)
		}
		if refused == 1 {
			t.Log(err)
		}
	}
	if confirmed == 0 || refused == 0 {
		t.Fatalf("confirmed %d, refused %d", confirmed, refused)
	}
	limit(t, 1<<20)
	for i := range 5 {
		add(t, l, event(100+i))
		confirmed++
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("confirmed %d\n", confirmed)
}

func limit(t *testing.T, n uint64) {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		t.Fatal(err)
	}
	l.Cur = n
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		t.Fatal(err)
	}
}
