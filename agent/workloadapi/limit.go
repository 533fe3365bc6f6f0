package workloadapi

import (
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/credence-id/credence/agent/caller"
)

// limiter is caller.Credentials with a bound on open connections, for each uid
// and for all: every one holds descriptors of ours.
type limiter struct {
	credentials.TransportCredentials
	total, each int

	mu   sync.Mutex // guards open and all
	open map[uint32]int
	all  int
}

func newLimiter(total, each int) *limiter {
	return &limiter{TransportCredentials: caller.Credentials(), total: total, each: each, open: make(map[uint32]int)}
}

func (l *limiter) take(uid uint32) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid] >= l.each {
		return nil, fmt.Errorf("uid %d has %d connections open, and gets no more", uid, l.each)
	}
	if l.all >= l.total {
		return nil, fmt.Errorf("%d connections are open, and no more are taken", l.total)
	}
	l.open[uid]++
	l.all++
	return sync.OnceFunc(func() { l.give(uid) }), nil
}

func (l *limiter) give(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.open[uid]--; l.open[uid] == 0 {
		delete(l.open, uid)
	}
}

// ServerHandshake finds the caller, counts the connection, and only then waits
// for what the caller says.
func (l *limiter) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	release := func() {}
	inner := caller.CredentialsFor(func(p *caller.Process) error {
		done, err := l.take(p.UID())
		if err == nil {
			release = done
		}
		return err
	})
	c, info, err := inner.ServerHandshake(raw)
	if err != nil {
		release()
		return nil, nil, err
	}
	return &counted{c, release}, info, nil
}

// Clone returns l itself: servers share its count.
func (l *limiter) Clone() credentials.TransportCredentials { return l }

// A counted connection is given back when it is closed.
type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
