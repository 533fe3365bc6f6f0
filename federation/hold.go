package federation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// errHeld: the answer was authentic, and waits for the operator.
var errHeld = errors.New("every key of the bundle changed")

// mustHold says whether b waits for the operator. An https_web endpoint proves
// a name in DNS and no key of the trust domain: who takes the name over could
// put all keys in place of the peer's. A domain that was closed opens with known
// keys or not by itself, or else closing it first would be the way around.
// Over https_spiffe the endpoint has shown that it holds the old keys.
func mustHold(j job, b *Bundle) bool {
	return j.peer.HTTPSWeb != nil && j.held != nil && !b.Empty() && !keyInCommon(j.held.bundle, b)
}

// hold keeps b beside the believed bundle, durably: a restart must neither
// believe it nor forget since when it waits.
func (r *Refresher) hold(ctx context.Context, p *poller, j job, b *Bundle) error {
	next := *j.held
	if next.HeldAt.IsZero() {
		next.HeldAt = r.now()
	}
	next.Held, next.waiting = b.document, b
	from, to := BundleFingerprint(j.held.bundle.Bundle), BundleFingerprint(b.Bundle)
	if before := j.held.waiting; before == nil || !before.Equal(b.Bundle) {
		if err := r.store.SaveBundle(ctx, next.Stored); err != nil {
			return err
		}
		p.believe(&next, "")
		r.log.Error("every key of a peer's bundle changed: it is held until it is accepted",
			"trust_domain", p.trustDomain.Name(), "fingerprint", from, "held_fingerprint", to, "closes_at", p.closesAt())
	}
	return fmt.Errorf("%w, from %s to %s: it is held; if the peer confirms it: credence peer accept %s",
		errHeld, orNone(from), orNone(to), p.trustDomain)
}

func orNone(fingerprint string) string {
	if fingerprint == "" {
		return "no X.509 key"
	}
	return fingerprint
}

// Accept believes the bundle of td that is held, whose BundleFingerprint is
// fingerprint; "" takes whatever is held now.
func (r *Refresher) Accept(ctx context.Context, td spiffeid.TrustDomain, fingerprint string) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	p, ok := r.poller(td)
	if !ok {
		return fmt.Errorf("accepting the bundle of %s: it is no peer", td)
	}
	now := r.now()
	j := p.job()
	if j.held == nil || j.held.waiting == nil {
		return fmt.Errorf("accepting the bundle of %s: no change is held", td)
	}
	b := j.held.waiting
	if b.Empty() { // never held so: what was stored is spoilt
		return fmt.Errorf("accepting the bundle of %s: what is held is not readable: credence peer refresh %s", td, td)
	}
	if got := BundleFingerprint(b.Bundle); fingerprint != "" && fingerprint != got {
		return fmt.Errorf("accepting the bundle of %s: what is held has the fingerprint %s", td, orNone(got))
	}
	sequence, _ := b.SequenceNumber()
	next := &held{bundle: b, Stored: Stored{
		TrustDomain: td, Sequence: sequence, Document: b.document, FetchedAt: now, ConfirmedAt: now,
	}}
	if err := r.store.SaveBundle(ctx, next.Stored); err != nil {
		return fmt.Errorf("accepting the bundle of %s: %w", td, err)
	}
	p.believe(next, "")
	p.noteAccepted()
	r.set.Put(b)
	r.log.Warn("held bundle of a peer accepted", "trust_domain", td.Name(), "fingerprint", BundleFingerprint(b.Bundle))
	return nil
}

// closesAt is when what is held has waited so long that the bundle before it is
// believed no more; zero: nothing is held.
func (h *held) closesAt(peer *Peer) time.Time {
	if h == nil || h.waiting == nil {
		return time.Time{}
	}
	return h.ConfirmedAt.Add(peer.Staleness())
}

// inForce is what validators get of h at now: the believed bundle or, when a
// change of all its keys was not accepted in time, one that verifies nothing.
func (h *held) inForce(peer *Peer, now time.Time) (b *Bundle, closed bool) {
	if at := h.closesAt(peer); !at.IsZero() && !now.Before(at) {
		return &Bundle{Bundle: spiffebundle.New(peer.TrustDomain), document: []byte(`{"keys":[]}`)}, true
	}
	return h.bundle, false
}

// enforce takes the bundle of p out of force when its time has come, and back
// into force when that is over.
func (r *Refresher) enforce(p *poller) {
	r.writing.Lock()
	defer r.writing.Unlock()
	if now, ok := r.poller(p.trustDomain); !ok || now != p {
		return
	}
	j := p.job()
	if j.held == nil {
		return
	}
	b, closed := j.held.inForce(j.peer, r.now())
	if before, ok := r.set.Get(p.trustDomain); ok && (before == b || closed && before.Empty()) {
		return
	}
	r.set.Put(b)
	if closed {
		r.log.Error("a change of every key of a peer's bundle was not accepted in time: nothing of its trust domain is trusted",
			"trust_domain", p.trustDomain.Name(), "held_at", j.held.HeldAt)
	}
}
