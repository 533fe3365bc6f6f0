package authority

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"
)

// domain returns our newest CA under root in one of the states.
func (s *snapshot) domain(root string, states ...State) (Record, bool) {
	var found Record
	for _, r := range s.of(Domain, "") {
		for _, state := range states {
			if r.Parent == root && r.State == state {
				found = r
			}
		}
	}
	return found, found.ID != ""
}

// signerUnder is who certifies issuing CAs under root: our CA under it, or itself
// if it is ours. A root of which neither holds is the upstream's.
func (s *snapshot) signerUnder(root Record, states ...State) (Record, bool) {
	if ca, ok := s.domain(root.ID, states...); ok || root.KeyRef == "" {
		return ca, ok
	}
	return root, true
}

// rootOf is the ID of the root that r stands under, or empty.
func (s *snapshot) rootOf(r Record) string {
	for range 4 { // root, domain, issuing: and no loop
		if r.Use == Root {
			return r.ID
		}
		parent, ok := s.find(r.Parent)
		if !ok {
			break
		}
		r = parent
	}
	return s.rootBySignature(r)
}

// rootBySignature finds the root of a record from before parents were kept.
func (s *snapshot) rootBySignature(r Record) string {
	chain, err := parseChain(r)
	if err != nil {
		return ""
	}
	for _, root := range s.of(Root, "") {
		c, err := x509.ParseCertificate(root.Chain[0])
		if err == nil && chain[len(chain)-1].CheckSignatureFrom(c) == nil {
			return root.ID
		}
	}
	return ""
}

// svidsUnder is until when SVIDs under a root may live, as the records promise,
// and which broker's CA still signs more; empty: none does.
func (s *snapshot) svidsUnder(root string) (until time.Time, signing string) {
	for _, r := range s.records {
		if r.Use == JWTKey || s.rootOf(r) != root || !r.signsSVIDs() {
			continue
		}
		until = latest(until, r.LastExpiry)
		if r.Use == Issuing && r.State == Active {
			signing = r.Broker
		}
	}
	return until, signing
}

// signsSVIDs says whether r is, or was, a CA for leaves.
func (r Record) signsSVIDs() bool {
	if r.Use == Issuing {
		return true
	}
	if r.KeyRef == "" || len(r.Chain) == 0 || r.Use == JWTKey {
		return false
	}
	c, err := x509.ParseCertificate(r.Chain[0])
	return err == nil && leavesOnly(c)
}

// putAside says whether an old root was rolled back from: it leaves the bundle
// when what it signed has ended.
func (s *snapshot) putAside(r Record) bool {
	active, ok := activeRoot(s)
	return ok && r.State == Old && r.ActivatedAt.After(active.ActivatedAt)
}

// takeOver returns every record that changes when root is, or becomes, the
// active one, and signer (itself, or our CA under it) certifies a new issuing
// CA or, if it may certify none, signs SVIDs itself. Those that stop being
// active come first. All of it is one change.
func (a *Authority) takeOver(ctx context.Context, now time.Time, root, signer Record) ([]Record, error) {
	cert, err := parseChain(signer)
	if err != nil {
		return nil, err
	}
	changed := a.stepDown(root.ID, signer.ID)
	var issuing []Record
	if leavesOnly(cert[0]) {
		if signer, err = a.leafSigner(ctx, now, signer); err != nil {
			return nil, err
		}
	} else {
		ca, err := a.newIssuing(ctx, now, signer)
		if err != nil {
			return nil, err
		}
		issuing = []Record{ca}
		signer.LastExpiry = latest(signer.LastExpiry, ca.NotAfter)
	}
	if active, ok := activeRoot(a.live.Load()); ok && active.ID != root.ID && root.State == Published {
		now = latest(now, active.ActivatedAt.Add(time.Second)) // later than the other's, whatever the clock says
	}
	if signer.Use == Domain {
		changed = append(changed, activated(signer, now))
		root.LastExpiry = latest(root.LastExpiry, signer.LastExpiry)
	} else {
		root = signer
	}
	return append(append(changed, activated(root, now)), issuing...), nil
}

// activated is r in use; since when, stays as it was for one that comes back.
func activated(r Record, now time.Time) Record {
	if r.State == Published || r.ActivatedAt.IsZero() {
		r.ActivatedAt = now
	}
	r.State = Active
	return r
}

// leafSigner is a CA of path length 0 that begins to sign SVIDs.
func (a *Authority) leafSigner(ctx context.Context, now time.Time, r Record) (Record, error) {
	if !now.Before(r.NotAfter) {
		return r, fmt.Errorf("taking the CA %s into use: it ended at %s", r.ID, r.NotAfter)
	}
	if r.Use == Domain {
		if err := a.checkChain(r, now); err != nil {
			return r, err
		}
	}
	key, err := openKey(ctx, a.cfg.RootKeys, r)
	if err != nil {
		return r, err
	}
	a.keep(r, key)
	r.LastExpiry = latest(r.LastExpiry, firstPromise(now, r.NotAfter))
	return r, nil
}

// stepDown returns what stops being active when root and signer take over: this
// broker's issuing CA, the other root and the CA under it. A CA that was
// installed under root besides signer was never used, and never will be.
func (a *Authority) stepDown(root, signer string) []Record {
	changed := a.outgoing()
	for _, r := range a.live.Load().records {
		switch {
		case r.State == Active && (r.Use == Root && r.ID != root || r.Use == Domain && r.ID != signer):
			r.State = Old
		case r.State == Published && r.Use == Domain && r.Parent == root && r.ID != signer:
			r.State, r.Reason = Revoked, "another CA was installed after it"
		default:
			continue
		}
		changed = append(changed, r)
	}
	return changed
}
