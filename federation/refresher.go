package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Store keeps the last believed bundles over a restart.
type Store interface {
	SaveBundle(context.Context, Stored) error // replaces that of its trust domain whole
	Bundles(context.Context) ([]Stored, error)
	DeleteBundle(context.Context, spiffeid.TrustDomain) error // of none is no error
}

// Config is the wiring of a Refresher. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain // our own: never a peer
	Fetcher     Fetcher
	Checker     Checker // nil: Check refuses
	Store       Store
	Own         func() *x509bundle.Bundle         // verifies endpoints whose ID lies in our own trust domain; nil: none do
	Now         func() time.Time                  // nil means time.Now
	Log         *slog.Logger                      // nil discards
	Jitter      func(time.Duration) time.Duration // the wait made of an interval; nil adds up to a tenth
}

// A Refresher keeps the bundles of all peers fresh. Each peer is polled on its
// own, so that a dead, slow or hostile one delays no other. Fetched bundles are
// made durable, then put into the Set.
//
// A bundle that its endpoint has not confirmed within MaxStaleness is shouted
// about at each poll, and goes on being believed: an endpoint that is down must
// not take its trust domain with it. One whose every key an https_web endpoint
// wants to change is believed so long and no longer, unless the operator
// accepts the change.
type Refresher struct {
	own     spiffeid.TrustDomain
	fetcher Fetcher
	checker Checker
	store   Store
	ownKeys func() *x509bundle.Bundle
	now     func() time.Time
	log     *slog.Logger
	jitter  func(time.Duration) time.Duration
	set     Set
	kick    chan struct{} // tells Run that peers changed

	writing sync.Mutex                        // held while Store and Set change together
	loaded  bool                              // guarded by writing: the Store was read
	doomed  map[spiffeid.TrustDomain]struct{} // guarded by writing: still to be deleted from the Store

	mu    sync.Mutex
	peers map[spiffeid.TrustDomain]*poller // guarded by mu
}

// New makes a Refresher. It fetches nothing until it has peers and runs.
func New(cfg Config) (*Refresher, error) {
	if cfg.TrustDomain.IsZero() || cfg.Fetcher == nil || cfg.Store == nil {
		return nil, errors.New("making a bundle refresher: TrustDomain, Fetcher and Store are required")
	}
	r := &Refresher{
		own: cfg.TrustDomain, fetcher: cfg.Fetcher, checker: cfg.Checker, store: cfg.Store, ownKeys: cfg.Own,
		now: cfg.Now, log: cfg.Log, jitter: cfg.Jitter,
		kick:   make(chan struct{}, 1),
		doomed: make(map[spiffeid.TrustDomain]struct{}),
		peers:  make(map[spiffeid.TrustDomain]*poller),
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.jitter == nil {
		r.jitter = addTenth
	}
	return r, nil
}

// addTenth only lengthens, so that an interval never sees two requests.
func addTenth(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

// Set is the bundles as they are believed now. It lives as long as r.
func (r *Refresher) Set() *Set { return &r.set }

// Run polls every peer until ctx ends, and returns when all pollers have. It is
// called once; SetPeers and Refresh may be called before it.
func (r *Refresher) Run(ctx context.Context) error {
	var pollers sync.WaitGroup
	defer pollers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := make(map[*poller]context.CancelFunc)
	for {
		r.reconcile(running, func(p *poller) context.CancelFunc {
			ctx, cancel := context.WithCancel(ctx)
			pollers.Go(func() { r.poll(ctx, p) })
			return cancel
		})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.kick:
		}
	}
}

// reconcile stops the pollers of removed peers and starts those of new ones.
func (r *Refresher) reconcile(running map[*poller]context.CancelFunc, start func(*poller) context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, cancel := range running {
		if r.peers[p.trustDomain] != p {
			cancel()
			delete(running, p)
		}
	}
	for _, p := range r.peers {
		if running[p] == nil {
			running[p] = start(p)
		}
	}
}

// Refresh fetches the bundle of td now and returns how that went. A fetch that
// is under way is shared; the next poll comes a whole interval later. It waits
// for Run.
func (r *Refresher) Refresh(ctx context.Context, td spiffeid.TrustDomain) error {
	p, ok := r.poller(td)
	if !ok {
		return fmt.Errorf("refreshing the bundle of %s: it is no peer", td)
	}
	return r.await(ctx, p, p.request())
}

func (r *Refresher) await(ctx context.Context, p *poller, outcome <-chan error) error {
	select {
	case err := <-outcome:
		return err
	case <-p.gone:
		return fmt.Errorf("refreshing the bundle of %s: its Peer was removed", p.trustDomain)
	case <-ctx.Done():
		return fmt.Errorf("refreshing the bundle of %s: %w", p.trustDomain, ctx.Err())
	}
}

// RefreshFor is Refresh for a validator that met a key it does not know: a
// trust domain is asked out of turn once in ten seconds, whoever asks how
// often. It says whether a fetch came of it.
func (r *Refresher) RefreshFor(ctx context.Context, td spiffeid.TrustDomain) (bool, error) {
	p, ok := r.poller(td)
	if !ok {
		return false, fmt.Errorf("refreshing the bundle of %s: it is no peer", td)
	}
	outcome := p.requestExtra(r.now())
	if outcome == nil {
		return false, nil
	}
	return true, r.await(ctx, p, outcome)
}

func (r *Refresher) poller(td spiffeid.TrustDomain) (*poller, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.peers[td]
	return p, ok
}
