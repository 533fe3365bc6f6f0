package server

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/federation"
)

// A gate is a listener that takes so many new connections a second of one address, and
// has so many open at once, in all and of one address. Others are hung up on before a
// handshake is paid for: there is nothing yet to answer in.
//
// On agents, who has shown no certificate that counts is apart from who has, and takes no
// place of theirs.
type gate struct {
	net.Listener
	name     string
	limits   func() (most, mostOf int)
	rate     func() *limits
	one      bool          // who connects is our proxy: one address
	patience time.Duration // how long a stranger on agents may take until it calls something
	td       spiffeid.TrustDomain
	log      *slog.Logger

	mu               sync.Mutex     // guards what follows
	lobby            crowd          // on agents, who has not finished a handshake; elsewhere, everybody
	strangers, known crowd          // who has, on agents, without a certificate and with one
	holders          map[string]int // how many of known are of one ID of ours, or of one peer
	told             time.Time
	now              func() time.Time
}

// gate bounds who connects to a listener.
func (s *Server) gate(name string, l net.Listener) *gate {
	rates := func() *rates { return s.settings.Load().rates }
	g := &gate{Listener: l, name: name, patience: s.cfg.Handshake, td: s.cfg.TrustDomain, log: s.cfg.Log, now: s.cfg.Now, one: name == "web" && s.cfg.WebProxied}
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

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &guest{Conn: conn, gate: g}
		c.source, c.away = addressOf(conn.RemoteAddr().String()), c.hangUp
		if g.admit(c) {
			return c, nil
		}
		c.hangUp()
	}
}

func (g *gate) admit(c *guest) bool {
	if !g.one {
		if _, ok := g.rate().take(c.source); !ok {
			g.tell(c.source, "too many new ones a second")
			return false
		}
	}
	most, mostOf := g.limits()
	if g.one {
		mostOf = most
	}
	if g.name != "agents" {
		return g.enter(&g.lobby, c, idle, most, mostOf)
	}
	if g.full(c.source, most, mostOf) {
		g.refuse(c.source)
		return false
	}
	return g.enter(&g.lobby, c, idle, max(most/2, 1), mostOf)
}

// full says whether there is no place among those with a certificate, for which a
// handshake would be in vain.
func (g *gate) full(source string, most, mostOf int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.known.of[source]
	return g.known.all >= most || p != nil && p.all >= mostOf
}

// enter takes a connection from where it was into a crowd, for which another may be
// hung up on.
func (g *gate) enter(to *crowd, c *guest, does doing, most, mostOf int) bool {
	out, ok := g.move(to, c, does, most, mostOf)
	switch {
	case !ok:
		g.refuse(c.source)
	case out != nil:
		g.refuse(out.source)
		out.away()
	}
	return ok
}

func (g *gate) move(to *crowd, c *guest, does doing, most, mostOf int) (out *member, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.gone {
		return nil, false
	}
	if c.in != nil {
		c.in.leave(&c.member)
	}
	return to.enter(&c.member, does, most, mostOf)
}

// refuse counts one that is hung up on.
func (g *gate) refuse(source string) {
	g.rate().refused.Add(1)
	g.tell(source, "too many at once")
}

// tellEvery is how often a gate says that it refuses.
const tellEvery = 10 * time.Second

func (g *gate) tell(source, why string) {
	if g.tells() { // the lock is free: a log that hangs keeps nobody who calls
		g.log.Warn("connections refused", "listener", g.name, "source", source, "reason", why)
	}
}

func (g *gate) tells() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if now.Sub(g.told).Abs() < tellEvery {
		return false
	}
	g.told = now
	return true
}

// A guest is a connection that a gate counts until it is closed.
type guest struct {
	net.Conn
	gate *gate

	member        // guarded by gate's lock, as what follows
	calls, judged int
	called        bool
	holder        string      // as it is counted among the gate's; empty: it is not
	over          *time.Timer // hangs up on a stranger
}

