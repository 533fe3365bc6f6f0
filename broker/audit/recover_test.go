package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// place makes a record's directory of these files.
func place(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const one = "000000000001.jsonl"

// TestCrashAtEveryByte cuts the last write, of two records, at each byte.
func TestCrashAtEveryByte(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	refs := add(t, l, event(0))
	before := len(read(t, filepath.Join(dir, one)))
	refs = append(refs, add(t, l, event(1), event(2))...)
	whole := read(t, filepath.Join(dir, one))
	second := before + bytes.IndexByte(whole[before:], '\n') + 1

	for cut := before; cut <= len(whole); cut++ {
		want := 1
		if cut >= second {
			want = 2
		}
		if cut == len(whole) {
			want = 3
		}
		for tail, zeros := range map[string]int{"cut": 0, "zeros": len(whole) - cut} {
			if tail == "zeros" && (zeros == 0 || cut%8 != 0) {
				continue
			}
			dir := place(t, map[string][]byte{one: append(bytes.Clone(whole[:cut]), make([]byte, zeros)...)})
			if r := verified(t, dir); r.Records != uint64(want) {
				t.Fatalf("%s at %d: %d records verified, want %d", tail, cut, r.Records, want)
			}
			l, err := audit.OpenOn(newDisk(nil), audit.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if l.Head() != refs[want-1] {
				t.Fatalf("%s at %d: head is %s, want %s", tail, cut, l.Head().ID(), refs[want-1].ID())
			}
			after := want
			if cut%16 == 0 {
				add(t, l, event(9))
				after++
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if r := verified(t, dir); r.Records != uint64(after) || r.Torn != 0 {
				t.Fatalf("%s at %d: after restart %+v", tail, cut, r)
			}
		}
	}
}

func TestCrashAtTheStartOfAFile(t *testing.T) {
	for name, tail := range map[string]string{"empty": "", "torn": `{"sequence":4,"ti`, "zeros": "\x00\x00\n\x00"} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			refs := fill(t, audit.Config{Dir: dir}, 3)
			if err := os.WriteFile(filepath.Join(dir, "000000000004.jsonl"), []byte(tail), 0o600); err != nil {
				t.Fatal(err)
			}
			var logged strings.Builder
			l := open(t, audit.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&logged, nil))})
			if (logged.Len() > 0) != (tail != "") {
				t.Errorf("logged %q", &logged)
			}
			refs = append(refs, add(t, l, event(3))...)
			if r := verified(t, dir, refs...); r.Files != 2 {
				t.Errorf("report is %+v", r)
			}
		})
	}
	t.Run("the first", func(t *testing.T) {
		dir := place(t, map[string][]byte{one: []byte(`{"seq`)})
		add(t, open(t, audit.Config{Dir: dir}), event(0))
		verified(t, dir)
	})
}

// TestEachActFails lets each act of the disk fail in turn, once, twice and
// three times running, and asks each time that what was confirmed is there and
// what was refused is not.
func TestEachActFails(t *testing.T) {
	for _, cause := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		for times := 1; times <= 3; times++ {
			failed := true
			for n := 1; failed; n++ {
				failed = false
				name := fmt.Sprintf("%v from act %d, %d times", cause, n, times)
				disk := newDisk(func(_ string, act int) error {
					if act >= n && act < n+times {
						failed = true
						return cause
					}
					return nil
				})
				testWithFaults(t, name, disk, cause)
			}
		}
	}
}

func testWithFaults(t *testing.T, name string, disk *faultyDisk, cause error) {
	t.Helper()
	dir := newDir(t)
	c := audit.Config{Dir: dir, MaxBytes: 1200}
	l, err := audit.OpenOn(disk, c)
	for tries := 0; err != nil; tries++ {
		if !errors.Is(err, cause) || tries > 4 {
			t.Fatalf("%s: open: %v", name, err)
		}
		l, err = audit.OpenOn(disk, c)
	}
	var want []string
	var known []audit.Ref
	healthy := 0
	for i := 0; i < 14 || healthy < 3; i++ {
		refs, err := l.Append(t.Context(), event(2*i), event(2*i+1))
		if err == nil {
			want, known = append(want, event(2*i).Serial, event(2*i+1).Serial), append(known, refs...)
			healthy++
			continue
		}
		if healthy = 0; i > 20 {
			t.Fatalf("%s: it does not recover", name)
		}
		if !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, cause) || !strings.Contains(err.Error(), dir) {
			t.Fatalf("%s: append: %v", name, err)
		}
		if errors.Is(err, audit.ErrFull) != (cause == syscall.ENOSPC) {
			t.Fatalf("%s: is it full? %v", name, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatalf("%s: close: %v", name, err)
	}
	l = open(t, c) // the real disk
	known = append(known, add(t, l, event(99))...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(want, event(99).Serial), serials(t, dir)); diff != "" {
		t.Fatalf("%s: records (-confirmed +found):\n%s", name, diff)
	}
	verified(t, dir, known...)
}

// TestAfterFailedSyncANewFile: what was not synced may be in the page cache,
// marked clean. Nothing new may share a page with it.
func TestAfterFailedSyncANewFile(t *testing.T) {
	dir := newDir(t)
	fail := false
	disk := newDisk(func(act string, _ int) error {
		if act == "sync" && fail {
			fail = false
			return syscall.EIO
		}
		return nil
	})
	l, err := audit.OpenOn(disk, audit.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	add(t, l, event(1))
	size := len(read(t, filepath.Join(dir, one)))
	fail = true
	if _, err := l.Append(t.Context(), event(2)); !errors.Is(err, audit.ErrUnavailable) || errors.Is(err, audit.ErrFull) {
		t.Fatalf("append: %v", err)
	}
	if got := len(read(t, filepath.Join(dir, one))); got != size {
		t.Errorf("the file has %d bytes after the failure, want %d", got, size)
	}
	add(t, l, event(3))
	if got := len(read(t, filepath.Join(dir, one))); got != size {
		t.Errorf("the old file was written on")
	}
	if r := verified(t, dir); r.Files != 2 || r.Records != 2 {
		t.Errorf("report is %+v", r)
	}
}

// TestOtherHands lets somebody else touch the file while it is written.
func TestOtherHands(t *testing.T) {
	rename := func(t *testing.T, path string) {
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
	}
	for name, touch := range map[string]func(*testing.T, string){
		"taken away": rename,
		"replaced": func(t *testing.T, path string) {
			b := read(t, path)
			rename(t, path)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, path string) {
			if err := os.Truncate(path, 10); err != nil {
				t.Fatal(err)
			}
		},
		"lengthened": func(t *testing.T, path string) {
			if err := os.WriteFile(path, append(read(t, path), "{}\n"...), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			l := open(t, audit.Config{Dir: dir})
			add(t, l, event(1))
			touch(t, filepath.Join(dir, one))
			for range 2 {
				if _, err := l.Append(t.Context(), event(2)); !errors.Is(err, audit.ErrUnavailable) {
					t.Fatalf("append: %v", err)
				}
			}
		})
	}
}
