package output_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/agent/output"
)

// place is a directory that no other can change: the test's own may lie below
// one with other modes.
func place(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// memory is a place on a file system in memory, as /run is; empty: there is
// none, and each rotation waits for a disk.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "credence-test-")
	if err != nil {
		return ""
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func self() output.Owner {
	return output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

func newSet(t *testing.T, dir string) *output.Set {
	t.Helper()
	s, err := output.NewSet(dir, self())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func file(name, data string, mode os.FileMode) output.File {
	return output.File{Name: name, Data: []byte(data), Mode: mode}
}

func replace(t *testing.T, s *output.Set, files ...output.File) uint64 {
	t.Helper()
	n, err := s.Replace(files)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSetReplaces(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(place(t), "new", "tls")
	s := newSet(t, dir)
	if n := replace(t, s, file("a", "1", 0o600), file("b", "1", 0o644)); n != 1 {
		t.Errorf("generation %d", n)
	}
	link, err := os.Lstat(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	// Another run of the agent goes on counting.
	if n := replace(t, newSet(t, dir), file("a", "2", 0o600), file("c", "2", 0o640)); n != 2 {
		t.Errorf("generation %d", n)
	}
	if got := read(t, dir, "a") + read(t, dir, "c") + read(t, dir, "generation"); got != "222\n" {
		t.Errorf("files are %q", got)
	}
	if again, err := os.Lstat(filepath.Join(dir, "a")); err != nil || !os.SameFile(link, again) {
		t.Errorf("the link itself changed: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link to what is gone: %v", err)
	}
	for name, want := range map[string]os.FileMode{"a": 0o600, "c": 0o640, ".": 0o755, "generation": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info.Mode(), err, want)
		}
	}
	for n := range 5 {
		replace(t, s, file("a", strconv.Itoa(n), 0o600))
	}
	if got := versions(t, dir); len(got) != 2 {
		t.Errorf("%v stand, want two", got)
	}
}

func versions(t *testing.T, dir string) (all []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "..v*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// An erasure leaves nothing but the number, which goes on.
func TestSetErases(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(place(t), "tls")
	s := newSet(t, dir)
	replace(t, s, file("key", "secret", 0o600))
	replace(t, s, file("key", "secret", 0o600))
	if n := replace(t, s); n != 3 {
		t.Errorf("generation %d", n)
	}
	var left []string
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			left = append(left, filepath.Base(path))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"generation"}, left); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Lstat(filepath.Join(dir, "key")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link stands")
	}
	if n := replace(t, s); n != 3 {
		t.Errorf("erased twice: generation %d", n)
	}
	if n := replace(t, s, file("key", "new", 0o600)); n != 4 {
		t.Errorf("generation %d", n)
	}
}

// Mode and owner are asserted whatever stood there; what was there by another
// hand is replaced, and what a link led to is not touched.
func TestSetAssertsModeAndFollowsNoLink(t *testing.T) { // it sets the umask: not beside others
	base := place(t)
	dir := filepath.Join(base, "tls")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(base, "victim")
	for path, mode := range map[string]os.FileMode{victim: 0o644, filepath.Join(dir, "wide"): 0o777, filepath.Join(dir, "narrow"): 0o444} {
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"key", "..data", "..next-000000"} {
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	old := syscall.Umask(0o077)
	replace(t, newSet(t, dir), file("key", "new", 0o600), file("wide", "new", 0o600), file("narrow", "new", 0o644))
	syscall.Umask(old)
	if got := read(t, victim); got != "old" {
		t.Errorf("what the link led to now holds %q", got)
	}
	for name, want := range map[string]os.FileMode{"key": 0o600, "wide": 0o600, "narrow": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want || read(t, dir, name) != "new" {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
}

func TestSetOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		dir := filepath.Join(place(t), "tls")
		s, err := output.NewSet(dir, output.Owner{UID: uint32(os.Geteuid()) + 1, GID: uint32(os.Getegid())})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Replace([]output.File{file("key", "k", 0o600)}); err == nil || len(versions(t, dir)) != 0 {
			t.Errorf("a file is not the output's: %v", err)
		}
		return
	}
	dir := filepath.Join(place(t), "tls")
	s, err := output.NewSet(dir, output.Owner{UID: 33, GID: 34})
	if err != nil {
		t.Fatal(err)
	}
	replace(t, s, file("key", "k", 0o600))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "key"), &st); err != nil || st.Uid != 33 || st.Gid != 34 || st.Mode&0o7777 != 0o600 {
		t.Errorf("%d:%d %o %v", st.Uid, st.Gid, st.Mode, err)
	}
	// What it holds cannot be swapped by whom it is for.
	if err := unix.Stat(dir+"/..data/", &st); err != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
		t.Errorf("the version's directory: %d %o %v", st.Uid, st.Mode, err)
	}
}

func TestSetRefusesWhatOthersCanChange(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, base, dir string){
		"writable by all": func(t *testing.T, _, dir string) { chmod(t, dir, 0o777) },
		"writable by all and sticky, as its own place": func(t *testing.T, _, dir string) { chmod(t, dir, 0o777|os.ModeSticky) },
		"writable by a group": func(t *testing.T, _, dir string) {
			chmod(t, dir, 0o775)
			chown(t, dir, os.Geteuid(), 4242)
		},
		"below one writable by all": func(t *testing.T, base, _ string) { chmod(t, base, 0o777) },
		"another's":                 func(t *testing.T, _, dir string) { chown(t, dir, 4242, 4242) },
		"below another's":           func(t *testing.T, base, _ string) { chown(t, base, 4242, 4242) },
		"another's link": func(t *testing.T, base, dir string) {
			swap(t, base, dir)
			lchown(t, dir)
		},
		"below another's link": func(t *testing.T, base, _ string) {
			swap(t, filepath.Dir(base), base)
			lchown(t, base)
		},
		"a link among what others wrote": func(t *testing.T, base, dir string) {
			swap(t, base, dir)
			chmod(t, base, 0o777|os.ModeSticky)
		},
		"a circle of links": func(t *testing.T, base, dir string) {
			if err := errors.Join(os.Remove(dir), os.Symlink("tls", dir)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(place(t), "base")
			dir := filepath.Join(base, "tls")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			chmod(t, base, 0o755)
			spoil(t, base, dir)
			if _, err := newSet(t, dir).Replace([]output.File{file("key", "secret", 0o600)}); err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("taken: %v", err)
			}
			if left := versions(t, dir); len(left) > 0 {
				t.Errorf("written: %v", left)
			}
		})
	}
	// A link of root's or our own is as good as a directory (/var/run).
	base := filepath.Join(place(t), "base")
	if err := os.MkdirAll(filepath.Join(base, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(t, base, 0o755)
	swap(t, base, filepath.Join(base, "run"))
	replace(t, newSet(t, filepath.Join(base, "run", "tls")), file("key", "k", 0o600))
	// Below a sticky one (/tmp) is fine: nobody can touch what isn't theirs.
	base = filepath.Join(place(t), "tmp")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(t, base, 0o777|os.ModeSticky)
	replace(t, newSet(t, filepath.Join(base, "tls")), file("key", "k", 0o600))
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid, gid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories away")
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func lchown(t *testing.T, link string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root gives links away")
	}
	if err := os.Lchown(link, 4242, 4242); err != nil {
		t.Fatal(err)
	}
}

// swap puts a link in the place of a directory.
func swap(t *testing.T, in, dir string) {
	t.Helper()
	real := filepath.Join(in, "real")
	if err := errors.Join(os.Rename(dir, real), os.Symlink(real, dir)); err != nil {
		t.Fatal(err)
	}
}

func TestPathsAndNames(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/", "tls", "./tls", "/run/../etc", "/run//tls", "/run/tls/", "/run/./tls"} {
		if _, err := output.NewSet(path, self()); err == nil {
			t.Errorf("the path %q is taken", path)
		}
	}
	s := newSet(t, filepath.Join(place(t), "tls"))
	for _, name := range []string{"", ".", "..", "..data", "a/b", "../a", ".hidden", "generation", "a b", "a\nb", strings.Repeat("a", 129)} {
		if _, err := s.Replace([]output.File{file(name, "", 0o600)}); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
}

// TestReadersSeeWholePairs has readers at 10 kHz and more, by each of the
// documented ways, beside 1,000 rotations.
func TestReadersSeeWholePairs(t *testing.T) {
	t.Parallel()
	base, rotations := memory(t), 1000
	if base == "" {
		base, rotations = place(t), 50
	}
	dir := filepath.Join(base, "tls")
	s := newSet(t, dir)
	body := func(n int) string { return fmt.Sprintf("%d %s", n, bytes.Repeat([]byte{'x'}, 2000)) }
	put := func(n int) {
		replace(t, s, file("key", body(n), 0o600), file("chain", body(n), 0o644), file("both", body(n)+body(n), 0o600))
	}
	put(0)
	stop := make(chan struct{})
	var reads atomic.Int64
	var readers sync.WaitGroup
	reader := func(pair func() (key, chain string, ok bool)) {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				key, chain, ok := pair()
				if !ok {
					continue
				}
				reads.Add(1)
				if key != chain || len(key) < 2000 {
					t.Errorf("a key of %.9q (%d bytes) with a chain of %.9q (%d)", key, len(key), chain, len(chain))
					return
				}
			}
		})
	}
	reader(func() (string, string, bool) { // below one descriptor
		at, err := os.OpenRoot(filepath.Join(dir, "..data"))
		if errors.Is(err, fs.ErrNotExist) {
			return "", "", false // two rotations passed between the link and what it named
		}
		if err != nil {
			t.Error(err)
			return "", "", false
		}
		defer at.Close()
		key, err := at.ReadFile("key")
		chain, err2 := at.ReadFile("chain")
		return string(key), string(chain), errors.Join(err, err2) == nil // two rotations passed
	})
	reader(func() (string, string, bool) { // between two looks at the generation
		before, err := os.ReadFile(filepath.Join(dir, "generation"))
		key, err1 := os.ReadFile(filepath.Join(dir, "key"))
		chain, err2 := os.ReadFile(filepath.Join(dir, "chain"))
		after, err3 := os.ReadFile(filepath.Join(dir, "generation"))
		return string(key), string(chain), errors.Join(err, err1, err2, err3) == nil && bytes.Equal(before, after)
	})
	reader(func() (string, string, bool) { // of one file
		both, err := os.ReadFile(filepath.Join(dir, "both"))
		return string(both[:len(both)/2]), string(both[len(both)/2:]), err == nil
	})
	began := time.Now()
	for n := range rotations {
		put(n + 1)
	}
	took := time.Since(began)
	close(stop)
	readers.Wait()
	rate := float64(reads.Load()) / took.Seconds()
	t.Logf("%d rotations in %s, %d pairs read: %.0f a second", rotations, took.Round(time.Millisecond), reads.Load(), rate)
	if reads.Load() < int64(rotations) {
		t.Errorf("%d pairs were read", reads.Load())
	}
}
