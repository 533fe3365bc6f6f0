package agent

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
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
}

// bundles are ours and the peers', as the broker told them.
type bundles struct {
	changed bell

	mu  sync.RWMutex // guards all
	all map[spiffeid.TrustDomain]*Bundle
}

// own sets our bundle as it came with a join or from disk; nil sets nothing.
func (b *bundles) own(td spiffeid.TrustDomain, bundle *spiffebundle.Bundle) {
	if bundle != nil {
		b.put(td, bundleOf(bundle))
	}
}

func bundleOf(b *spiffebundle.Bundle) *Bundle {
	return &Bundle{b.TrustDomain(), b.X509Authorities(), b.JWTAuthorities()}
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
	b.all = next
	b.mu.Unlock()
	b.changed.ring()
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

// take makes what a Watch message says of bundles true here. Our own is kept
// on disk as well: it is what the next start verifies the broker by.
func (a *Agent) take(m *api.WatchResponse) error {
	for _, in := range m.GetBundles() {
		td, err := spiffeid.TrustDomainFromString(in.GetTrustDomain())
		if err != nil {
			return fmt.Errorf("the broker's bundle of %q: %w", in.GetTrustDomain(), err)
		}
		parsed, err := spiffebundle.Parse(td, in.GetDocument())
		if err != nil {
			return fmt.Errorf("the broker's bundle of %s: %w", td, err)
		}
		if td == a.cfg.TrustDomain {
			if err := a.node.keepBundle(in.GetDocument(), parsed); err != nil {
				return err
			}
		}
		a.bundles.put(td, bundleOf(parsed))
	}
	for _, name := range m.GetRemoved() {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return fmt.Errorf("the broker removes %q: %w", name, err)
		}
		if td != a.cfg.TrustDomain {
			a.bundles.remove(td)
		}
	}
	return nil
}

func (b *Bundle) equal(o *Bundle) bool {
	if len(b.X509Authorities) != len(o.X509Authorities) || len(b.JWTAuthorities) != len(o.JWTAuthorities) {
		return false
	}
	for i, c := range b.X509Authorities {
		if !bytes.Equal(c.Raw, o.X509Authorities[i].Raw) {
			return false
		}
	}
	for id := range b.JWTAuthorities {
		if _, ok := o.JWTAuthorities[id]; !ok {
			return false
		}
	}
	return true
}
