package caller

import (
	"net"

	"golang.org/x/sys/unix"
)

// OpenIn opens a process of a /proc that a test wrote, without a pidfd.
func OpenIn(proc string, pid int) (*Process, error) {
	return openProcess(proc, pid, func() (int, error) { return -1, nil })
}

// OpenInWith is OpenIn with a pidfd.
func OpenInWith(proc string, pid int, pidfd func() (int, error)) (*Process, error) {
	return openProcess(proc, pid, pidfd)
}

// FromConnBefore65 is FromConn on a kernel without SO_PEERPIDFD, and without
// pidfd_open too unless open.
func FromConnBefore65(c *net.UnixConn, open bool) (*Process, error) {
	peer := func(int) (int, error) { return -1, unix.ENOPROTOOPT }
	if open {
		return fromConn(c, peer, openPIDFD)
	}
	return fromConn(c, peer, func(int) (int, error) { return -1, nil })
}

var ParseStartTime = parseStartTime

func ParseIDs(b []byte) (uid, gid uint32, groups []uint32, err error) {
	i, err := parseIDs(b)
	return i.uid, i.gid, i.groups, err
}

func FindAnswer(b []byte, next int, nonce [8]byte) (int, bool, error) {
	return findAnswer(b, next, nonce)
}
