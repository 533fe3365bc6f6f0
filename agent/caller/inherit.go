package caller

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Inherit is Listen for a socket on which the service manager listens already,
// and hands over. It takes nothing but a listening Unix stream socket that is bound
// to path, whose mode there is no wider than asked. It closes file, whatever comes
// of it.
//
// Close leaves the socket in the file system: it is the manager's, and the next
// agent's. Callers are told as on one of our own.
func Inherit(file *os.File, path string, mode os.FileMode) (net.Listener, error) {
	l, err := inherit(file, path)
	if err := errors.Join(err, file.Close()); err != nil {
		if l != nil {
			_ = l.Close() // it is not ours
		}
		return nil, fmt.Errorf("taking socket %s over from the service manager: %w", path, err)
	}
	if err := checkMode(path, mode.Perm()); err != nil {
		return nil, fmt.Errorf("taking socket %s over from the service manager: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

func inherit(file *os.File, path string) (*net.UnixListener, error) {
	if err := listening(file); err != nil {
		return nil, err
	}
	made, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("what is handed over is no Unix stream socket: %w", err)
	}
	l, ok := made.(*net.UnixListener)
	if !ok || l.Addr().Network() != "unix" {
		return nil, errors.Join(fmt.Errorf("what is handed over is no Unix stream socket, but %s %s: ListenStream= wants that path", made.Addr().Network(), made.Addr()), made.Close())
	}
	l.SetUnlinkOnClose(false)
	abs, err := filepath.Abs(path)
	if err != nil {
		return l, err
	}
	if bound := l.Addr().String(); bound != abs {
		return l, fmt.Errorf("what is handed over is bound to %q: name the same path in ListenStream= and in agent.yaml", bound)
	}
	return l, nil
}

// listening says whether a descriptor is a socket on which somebody listens: the
// end of a connection isn't.
func listening(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var accepts int
	if e := raw.Control(func(fd uintptr) {
		accepts, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("what is handed over is no socket: %w", err)
	}
	if accepts == 0 {
		return errors.New("nobody listens on the socket that is handed over: ListenStream= and Accept=no are wanted")
	}
	return nil
}

func checkMode(path string, mode os.FileMode) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return fmt.Errorf("nobody can connect any more: %w: restart its socket unit", err)
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("what stands there now is no socket: restart its socket unit")
	case info.Mode().Perm()&^mode != 0:
		return fmt.Errorf("its mode is %#o: SocketMode=%#o is the widest", info.Mode().Perm(), mode)
	}
	return nil
}
