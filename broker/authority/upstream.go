package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// An Upstream certifies our CA keys by itself: a corporate PKI with an
// interface. What it returns is believed in nothing: the key, the form, the
// times and the chain are checked, and no chain is used that the bundle last
// published does not verify.
type Upstream interface {
	// Sign has the key of csr (PKCS#10 DER) certified as a CA of path length 0
	// or more, for about life. chain is its certificate first, then what stands
	// below the anchors; anchors are the roots that it ends in.
	Sign(ctx context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error)
}

// How long an upstream may take, how it is asked again when it fails, and how
// many roots it may have.
const (
	signTimeout = 2 * time.Minute
	firstRetry  = 30 * time.Second
	lastRetry   = 15 * time.Minute
	maxAnchors  = 10
)

// problemUpstream names what stands between us and the upstream.
const problemUpstream = "upstream"

// fromUpstream says whether the issuing CA in use is one that an upstream
// certified.
func (s *snapshot) fromUpstream() bool {
	if s.issuing == nil || s.issuing.Use != Issuing {
		return false
	}
	parent, ok := s.find(s.issuing.Parent)
	return ok && parent.Use == Root && parent.KeyRef == ""
}

// waiting is the broker's issuing CA that is certified and not in use yet.
func (s *snapshot) waiting(broker string) (Record, bool) {
	for _, r := range s.of(Issuing, "") {
		if r.State == Prepared && r.Broker == broker {
			return r, true
		}
	}
	return Record{}, false
}

// renewUpstream keeps an issuing CA of the upstream's in use: asked for at half
// of the old one's life, used when the bundle verifies it. While the old one is
// valid, a failure is a matter for List and the log, and is tried again.
func (a *Authority) renewUpstream(ctx context.Context, now time.Time) (next time.Time, err error) {
	s := a.live.Load()
	if _, waits := s.waiting(a.cfg.Broker); !waits {
		if s.fromUpstream() && now.Before(halfLife(s.issuing.cert)) {
			return halfLife(s.issuing.cert), nil
		}
		if now.Before(a.tryAt) && a.working(now) {
			return a.tryAt, nil
		}
	}
	changed, err := a.nextFromUpstream(ctx, now)
	if err == nil {
		_, err = a.takeInUse(ctx, changed)
	}
	var wait *waitsUntil
	switch {
	case err == nil:
		a.tries, a.tryAt = 0, time.Time{}
		a.problems.set(problemUpstream, nil)
		return halfLife(a.live.Load().issuing.cert), nil
	case errors.As(err, &wait) && a.working(now):
		a.tries, a.tryAt = 0, time.Time{}
		a.problems.set(problemUpstream, err)
		return wait.at, nil
	}
	a.problems.set(problemUpstream, err)
	if err := a.sync(ctx); err != nil { // it may be the store that failed
		return time.Time{}, err
	}
	a.tryAt = now.Add(min(firstRetry<<min(a.tries, 10), lastRetry))
	a.tries++
	if !a.working(now) {
		return time.Time{}, err
	}
	a.cfg.Log.WarnContext(ctx, "upstream does not certify us", "upstream", a.cfg.UpstreamName, "tries", a.tries, "again_at", a.tryAt, "error", err)
	a.alarm(ctx, err)
	return a.tryAt, nil
}

// working says whether SVIDs can be signed.
func (a *Authority) working(now time.Time) bool {
	ca := a.live.Load().issuing
	return ca != nil && now.Before(ca.NotAfter)
}

// waitsUntil is an ErrNotYet with its time.
type waitsUntil struct {
	error
	at time.Time
}

func (w *waitsUntil) Unwrap() error { return w.error }

// nextFromUpstream returns what changes for a new issuing CA of the upstream's.
// Anchors that are not in the bundle are published first, in a change of their
// own, together with the CA that waits for them.
func (a *Authority) nextFromUpstream(ctx context.Context, now time.Time) ([]Record, error) {
	s := a.live.Load()
	waiting, ok := s.waiting(a.cfg.Broker)
	if !ok {
		ca, anchors, err := a.ask(ctx, now)
		if err != nil {
			return nil, err
		}
		if len(anchors) == 0 {
			return a.takeOverFromUpstream(now, ca)
		}
		if err := a.change(ctx, append(anchors, ca)...); err != nil {
			return nil, err
		}
		waiting = ca
		s = a.live.Load()
	}
	if at := a.usableAt(s, waiting, now); now.Before(at) {
		return nil, &waitsUntil{notYet(at, "issuing CA %s stands under a root that relying parties learn for 3 refresh hints before its first use", waiting.ID), at}
	}
	changed, err := a.takeOverFromUpstream(now, waiting)
	if err == nil {
		return changed, nil
	}
	waiting.State, waiting.RevokedAt, waiting.Reason = Revoked, now, err.Error()
	return nil, errors.Join(err, a.change(ctx, waiting)) // the next try asks for another
}

