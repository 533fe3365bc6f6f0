package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// A crowd counts who is in, in all and of each address.
type crowd struct {
	mu  sync.Mutex // guards what follows
	all int
	of  map[string]int
}

// enter lets one of source in, unless there are so many already. It is whoever
// leaves that calls leave, once.
func (c *crowd) enter(source string, most, mostOf int) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= most || c.of[source] >= mostOf {
		return nil, false
	}
	if c.of == nil {
		c.of = make(map[string]int)
	}
	c.all++
	c.of[source]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.of[source]--; c.of[source] == 0 {
			delete(c.of, source)
		}
	}), true
}

// A gate is a listener that has so many connections open at once, in all and of
// one address, and takes so many new ones a second of one. Others are hung up on
// before a handshake is paid for: there is nothing yet to answer in.
type gate struct {
	net.Listener
	name   string
	limits func() (most, mostOf int)
	rate   func() *limits
	one    bool // who connects is our proxy: one address
	in     crowd
	log    *slog.Logger

	mu   sync.Mutex // guards told
	told time.Time
	now  func() time.Time
}

// gate bounds who connects to a listener.
func (s *Server) gate(name string, l net.Listener) *gate {
	rates := func() *rates { return s.settings.Load().rates }
	g := &gate{Listener: l, name: name, log: s.cfg.Log, now: s.cfg.Now, one: name == "web" && s.cfg.WebProxied}
	g.limits = func() (int, int) { r := rates(); return max(r.Connections/4, 1), max(r.SourceConnections/10, 1) }
	switch name {
	case "agents":
		g.limits = func() (int, int) { r := rates(); return r.Connections, r.SourceConnections }
		g.rate = func() *limits { return rates().agents }
	case "spiffe":
		g.rate = func() *limits { return rates().spiffe }
	case "web":
		g.rate = func() *limits { return rates().web }
	}
	return g
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if leave, ok := g.enter(addressOf(conn.RemoteAddr().String())); ok {
			return &gated{conn, leave}, nil
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // nothing of it is kept
		}
		_ = conn.Close()
	}
}

func (g *gate) enter(source string) (leave func(), ok bool) {
	most, mostOf := g.limits()
	if g.one {
		mostOf = most
	} else if _, ok := g.rate().take(source); !ok {
		g.tell(source, "too many new ones a second")
		return nil, false
	}
	if leave, ok = g.in.enter(source, most, mostOf); !ok {
		g.rate().refused.Add(1)
		g.tell(source, "too many at once")
	}
	return leave, ok
}

// tellEvery is how often a gate says that it refuses.
const tellEvery = 10 * time.Second

func (g *gate) tell(source, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.now(); now.Sub(g.told).Abs() >= tellEvery {
		g.told = now
		g.log.Warn("connections refused", "listener", g.name, "source", source, "reason", why)
	}
}

// gated is a connection that a gate counts until it is closed.
type gated struct {
	net.Conn
	leave func()
}

func (c *gated) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// strangers are credentials that let in so many without a certificate, and each for
// so long: to join or to log in takes no longer.
type strangers struct {
	credentials.TransportCredentials
	in *crowd
}

const (
	maxStrangers   = 2048
	maxStrangersOf = 512
	strangerTime   = 2 * time.Minute
)

var errStrangers = errors.New("too many without a certificate")

// ServerHandshake implements credentials.TransportCredentials.
func (c strangers) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		return conn, info, nil
	}
	leave, ok := c.in.enter(addressOf(raw.RemoteAddr().String()), maxStrangers, maxStrangersOf)
	if !ok {
		_ = conn.Close()
		return nil, nil, errStrangers
	}
	over := time.AfterFunc(strangerTime, func() { _ = raw.Close() })
	return &gated{conn, func() { over.Stop(); leave() }}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c strangers) Clone() credentials.TransportCredentials {
	return strangers{c.TransportCredentials.Clone(), c.in}
}

// places are a few, of which one address never has more than half.
type places struct {
	all chan struct{}

	mu sync.Mutex // guards what follows
	of map[string]*half
}

type half struct {
	places chan struct{}
	users  int
}

func newPlaces(n int) *places {
	return &places{all: make(chan struct{}, n), of: make(map[string]*half)}
}

// enter waits for a place, until ctx ends.
func (p *places) enter(ctx context.Context, source string) (leave func(), err error) {
	h := p.use(source)
	select {
	case h.places <- struct{}{}:
	case <-ctx.Done():
		p.unuse(source)
		return nil, ctx.Err()
	}
	select {
	case p.all <- struct{}{}:
		return func() { <-p.all; <-h.places; p.unuse(source) }, nil
	case <-ctx.Done():
		<-h.places
		p.unuse(source)
		return nil, ctx.Err()
	}
}

func (p *places) use(source string) *half {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.of[source]
	if h == nil {
		h = &half{places: make(chan struct{}, cap(p.all)/2)}
		p.of[source] = h
	}
	h.users++
	return h
}

func (p *places) unuse(source string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[source].users--; p.of[source].users == 0 {
		delete(p.of, source)
	}
}

// sourceOfCall is the address that a call counts for.
func sourceOfCall(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	return addressOf(p.Addr.String())
}
