package caller

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Process is the process at the other end of one connection. It is safe for
// concurrent use and must be closed.
type Process struct {
	pid      int
	uid, gid uint32
	start    uint64
	exe      fileID
	exeKnown bool

	mu     sync.Mutex // guards the descriptors below: Close must not pull one away under Check
	pidfd  int        // -1 where the kernel has none: then dir alone binds us to the process
	dir    int        // /proc/PID: bound to the process, not to its number
	pin    int        // the executable, so that its inode is not given to another file; or -1
	closed bool
	buf    []byte // what was read last
}

// FromConn returns the process that connected c, as the kernel recorded it at
// connect. It refuses a process without a pid here (one of a PID namespace that
// we cannot see), and returns ErrGone for one that has ended.
func FromConn(c *net.UnixConn) (*Process, error) {
	return fromConn(c, peerPIDFD, openPIDFD)
}

// Open returns the process with that pid, for an operator who asks about it:
// its ids are its effective ones now. Only a connection says who calls.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("opening process %d: a pid is greater than zero", pid)
	}
	p, err := openProcess(procRoot, pid, func() (int, error) { return openPIDFD(pid) })
	if err != nil {
		return nil, err
	}
	ids, err := p.status()
	if err != nil {
		p.Close()
		return nil, err
	}
	p.uid, p.gid = ids.uid, ids.gid
	return p, nil
}

func fromConn(c *net.UnixConn, peer func(sock int) (int, error), open func(pid int) (int, error)) (*Process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reading the caller of a socket: %w", err)
	}
	var p *Process
	var perr error
	if err := raw.Control(func(fd uintptr) { p, perr = fromSocket(int(fd), peer, open) }); err != nil {
		return nil, fmt.Errorf("reading the caller of a socket: %w", err)
	}
	return p, perr
}

func fromSocket(sock int, peer func(int) (int, error), open func(int) (int, error)) (*Process, error) {
	cred, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("reading the caller of a socket: %w", err)
	}
	if cred.Pid <= 0 {
		return nil, errors.New("reading the caller of a socket: it has no pid here: it lives in a PID namespace that this process cannot see")
	}
	pid := int(cred.Pid)
	fallback := false
	p, err := openProcess(procRoot, pid, func() (int, error) {
		fd, err := peer(sock)
		if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.5
			fallback = true
			return open(pid)
		}
		return fd, err
	})
	if err != nil {
		return nil, err
	}
	p.uid, p.gid = cred.Uid, cred.Gid
	if fallback {
		// The number may have been given away between connect and here. A
		// process of the same uid would pass, which the kernel heals in 6.5.
		if ids, err := p.status(); err != nil || ids.uid != cred.Uid {
			p.Close()
			return nil, fmt.Errorf("process %d is not the one that connected: %w", pid, errors.Join(ErrGone, err))
		}
	}
	return p, nil
}

// openProcess binds to process pid. pidfd must return a descriptor of the
// process meant, or -1 where the kernel has none.
func openProcess(proc string, pid int, pidfd func() (int, error)) (_ *Process, err error) {
	p := &Process{pid: pid, pidfd: -1, dir: -1, pin: -1}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.dir, err = openDir(proc, pid); err != nil {
		return nil, err
	}
	if p.pidfd, err = pidfd(); err != nil {
		return nil, p.reading("", err)
	}
	// The directory was opened by number. The pidfd's process living still, the
	// number is its own, and so the directory is.
	if err := p.alive(); err != nil {
		return nil, err
	}
	if err := sameProc(proc, p.pidfd, pid); err != nil {
		return nil, err
	}
	if p.pidfd < 0 {
		if p.start, err = p.startTime(); err != nil {
			return nil, err
		}
	}
	return p, p.pinExecutable()
}

func openDir(proc string, pid int) (int, error) {
	name := fmt.Sprintf("%s/%d", proc, pid)
	dir, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if gone(err) {
		return -1, fmt.Errorf("opening %s (mounted with hidepid, it shows only one's own): %w", name, ErrGone)
	}
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", name, err)
	}
	return dir, nil
}

// PID returns the process's id, as the kernel said at connect.
func (p *Process) PID() int { return p.pid }

// UID returns the process's effective uid, as the kernel said at connect.
func (p *Process) UID() uint32 { return p.uid }

// GID returns the process's effective gid, as the kernel said at connect.
func (p *Process) GID() uint32 { return p.gid }

