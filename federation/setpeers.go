package federation

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SetPeers makes peers the whole of those that r knows. A new one is polled at
// once, with the bundle stored for it, if any, believed meanwhile; a changed one
// keeps its bundle and is polled at once. A removed one is polled no more, its
// bundle leaves the Set and the Store (SPIFFE Federation §6.3). If a Peer is not
// valid nothing changes. If the Store fails to forget a bundle, all else has
// been done, and the next call tries again.
func (r *Refresher) SetPeers(ctx context.Context, peers []Peer) error {
	wanted := make(map[spiffeid.TrustDomain]Peer, len(peers))
	for _, p := range peers {
		if err := p.ValidateFor(r.own); err != nil {
			return err
		}
		if _, twice := wanted[p.TrustDomain]; twice {
			return fmt.Errorf("peer %s is given twice", p.TrustDomain)
		}
		wanted[p.TrustDomain] = p
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	stored, err := r.load(ctx)
	if err != nil {
		return err
	}
	r.remove(wanted)
	for td := range stored {
		if _, ok := wanted[td]; !ok {
			r.doomed[td] = struct{}{}
		}
	}
	err = r.forget(ctx)
	r.add(wanted, stored)
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return err
}

// load reads the Store, the first time only: later r knows what is in it.
func (r *Refresher) load(ctx context.Context) (map[spiffeid.TrustDomain]*held, error) {
	if r.loaded {
		return nil, nil
	}
	all, err := r.store.Bundles(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the stored bundles of peers: %w", err)
	}
	r.loaded = true
	return r.readable(all), nil
}

// loadHeld reads what waits to be accepted. A spoilt one waits still: with it,
// the time of the bundle that is believed runs out.
func (r *Refresher) loadHeld(s Stored) *Bundle {
	if s.HeldAt.IsZero() {
		return nil
	}
	b, err := ParseBundle(s.TrustDomain, s.Held)
	if err != nil {
		r.log.Error("stored change of a bundle is not usable: it will be fetched anew",
			"trust_domain", s.TrustDomain.Name(), "error", err)
		return &Bundle{Bundle: spiffebundle.New(s.TrustDomain), document: s.Held}
	}
	return b
}

// remove comes first and cannot fail: validators drop the bundle at once.
func (r *Refresher) remove(wanted map[spiffeid.TrustDomain]Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for td, p := range r.peers {
		if _, ok := wanted[td]; ok {
			continue
		}
		delete(r.peers, td)
		close(p.gone)
		r.set.Remove(td)
		r.doomed[td] = struct{}{}
		r.log.Info("peer removed, its bundle dropped", "trust_domain", td.Name())
	}
}

func (r *Refresher) forget(ctx context.Context) error {
	var errs []error
	for td := range r.doomed {
		if err := r.store.DeleteBundle(ctx, td); err != nil {
			errs = append(errs, fmt.Errorf("deleting the stored bundle of %s: %w", td, err))
			continue
		}
		delete(r.doomed, td)
	}
	return errors.Join(errs...)
}

func (r *Refresher) add(wanted map[spiffeid.TrustDomain]Peer, stored map[spiffeid.TrustDomain]*held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for td, peer := range wanted {
		if p, ok := r.peers[td]; ok {
			p.change(peer)
			continue
		}
		p := newPoller(peer)
		if h := stored[td]; h != nil && h.bundle != nil {
			p.held = h
			b, _ := h.inForce(&peer, r.now())
			r.set.Put(b)
		}
		r.peers[td] = p
	}
}
