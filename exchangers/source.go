package exchangers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	// ErrDropped is what those get who waited when the credential was erased.
	ErrDropped = errors.New("the credential was erased")
	// ErrClosed is what a closed Source answers.
	ErrClosed = errors.New("the source is closed")
)

// SourceConfig is the wiring of a Source. Fields are required unless noted.
type SourceConfig struct {
	Target    string    // for reports and logs
	Exchanger Exchanger // must end with its context
	SVIDs     SVIDs
	// Ready is asked before each exchange: on its error the provider is not
	// asked, and nothing is reported. Nil: always.
	Ready func(context.Context) error
	// Report is told of each exchange once, before anybody gets what it gave:
	// on its error nobody does. While it waits for a disk, what is held is
	// served. Nil drops.
	Report func(context.Context, Event) error
	// Keep is what an exchange keeps of the context of who asked first, such as its
	// trace: not its end, for others wait too. Nil: nothing.
	Keep    func(context.Context) context.Context
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now
	Jitter  func() float64   // from [0, 1); nil means random
	Timeout time.Duration    // of one exchange; 0 is 30 s
}

// An Event is one exchange, good or bad, for the record. It holds no secret.
type Event struct {
	SPIFFEID  spiffeid.ID
	Target    string
	Time      time.Time // when it ended
	OK        bool
	Class     Class  // of a failure
	Code      string // the provider's; "local": it failed before the provider was asked
	RequestID string
	Expires   time.Time // of a success
	Shown     []string  // serial numbers, or jti, of the SVIDs that it asked for to show
}

// A Source keeps the credential of one SPIFFE ID for one Target. It asks the
// provider once at a time, for all who wait; refreshes in the background at a
// jittered half of the credential's life; serves the old one until shortly
// before it expires while that fails; and pauses after each failure, longer
// each time. Without a credential nothing runs in the background: who asks
// between two tries gets the last failure, or with WithPatience waits for the
// next.
//
// Its methods may be called by many goroutines. The owner ends it with Close.
type Source struct {
	cfg     SourceConfig
	turn    chan struct{} // held by the one exchange that runs
	running sync.WaitGroup

	mu       sync.Mutex    // guards what follows
	cred     Credential    // zero: none
	got      time.Time     // when it was
	lastUse  time.Time     // it is served before
	call     *call         // in flight; nil: none
	failure  error         // of the last exchange; nil: it was good, or there was none
	failures int           // in a row
	since    time.Time     // of the first of them
	skewed   time.Duration // as it was last warned of
	next     time.Time     // no exchange before; zero: at once
	timer    *time.Timer
	answered answered
	tried    time.Time // by Try
	closed   bool
}

// call is one exchange and what its waiters get, set before done is closed.
type call struct {
	claims string // of the challenge that it answers; empty: none
	cancel context.CancelFunc
	done   chan struct{}
	cred   Credential
	err    error
}

// NewSource returns a Source that has not yet asked for anything.
func NewSource(cfg SourceConfig) *Source {
	if cfg.Report == nil {
		cfg.Report = func(context.Context, Event) error { return nil }
	}
	if cfg.Ready == nil {
		cfg.Ready = func(context.Context) error { return nil }
	}
	if cfg.Keep == nil {
		cfg.Keep = func(context.Context) context.Context { return context.Background() }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	return &Source{cfg: cfg, turn: make(chan struct{}, 1)}
}

// Credential returns the credential held, or waits for one. When ctx ends, the
// exchange goes on for the others. A provider's refusal is an *Error. With
// WithPatience it waits on through what passes by itself.
func (s *Source) Credential(ctx context.Context) (Credential, error) {
	for {
		cred, err := s.once(ctx)
		if err == nil || !s.worthWaiting(ctx, err) {
			return cred, err
		}
	}
}

func (s *Source) once(ctx context.Context) (Credential, error) {
	if err := ctx.Err(); err != nil {
		return Credential{}, err
	}
	cred, c, err := s.held(ctx)
	if c == nil {
		return cred, err
	}
	return s.await(ctx, c)
}

// await waits for a call. When ctx ends, the call goes on for the others.
func (s *Source) await(ctx context.Context, c *call) (Credential, error) {
	select {
	case <-c.done:
		return c.cred, c.err
	case <-ctx.Done():
		return Credential{}, fmt.Errorf("waiting for a credential of %s: %w", s.cfg.Target, ctx.Err())
	}
}

// held returns the credential, the remembered failure, or the call to wait for.
func (s *Source) held(ctx context.Context) (Credential, *call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Credential{}, nil, ErrClosed
	}
	now := s.cfg.Now()
	due := !now.Before(s.next)
	if s.usable(now) {
		if due && s.call == nil {
			s.start(ctx) // timers may sleep with the machine
		}
		return s.cred, nil, nil
	}
	s.cred = Credential{}
	if s.call != nil {
		return Credential{}, s.call, nil
	}
	if s.failure != nil && !due {
		return Credential{}, nil, s.failure
	}
	s.start(ctx)
	return Credential{}, s.call, nil
}

