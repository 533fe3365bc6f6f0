package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
)

// NewLimits are the token endpoint's, for what HTTP would take too long to show.
func NewLimits(burst, rate float64, now func() time.Time) func(key string) (time.Duration, bool) {
	return newLimits(burst, rate, now).take
}

// NodeCalls are those of nodes.
func NodeCalls(l Limits, now func() time.Time) func(key string) (time.Duration, bool) {
	return newRates(l, now).calls.take
}

// MaxBuckets and SourceOf likewise.
const MaxBuckets = maxBuckets

var SourceOf = sourceOf

// Crowd is one of so many in all and of one source, in which members are called by
// numbers.
type Crowd struct {
	c            crowd
	most, mostOf int
	all          map[int]*member
}

// NewCrowd is empty.
func NewCrowd(most, mostOf int) *Crowd {
	return &Crowd{most: most, mostOf: mostOf, all: map[int]*member{}}
}

// What members do.
const (
	Idle   = int(idle)
	Busy   = int(busy)
	Seated = int(seated)
)

// Enter lets n in, and says who had to go for it; 0: nobody.
func (c *Crowd) Enter(n int, source string, does int) (out int, ok bool) {
	m := &member{source: source}
	gone, ok := c.c.enter(m, doing(does), c.most, c.mostOf)
	if gone != nil {
		for n, m := range c.all {
			if m == gone {
				out = n
				delete(c.all, n)
			}
		}
	}
	if ok {
		c.all[n] = m
	}
	return out, ok
}

// Turn has n do something else.
func (c *Crowd) Turn(n, does int) { c.c.turn(c.all[n], doing(does)) }

// Leave lets n out.
func (c *Crowd) Leave(n int) {
	c.c.leave(c.all[n])
	delete(c.all, n)
}

// Sizes are how many are in, by its own count, and how many sources it holds.
func (c *Crowd) Sizes() (all, sources, ranked int) { return c.c.all, len(c.c.of), len(c.c.rank) }

// A Lobby is the gate of agents, without a server.
type Lobby struct{ *gate }

// NewLobby waits for so long for a stranger's first call.
func NewLobby(l net.Listener, bounds Limits, patience time.Duration) Lobby {
	r := newRates(bounds, time.Now)
	g := &gate{Listener: l, name: "agents", patience: patience, log: slog.New(slog.DiscardHandler), now: time.Now}
	g.limits = func() (int, int) { return r.Connections, r.SourceConnections }
	g.rate = func() *limits { return r.agents }
	return Lobby{g}
}

// Log has the gate tell h what it refuses.
func (l Lobby) Log(h slog.Handler) { l.log = slog.New(h) }

// Shake ends a connection's handshake, with a certificate that nobody else shows or with
// none.
func (l Lobby) Shake(conn net.Conn, certificate bool) bool {
	if certificate {
		return l.ShakeAs(conn, fmt.Sprintf("%p", conn))
	}
	return conn.(*guest).shook("")
}

// ShakeAs ends it with somebody's.
func (l Lobby) ShakeAs(conn net.Conn, holder string) bool { return conn.(*guest).shook(holder) }

// Holders are how many the gate counts.
func (l Lobby) Holders() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.holders)
}

// HolderOf is for whom a certificate of id counts on agents.
func HolderOf(td spiffeid.TrustDomain, id spiffeid.ID) string { return (&gate{td: td}).holderOf(id) }

// Call begins a call, and Judge what is not hung up on.
func (l Lobby) Call(conn net.Conn) (done func(), ok bool) { return conn.(*guest).call() }
func (l Lobby) Judge(conn net.Conn) (done func())         { return conn.(*guest).judge() }

// Open are how many are open, by how far they are.
func (l Lobby) Open() (lobby, strangers, known int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lobby.all, l.strangers.all, l.known.all
}

// NewPlaces are few places.
func NewPlaces(n int) func(ctx context.Context, source string) (leave func(), err error) {
	return newPlaces(n).enter
}

// Least is the least role of each RPC.
var Least = least

// May says whether a role may call an RPC.
func (r Role) May(method string) bool { return r.may(method) }

// Hung is of a beat, and now.
func Hung(beat, now time.Time) []string { return hung(beat.UnixMilli(), now) }

// TryRecord tries a record that could not be written.
func (s *Server) TryRecord(ctx context.Context) { s.tryRecord(ctx) }

// UnreadyFor is what is unready where a broker stands like that.
func (s *Server) UnreadyFor(o Overview) []string { return s.unready(o) }

// ProblemsFor is what somebody has to see to where a broker stands like that.
func (s *Server) ProblemsFor(o Overview) []string { return s.problems(o) }

// CatchUp takes over what other brokers write until ctx ends.
func (s *Server) CatchUp(ctx context.Context) error { return s.catchUp(ctx) }

// TendDenies is what it does of Denies between two looks.
func (s *Server) TendDenies(ctx context.Context) { s.tendDenies(ctx) }

// RecordsItself are the RPCs of which no call is recorded at the admin socket.
var RecordsItself = recordsItself

// As is under which an operator of a role calls.
func As(ctx context.Context, r Role) context.Context {
	return context.WithValue(ctx, operatorKey{}, operator{Role: r})
}

// ApplyHere applies to this broker alone, and says what is still to come.
func (s *Server) ApplyHere(ctx context.Context, actor string, r *api.ApplyRequest) (problem string, err error) {
	_, problem, err = s.applyHere(ctx, actor, r)
	return problem, err
}

// Change applies, or deletes a Deny that was made here.
func (s *Server) Change(ctx context.Context, actor string, put *api.ApplyRequest, drop string) error {
	if put != nil {
		_, err := s.apply(ctx, actor, put)
		return err
	}
	return s.removeHere(ctx, actor, "default", "Deny", drop)
}
