package caller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Listen listens on a Unix socket at path, which gets exactly mode. It makes
// the missing directories above it (0755), and replaces a socket that nobody
// listens on any more; one in use, and anything that is no socket, is refused.
// Close removes the socket.
//
// A socket of 0666 is for workloads: each uid may connect, and policy refuses.
func Listen(path string, mode os.FileMode) (net.Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("making the directory of socket %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	return bind(path, mode.Perm())
}

func checkPath(path string) error {
	if path == "" || path[0] == '@' {
		return fmt.Errorf("listening on socket %q: it needs a path in the file system, where its mode guards it", path)
	}
	if len(path) > maxPath {
		return fmt.Errorf("listening on socket %s: its path is %d bytes long, and the system's limit is %d: name a shorter one, or a shorter data directory", path, len(path), maxPath)
	}
	return nil
}

// makeDirs is os.MkdirAll, but for the umask: other uids must get to the socket.
func makeDirs(dir string) error {
	if info, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		return err
	}
	if err := makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil // another daemon's start made it
		}
		return err
	}
	return os.Chmod(dir, 0o755)
}

// removeStale removes a socket on which nobody listens. Only a refused
// connection proves that: a full queue or a missing permission doesn't.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listening on socket %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listening on socket %s: what stands there is no socket: move it away, or name another path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("socket %s is in use by a running process: stop it, or name another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("asking whether socket %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing stale socket %s: %w", path, err)
	}
	return nil
}

func bind(path string, mode os.FileMode) (net.Listener, error) {
	// On Linux the new socket gets its descriptor's mode less the umask, so it
	// never stands wider open than asked. Elsewhere this call fails, and the
	// Chmod below is all.
	restrict := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode)) })
	}
	l, err := (&net.ListenConfig{Control: restrict}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on socket %s: %w", path, err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	if err := os.Chmod(path, mode); err != nil {
		return nil, fmt.Errorf("setting the mode of socket %s: %w", path, errors.Join(err, l.Close(), os.Remove(path)))
	}
	own, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("listening on socket %s: %w", path, errors.Join(err, l.Close()))
	}
	return &listener{UnixListener: ul, path: path, own: own}, nil
}

// A listener removes its own socket on Close, and not one that another process
// put in its place.
type listener struct {
	*net.UnixListener
	path string
	own  os.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(l.own, now) {
			_ = os.Remove(l.path) // a socket that stays is found stale next time
		}
	})
	return l.UnixListener.Close()
}
