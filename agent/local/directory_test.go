package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/local"
)

// TestMain makes the test binary two programs besides: one that replaces a
// token file until it is killed, and one that uses Google's library.
func TestMain(m *testing.M) {
	if dir := os.Getenv(rotateIn); dir != "" {
		os.Exit(rotate(dir))
	}
	if os.Getenv(googleIs) != "" {
		os.Exit(googleToken())
	}
	os.Exit(m.Run())
}

const (
	rotateIn = "ROTATE_IN"
	googleIs = "GOOGLE_TOKEN"
)

func rotate(dir string) int {
	s, err := local.Open(context.Background(), local.Config{
		Dir: dir, UID: os.Getuid(), GID: os.Getgid(), Targets: []string{"azure"}, Source: clouds(),
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("rotating")
	for {
		s.Refresh(context.Background())
	}
}

// complete says whether a token is one that the source has handed out whole.
func complete(token string) bool {
	return strings.HasPrefix(token, "azure-true-") && strings.HasSuffix(token, "-end") && !strings.ContainsAny(token, "\r\n")
}

// The file is replaced whole: mode 0600, no newline, and who reads it all the
// time never finds a part of a token.
func TestL16TokenFile(t *testing.T) {
	s := opened(t, clouds(), []string{"azure"}, func(c *local.Config) { c.Dir = memory(t, c.Dir) })
	file := filepath.Join(s.dir, "azure.jwt")
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reads, seen := 0, map[string]bool{}
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			text, err := os.ReadFile(file)
			if err != nil || !complete(string(text)) {
				t.Errorf("a reader finds %.40q of %d bytes, %v", text, len(text), err)
				return
			}
			reads++
			seen[string(text)] = true
		}
	})
	for range 1000 {
		s.Refresh(t.Context())
	}
	close(stop)
	reading.Wait()
	if reads < 100 || len(seen) < 10 {
		t.Errorf("only %d reads, of %d tokens: that shows nothing", reads, len(seen))
	}
	info, err := os.Lstat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if d, err := os.Lstat(s.dir); err != nil || d.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", d.Mode(), err)
	}
}

// memory is a directory on no disk, where there is such a thing: a thousand
// syncs take their time.
func memory(t *testing.T, otherwise string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "credence-test-")
	if err != nil {
		return otherwise
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run")
}

func TestL17KilledWhileItRotates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	for range 5 {
		program := exec.Command(os.Args[0])
		program.Env = append(os.Environ(), rotateIn+"="+dir)
		out, err := program.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		var line [9]byte
		if _, err := out.Read(line[:]); err != nil || string(line[:8]) != "rotating" {
			t.Fatalf("%q, %v", line, err)
		}
		<-time.After(3 * time.Millisecond) // into the midst of it
		if err := program.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = program.Wait() // killed
		if text, err := os.ReadFile(filepath.Join(dir, "azure.jwt")); err != nil || !complete(string(text)) {
			t.Fatalf("after it was killed: %.40q, %v", text, err)
		}
	}
	// The next one takes the directory up, and clears what was half made.
	s := opened(t, clouds(), []string{"azure"}, func(c *local.Config) { c.Dir = dir })
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// Nothing is written through a link, and what somebody put in a file's place
// is replaced.
func TestFilesAreNotWrittenThroughLinks(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := func() {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, "azure.jwt"))
		if err := os.Symlink(elsewhere, filepath.Join(dir, "azure.jwt")); err != nil {
			t.Fatal(err)
		}
	}
	link()
	s := opened(t, clouds(), []string{"azure"}, func(c *local.Config) { c.Dir = dir })
	for range 2 {
		info, err := os.Lstat(filepath.Join(dir, "azure.jwt"))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("the file is %v, %v", info.Mode(), err)
		}
		if text, err := os.ReadFile(elsewhere); err != nil || string(text) != "theirs" {
			t.Errorf("what the link led to is %q, %v", text, err)
		}
		link()
		s.Refresh(t.Context())
	}
}

// The same token is written again where the file was changed by others.
func TestAFileIsPutRight(t *testing.T) {
	from := clouds()
	s := opened(t, from, []string{"orders"}) // whose token stays the same
	file := filepath.Join(s.dir, "orders.token")
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	s.Refresh(t.Context())
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("a file that is as it should be was replaced: %v", err)
	}
	for name, spoil := range map[string]func() error{
		"readable by all": func() error { return os.Chmod(file, 0o644) },
		"gone":            func() error { return os.Remove(file) },
		"cut":             func() error { return os.Truncate(file, 3) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		s.Refresh(t.Context())
		info, err := os.Lstat(file)
		if err != nil || info.Mode() != 0o600 || s.read("orders.token") != "secret-token" {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestADirectoryThatIsNotOursIsRefused(t *testing.T) {
	base := t.TempDir()
	real := filepath.Join(base, "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	link, file, open := filepath.Join(base, "link"), filepath.Join(base, "file"), filepath.Join(base, "open")
	if err := errors.Join(os.Symlink(real, link), os.WriteFile(file, nil, 0o600), os.Mkdir(open, 0o700), os.Chmod(open, 0o770)); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"a link": link, "a file": file, "others may write": open, "no parent": filepath.Join(base, "no", "parent")} {
		s, err := local.Open(t.Context(), local.Config{Dir: dir, UID: os.Getuid(), GID: os.Getgid(), Targets: []string{"orders"}, Source: clouds()})
		if err == nil {
			t.Errorf("%s is taken: %v", name, s.Close())
		}
	}
	if entries, err := os.ReadDir(real); err != nil || len(entries) > 0 {
		t.Errorf("behind the link are %v, %v", entries, err)
	}
}

// nobody is a user that a test may be given as another's.
const nobody = 65534

// Files for another user are his, in a directory that he can't change; and it
// is his sockets that connect, not ours.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make another's files")
	}
	base := t.TempDir()
	s := opened(t, clouds(), []string{"azure", "anywhere"}, func(c *local.Config) { c.Dir, c.UID, c.GID = filepath.Join(base, "run"), nobody, nobody })
	for _, name := range []string{"azure.jwt", "anywhere.container"} {
		info, err := os.Lstat(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		if owner.Uid != nobody || owner.Gid != nobody || info.Mode() != 0o600 {
			t.Errorf("%s is of %d:%d, %s", name, owner.Uid, owner.Gid, info.Mode())
		}
	}
	if info, err := os.Lstat(s.dir); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 || info.Mode().Perm() != 0o711 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
	for _, target := range []string{"azure", "anywhere"} {
		if got, _, body := do(t, s.endpoint(target).request(t)); got != 403 || strings.Contains(body, "secret") {
			t.Errorf("another user with the secret: %d %s", got, body)
		}
	}
	if curl, err := exec.LookPath("curl"); err == nil {
		e := s.endpoint("anywhere")
		program := exec.Command(curl, "-s", "-H", e.header+": "+e.secret, e.url)
		program.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, err := program.Output(); err != nil || !strings.Contains(string(out), "secret-key") {
			t.Errorf("the user himself: %s, %v", out, err)
		}
	}
}

func TestANonRootUserCannotWriteForOthers(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can")
	}
	if s, err := local.Open(t.Context(), local.Config{Dir: filepath.Join(t.TempDir(), "run"), UID: os.Getuid() + 1, Targets: []string{"orders"}, Source: clouds()}); err == nil {
		t.Error(s.Close())
	}
}

var _ local.Source = (*source)(nil)
