package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// sock_diag(7): one socket by its four names, where the table's text is made
// from all of the kernel's.
const (
	diagRequest   = 16 + 56 // nlmsghdr, inet_diag_req_v2
	diagMessage   = 16 + 72 // nlmsghdr, inet_diag_msg
	diagByFamily  = 20      // SOCK_DIAG_BY_FAMILY
	tcpListed     = 1       // TCP_ESTABLISHED
	diagNoCookie  = ^uint32(0)
	diagWait      = time.Second
	diagNamesFrom = 16 + 4 // of inet_diag_msg's inet_diag_sockid
	diagRequested = 16 + 8 // of inet_diag_req_v2's
	diagNamesSize = 2 + 2 + 16 + 16
)

var errNoDiag = errors.New("the kernel answers no questions about sockets")

// diagOwner asks the kernel for the owner of the established socket that goes
// from local to remote, both of IPv4; a socket of IPv6 that is mapped is found
// so too. It is errNoDiag where the kernel can't be asked.
func diagOwner(local, remote netip.AddrPort) (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, errNoDiag
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(diagWait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return 0, errNoDiag
	}
	question := diagQuestion(local, remote)
	if err := unix.Sendto(fd, question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, errNoDiag
	}
	answer := make([]byte, 4<<10)
	n, from, err := unix.Recvfrom(fd, answer, 0)
	if kernel, ok := from.(*unix.SockaddrNetlink); err != nil || !ok || kernel.Pid != 0 {
		return 0, errNoDiag
	}
	return diagAnswer(answer[:n], question)
}

func diagQuestion(local, remote netip.AddrPort) []byte {
	q := make([]byte, diagRequest)
	binary.NativeEndian.PutUint32(q[0:], diagRequest)
	binary.NativeEndian.PutUint16(q[4:], diagByFamily)
	binary.NativeEndian.PutUint16(q[6:], unix.NLM_F_REQUEST)
	q[16], q[17] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(q[20:], 1<<tcpListed)
	id := q[diagRequested:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	from, to := local.Addr().Unmap().As4(), remote.Addr().Unmap().As4()
	copy(id[4:], from[:])
	copy(id[20:], to[:])
	binary.NativeEndian.PutUint32(id[40:], diagNoCookie)
	binary.NativeEndian.PutUint32(id[44:], diagNoCookie)
	return q
}

// diagAnswer reads the one message of an answer. The kernel falls back to who
// listens at an address: only an established socket of the very names asked
// for counts.
func diagAnswer(answer, question []byte) (uint32, error) {
	if len(answer) < 20 {
		return 0, errNoDiag
	}
	switch kind := binary.NativeEndian.Uint16(answer[4:]); kind {
	case unix.NLMSG_ERROR:
		if unix.Errno(-int32(binary.NativeEndian.Uint32(answer[16:]))) == unix.ENOENT {
			return 0, errNoSocket
		}
		return 0, errNoDiag
	case diagByFamily:
	default:
		return 0, fmt.Errorf("%w: it sends a message of kind %d", errNoDiag, kind)
	}
	if len(answer) < diagMessage {
		return 0, errNoDiag
	}
	state, inode := answer[17], binary.NativeEndian.Uint32(answer[16+68:])
	names, asked := answer[diagNamesFrom:][:diagNamesSize], question[diagRequested:][:diagNamesSize]
	if answer[16] == unix.AF_INET6 {
		asked = mappedNames(asked)
	}
	if state != tcpListed || inode == 0 || !bytes.Equal(names, asked) {
		return 0, errNoSocket
	}
	return binary.NativeEndian.Uint32(answer[16+64:]), nil
}

// mappedNames are names of IPv4 as a socket of IPv6 has them.
func mappedNames(names []byte) []byte {
	out := bytes.Clone(names)
	for _, at := range []int{4, 20} {
		ip := netip.AddrFrom4([4]byte(names[at:])).As16()
		copy(out[at:], ip[:])
	}
	return out
}
