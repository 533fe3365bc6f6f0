package federation

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reload takes over what another process over the same Store came to believe or
// to hold of the peers that r knows, where that is newer.
func (r *Refresher) Reload(ctx context.Context) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	all, err := r.store.Bundles(ctx)
	if err != nil {
		return fmt.Errorf("loading the stored bundles of peers: %w", err)
	}
	for td, h := range r.readable(all) {
		p, ok := r.poller(td)
		if !ok || h.bundle == nil || !p.learn(h) {
			continue
		}
		b, _ := h.inForce(p.job().peer, r.now())
		r.set.Put(b)
		r.log.Info("bundle of a peer taken over", "trust_domain", td.Name(), "sequence", h.Sequence)
	}
	return nil
}

// readable parses what is stored.
func (r *Refresher) readable(all []Stored) map[spiffeid.TrustDomain]*held {
	stored := make(map[spiffeid.TrustDomain]*held, len(all))
	for _, s := range all {
		b, err := ParseBundle(s.TrustDomain, s.Document)
		if err != nil { // a spoilt bundle must not keep the others out
			r.log.Error("stored bundle is not usable: it will be fetched anew",
				"trust_domain", s.TrustDomain.Name(), "error", err)
			b = nil
		}
		stored[s.TrustDomain] = &held{Stored: s, bundle: b, waiting: r.loadHeld(s)}
	}
	return stored
}

// learn takes h over if it is newer than what is held, and says whether it is
// another bundle, or another change waits. How the endpoint is verified next
// stays as it is.
func (p *poller) learn(h *held) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil && h.ConfirmedAt.Before(p.held.ConfirmedAt) {
		return false
	}
	same := p.held != nil && bytes.Equal(p.held.Document, h.Document)
	if same && bytes.Equal(p.held.Held, h.Held) {
		if h.ConfirmedAt.After(p.held.ConfirmedAt) {
			p.held = h
		}
		return false
	}
	if !same {
		p.etag = ""
	}
	p.held = h
	return true
}
