package telemetry

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/caller"
)

// firstBytes is how long who connects may take to say what it speaks.
const firstBytes = 10 * time.Second

const acceptPause = 100 * time.Millisecond

// A Split is a Unix socket that speaks gRPC to those who begin as HTTP/2 does,
// and HTTP/1.1 to the others. What they say first is looked at, not taken: each
// side gets the connection as it was accepted, to find out who calls.
type Split struct {
	from       net.Listener
	admit      func(*caller.Process) error
	grpc, http *side
	slots      chan struct{}
	ending     sync.WaitGroup
}

// NewSplit takes a listener of caller.Listen, and lets in whom admit does. Run
// it; closing the listener or the side of gRPC ends all.
func NewSplit(from net.Listener, admit func(*caller.Process) error) *Split {
	s := &Split{from: from, admit: admit, slots: make(chan struct{}, maxConnections)}
	side := func() *side {
		return &side{address: from.Addr(), conns: make(chan net.Conn), done: make(chan struct{}), above: func() {}}
	}
	s.grpc, s.http = side(), side()
	s.grpc.above = func() { _ = from.Close(); _ = s.http.Close() }
	return s
}

// GRPC yields the connections that speak gRPC.
func (s *Split) GRPC() net.Listener { return s.grpc }

// HTTP yields the others.
func (s *Split) HTTP() net.Listener { return s.http }

// Run accepts until the socket is closed, and returns when nothing is left. What
// else fails, such as too many open files, passes.
func (s *Split) Run() {
	defer s.ending.Wait()
	defer s.grpc.Close()
	for {
		c, err := s.from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-s.grpc.done:
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			_ = c.Close() // too many who have said nothing yet
			continue
		}
		s.ending.Go(func() {
			s.route(c)
			<-s.slots
		})
	}
}

// route hands a connection to its side, or closes it.
func (s *Split) route(c net.Conn) {
	uc, ok := c.(*net.UnixConn)
	if !ok || !s.admits(uc) {
		_ = c.Close()
		return
	}
	// Closing ends the look at a connection that says nothing.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.ending.Go(func() {
		select {
		case <-s.grpc.done:
			_ = uc.SetReadDeadline(time.Now())
		case <-ctx.Done():
		}
	})
	_ = uc.SetReadDeadline(time.Now().Add(firstBytes))
	http2, err := begins(uc, "PRI")
	if err != nil {
		_ = c.Close()
		return
	}
	cancel()
	_ = uc.SetReadDeadline(time.Time{})
	to := s.http
	if http2 {
		to = s.grpc
	}
	select {
	case to.conns <- c:
	case <-to.done:
		_ = c.Close()
	}
}

func (s *Split) admits(c *net.UnixConn) bool {
	p, err := caller.FromConn(c)
	if err != nil {
		return false
	}
	defer p.Close()
	return s.admit(p) == nil
}

// A side is a listener of what Split hands to it.
type side struct {
	address net.Addr
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
	above   func() // what ends with it
}

func (s *side) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *side) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.above()
	})
	return nil
}

func (s *side) Addr() net.Addr { return s.address }
