package caller_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/agent/caller"
)

// handed is a socket as the service manager made it, and its descriptor as it
// comes to us.
func handed(t *testing.T, network, path string, mode os.FileMode) *os.File {
	t.Helper()
	l, err := net.Listen(network, path)
	if err != nil {
		t.Fatal(err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	defer l.Close()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInherit(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	f := handed(t, "unix", path, 0o660)
	l, err := caller.Inherit(f, path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if f.Fd() != ^uintptr(0) {
		t.Error("what was handed over is still open")
	}
	for range 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := theirs.(*net.UnixConn); !ok {
			t.Errorf("a connection is a %T, whose caller nobody can tell", theirs)
		}
		c.Close()
		theirs.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the manager's socket went with us: %v", err)
	}
}

func TestInheritRefuses(t *testing.T) {
	dir := shortDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	pair := func() *os.File {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[1])
		return os.NewFile(uintptr(fds[0]), "pair")
	}
	file, err := os.Create(at("file"))
	if err != nil {
		t.Fatal(err)
	}
	gone := handed(t, "unix", at("gone"), 0o666)
	if err := os.Remove(at("gone")); err != nil {
		t.Fatal(err)
	}
	replaced := handed(t, "unix", at("replaced"), 0o666)
	if err := os.Remove(at("replaced")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("replaced"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file *os.File
		path string
		want string
	}{
		"another path":         {handed(t, "unix", at("other"), 0o600), at("s"), "bound to"},
		"too wide":             {handed(t, "unix", at("wide"), 0o666), at("wide"), "SocketMode=0600 is the widest"},
		"TCP":                  {handed(t, "tcp", "127.0.0.1:0", 0), at("s"), "no Unix stream socket"},
		"packets":              {handed(t, "unixpacket", at("packet"), 0o600), at("packet"), "no Unix stream socket"},
		"an end of connection": {pair(), at("s"), "nobody listens"},
		"no socket":            {file, at("file"), "no socket"},
		"removed since":        {gone, at("gone"), "restart its socket unit"},
		"a file instead":       {replaced, at("replaced"), "what stands there now is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := caller.Inherit(c.file, c.path, 0o600)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v; want one line with %q", err, c.want)
			}
			if c.file.Fd() != ^uintptr(0) {
				t.Error("what was handed over is still open")
			}
		})
	}
}
