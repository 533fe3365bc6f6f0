package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"
)

// MaxRevoked bounds a list: what reads it may take no more than a megabyte.
const MaxRevoked = 20_000

// revocations are the newest state of the store. It is immutable.
type revocations struct {
	revoked []Revocation
	lists   map[string]CRL // by issuer
	changed chan struct{}  // closed when there are other lists
}

// CRLsChanged is closed when a list that CRLs returned before is no longer the
// newest. To miss none, call CRLsChanged first, then CRLs.
func (a *Authority) CRLsChanged() <-chan struct{} { return a.lists.Load().changed }

// CRLs returns the current list of every CA of ours that may have something
// unexpired under it. One that could not be renewed in time (its key is
// offline) is not among them: List says so before that.
func (a *Authority) CRLs() []CRL {
	now, s := a.cfg.Now(), a.live.Load()
	lists := a.lists.Load().lists
	var current []CRL
	for _, r := range s.records {
		if l, ok := lists[r.ID]; ok && r.lists(now) && now.Before(l.NextUpdate) {
			l.Chain = r.Chain
			current = append(current, l)
		}
	}
	return current
}

// lists says whether r is a CA of ours whose CRL somebody may ask for.
func (r Record) lists(now time.Time) bool {
	switch {
	case r.KeyRef == "" || r.Reason == keyIsLost || r.Use == JWTKey || r.ActivatedAt.IsZero() || !now.Before(r.NotAfter):
		return false
	case r.State == Old && r.Use == Issuing && !now.Before(r.LastExpiry):
		return false
	}
	chain, err := parseChain(r)
	return err == nil && signsCRLs(chain[0]) && (r.State == Active || r.State == Old)
}

// Revoke puts certificates on the CRL of the CA that signed them, until they
// have expired. They are durable first, then on a list: on an error about the
// list alone, Tick makes it. Those already expired or revoked are ignored, and
// those of a CA that is itself revoked: it stands on its signer's list. Where a
// list would hold more than MaxRevoked the first ones are on it, and the error
// wraps ErrFull.
func (a *Authority) Revoke(ctx context.Context, serials []Revocation) error {
	return a.act("revoking", ctx, func(now time.Time) error {
		if err := a.readRevocations(ctx); err != nil {
			return err
		}
		added, full, err := a.revocable(serials, now)
		if err != nil {
			return err
		}
		if len(added) == 0 {
			return full
		}
		if err := a.cfg.Records.SaveRevocations(ctx, added, nil); err != nil {
			return err
		}
		_, err = a.renewCRLs(ctx)
		return errors.Join(err, full)
	})
}

// revocable are those of the serials that are to be added to what is revoked;
// full is ErrFull where there were more than a list takes.
func (a *Authority) revocable(serials []Revocation, now time.Time) (added []Revocation, full, err error) {
	known, count := make(map[string]bool), make(map[string]int)
	for _, r := range a.lists.Load().revoked {
		known[r.key()] = true
		count[r.Issuer]++
	}
	for _, r := range serials {
		issuer, err := a.checkRevocation(&r, now)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case !r.NotAfter.After(now) || issuer.State == Revoked || known[r.key()]:
		case count[r.Issuer] >= MaxRevoked:
			full = fmt.Errorf("%w: that of %s holds %d already: ca replace issuing revokes the CA itself", ErrFull, r.Issuer, MaxRevoked)
		default:
			known[r.key()] = true
			count[r.Issuer]++
			added = append(added, r)
		}
	}
	return added, full, nil
}

func (r Revocation) key() string { return r.Issuer + " " + r.Serial.Text(16) }

func (a *Authority) checkRevocation(r *Revocation, now time.Time) (issuer Record, err error) {
	issuer, ok := a.live.Load().find(r.Issuer)
	switch {
	case r.Serial == nil || r.Serial.Sign() <= 0 || r.Serial.BitLen() > 159: // RFC 5280 §4.1.2.2: 20 octets
		return issuer, refused("serial number: is %v, should be positive and 20 octets at most", r.Serial)
	case !ok || issuer.KeyRef == "" || issuer.Use == JWTKey:
		return issuer, refused("issuer: %q is no CA of ours, should be the one that signed %x", r.Issuer, r.Serial)
	case r.NotAfter.IsZero():
		return issuer, refused("notAfter: that of %x is not given, should be the certificate's", r.Serial)
	}
	if r.At.IsZero() || r.At.After(now) {
		r.At = now
	}
	return issuer, nil
}

// renewCRLs makes the lists that are due: at half of their life, or when
// something is revoked that they lack. A key is opened for nothing else. It says
// when the next is due; what fails does not hold up the others.
func (a *Authority) renewCRLs(ctx context.Context) (next time.Time, err error) {
	if err := a.readRevocations(ctx); err != nil {
		return time.Time{}, err
	}
	now, s := a.now(), a.live.Load()
	var errs []error
	made, leading := false, false
	for _, r := range s.records {
		if !r.lists(now) || r.Use == Issuing && r.Broker != a.cfg.Broker {
			continue
		}
		if a.cfg.Leases != nil && r.Use != Issuing && !leading && a.crlDue(s, r, now) {
			// Another broker's revocation is not to be left out, nor its list made twice.
			if err := a.lead(ctx); err != nil {
				return time.Time{}, err
			}
			leading = true
			if err := a.readRevocations(ctx); err != nil {
				return time.Time{}, err
			}
		}
		last, had := a.lists.Load().lists[r.ID]
		entries, lacking := a.entries(s, r, last)
		due := a.crlDueAt(last)
		if had && !lacking && now.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		err := a.makeCRL(ctx, r, entries, last, now)
		a.problems.set(problemCRL+r.ID, err)
		made = made || err == nil
		if err != nil {
			errs = append(errs, a.crlMissed(ctx, r, last, lacking, err))
		}
	}
	if made {
		errs = append(errs, a.readRevocations(ctx))
	}
	return next, errors.Join(errs...)
}

