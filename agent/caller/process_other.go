//go:build !linux

package caller

import (
	"errors"
	"net"
	"os"
	"runtime"
)

var errSystem = errors.New("attesting callers needs Linux: " + runtime.GOOS + " gives no descriptor of the process at a socket's other end")

// A Process is the process at the other end of one connection. There is none
// on this system.
type Process struct{}

// FromConn refuses: it needs Linux.
func FromConn(*net.UnixConn) (*Process, error) { return nil, errSystem }

// Open refuses: it needs Linux.
func Open(int) (*Process, error) { return nil, errSystem }

// PID returns 0, which is nobody's.
func (p *Process) PID() int { return 0 }

// UID returns the id -1, which is nobody's.
func (p *Process) UID() uint32 { return 1<<32 - 1 }

// GID returns the id -1, which is nobody's.
func (p *Process) GID() uint32 { return 1<<32 - 1 }

// ExecutableKnown returns false.
func (p *Process) ExecutableKnown() bool { return false }

// Check refuses: it needs Linux.
func (p *Process) Check() error { return errSystem }

// Groups refuses: it needs Linux.
func (p *Process) Groups() ([]uint32, error) { return nil, errSystem }

// Cgroups fails.
func (p *Process) Cgroups() (cgroup, mountinfo []byte, err error) { return nil, nil, errSystem }

// Path refuses: it needs Linux.
func (p *Process) Path() (string, error) { return "", errSystem }

// Executable refuses: it needs Linux.
func (p *Process) Executable() (path string, f *os.File, err error) { return "", nil, errSystem }

// Root refuses: it needs Linux.
func (p *Process) Root() (*os.File, error) { return nil, errSystem }

// Close does nothing.
func (p *Process) Close() error { return nil }
