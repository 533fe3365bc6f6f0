package authority

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// renewIssuing replaces this broker's issuing CA where there is none, where the
// active root is another than its own, or at half of its life, and says when to
// look again.
func (a *Authority) renewIssuing(ctx context.Context) (next time.Time, err error) {
	defer func() {
		a.problems.set(problemIssuing, err)
		if err != nil {
			a.alarm(ctx, err)
		}
	}()
	now := a.now()
	if a.cfg.Upstream == nil {
		return a.renewOurs(ctx, now)
	}
	next, err = a.renewUpstream(ctx, now)
	// Until the upstream's chain can be used, a signer of ours goes on.
	s := a.live.Load()
	root, ok := activeRoot(s)
	if !ok || s.fromUpstream() {
		return next, err
	}
	if _, ours := s.signerUnder(root, Active); !ours {
		return next, err
	}
	ourNext, ourErr := a.renewOurs(ctx, now)
	if ourErr == nil && ourNext.Before(next) {
		next = ourNext
	}
	return next, errors.Join(err, ourErr)
}

// problemIssuing names what stands in the way of the next issuing CA.
const problemIssuing = "issuing"

// alarm says how late it is: the old CA works until it ends.
func (a *Authority) alarm(ctx context.Context, err error) {
	ca := a.live.Load().issuing
	if ca == nil {
		return
	}
	left := ca.NotAfter.Sub(a.cfg.Now())
	switch life := ca.cert.NotAfter.Sub(ca.cert.NotBefore); {
	case left <= life/4:
		a.cfg.Log.ErrorContext(ctx, "the issuing CA ends soon and is not renewed", "authority", ca.ID, "not_after", ca.NotAfter, "error", err)
	case left <= life/2:
		a.cfg.Log.WarnContext(ctx, "the issuing CA is past half of its life and not renewed", "authority", ca.ID, "not_after", ca.NotAfter, "error", err)
	}
}

// renewOurs renews under the active root by its own key, or by our CA under it.
func (a *Authority) renewOurs(ctx context.Context, now time.Time) (next time.Time, err error) {
	if err := a.settle(ctx, now); err != nil {
		return time.Time{}, err
	}
	s := a.live.Load()
	root, ok := activeRoot(s)
	if !ok {
		if a.byHand() {
			return time.Time{}, nil // Install is awaited
		}
		return time.Time{}, errors.New("renewing the issuing CA: there is no active root")
	}
	current := s.issuing != nil && s.rootOf(s.issuing.Record) == root.ID
	if current && now.Before(halfLife(s.issuing.cert)) {
		return halfLife(s.issuing.cert), nil
	}
	signer, ok := s.signerUnder(root, Active)
	if !ok {
		return time.Time{}, fmt.Errorf("renewing the issuing CA: root %s is not ours, and nobody certifies us under it: configure its upstream again, or have our CA certified (csr, install)", root.ID)
	}
	if current && now.Before(s.issuing.NotAfter) && !s.issuing.NotAfter.Before(signer.NotAfter) {
		// It signs SVIDs itself, or another issuing CA would not live longer.
		a.alarm(ctx, fmt.Errorf("%s %s ends with it: %s", signer.Use, signer.ID, a.wayOut(signer)))
		return signer.NotAfter, nil
	}
	changed, err := a.takeOver(ctx, now, root, signer)
	if err != nil {
		return time.Time{}, err
	}
	return a.takeInUse(ctx, changed)
}

// wayOut is how a signer that ends is replaced.
func (a *Authority) wayOut(signer Record) string {
	if signer.Use == Domain || a.byHand() {
		return "have the PKI team certify another CA (csr, install)"
	}
	return "replace the root (publish, activate, drop)"
}

// takeInUse saves a take-over, and says when the next is due.
func (a *Authority) takeInUse(ctx context.Context, changed []Record) (next time.Time, err error) {
	if err := a.change(ctx, changed...); err != nil {
		return time.Time{}, err
	}
	ca := a.live.Load().issuing
	if ca == nil {
		return time.Time{}, errors.New("renewing the issuing CA: the bundle does not vouch for it")
	}
	a.cfg.Log.InfoContext(ctx, "issuing CA active", "authority", ca.ID, "not_after", ca.NotAfter)
	return halfLife(ca.cert), nil
}

