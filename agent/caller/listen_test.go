package caller_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/caller"
)

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct{ path, want string }{
		"too long":     {"/tmp/" + strings.Repeat("x", 108-len("/tmp/")), "limit is 10"},
		"empty":        {"", "path in the file system"},
		"abstract":     {"@credence", "path in the file system"},
		"a file":       {file, "no socket"},
		"below a file": {filepath.Join(file, "s"), "director"},
	} {
		l, err := caller.Listen(row.path, 0o666)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %q", name, err, row.want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}

func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, path string, mode os.FileMode) net.Listener {
	t.Helper()
	l, err := caller.Listen(path, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestListenMakesSocketAndDirectories(t *testing.T) {
	for _, mode := range []os.FileMode{0o600, 0o666} {
		path := filepath.Join(shortDir(t), "a", "b", "s")
		l := open(t, path, mode)
		for name, want := range map[string]os.FileMode{path: mode, filepath.Dir(path): 0o755, filepath.Dir(filepath.Dir(path)): 0o755} {
			info, err := os.Stat(name)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want %v", name, info.Mode().Perm(), err, want)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestListenRefusesLiveSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	open(t, path, 0o600)
	if _, err := caller.Listen(path, 0o600); err == nil || !strings.Contains(err.Error(), "is in use by a running process") {
		t.Fatalf("got %v", err)
	}
	c, err := net.Dial("unix", path) // and it was left alone
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	open(t, path, 0o600)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestCloseLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	first := open(t, path, 0o600)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	open(t, path, 0o600)
	first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}
