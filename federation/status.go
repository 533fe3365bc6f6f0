package federation

import (
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const defaultMaxStaleness = 24 * time.Hour

// A Status is how things stand with one peer.
type Status struct {
	TrustDomain spiffeid.TrustDomain
	Sequence    uint64    // of the bundle held, 0 if it has none
	FetchedAt   time.Time // when its content was first fetched; zero: no bundle yet
	ConfirmedAt time.Time // the last success: when the endpoint last gave it
	TriedAt     time.Time // when it was last asked; zero: not since the start
	LastError   error     // of the last try; nil: it went well
	NextPoll    time.Time
	Stale       bool      // not confirmed within the Peer's MaxStaleness, or never
	Ignored     []Ignored // entries of the bundle that were not understood
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
	s := Status{TrustDomain: p.trustDomain, TriedAt: p.tried, LastError: p.lastError, NextPoll: p.next, Stale: true}
	if p.held == nil {
		return s
	}
	s.Sequence, s.FetchedAt, s.ConfirmedAt = p.held.Sequence, p.held.FetchedAt, p.held.ConfirmedAt
	s.Ignored = p.held.bundle.Ignored
	limit := p.peer.MaxStaleness
	if limit == 0 {
		limit = defaultMaxStaleness
	}
	s.Stale = now.Sub(s.ConfirmedAt) > limit
	return s
}
