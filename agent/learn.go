package agent

import (
	"context"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
)

const (
	learnEvery = 10 * time.Second // the broker asks a peer no more often
	learnTime  = 6 * time.Second  // a fetch takes five; then its Watch brings the key
)

// lessons are when the broker was last asked for a peer's new keys.
type lessons struct {
	mu  sync.Mutex // guards all
	all map[spiffeid.TrustDomain]lesson
}

type lesson struct {
	at   time.Time
	over chan struct{} // closed when it is
}

// begin returns the lesson of td that is under way or was just now, or a new
// one, which the caller gives.
func (l *lessons) begin(td spiffeid.TrustDomain, now time.Time) (one lesson, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.all[td]; ok && now.Sub(last.at) < learnEvery {
		return last, false
	}
	if l.all == nil {
		l.all = make(map[spiffeid.TrustDomain]lesson)
	}
	one = lesson{now, make(chan struct{})}
	l.all[td] = one
	return one, true
}

// LearnKey has the broker ask the endpoint of td, a peer, for a JWT key that a
// token names and that td's bundle here does not hold, and waits for it. It
// says whether the key is here. However often it is called, the broker is asked
// once in ten seconds for a trust domain.
func (a *Agent) LearnKey(ctx context.Context, td spiffeid.TrustDomain, keyID string) bool {
	if _, peer := a.bundles.get(td); !peer || td == a.cfg.TrustDomain || keyID == "" {
		return a.holdsKey(td, keyID)
	}
	one, mine := a.lessons.begin(td, a.cfg.Now())
	if mine {
		defer close(one.over)
		// For all who wait: it goes on if the first of them hangs up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learnTime)
		defer cancel()
		a.learn(ctx, td, keyID)
		return a.holdsKey(td, keyID)
	}
	select {
	case <-one.over:
	case <-ctx.Done():
	case <-a.ended:
	}
	return a.holdsKey(td, keyID)
}

// learn asks the broker; if it has the key, its Watch brings it.
func (a *Agent) learn(ctx context.Context, td spiffeid.TrustDomain, keyID string) {
	r, err := api.NewNodeClient(a.link.Load().conn).RefreshBundle(ctx, &api.RefreshBundleRequest{TrustDomain: td.Name(), KeyId: keyID})
	if err != nil {
		a.cfg.Log.WarnContext(ctx, "the broker was not asked for a peer's new key", "trust_domain", td.Name(), "error", err)
		return
	}
	for r.GetKnown() {
		changed := a.bundles.changed.wait() // before looking: nothing is missed
		if a.holdsKey(td, keyID) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-a.ended:
			return
		}
	}
}

func (a *Agent) holdsKey(td spiffeid.TrustDomain, keyID string) bool {
	b, ok := a.bundles.get(td)
	return ok && b.JWTAuthorities[keyID] != nil
}