func (a *Authority) crlDueAt(last CRL) time.Time {
	return last.ThisUpdate.Add(a.cfg.Lives.Backdate + a.cfg.Lives.CRL/2)
}

func (a *Authority) crlDue(s *snapshot, r Record, now time.Time) bool {
	last, had := a.lists.Load().lists[r.ID]
	_, lacking := a.entries(s, r, last)
	return !had || lacking || !now.Before(a.crlDueAt(last))
}

// problemCRL and an ID name what stands in the way of a CA's next CRL.
const problemCRL = "crl "

// crlMissed says what a list that cannot be made means: with the key of a root
// offline, the last one serves on while it is valid.
func (a *Authority) crlMissed(ctx context.Context, r Record, last CRL, lacking bool, err error) error {
	err = fmt.Errorf("making the CRL of %s %s: %w", r.Use, r.ID, err)
	if r.Use != Issuing && !lacking && a.cfg.Now().Before(last.NextUpdate) {
		a.cfg.Log.WarnContext(ctx, "CRL not renewed: the last one serves on", "authority", r.ID, "until", last.NextUpdate, "error", err)
		return nil
	}
	return err
}

func (a *Authority) readRevocations(ctx context.Context) error {
	a.listing.Lock()
	defer a.listing.Unlock()
	revoked, lists, err := a.cfg.Records.Revocations(ctx)
	if err != nil {
		return err
	}
	last := a.lists.Load()
	read := &revocations{revoked: revoked, lists: make(map[string]CRL, len(lists)), changed: last.changed}
	for _, l := range lists {
		if known, ok := last.lists[l.Issuer]; ok && known.Number.Cmp(l.Number) > 0 {
			return fmt.Errorf("reading revocations: CRL of %s: %w", l.Issuer, ErrOlder)
		}
		read.lists[l.Issuer] = l
	}
	same := maps.EqualFunc(read.lists, last.lists, func(x, y CRL) bool { return x.Number.Cmp(y.Number) == 0 })
	if !same {
		read.changed = make(chan struct{})
	}
	a.lists.Store(read)
	if !same {
		close(last.changed)
	}
	return nil
}

// entries are what the next CRL of issuer holds, by serial number, and whether
// the last one lacks any of it. What has expired stays until it was on a list
// made after that (RFC 5280 §3.3).
func (a *Authority) entries(s *snapshot, issuer Record, last CRL) (entries []x509.RevocationListEntry, lacking bool) {
	add := func(serial *big.Int, at, notAfter time.Time) {
		if notAfter.After(last.ThisUpdate) {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: at})
		}
	}
	for _, r := range a.lists.Load().revoked {
		if r.Issuer == issuer.ID {
			add(r.Serial, r.At, r.NotAfter)
		}
	}
	for _, r := range s.of(Issuing, "") {
		if r.Parent != issuer.ID || r.State != Revoked || r.RevokedAt.IsZero() {
			continue
		}
		if chain, err := parseChain(r); err == nil {
			add(chain[0].SerialNumber, r.RevokedAt, chain[0].NotAfter)
		}
	}
	slices.SortFunc(entries, func(x, y x509.RevocationListEntry) int { return x.SerialNumber.Cmp(y.SerialNumber) })
	list, err := x509.ParseRevocationList(last.DER)
	if err != nil {
		return entries, len(entries) > 0
	}
	listed := make(map[string]bool, len(list.RevokedCertificateEntries))
	for _, e := range list.RevokedCertificateEntries {
		listed[e.SerialNumber.String()] = true
	}
	return entries, slices.ContainsFunc(entries, func(e x509.RevocationListEntry) bool { return !listed[e.SerialNumber.String()] })
}

// makeCRL signs and keeps the next CRL of issuer (RFC 5280 §5). Its number grows
// also when an old state of the store comes back.
func (a *Authority) makeCRL(ctx context.Context, issuer Record, entries []x509.RevocationListEntry, last CRL, now time.Time) error {
	chain, err := parseChain(issuer)
	if err != nil {
		return err
	}
	key, err := a.openFor(ctx, issuer)
	if err != nil {
		return err
	}
	number := big.NewInt(max(now.UnixMilli(), 1))
	if last.Number != nil && number.Cmp(last.Number) <= 0 {
		number.Add(last.Number, big.NewInt(1))
	}
	list := &x509.RevocationList{
		Number: number, ThisUpdate: now.Add(-a.cfg.Lives.Backdate), NextUpdate: now.Add(a.cfg.Lives.CRL), RevokedCertificateEntries: entries,
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, chain[0], key)
	if err != nil {
		return err
	}
	signed, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	if err := signed.CheckSignatureFrom(chain[0]); err != nil {
		return fmt.Errorf("checking what was signed: %w", err)
	}
	return a.cfg.Records.SaveRevocations(ctx, nil, []CRL{{
		Issuer: issuer.ID, DER: der, Number: number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate,
	}})
}

// openFor is r's key, which need not be one in use.
func (a *Authority) openFor(ctx context.Context, r Record) (crypto.Signer, error) {
	a.mu.Lock()
	key, err := a.signer(r)
	a.mu.Unlock()
	if err == nil {
		return key, nil
	}
	return openKey(ctx, a.keysOf(r), r)
}
