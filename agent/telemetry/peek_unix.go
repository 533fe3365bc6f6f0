//go:build unix

package telemetry

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// begins says whether what comes first on c is want, and leaves it there.
func begins(c *net.UnixConn, want string) (yes bool, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	buf := make([]byte, len(want))
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, e := syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK)
		switch {
		case errors.Is(e, syscall.EAGAIN) || errors.Is(e, syscall.EINTR):
			return false
		case e != nil:
			failed = e
		case n <= 0:
			failed = io.EOF
		case n < len(want) && strings.HasPrefix(want, string(buf[:n])):
			return false // the rest wakes us
		default:
			yes = string(buf[:n]) == want
		}
		return true
	})
	return yes, errors.Join(err, failed)
}
