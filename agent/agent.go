// Package agent serves identities and credentials to the workloads on a node:
// it joins, keeps one Watch stream to a broker, attests callers, asks for what
// the broker decides they get, renews it, and hands it out.
//
// It holds no policy. It trusts the broker that shows exactly
// /credence/broker of its trust domain under the bundle last received, the
// kernel's word about callers (agent/caller), and its attestors' facts. The
// local protocols lie in packages below it; keys are made here and never
// leave.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// Errors that callers tell apart.
var (
	ErrDenied      = errors.New("no identity is granted to this process")
	ErrUnavailable = errors.New("the agent cannot answer yet")
	// ErrFatal wraps what only a person can mend: the agent stops.
	// A node that had joined rather waits.
	ErrFatal = errors.New("the agent cannot go on")
)

// An Attestor tells facts about the process at our socket: full names under
// its prefix. Names in unknown could not be proven; an error means that
// nothing under the prefix could. wanted tells which costly facts some
// Identity names. Attestors are asked side by side, and must end with ctx.
type Attestor interface {
	Attest(ctx context.Context, p *caller.Process, wanted func(name string) bool) (facts map[string][]string, unknown []string, err error)
}

// A Prover is an Attestor that hands on what a workload itself has to prove the
// facts with, for the broker to judge: a token, or nil where it has none. It is
// asked of those alone for whom there are facts, and must end with ctx.
type Prover interface {
	Prove(ctx context.Context, p *caller.Process) ([]byte, error)
}

// A Join is how this node proves itself.
type Join struct {
	Method   string
	Rule     string // JoinRule; empty for tokens, and where the method has one rule
	Evidence func(context.Context) ([]byte, error)
	File     string                                                      // that Evidence is read from, for a person to replace; empty: it is made anew each time
	Answer   func(ctx context.Context, challenge []byte) ([]byte, error) // nil, and AnswerFor too: a challenge ends the join
	// AnswerFor is Answer, of methods that bind what they answer to the public key
	// (DER) that the node joins with.
	AnswerFor func(ctx context.Context, challenge, publicKey []byte) ([]byte, error)
}

// Config is the wiring of an Agent. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Broker      []string // host:port, tried in order
	CAPins      []string // "sha256:" and hex; this or Bundle, for the first contact
	Bundle      []byte   // SPIFFE JSON or PEM
	Join        Join
	Data        string              // directory that keeps the node's SVID over a restart
	Attestors   map[string]Attestor // by prefix, such as "workload.unix"
	Exchanger   func(Target) (exchangers.Exchanger, error)
	Spool       Spool  // of reports to the broker's record
	Seal        string // of what is kept for a restart: SealTPM, SealKeyring or SealPlain, which must be there; empty or "auto": the best that is
	TPM         string // its device, or the socket of one in software; empty: the machine's
	Version     string
	Dial        []grpc.DialOption // more of the connections to brokers, to trace calls
	Tracer      trace.Tracer      // of joins and exchanges; nil: nothing is traced
	Observe     func(Event)       // what happens, for metrics; it must not block; nil: nobody
	Spread      time.Duration     // over which it goes to a broker after a restart, or when it has lost one, so that not all agents do at once; 0: at once
	Patience    time.Duration     // of a caller while the broker doesn't answer; 0 means 5 s
	Log         *slog.Logger      // nil discards
	Now         func() time.Time  // nil means time.Now
}

// A Target is where a workload's SVID can be exchanged, as the broker told it.
type Target struct {
	Name     string
	Revision uint64
	Flow     string
	Settings []byte // JSON, see exchangers.Wire
}

// An Agent serves one node. Its methods may be called concurrently.
type Agent struct {
	cfg     Config
	node    nodeState
	link    atomic.Pointer[link]
	linking sync.Mutex // held while link is replaced
	brokers brokers
	jumps   atomic.Uint64 // of the clock
	bundles bundles
	cutoffs atomic.Pointer[Cutoffs]
	lessons lessons
	wanted  atomic.Pointer[map[string]bool]
	serving chan struct{} // closed once the node has an SVID
	ready   chan struct{}
	once    sync.Once
	poke    chan struct{}  // of capacity 1, see rest
	proving chan struct{}  // holds a token for each attestation under way
	ended   chan struct{}  // closed when Run ends
	retired sync.WaitGroup // of links
	sets    sets
	kept    kept
	contact contact
	tokens  tokens
	sources sources
	reports *reports
	heads   heads
	pulses  pulses
}