// Drop erases the credential and what is remembered of failures, and abandons
// the exchange in flight: its result reaches nobody. A later Credential asks
// the provider anew.
func (s *Source) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(ErrDropped)
}

// Close drops the credential for good and waits for what runs.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	s.drop(ErrClosed)
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Source) drop(why error) {
	s.cred, s.failure, s.failures, s.since, s.next = Credential{}, nil, 0, time.Time{}, time.Time{}
	s.stopTimer()
	if c := s.call; c != nil {
		s.call = nil
		c.cancel()
		c.err = why
		close(c.done)
	}
}

// start begins an exchange; the caller holds mu, and there is none in flight. It
// goes on when asked ends.
func (s *Source) start(asked context.Context) { s.startWith(asked, "") }

func (s *Source) startWith(asked context.Context, claims string) {
	s.stopTimer()
	ctx, cancel := context.WithTimeout(s.cfg.Keep(asked), s.cfg.Timeout)
	c := &call{claims: claims, cancel: cancel, done: make(chan struct{})}
	s.call = c
	s.running.Go(func() {
		defer cancel()
		s.run(ctx, c)
	})
}

// run exchanges, reports, and only then releases. An abandoned exchange that
// has not ended keeps its turn: there is never a second one beside it.
func (s *Source) run(ctx context.Context, c *call) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		s.settle(c, Credential{}, fmt.Errorf("waiting for an earlier exchange: %w", ctx.Err()))
		return
	}
	if ctx.Err() != nil { // abandoned before its turn: the provider is not asked
		s.settle(c, Credential{}, ctx.Err())
		return
	}
	if err := s.cfg.Ready(ctx); err != nil {
		s.settle(c, Credential{}, err)
		return
	}
	ctx, clock := WatchClock(ctx, s.cfg.Now)
	svids := &shown{SVIDs: s.cfg.SVIDs}
	cred, err := s.exchange(ctx, svids, c.claims)
	if err == nil {
		if err = cred.Check(s.cfg.Now()); err != nil {
			err = fmt.Errorf("using the credential of %s: %w", s.cfg.Target, err)
		}
	}
	event := s.event(cred, err)
	event.Shown = svids.all()
	err = s.clock(clock, err)
	if unreported := s.cfg.Report(ctx, event); unreported != nil && err == nil {
		err = unreported
	}
	s.settle(c, cred, err)
}

func (s *Source) event(cred Credential, err error) Event {
	e := Event{SPIFFEID: s.cfg.SVIDs.ID(), Target: s.cfg.Target, Time: s.cfg.Now(), OK: err == nil}
	if err == nil {
		e.RequestID, e.Expires = cred.RequestID, cred.Expires
		return e
	}
	e.Class, e.Code = Outage, "local"
	var refusal *Error
	if errors.As(err, &refusal) {
		e.Class, e.Code, e.RequestID = classOf(refusal), Clean(refusal.Code), Clean(refusal.RequestID)
	}
	return e
}

// classOf reads a class that no driver should leave out as the one that is
// never hammered.
func classOf(e *Error) Class {
	switch e.Class {
	case Propagation, Throttled, Outage:
		return e.Class
	}
	return Config
}