// ExecutableKnown says whether the executable could be read at connect. If
// not, Executable refuses, and Check can't see an exec.
func (p *Process) ExecutableKnown() bool { return p.exeKnown }

// Check says whether the process is still the one that connected: it lives
// (without a pidfd: has the same start time) and runs the same executable
// (device and inode). Else it
// returns an error that wraps ErrGone or ErrChanged. It does not block.
func (p *Process) Check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.check()
}

func (p *Process) check() error {
	if p.closed {
		return fmt.Errorf("process %d: its connection is closed: %w", p.pid, ErrGone)
	}
	if err := p.sameStart(); err != nil {
		return err
	}
	if err := p.sameExecutable(); err != nil {
		return err
	}
	return p.alive() // last: what was read above was read of a living process
}

// sameStart compares the start time where the kernel has no pidfd. With one it
// can't differ: dir was shown to be of the pidfd's process when it was opened,
// and a descriptor in /proc never passes to the next process of a number.
func (p *Process) sameStart() error {
	if p.pidfd >= 0 {
		return nil
	}
	start, err := p.startTime()
	if err != nil {
		return err
	}
	if start != p.start {
		return fmt.Errorf("pid %d was given to another process: %w", p.pid, ErrGone)
	}
	return nil
}

func (p *Process) sameExecutable() error {
	now, err := statExecutable(p.dir)
	switch {
	case gone(err):
		return p.reading("exe", err)
	case err != nil && !p.exeKnown:
		return nil
	case err != nil || !p.exeKnown || now != p.exe: // readable once and not the other time: not the same either
		return fmt.Errorf("process %d: %w", p.pid, ErrChanged)
	}
	return nil
}

// Groups returns the process's supplementary groups.
func (p *Process) Groups() ([]uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(); err != nil {
		return nil, err
	}
	ids, err := p.status()
	return ids.groups, err
}

// Cgroups returns the texts of the process's /proc/PID/cgroup and mountinfo, as
// seen from our own cgroup namespace. The process makes its mounts: they prove
// nothing.
func (p *Process) Cgroups() (cgroup, mountinfo []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := p.read("cgroup")
	if err != nil {
		return nil, nil, err
	}
	cgroup = slices.Clone(text)
	if mountinfo, err = p.read("mountinfo"); err != nil {
		return nil, nil, err
	}
	return cgroup, slices.Clone(mountinfo), p.check()
}

// Path returns the path of the executable, if it leads here, in our own mount
// namespace, to the very file that the process runs: otherwise any user could
// mount a program of theirs under a trusted name in a namespace of their own.
// It refuses what Executable does.
func (p *Process) Path() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	path, err := p.path()
	if err != nil {
		return "", err
	}
	if here, err := statx(unix.AT_FDCWD, path, 0); err != nil || here != p.exe {
		return "", errors.Join(fmt.Errorf("%s is another file here than what process %d runs", path, p.pid), err)
	}
	return path, nil
}

// path is the kernel's word for where the executable is.
func (p *Process) path() (string, error) {
	if err := p.check(); err != nil {
		return "", err
	}
	if !p.exeKnown {
		return "", fmt.Errorf("the executable of process %d could not be read when it connected: run as root or as uid %d: %w", p.pid, p.uid, fs.ErrPermission)
	}
	path, err := p.readExecutable()
	if err != nil {
		return "", p.reading("exe", err)
	}
	if strings.HasSuffix(path, " (deleted)") {
		return "", fmt.Errorf("the executable of process %d was deleted or replaced while it ran: restart it: %q", p.pid, path)
	}
	return path, nil
}

// Executable opens the very file that the process runs, for the caller to
// close. The path is the kernel's, seen from the process's own mount namespace:
// it proves nothing until it is compared with the file. It refuses an
// executable that was deleted, one that could not be read at connect, and a
// process that fails Check.
func (p *Process) Executable() (path string, f *os.File, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path, err = p.path(); err != nil {
		return "", nil, err
	}
	fd, err := unix.Openat(p.dir, "exe", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, p.reading("exe", err)
	}
	f = os.NewFile(uintptr(fd), path)
	if id, err := statFD(fd); err != nil || id != p.exe {
		f.Close()
		return "", nil, fmt.Errorf("process %d: %w", p.pid, errors.Join(ErrChanged, err))
	}
	return path, f, nil
}

// Close releases the process: every later question about it fails. It may be
// called more than once.
func (p *Process) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for _, fd := range []int{p.pidfd, p.dir, p.pin} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