// settle ends what an Install began: it takes our CA into use where its root is
// the active one already, or where there is no other.
func (a *Authority) settle(ctx context.Context, now time.Time) error {
	if a.cfg.Upstream != nil {
		return nil
	}
	s := a.live.Load()
	root, ok := activeRoot(s)
	signer, installed := s.domain(root.ID, Published)
	if !ok {
		for _, r := range s.of(Root, "") {
			if r.State != Published {
				continue
			}
			if c, can := s.signerUnder(r, Published); can {
				root, signer, installed = r, c, true
			}
		}
	}
	if !installed {
		return nil
	}
	changed, err := a.takeOver(ctx, now, root, signer)
	if err != nil {
		return err
	}
	_, err = a.takeInUse(ctx, changed)
	return err
}

// RotateIssuing puts a new issuing CA of this broker in the old one's place.
// The old one is Old until its SVIDs end. It is ErrNotYet while the bundle does
// not verify the new one yet: Tick then takes it into use.
func (a *Authority) RotateIssuing(ctx context.Context) (Status, error) {
	var st Status
	err := a.act("rotating the issuing CA", ctx, func(now time.Time) error {
		id, err := a.rotateIssuing(ctx, now)
		st = a.status(id)
		return err
	})
	return st, err
}

// rotateIssuing returns the new CA's ID. end changes the old one's record.
func (a *Authority) rotateIssuing(ctx context.Context, now time.Time, end ...func(*Record)) (id string, err error) {
	changed, err := a.nextIssuing(ctx, now)
	if err != nil {
		if waiting, ok := a.live.Load().waiting(a.cfg.Broker); ok {
			id = waiting.ID
		}
		return id, err
	}
	for i, r := range changed {
		if r.Use == Issuing && r.State == Old {
			for _, do := range end {
				do(&changed[i])
			}
		}
	}
	if _, err := a.takeInUse(ctx, changed); err != nil {
		return "", err
	}
	return a.live.Load().issuing.ID, nil
}

// nextIssuing returns what changes for a new issuing CA at once.
func (a *Authority) nextIssuing(ctx context.Context, now time.Time) ([]Record, error) {
	s := a.live.Load()
	if a.cfg.Upstream != nil && (s.issuing == nil || s.fromUpstream()) {
		return a.nextFromUpstream(ctx, now)
	}
	root, ok := activeRoot(s)
	if !ok {
		return nil, nothing("there is no active root yet")
	}
	signer, ok := s.signerUnder(root, Active)
	switch {
	case !ok:
		return nil, nothing("root %s is not ours, and nobody certifies us under it: configure its upstream again, or have our CA certified (csr, install)", root.ID)
	case signer.signsSVIDs():
		return nil, nothing("the CA %s was granted path length 0 and signs SVIDs itself: the PKI team must certify another (csr, install)", signer.ID)
	}
	return a.takeOver(ctx, now, root, signer)
}

// ReplaceIssuing is RotateIssuing after a compromise: the old CA is Revoked, and
// on the CRL of its signer if that is ours. What it signed is believed no more
// by whoever reads the CRL; agents ask for their SVIDs again.
func (a *Authority) ReplaceIssuing(ctx context.Context, reason string) (Replacement, error) {
	var done Replacement
	err := a.act("replacing the issuing CA", ctx, func(now time.Time) error {
		old := a.live.Load().issuing
		if old == nil {
			return nothing("there is no issuing CA")
		}
		id, err := a.rotateIssuing(ctx, now, func(r *Record) {
			if r.ID == old.ID {
				r.State, r.RevokedAt, r.Reason = Revoked, now, reason
			}
		})
		if err != nil {
			return err
		}
		done = Replacement{Old: a.status(old.ID), New: a.status(id), Until: old.NotAfter}
		done.Believed = a.believedIssuing(old.Record)
		_, err = a.renewCRLs(ctx)
		return err
	})
	return done, err
}