// usableAt is when a CA may be used: once its root was published for three
// refresh hints (SPIFFE Federation §4.1), or at once while no SVID is out.
func (a *Authority) usableAt(s *snapshot, ca Record, now time.Time) time.Time {
	root, ok := s.find(s.rootOf(ca))
	if !ok || root.State == Active || !s.svidsOut(now) {
		return now
	}
	return root.PublishedAt.Add(3 * a.cfg.Lives.RefreshHint)
}

// svidsOut says whether an X509-SVID of ours may be valid.
func (s *snapshot) svidsOut(now time.Time) bool {
	return slices.ContainsFunc(s.records, func(r Record) bool { return r.signsSVIDs() && r.LastExpiry.After(now) })
}

// takeOverFromUpstream returns what changes when ca, which the upstream
// certified, is used from now on.
func (a *Authority) takeOverFromUpstream(now time.Time, ca Record) ([]Record, error) {
	if err := a.checkChain(ca, now); err != nil {
		return nil, err
	}
	root, ok := a.live.Load().find(ca.Parent)
	if !ok || !root.published() {
		return nil, fmt.Errorf("using issuing CA %s: its root is not published any more", ca.ID)
	}
	changed := a.stepDown(root.ID, "")
	if root.State == Old {
		root.State = Published
	}
	root.LastExpiry = latest(root.LastExpiry, ca.NotAfter)
	ca.State, ca.ActivatedAt, ca.LastExpiry = Active, now, firstPromise(now, ca.NotAfter)
	return append(changed, activated(root, now), ca), nil
}

// ask has the upstream certify a new key. With the CA, prepared, it returns the
// records of roots that are not in the bundle yet, or not wanted in it any more.
func (a *Authority) ask(ctx context.Context, now time.Time) (ca Record, roots []Record, err error) {
	if a.asking.key == nil { // a try that failed leaves its key to the next
		if a.asking.Record, a.asking.key, err = newRecord(ctx, a.cfg.Keys, Issuing, "P256"); err != nil {
			return ca, nil, err
		}
	}
	ca, key := a.asking.Record, a.asking.key
	csr, err := a.request(key, "Credence issuing CA", ca, 0)
	if err != nil {
		return ca, nil, err
	}
	asking, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	chain, anchors, err := a.cfg.Upstream.Sign(asking, csr, a.cfg.Lives.Issuing)
	if err != nil {
		return ca, nil, fmt.Errorf("having an issuing CA certified by upstream %s: %w", a.cfg.UpstreamName, err)
	}
	anchors, err = judgeAnchors(anchors, now)
	if err != nil {
		return ca, nil, fmt.Errorf("checking the anchors of upstream %s: %w", a.cfg.UpstreamName, err)
	}
	chain, anchor, err := a.judge(key, chain, anchors, now)
	if err != nil {
		return ca, nil, fmt.Errorf("checking what upstream %s certified: %w", a.cfg.UpstreamName, err)
	}
	a.keep(ca, key)
	a.asking = unused{}
	for _, c := range chain {
		ca.Chain = append(ca.Chain, c.Raw)
		ca.NotAfter = earliest(c.NotAfter, nonZero(ca.NotAfter)...)
	}
	ca.Broker, ca.Parent, ca.State = a.cfg.Broker, rootID(anchor), Prepared
	ca.NotAfter, ca.PublishedAt = earliest(ca.NotAfter, anchor.NotAfter), stamp(now)
	return ca, a.anchorsChanged(anchors, now), nil
}

// unused is a key that nothing stands for yet.
type unused struct {
	Record
	key crypto.Signer
}

func nonZero(t time.Time) []time.Time {
	if t.IsZero() {
		return nil
	}
	return []time.Time{t}
}

