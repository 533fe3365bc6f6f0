package caller

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// peerPIDFD returns a pidfd of the process that connected the socket. It fails
// with ENOPROTOOPT before Linux 6.5.
func peerPIDFD(sock int) (int, error) {
	fd, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.EINVAL) { // of a peer that was reaped, before Linux 6.9
		err = unix.ESRCH
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// openPIDFD returns a pidfd of the process that has this pid now, or -1 where
// there is no such call (before Linux 5.3, or forbidden by a sandbox).
func openPIDFD(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// alive returns ErrGone once the process has ended, reaped or not. Without a
// pidfd it says nothing: then the reads of /proc fail.
func (p *Process) alive() error {
	if p.pidfd < 0 {
		return nil
	}
	poll := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("polling process %d: %w", p.pid, err)
		}
		if n != 0 {
			return fmt.Errorf("process %d: %w", p.pid, ErrGone)
		}
		return nil
	}
}

// readFDInfo is os.ReadFile of a file that is less than a kilobyte, without what
// an os.File costs: each connection reads one.
func readFDInfo(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 1024)
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return b[:max(n, 0)], err
		}
	}
}

// sameProc refuses a /proc that was mounted for another PID namespace: there
// the directory named by our pid is another process's.
func sameProc(proc string, pidfd, pid int) error {
	if pidfd < 0 {
		return nil
	}
	b, err := readFDInfo(proc + "/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return fmt.Errorf("reading the pid of process %d in %s: %w", pid, proc, err)
	}
	switch got, ok := statusField(b, "Pid:"); {
	case !ok || len(got) != 1:
		return fmt.Errorf("reading the pid of process %d in %s: no such line", pid, proc)
	case got[0] == "-1":
		return fmt.Errorf("process %d: %w", pid, ErrGone)
	case got[0] != strconv.Itoa(pid):
		return fmt.Errorf("process %d is %s in %s, which belongs to another PID namespace: mount the agent's own", pid, got[0], proc)
	}
	return nil
}