// New returns an Agent that takes up what an earlier one kept in Data.
func New(cfg Config) (*Agent, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.TrustDomain.IsZero() || len(cfg.Broker) == 0 || cfg.Data == "" {
		return nil, errors.New("making an agent: trust domain, broker and data directory are required")
	}
	if cfg.Patience <= 0 {
		cfg.Patience = patience
	}
	a := &Agent{cfg: cfg, serving: make(chan struct{}), ready: make(chan struct{}), ended: make(chan struct{}), poke: make(chan struct{}, 1), proving: make(chan struct{}, maxProving)}
	a.brokers.list = cfg.Broker
	a.node.due = make(chan struct{}, 1)
	a.contact.init(cfg.Now)
	a.wanted.Store(&map[string]bool{})
	a.sets.init(&a.kept)
	a.tokens.init(&a.kept)
	a.sources.init(a)
	if err := a.node.load(cfg); err != nil {
		return nil, fmt.Errorf("making an agent: %w", err)
	}
	a.bundles.own(cfg.TrustDomain, a.node.bundle)
	if err := a.openKept(); err != nil {
		return nil, fmt.Errorf("making an agent: %w", err)
	}
	if err := a.heads.open(cfg); err != nil {
		return nil, fmt.Errorf("making an agent: %w", err)
	}
	if err := a.openReports(); err != nil {
		return nil, fmt.Errorf("making an agent: %w", err)
	}
	return a, nil
}

// Joined is closed once the node has an SVID, kept or new: from then on what is
// kept is served, whether a broker answers or not.
func (a *Agent) Joined() <-chan struct{} { return a.serving }

// Ready is closed once the node has joined and knows all bundles.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// TrustDomain is the agent's own.
func (a *Agent) TrustDomain() spiffeid.TrustDomain { return a.cfg.TrustDomain }

// Run joins, or goes on with the node's kept SVID, and serves until ctx ends.
// It is called once. An error wraps ErrFatal and names the way out; what a
// broker that is away causes is not an error.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer a.stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	// These end with ctx alone.
	running.Go(func() { _ = a.mindClock(ctx) })
	running.Go(func() { _ = a.keeping(ctx) })
	running.Go(func() {
		a.heads.keeping(ctx, func(err error) { a.cfg.Log.WarnContext(ctx, "heads are kept in memory alone", "error", err) })
	})
	if err := a.establish(ctx); err != nil {
		return a.end(ctx, err)
	}
	close(a.serving)
	for _, loop := range []func(context.Context) error{a.keepNode, a.watch, a.tend, a.prefetch, a.ship, a.home} {
		running.Go(func() {
			if err := loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	running.Wait()
	return a.end(ctx, context.Cause(ctx))
}

// stop lets everything go: nothing runs afterwards, nobody is served, and what
// was not reported is on disk.
func (a *Agent) stop() {
	a.sets.end(&Unavailable{Code: AgentUnavailable, Reason: "it stops"})
	a.tokens.forget(nil)
	a.sources.end()
	a.reports.end()
	close(a.ended)
	a.retired.Wait()
	if l := a.link.Load(); l != nil {
		l.close()
	}
}

// end says how a run ended: a cancelled context is no error.
func (a *Agent) end(ctx context.Context, err error) error {
	if errors.Is(err, ErrFatal) {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// link is one connection to a broker under one node SVID.
type link struct {
	address string
	conn    *grpc.ClientConn
	gone    chan struct{} // closed when it has been replaced
	once    sync.Once
}

// replace tells those who use it for long that there is a newer one.
func (l *link) replace() { l.once.Do(func() { close(l.gone) }) }

func (l *link) close() {
	l.replace()
	_ = l.conn.Close()
}
