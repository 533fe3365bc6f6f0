package federation

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const defaultMaxStaleness = 24 * time.Hour

// A State is how things stand with a peer, in a word.
type State string

const (
	Waiting State = "waiting" // no bundle yet: nothing of it is trusted
	Fresh   State = "fresh"
	Stale   State = "stale"  // not confirmed within MaxStaleness
	Holding State = "held"   // a change of every key waits to be accepted
	Closed  State = "closed" // its bundle verifies nothing
)

// A Status is how things stand with one peer.
type Status struct {
	Peer        Peer
	TrustDomain spiffeid.TrustDomain
	State       State
	Bundle      *Bundle   // last believed; nil: none yet
	Held        *Bundle   // waits to be accepted; nil: nothing does
	HeldAt      time.Time // since when
	ClosesAt    time.Time // when Bundle is believed no more, because of Held
	Sequence    uint64    // of the bundle held, 0 if it has none
	FetchedAt   time.Time // when its content was first fetched; zero: no bundle yet
	ConfirmedAt time.Time // the last success: when the endpoint last gave it
	TriedAt     time.Time // when it was last asked; zero: not since the start
	LastError   error     // of the last try; nil: it went well
	NextPoll    time.Time
	Stale       bool      // not confirmed within the Peer's MaxStaleness, or never
	Ignored     []Ignored // entries of the bundle that were not understood
}

// Confirmed says why what the bundle proves is not to be acted on now: only while
// the endpoint confirms it can a peer take back what it vouched for.
func (s Status) Confirmed() error {
	if s.Bundle != nil && !s.Stale && (s.State == Fresh || s.State == Holding) {
		return nil
	}
	return fmt.Errorf("the bundle of %s is %s, last confirmed at %s", s.TrustDomain, s.State, s.ConfirmedAt.UTC().Format(time.RFC3339))
}

// Status is how things stand with the peer td, if it is one.
func (r *Refresher) Status(td spiffeid.TrustDomain) (Status, bool) {
	p, ok := r.poller(td)
	if !ok {
		return Status{}, false
	}
	return r.status(p), true
}

// Statuses is every peer's Status, by the name of its trust domain.
func (r *Refresher) Statuses() []Status {
	r.mu.Lock()
	pollers := slices.Collect(maps.Values(r.peers))
	r.mu.Unlock()
	all := make([]Status, 0, len(pollers))
	for _, p := range pollers {
		all = append(all, r.status(p))
	}
	slices.SortFunc(all, func(a, b Status) int { return a.TrustDomain.Compare(b.TrustDomain) })
	return all
}

func (r *Refresher) status(p *poller) Status {
	now := r.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{
		Peer: *p.peer, TrustDomain: p.trustDomain, TriedAt: p.tried, LastError: p.lastError, NextPoll: p.next,
		State: Waiting, Stale: true,
	}
	if p.held == nil {
		return s
	}
	s.Bundle, s.Held, s.HeldAt, s.ClosesAt = p.held.bundle, p.held.waiting, p.held.HeldAt, p.held.closesAt(p.peer)
	s.Sequence, s.FetchedAt, s.ConfirmedAt = p.held.Sequence, p.held.FetchedAt, p.held.ConfirmedAt
	s.Ignored = p.held.bundle.Ignored
	s.Stale = now.Sub(s.ConfirmedAt) > p.peer.Staleness()
	switch in, _ := p.held.inForce(p.peer, now); {
	case in.Empty():
		s.State = Closed
	case s.Held != nil:
		s.State = Holding
	case s.Stale:
		s.State = Stale
	default:
		s.State = Fresh
	}
	return s
}