// Close implements net.Conn.
func (c *guest) Close() error {
	defer c.left()
	return c.Conn.Close()
}

func (c *guest) left() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.gone = true
	if c.in != nil {
		c.in.leave(&c.member)
	}
	if c.over != nil {
		c.over.Stop()
	}
	if g := c.gate; c.holder != "" {
		if g.holders[c.holder]--; g.holders[c.holder] == 0 {
			delete(g.holders, c.holder)
		}
		c.holder = ""
	}
}

// hangUp ends a connection, of which nothing is kept. Whoever serves it closes it then.
func (c *guest) hangUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// holderOf is for whom a connection with a certificate of id is counted: for it, or for
// its peer, which makes as many IDs as it likes.
func (g *gate) holderOf(id spiffeid.ID) string {
	if id.TrustDomain() == g.td {
		return id.String()
	}
	return id.TrustDomain().IDString()
}

// hold counts a connection for whose certificate it shows: one that was stolen, or whose
// node was evicted, is good for a handshake until it ends, and takes no more places than
// these.
func (c *guest) hold(holder string, most int) bool {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.gone || g.holders[holder] >= most {
		return false
	}
	if g.holders == nil {
		g.holders = make(map[string]int)
	}
	g.holders[holder]++
	c.holder = holder
	return true
}

// shook takes a connection of agents that has finished its handshake to where it is
// counted from then on. Without a holder it showed no certificate.
func (c *guest) shook(holder string) bool {
	g := c.gate
	most, mostOf := g.limits()
	if holder != "" {
		if !c.hold(holder, max(most/10, fewest)) {
			g.refuse(c.source)
			return false
		}
		return g.enter(&g.known, c, seated, most, mostOf)
	}
	strangers := max(most/10, 1)
	if !g.enter(&g.strangers, c, idle, strangers, max(strangers/4, 1)) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !c.gone {
		c.over = time.AfterFunc(g.patience, c.hangUp)
	}
	return true
}

// call says that a stranger calls something until it is done, or that it calls too
// much at once.
func (c *guest) call() (done func(), ok bool) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if c.calls == maxStrangerCalls {
		return nil, false
	}
	if c.over != nil && !c.called && c.over.Stop() {
		c.over.Reset(strangerTime)
	}
	c.called = true
	return c.counts(&c.calls), true
}

// judge says that what a stranger shows is judged until it is done.
func (c *guest) judge() (done func()) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	return c.counts(&c.judged)
}

// counts counts one more of n until it is done.
func (c *guest) counts(n *int) (done func()) {
	*n++
	c.turned()
	return func() {
		c.gate.mu.Lock()
		defer c.gate.mu.Unlock()
		*n--
		c.turned()
	}
}

func (c *guest) turned() {
	does := idle
	switch {
	case c.judged > 0:
		does = seated
	case c.calls > 0:
		does = busy
	}
	if c.in != nil {
		c.in.turn(&c.member, does)
	}
}

// attend follows what connections of an HTTPS listener do.
func attend(conn net.Conn, state http.ConnState) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*guest)
	if !ok || state != http.StateActive && state != http.StateIdle {
		return
	}
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.calls = 0
	if state == http.StateActive {
		c.calls = 1
	}
	c.turned()
}

// shaking are credentials that take each connection through its gate's crowds.
type shaking struct {
	credentials.TransportCredentials
}

const (
	fewest           = 4               // connections that each may have who shows a certificate: an agent has two while it replaces one
	maxStrangerCalls = 8               // of one connection at once
	strangerTime     = 2 * time.Minute // from the first call on: to join or to log in takes no longer
)

var errCrowded = errors.New("too many connections")

// stranger is what is known of a connection without a certificate.
type stranger struct {
	credentials.TLSInfo
	conn *guest
}

