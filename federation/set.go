package federation

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Set holds the believed bundles of foreign trust domains, one each, never
// merged (SPIFFE Federation §4.2). It is safe for concurrent use; its zero
// value is empty and ready. It implements go-spiffe's x509bundle.Source and
// jwtbundle.Source: an unknown trust domain is an error, one whose bundle is
// empty yields an empty bundle, which verifies nothing.
type Set struct {
	mu      sync.Mutex
	bundles map[spiffeid.TrustDomain]*Bundle // guarded by mu; replaced, never changed
	changed chan struct{}                    // guarded by mu; closed at the next change, nil until asked for
}

// Get is the bundle of td, if td is a peer that has been fetched.
func (s *Set) Get(td spiffeid.TrustDomain) (*Bundle, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.bundles[td]
	return b, ok
}

// All is every bundle, by the name of its trust domain.
func (s *Set) All() []*Bundle {
	all, _ := s.Watch()
	return all
}

// Watch is All, and a channel that closes when what it returned is no longer
// the whole truth.
func (s *Set) Watch() (all []*Bundle, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	all = slices.SortedFunc(maps.Values(s.bundles), func(a, b *Bundle) int {
		return a.TrustDomain().Compare(b.TrustDomain())
	})
	return all, s.changed
}

// Put replaces the bundle of b's trust domain.
func (s *Set) Put(b *Bundle) {
	s.swap(func(m map[spiffeid.TrustDomain]*Bundle) { m[b.TrustDomain()] = b })
}

// Remove drops the bundle of td: nothing of td is trusted any more.
func (s *Set) Remove(td spiffeid.TrustDomain) {
	if _, ok := s.Get(td); ok {
		s.swap(func(m map[spiffeid.TrustDomain]*Bundle) { delete(m, td) })
	}
}

func (s *Set) swap(change func(map[spiffeid.TrustDomain]*Bundle)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[spiffeid.TrustDomain]*Bundle, len(s.bundles)+1)
	maps.Copy(next, s.bundles)
	change(next)
	s.bundles = next
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Set) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b, err := s.bundle(td)
	if err != nil {
		return nil, err
	}
	return b.X509Bundle(), nil
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (s *Set) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	b, err := s.bundle(td)
	if err != nil {
		return nil, err
	}
	return b.JWTBundle(), nil
}

func (s *Set) bundle(td spiffeid.TrustDomain) (*Bundle, error) {
	b, ok := s.Get(td)
	if !ok {
		return nil, fmt.Errorf("no bundle of %s: it is no peer, or was never fetched", td)
	}
	return b, nil
}