// judgeAnchors returns the anchors that have not ended: all of them go into the
// bundle, so each must be one that verifiers take, whatever stands under it.
func judgeAnchors(anchors []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	if len(anchors) > maxAnchors || slices.Contains(anchors, nil) {
		return nil, fmt.Errorf("there are %d, or none is where one should be: should be 1 to %d", len(anchors), maxAnchors)
	}
	var valid []*x509.Certificate
	for _, c := range anchors {
		if !now.Before(c.NotAfter) {
			continue
		}
		err := checkAlgorithm(c)
		if err == nil {
			err = checkCA(c, 0, now, now)
		}
		if err == nil {
			err = checkStrict(c, c)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", c.Subject.String(), err)
		}
		valid = append(valid, c)
	}
	if len(valid) == 0 {
		return nil, fmt.Errorf("of %d none is valid, should be 1 to %d", len(anchors), maxAnchors)
	}
	return valid, nil
}

// maxUpstream is how long an issuing CA may live that an upstream made: the
// bound of Lives.Issuing, and a day for those that round up.
const maxUpstream = 8 * day

// judge takes nothing on trust of what an upstream returned. It returns the
// chain below the anchor, and the anchor.
func (a *Authority) judge(key crypto.Signer, chain, anchors []*x509.Certificate, now time.Time) ([]*x509.Certificate, *x509.Certificate, error) {
	if slices.Contains(chain, nil) {
		return nil, nil, errors.New("chain: a certificate is none, should be one")
	}
	isAnchor := func(c *x509.Certificate) bool { return slices.ContainsFunc(anchors, c.Equal) }
	if i := slices.IndexFunc(chain, isAnchor); i > 0 {
		chain = chain[:i]
	}
	if len(chain) == 0 {
		return nil, nil, errors.New("chain: is empty, should begin with our certificate")
	}
	if err := checkAlgorithms(chain); err != nil {
		return nil, nil, err
	}
	top := chain[len(chain)-1]
	i := slices.IndexFunc(anchors, func(c *x509.Certificate) bool { return issued(c, top) == nil })
	if i < 0 {
		return nil, nil, fmt.Errorf("issuer of %q: is none of the %d anchors, should be one", top.Subject, len(anchors))
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(chain[0].RawSubjectPublicKeyInfo, spki) {
		return nil, nil, errors.New("key: is not the one in our request, should be")
	}
	path := append(slices.Clone(chain), anchors[i])
	if err := a.checkPath(path, false, now, now.Add(min(time.Hour, a.cfg.Lives.Issuing/2))); err != nil {
		return nil, nil, err
	}
	if most := now.Add(maxUpstream); chain[0].NotAfter.After(most) { // its key would be worth stealing for as long
		return nil, nil, fmt.Errorf("notAfter: is %s, should be %s at the latest: it was asked for %s", date(chain[0].NotAfter), date(most), a.cfg.Lives.Issuing)
	}
	return chain, anchors[i], a.tryChain(key, path, false, now)
}

// anchorsChanged are the records of roots that the bundle lacks, and of those in
// it that the upstream no longer has and nothing stands under.
func (a *Authority) anchorsChanged(anchors []*x509.Certificate, now time.Time) []Record {
	s := a.live.Load()
	var changed []Record
	wanted := map[string]bool{}
	for _, c := range anchors {
		id := rootID(c)
		if wanted[id] {
			continue
		}
		wanted[id] = true
		if r, ok := s.find(id); !ok || !r.published() || r.State == Old {
			changed = append(changed, a.foreignRoot(c, a.cfg.SharedRoot, now))
		}
	}
	for _, r := range s.of(Root, "") {
		until, _ := s.svidsUnder(r.ID)
		if r.State == Published && r.KeyRef == "" && !wanted[r.ID] && until.Before(now) {
			r.State = Revoked
			changed = append(changed, r)
		}
	}
	return changed
}

// rootID is the ID of a root that is not ours: of its certificate, since a root
// that is renewed with its key is another anchor.
func rootID(c *x509.Certificate) string { return digest(c.Raw).String()[:32] }

// foreignRoot is the record of a root that is not ours, published. One that is
// in the bundle already keeps its time there.
func (a *Authority) foreignRoot(c *x509.Certificate, shared string, now time.Time) Record {
	r, ok := a.live.Load().find(rootID(c))
	if !ok {
		r = Record{ID: rootID(c), Use: Root, Alg: algOf(c), PublicKey: c.RawSubjectPublicKeyInfo, Chain: [][]byte{c.Raw}}
	}
	if !r.published() {
		r.PublishedAt, r.ActivatedAt, r.RevokedAt = stamp(now), time.Time{}, time.Time{}
	}
	r.State, r.NotAfter, r.Reason = Published, c.NotAfter, shared
	return r
}