// EndIssuing ends the issuing CAs of another broker, which is gone for good or in
// other hands: they are Revoked, as by ReplaceIssuing. If it lives and nobody keeps
// it from the database and its signer, it makes another. Where they are Revoked
// already it returns them again, for what was to follow and perhaps did not.
func (a *Authority) EndIssuing(ctx context.Context, name, reason string) ([]Replacement, error) {
	var all []Replacement
	err := a.act("ending the issuing CAs of broker "+name, ctx, func(now time.Time) error {
		if name == a.cfg.Broker {
			return refused("broker: %s is this one, whose CA is replaced", name)
		}
		var ended, before []Record
		for _, r := range a.live.Load().of(Issuing, "") {
			switch {
			case r.Broker != name || !now.Before(r.NotAfter):
			case r.State != Revoked:
				r.State, r.RevokedAt, r.Reason = Revoked, now, reason
				ended = append(ended, r)
			case !r.RevokedAt.IsZero():
				before = append(before, r)
			}
		}
		if len(ended)+len(before) == 0 {
			return nothing("broker %q has no issuing CA that has not ended", name)
		}
		if err := a.change(ctx, ended...); err != nil {
			return err
		}
		for _, r := range ended {
			a.cfg.Log.WarnContext(ctx, "issuing CA of another broker ended", "authority", r.ID, "broker", name, "reason", reason)
		}
		if len(ended) == 0 {
			ended = before
		}
		all = nil
		for _, r := range ended {
			all = append(all, Replacement{Old: a.status(r.ID), Until: r.NotAfter, Believed: a.believedIssuing(r)})
		}
		_, err := a.renewCRLs(ctx)
		return err
	})
	return all, err
}

// unlisted says that revocations under another broker's CA are on no CRL, which it
// alone can sign.
func (a *Authority) unlisted(s *snapshot, r Record) string {
	now := a.now()
	waits := func(v Revocation) bool {
		return v.Issuer == r.ID && v.NotAfter.After(now) && v.At.Before(now.Add(-ownGrace))
	}
	lists := a.lists.Load()
	if !r.lists(now) || !slices.ContainsFunc(lists.revoked, waits) {
		return ""
	}
	listed := map[string]bool{}
	if list, err := x509.ParseRevocationList(lists.lists[r.ID].DER); err == nil && now.Before(list.NextUpdate) { // else nobody hands it out
		for _, e := range list.RevokedCertificateEntries {
			listed[e.SerialNumber.String()] = true
		}
	}
	n := 0
	for _, v := range lists.revoked {
		if waits(v) && !listed[v.Serial.String()] {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("revocations under it (%d) are on no CRL, which only broker %s signs: start that one; if it is gone for good, credence ca replace issuing --of %s puts the CA itself on its signer's", n, r.Broker, r.Broker)
}

func (a *Authority) believedIssuing(old Record) []string {
	s := a.live.Load()
	believed := []string{fmt.Sprintf("whoever reads no CRL (peers, most clouds) believes a stolen copy of issuing CA %s until %s; only its root's removal from the bundle ends that sooner",
		old.ID, old.NotAfter.UTC().Format(time.RFC3339))}
	signer, _ := s.find(old.Parent)
	if signer.KeyRef == "" {
		return append(believed, fmt.Sprintf("it was certified by upstream %s, whose CRL is not ours: have serial number %s revoked there", a.cfg.UpstreamName, serialOf(old)))
	}
	if chain, err := parseChain(signer); err == nil && !signsCRLs(chain[0]) {
		return append(believed, fmt.Sprintf("there is no CRL of %s %s: its certificate lacks cRLSign", signer.Use, signer.ID))
	}
	believed = append(believed, "agents take nobody for the broker who shows it, once they have the list by their stream")
	return append(believed, fmt.Sprintf("whoever reads the CRL of %s %s believes it until that list is fetched again, at the latest %s from now", signer.Use, signer.ID, a.cfg.Lives.CRL))
}

func serialOf(r Record) string {
	chain, err := parseChain(r)
	if err != nil {
		return ""
	}
	return chain[0].SerialNumber.Text(16)
}
