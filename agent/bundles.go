package agent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// bell wakes everybody who waits for a change. The zero bell is ready.
type bell struct {
	mu sync.Mutex // guards c
	c  chan struct{}
}

// wait returns a channel that is closed at the next ring.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// A Bundle is one trust domain's: what verifies its X509-SVIDs and its
// JWT-SVIDs. It is immutable.
type Bundle struct {
	TrustDomain     spiffeid.TrustDomain
	X509Authorities []*x509.Certificate
	JWTAuthorities  map[string]crypto.PublicKey // by key ID

	sum [sha256.Size]byte // of all of it
}

// bundles are ours and the peers', as the broker told them, and the CRLs of our
// CAs.
type bundles struct {
	changed bell

	mu     sync.RWMutex // guards what follows
	all    map[spiffeid.TrustDomain]*Bundle
	crls   []*CRL
	newest map[[sha256.Size]byte]numbered // by issuer, also of those that are gone
	told   map[string]time.Time           // by trust domain: when the broker last told of it, in this run
}

// own sets our bundle as it came with a join or from disk; nil sets nothing.
func (b *bundles) own(td spiffeid.TrustDomain, bundle *spiffebundle.Bundle) {
	if bundle != nil {
		b.put(td, bundleOf(bundle))
	}
}

func bundleOf(b *spiffebundle.Bundle) *Bundle {
	out := &Bundle{TrustDomain: b.TrustDomain(), X509Authorities: b.X509Authorities(), JWTAuthorities: b.JWTAuthorities()}
	h := sha256.New()
	for _, c := range out.X509Authorities {
		fmt.Fprintf(h, "%d\x00%s", len(c.Raw), c.Raw)
	}
	for _, id := range slices.Sorted(maps.Keys(out.JWTAuthorities)) {
		der, _ := x509.MarshalPKIXPublicKey(out.JWTAuthorities[id]) // what it doesn't take verifies nothing either
		fmt.Fprintf(h, "%q %d\x00%s", id, len(der), der)
	}
	out.sum = [sha256.Size]byte(h.Sum(nil))
	return out
}

func (b *bundles) put(td spiffeid.TrustDomain, bundle *Bundle) {
	b.mu.Lock()
	next := maps.Clone(b.all)
	if next == nil {
		next = make(map[spiffeid.TrustDomain]*Bundle)
	}
	next[td] = bundle
	b.all = next
	b.mu.Unlock()
	b.changed.ring()
}

func (b *bundles) remove(td spiffeid.TrustDomain) {
	b.mu.Lock()
	next := maps.Clone(b.all)
	delete(next, td)
	delete(b.told, td.Name())
	b.all = next
	b.mu.Unlock()
	b.changed.ring()
}

// hear notes that the broker told of a trust domain's bundle.
func (b *bundles) hear(td string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told == nil {
		b.told = make(map[string]time.Time)
	}
	b.told[td] = now
}

func (b *bundles) get(td spiffeid.TrustDomain) (*Bundle, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	bundle, ok := b.all[td]
	return bundle, ok
}

// roots are the X.509 authorities of a trust domain.
func (b *bundles) roots(td spiffeid.TrustDomain) []*x509.Certificate {
	if bundle, ok := b.get(td); ok {
		return bundle.X509Authorities
	}
	return nil
}

// take makes what a Watch message says of bundles true here. A document that
// cannot be used leaves what is there: neither a peer's nor a full disk may
// withhold an erasure or a local identity.
func (a *Agent) take(ctx context.Context, m *api.WatchResponse) {
	for _, in := range m.GetBundles() {
		if err := a.takeBundle(in); err != nil {
			a.cfg.Log.ErrorContext(ctx, "bundle not taken", "trust_domain", in.GetTrustDomain(), "error", err)
		} else {
			a.bundles.hear(in.GetTrustDomain(), a.cfg.Now())
		}
		if in.GetTrustDomain() == a.cfg.TrustDomain.Name() {
			a.takeCRLs(ctx, in.GetCrls())
		}
	}
	for _, name := range m.GetRemoved() {
		td, err := federation.ParseTrustDomain(name)
		if err == nil && td != a.cfg.TrustDomain {
			a.bundles.remove(td)
			a.kept.learn(td, nil)
		}
	}
}

// takeBundle keeps our own on disk as well: it is what the next start verifies
// the broker by.
func (a *Agent) takeBundle(in *api.Bundle) error {
	td, err := federation.ParseTrustDomain(in.GetTrustDomain())
	if err != nil {
		return err
	}
	parsed, err := parseBundle(td, in.GetDocument())
	if err != nil {
		return err
	}
	if td != a.cfg.TrustDomain {
		a.bundles.put(td, bundleOf(parsed))
		a.kept.learn(td, in)
		return nil
	}
	if len(parsed.X509Authorities()) == 0 {
		return errors.New("it has no X.509 authority, and would verify no broker any more")
	}
	a.bundles.put(td, bundleOf(parsed))
	return a.node.keepBundle(in.GetDocument(), parsed)
}