// ServerHandshake implements credentials.TransportCredentials.
func (c shaking) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	g, counted := raw.(*guest)
	t, ok := info.(credentials.TLSInfo)
	holder := ""
	if ok && counted && len(t.State.PeerCertificates) > 0 {
		id, err := federation.LeafID(t.State.PeerCertificates[0])
		holder, ok = g.gate.holderOf(id), err == nil
	}
	if !ok || !counted || !g.shook(holder) {
		_ = conn.Close()
		return nil, nil, errCrowded
	}
	if holder == "" {
		info = stranger{t, g}
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c shaking) Clone() credentials.TransportCredentials {
	return shaking{c.TransportCredentials.Clone()}
}

// strangerOf is the connection of a call, nil of one with a certificate.
func strangerOf(ctx context.Context) *guest {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	s, _ := p.AuthInfo.(stranger)
	return s.conn
}

// calling counts a call that a stranger may make, until it is done.
func calling(ctx context.Context) (done func(), err error) {
	c := strangerOf(ctx)
	if c == nil {
		return func() {}, nil
	}
	done, ok := c.call()
	if !ok {
		return nil, tooMany(time.Second)
	}
	return done, nil
}

// judging keeps a stranger its place until it is done.
func judging(ctx context.Context) (done func()) {
	if c := strangerOf(ctx); c != nil {
		return c.judge()
	}
	return func() {}
}

// places are a few, of which one address never has more than half. Where all are taken,
// the next is for an address that has fewest, and of those for who has waited longest.
type places struct {
	half int

	mu    sync.Mutex // guards what follows
	free  int
	of    map[string]*share
	turns uint64
}

// A share is what one address has of places.
type share struct {
	in      int
	waiting list.List // of waiters, who came first in front
}

type waiter struct {
	turn uint64
	in   chan struct{} // closed when it has a place
}

func newPlaces(n int) *places { return &places{half: n / 2, free: n, of: make(map[string]*share)} }

// enter waits for a place, until ctx ends.
func (p *places) enter(ctx context.Context, source string) (leave func(), err error) {
	w, at := p.wait(source)
	select {
	case <-w.in:
	case <-ctx.Done():
		if p.giveUp(source, w, at) {
			return nil, ctx.Err()
		}
	}
	return func() { p.leave(source) }, nil
}

func (p *places) wait(source string) (*waiter, *list.Element) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of[source]
	if s == nil {
		s = &share{}
		p.of[source] = s
	}
	p.turns++
	w := &waiter{p.turns, make(chan struct{})}
	at := s.waiting.PushBack(w)
	p.next()
	return w, at
}

// giveUp takes a waiter away, unless it has a place by now.
func (p *places) giveUp(source string, w *waiter, at *list.Element) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-w.in:
		return false
	default:
	}
	p.of[source].waiting.Remove(at)
	p.tidy(source)
	return true
}

func (p *places) leave(source string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	p.of[source].in--
	p.tidy(source)
	p.next()
}

func (p *places) tidy(source string) {
	if s := p.of[source]; s.in == 0 && s.waiting.Len() == 0 {
		delete(p.of, source)
	}
}

// next gives the places that are free to whose turn it is.
func (p *places) next() {
	for p.free > 0 {
		var least *share
		for _, s := range p.of {
			if s.waiting.Len() > 0 && s.in < p.half && (least == nil || s.before(least)) {
				least = s
			}
		}
		if least == nil {
			return
		}
		w := least.waiting.Remove(least.waiting.Front()).(*waiter)
		p.free--
		least.in++
		close(w.in)
	}
}

func (s *share) before(o *share) bool {
	return cmp.Or(cmp.Compare(s.in, o.in), cmp.Compare(s.waiting.Front().Value.(*waiter).turn, o.waiting.Front().Value.(*waiter).turn)) < 0
}

// sourceOfCall is the address that a call counts for.
func sourceOfCall(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	return addressOf(p.Addr.String())
}
