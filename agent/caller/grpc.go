package caller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// handshakeTimeout bounds how long a caller may take to answer the challenge
// and begin to speak; the server lifts it afterwards.
const handshakeTimeout = 10 * time.Second

// Credentials returns the credentials of a gRPC server on a Unix socket: each
// accepted connection gets its Process, for FromContext to find, which is
// closed with the connection. A connection without one is refused.
func Credentials() credentials.TransportCredentials {
	return CredentialsFor(func(*Process) error { return nil })
}

// CredentialsFor is Credentials for a socket that not every process may use:
// admit refuses by returning an error, and the connection is closed. A nil
// admit refuses all.
func CredentialsFor(admit func(*Process) error) credentials.TransportCredentials {
	return &transport{admit}
}

// RequireUID returns an admit function for CredentialsFor which lets these uids
// in and nobody else; of none, nobody.
func RequireUID(uids ...uint32) func(*Process) error {
	allowed := slices.Clone(uids)
	return func(p *Process) error {
		if slices.Contains(allowed, p.UID()) {
			return nil
		}
		return fmt.Errorf("uid %d (process %d) may not use this socket: only %v may", p.UID(), p.PID(), allowed)
	}
}

// Required is FromContext for a service that serves nobody unknown: its error is
// the status PermissionDenied.
func Required(ctx context.Context) (*Process, error) {
	p, ok := FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.PermissionDenied, "the caller cannot be told")
	}
	return p, nil
}

// FromContext returns the process that made the gRPC call, and false for a call
// that came over a connection without Credentials.
func FromContext(ctx context.Context) (*Process, bool) {
	pr, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := pr.AuthInfo.(authInfo)
	return info.process, ok && info.process != nil
}

type authInfo struct {
	credentials.CommonAuthInfo
	process *Process
}

func (authInfo) AuthType() string { return "unix" }

type transport struct{ admit func(*Process) error }

func (t *transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("attesting the caller of a %T: only a Unix socket says who calls", c)
	}
	p, err := FromConn(uc)
	if err != nil {
		return nil, nil, err
	}
	early, err := t.let(uc, p)
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	// Nothing leaves this machine's kernel.
	common := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return &conn{Conn: uc, process: p, early: early}, authInfo{common, p}, nil
}

func (t *transport) let(c *net.UnixConn, p *Process) (early []byte, err error) {
	if t.admit == nil {
		return nil, errors.New("nobody may use this socket: it was given no rule")
	}
	if err := t.admit(p); err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	return challenge(c, p)
}

func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's: a client of a Unix socket needs none")
}

func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (t *transport) Clone() credentials.TransportCredentials { return &transport{t.admit} }

func (t *transport) OverrideServerName(string) error { return nil }

// A conn closes its Process with it, and first yields what the handshake read
// too much. Read is not for several goroutines at once.
type conn struct {
	net.Conn
	process *Process
	early   []byte
}

func (c *conn) Read(b []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.early)
	c.early = c.early[n:]
	return n, nil
}

func (c *conn) Close() error {
	return errors.Join(c.Conn.Close(), c.process.Close())
}
