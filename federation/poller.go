package federation

import (
	"reflect"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of what is honoured of a peer's refresh hint, and what is waited where
// there is none (SPIFFE Federation §4.1).
const (
	MinInterval     = 30 * time.Second
	MaxInterval     = 10 * time.Minute
	DefaultInterval = 5 * time.Minute
)

// held is the last believed bundle.
type held struct {
	Stored
	bundle  *Bundle
	waiting *Bundle // of Held
}

// A poller is what is known of one peer.
type poller struct {
	trustDomain spiffeid.TrustDomain
	gone        chan struct{} // closed when the peer is removed
	ask         chan struct{} // tells poll that someone waits

	mu        sync.Mutex // guards all below
	peer      *Peer      // replaced whole; its address names the version
	held      *held      // nil: nothing believed yet; replaced whole
	etag      string     // of held, when this process fetched it
	bootstrap bool       // the operator gave a new bootstrap, not yet superseded by a fetch
	waiting   []chan error
	tried     time.Time
	lastError error
	next      time.Time
	extra     time.Time // when a fetch was last asked for by a validator
}

func newPoller(peer Peer) *poller {
	return &poller{
		trustDomain: peer.TrustDomain, peer: &peer,
		gone: make(chan struct{}), ask: make(chan struct{}, 1),
	}
}

// change takes the Peer's new text. A new way to authenticate the endpoint
// starts from its own bootstrap; the bundle stays until that has worked.
func (p *poller) change(peer Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.peer
	if reflect.DeepEqual(*old, peer) {
		return
	}
	p.peer = &peer
	p.etag = ""
	p.bootstrap = p.bootstrap || !reflect.DeepEqual(old.HTTPSSPIFFE, peer.HTTPSSPIFFE)
	p.wake()
}

// Staleness is MaxStaleness or its default.
func (p *Peer) Staleness() time.Duration {
	if p.MaxStaleness == 0 {
		return defaultMaxStaleness
	}
	return p.MaxStaleness
}

// request asks for a fetch and returns where its outcome will come.
func (p *poller) request() <-chan error {
	p.mu.Lock()
	defer p.mu.Unlock()
	outcome := make(chan error, 1)
	p.waiting = append(p.waiting, outcome)
	p.wake()
	return outcome
}

func (p *poller) wake() {
	select {
	case p.ask <- struct{}{}:
	default:
	}
}

func (p *poller) removed() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// answer ends a fetch: all who waited share it.
func (p *poller) answer(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, outcome := range p.waiting {
		outcome <- err
	}
	p.waiting = nil
	select {
	case <-p.ask:
	default:
	}
}

// interval is the peer's hint within bounds. A peer that was never reached is
// asked at the shortest one, so that two that start together find each other.
func (p *poller) interval() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		return MinInterval
	}
	hint, ok := p.held.bundle.RefreshHint()
	if !ok {
		return DefaultInterval
	}
	return min(max(hint, MinInterval), MaxInterval)
}

// A job is what one fetch starts from.
type job struct {
	peer      *Peer
	held      *held
	etag      string
	bootstrap bool
}

// begin notes that a fetch begins.
func (p *poller) begin(now time.Time) job {
	p.mu.Lock()
	p.tried = now
	p.mu.Unlock()
	return p.job()
}

func (p *poller) job() job {
	p.mu.Lock()
	defer p.mu.Unlock()
	return job{peer: p.peer, held: p.held, etag: p.etag, bootstrap: p.bootstrap || p.held == nil}
}

func (p *poller) changedSince(j job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peer != j.peer
}

func (p *poller) believe(h *held, etag string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held, p.etag, p.bootstrap = h, etag, false
}

func (p *poller) note(err error, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastError, p.next = err, next
}

// noteAccepted: what was wrong is mended.
func (p *poller) noteAccepted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastError = nil
}

func (p *poller) closesAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held.closesAt(p.peer)
}

// extraEvery is how often validators may have a peer asked out of turn.
const extraEvery = 10 * time.Second

// requestExtra is request for a validator, once in extraEvery: it returns nil
// to those who come too soon, unless they can wait with the one before.
func (p *poller) requestExtra(now time.Time) <-chan error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if soon := !p.extra.IsZero() && now.Sub(p.extra) < extraEvery; soon && len(p.waiting) == 0 {
		return nil
	} else if !soon {
		p.extra = now
	}
	outcome := make(chan error, 1)
	p.waiting = append(p.waiting, outcome)
	p.wake()
	return outcome
}
