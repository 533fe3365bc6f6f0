package caller

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = 107     // sun_path without its end, unix(7)
	maxEarly = 1 << 17 // what a client may send before it answers: the connection's initial window (RFC 9113 §6.9.2), and headers

	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 §3.4
)

// challenge lets only a client on that is p itself, now. SO_PEERCRED names who
// connected; between that and our reading of the executable, p may have
// executed an entitled program and left the socket with a child. So we send an
// HTTP/2 PING with eight random bytes and want them back in a message that the
// kernel says p sent (SCM_CREDENTIALS): a program that didn't open the
// connection doesn't answer, and a child can't in its name. (One that is root
// of a user namespace around both could; like tracing, that takes p's uid.)
//
// It returns what the client sent, the answer taken out. That p still runs the
// same executable is left to the Check before each answer.
func challenge(c *net.UnixConn, p *Process) ([]byte, error) {
	if err := passCred(c, 1); err != nil {
		return nil, fmt.Errorf("asking for the sender's credentials: %w", err)
	}
	settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0} // a server's first frame, RFC 9113 §3.4
	ping := []byte{0, 0, 8, 6, 0, 0, 0, 0, 0}     // RFC 9113 §6.7
	var nonce [8]byte
	rand.Read(nonce[:])
	if _, err := c.Write(append(append(settings, ping...), nonce[:]...)); err != nil {
		return nil, fmt.Errorf("challenging process %d: %w", p.PID(), err)
	}
	early, err := answer(c, p.PID(), nonce)
	if err != nil {
		return nil, fmt.Errorf("challenging process %d: %w", p.PID(), err)
	}
	if err := passCred(c, 0); err != nil {
		return nil, fmt.Errorf("challenging process %d: %w", p.PID(), err)
	}
	return early, nil
}

func answer(c *net.UnixConn, pid int, nonce [8]byte) ([]byte, error) {
	var got []byte
	next := 0    // where the first frame not yet looked at begins
	foreign := 0 // end of the last bytes that another process may have sent
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for len(got) <= maxEarly {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			return nil, err
		}
		got = append(got, buf[:n]...)
		if sender(oob[:oobn]) != pid {
			foreign = len(got)
		}
		var found bool
		if next, found, err = findAnswer(got, next, nonce); err != nil {
			return nil, err
		}
		if found && next < foreign {
			return nil, errors.New("another process answered on its socket")
		}
		if found {
			return append(got[:next:next], got[next+frameHeader+len(nonce):]...), nil
		}
	}
	return nil, fmt.Errorf("it sent %d bytes and no answer", len(got))
}

const frameHeader = 9 // RFC 9113 §4.1

// findAnswer looks for the acknowledgement of our PING in a client's first
// bytes, from next on: 0, or what it returned for fewer of them. If found,
// next is where it begins. It fails if the bytes are not HTTP/2.
func findAnswer(b []byte, next int, nonce [8]byte) (_ int, found bool, err error) {
	if next == 0 {
		if n := min(len(b), len(preface)); string(b[:n]) != preface[:n] {
			return 0, false, errors.New("it doesn't speak gRPC (HTTP/2)")
		}
		if len(b) < len(preface) {
			return 0, false, nil
		}
		next = len(preface)
	}
	for len(b)-next >= frameHeader {
		h := b[next : next+frameHeader]
		end := next + frameHeader + (int(h[0])<<16 | int(h[1])<<8 | int(h[2]))
		if end > len(b) {
			break
		}
		if h[3] == 6 && h[4]&1 != 0 && bytes.Equal(b[next+frameHeader:end], nonce[:]) {
			return next, true, nil
		}
		next = end
	}
	return next, false, nil
}

// sender returns the pid of who sent a message, 0 if that isn't known.
func sender(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range msgs {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			return int(cred.Pid)
		}
	}
	return 0
}

func passCred(c *net.UnixConn, on int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, on)
	}); err != nil {
		return err
	}
	return serr
}
