//go:build linux || darwin

package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/store"
)

// A child is this test binary run again to be one part of a test.
const (
	childPart = "STORE_TEST_PART"
	childDir  = "STORE_TEST_DIR"
)

func TestChild(t *testing.T) {
	parts := map[string]func(*testing.T, string){"lock": lockedChild, "write": writingChild, "batch": batchChild, "full": fullChild}
	if part, ok := parts[os.Getenv(childPart)]; ok {
		part(t, os.Getenv(childDir))
	}
}

func child(t *testing.T, part, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childPart+"="+part, childDir+"="+dir)
	return cmd
}

func lockedChild(t *testing.T, dir string) {
	_, err := store.Open(t.Context(), store.Config{Dir: dir})
	if !errors.Is(err, store.ErrLocked) {
		t.Fatalf("the error is %v", err)
	}
	fmt.Println("it is locked")
}

func TestLockedForOtherProcesses(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	out, err := child(t, "lock", dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "it is locked") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// writingChild writes until it is killed and says what is confirmed.
func writingChild(t *testing.T, dir string) {
	s := open(t, dir)
	for i := range 100_000 {
		apply(t, s, fmt.Sprintf("i%d", i))
		fmt.Printf("confirmed i%d\n", i)
	}
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	want := map[string]bool{}
	for range 2 {
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, confirmed := bufio.NewScanner(out), 0
		for lines.Scan() {
			name, ok := strings.CutPrefix(lines.Text(), "confirmed ")
			if !ok {
				continue
			}
			want[name] = true
			if confirmed++; confirmed == 25 { // it goes on meanwhile
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || confirmed < 25 {
			t.Fatalf("%d confirmed, then %v", confirmed, err)
		}
		s := open(t, dir)
		got := map[string]bool{}
		for _, name := range names(t, s) {
			got[name] = true
		}
		for name := range want {
			if !got[name] {
				t.Errorf("%s is lost", name)
			}
		}
		apply(t, s, "after")
		closeStore(t, s)
	}
}

// batchChild writes all of many resources again and again, until it is killed.
func batchChild(t *testing.T, dir string) {
	s := open(t, dir)
	for i := range 100_000 {
		write(t, s, batch(fmt.Sprint(i))...)
		fmt.Printf("confirmed %d\n", i)
	}
}

func batch(text string) (all [][2]string) {
	for i := range 500 {
		all = append(all, [2]string{fmt.Sprintf("i%03d", i), text})
	}
	return all
}

// Whenever the broker is killed, of each apply all stands, and its revision, or
// nothing.
func TestKilledInAnApply(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "batch", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, confirmed := bufio.NewScanner(out), ""
	for lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "confirmed "); ok {
			if confirmed = n; n == "3" { // it goes on meanwhile
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := cmd.Wait(); err == nil || confirmed == "" {
		t.Fatalf("%q confirmed, then %v", confirmed, err)
	}
	s := open(t, dir)
	all, last, err := s.Resources(t.Context())
	if err != nil || len(all) != 500 {
		t.Fatalf("%d stand (%v)", len(all), err)
	}
	for _, r := range all {
		if r.Revision != last || string(r.Body) != string(all[0].Body) {
			t.Fatalf("%s is %q of revision %d, %s is %q of %d", r.Name, r.Body, r.Revision, all[0].Name, all[0].Body, last)
		}
	}
	revisions, _, err := s.Revisions(t.Context(), 0, "", "", 1)
	if err != nil || len(revisions) != 1 || revisions[0].Revision != last || len(string(all[0].Body)) < len(confirmed) {
		t.Errorf("revision %+v is the last of all, %d of the resources, which say %s (%v); confirmed is %s", revisions, last, all[0].Body, err, confirmed)
	}
}

// fullChild fills the database under RLIMIT_FSIZE, lifts the limit, and goes on
// without a restart.
func fullChild(t *testing.T, dir string) {
	s := open(t, dir)
	apply(t, s, "first")
	limit(t, 1<<20)
	refused := 0
	for i := range 100 {
		_, last, err := s.Resources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Apply(t.Context(), last, store.Act{Actor: "uid:0", What: "apply"}, []store.Change{{Kind: "Identity", Name: fmt.Sprintf("i%d", i), Owner: "team", Body: make([]byte, 16<<10)}})
		if err == nil {
			fmt.Printf("confirmed i%d\n", i)
			continue
		}
		refused++
		if !strings.Contains(err.Error(), "is there room on the disk") {
			t.Fatalf("the error is %v", err)
		}
	}
	if refused == 0 || refused == 100 {
		t.Fatalf("%d of 100 refused", refused)
	}
	limit(t, 64<<20)
	apply(t, s, "last")
	closeStore(t, s)
	fmt.Printf("confirmed first\nconfirmed last\n")
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

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	out, err := child(t, "full", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "confirmed "); ok {
			want[name] = true
		}
	}
	got := map[string]bool{}
	for _, name := range names(t, open(t, dir)) {
		got[name] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error("confirmed -, kept +:", d)
	}
}
