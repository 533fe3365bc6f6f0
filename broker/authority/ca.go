package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"
)

// makeRoot makes the trust domain's root where there is none. Records without
// any root are not an empty store: to start anew would split the domain.
func (a *Authority) makeRoot(ctx context.Context) error {
	records := a.live.Load().records
	if slices.ContainsFunc(records, func(r Record) bool { return r.Use == Root && r.published() }) {
		return nil
	}
	if len(records) > 0 {
		return fmt.Errorf("opening the authority: %d authorities are kept, but no root that is published", len(records))
	}
	now := a.now()
	r, signer, err := newRecord(ctx, a.cfg.RootKeys, Root, "P256")
	if err != nil {
		return err
	}
	template, err := a.caTemplate("Credence root", r, signer.Public(), now, now.Add(a.cfg.Lives.Root))
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return fmt.Errorf("signing the root of %s: %w", a.cfg.TrustDomain, err)
	}
	r.Chain = [][]byte{der}
	r.State, r.PublishedAt, r.ActivatedAt, r.NotAfter = Active, stamp(now), now, template.NotAfter
	if err := a.change(ctx, r); err != nil {
		return err
	}
	a.cfg.Log.InfoContext(ctx, "root made", "authority", r.ID, "trust_domain", a.cfg.TrustDomain.Name(), "not_after", r.NotAfter)
	return nil
}

// checkClock refuses to begin days before our own CAs were made: what is signed
// by such a clock nobody takes whose clock is right. A clock that was put back
// by hours goes on: what it signs begins no earlier than its CA.
func (a *Authority) checkClock() error {
	s, now := a.live.Load(), a.now()
	made := time.Time{}
	if root, ok := activeRoot(s); ok {
		made = root.ActivatedAt
	}
	if s.issuing != nil {
		made = s.issuing.cert.NotBefore
	}
	if now.Before(made.Add(-24 * time.Hour)) {
		return fmt.Errorf("opening the authority: this machine's clock says %s, but its CA was made at %s: set the clock (NTP)", now.Format(time.RFC3339), made.UTC().Format(time.RFC3339))
	}
	return nil
}

// renewIssuing replaces this broker's issuing CA where there is none, or at
// half of its life, and says when to look again.
func (a *Authority) renewIssuing(ctx context.Context) (next time.Time, err error) {
	now, s := a.now(), a.live.Load()
	root, ok := activeRoot(s)
	if !ok {
		return time.Time{}, errors.New("renewing the issuing CA: there is no active root")
	}
	if s.issuing != nil {
		if half := halfLife(s.issuing.cert); now.Before(half) {
			return half, nil
		}
		if now.Before(s.issuing.NotAfter) && !s.issuing.NotAfter.Before(root.NotAfter) {
			a.cfg.Log.WarnContext(ctx, "the root ends with the issuing CA: replace it", "authority", root.ID, "not_after", root.NotAfter)
			return root.NotAfter, nil // another would not live longer
		}
	}
	changed, err := a.newIssuing(ctx, now, root)
	if err != nil {
		return time.Time{}, err
	}
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

func activeRoot(s *snapshot) (Record, bool) {
	roots := s.of(Root, "")
	i := slices.IndexFunc(roots, func(r Record) bool { return r.State == Active })
	if i < 0 {
		return Record{}, false
	}
	return roots[i], true
}

// halfLife is when to renew: a broker that is down for the other half is then
// still invisible to workloads.
func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}

// newIssuing has the root sign a new issuing CA, and returns every record that
// this changes, those that stop being active first.
func (a *Authority) newIssuing(ctx context.Context, now time.Time, root Record) ([]Record, error) {
	if !now.Before(root.NotAfter) {
		return nil, fmt.Errorf("renewing the issuing CA: root %s ended at %s", root.ID, root.NotAfter)
	}
	parents, err := parseChain(root)
	if err != nil {
		return nil, err
	}
	rootKey, err := openKey(ctx, a.cfg.RootKeys, root)
	if err != nil {
		return nil, err
	}
	r, signer, err := newRecord(ctx, a.cfg.Keys, Issuing, "P256")
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(a.cfg.Lives.Issuing)
	if notAfter.After(root.NotAfter) {
		notAfter = root.NotAfter
	}
	template, err := a.caTemplate("Credence issuing CA", r, signer.Public(), now, notAfter)
	if err != nil {
		return nil, err
	}
	template.MaxPathLenZero = true // it signs leaves only
	der, err := x509.CreateCertificate(rand.Reader, template, parents[0], signer.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("signing the issuing CA of %s: %w", a.cfg.Broker, err)
	}
	if err := a.checkChain(der, now); err != nil {
		return nil, err
	}
	a.keep(r.ID, signer)
	r.Broker, r.Chain = a.cfg.Broker, [][]byte{der}
	r.State, r.PublishedAt, r.ActivatedAt, r.NotAfter = Active, stamp(now), now, notAfter
	r.LastExpiry = firstPromise(now, notAfter)
	if notAfter.After(root.LastExpiry) {
		root.LastExpiry = notAfter
	}
	return append(a.outgoing(), root, r), nil
}

// outgoing are this broker's issuing CAs that stop being active.
func (a *Authority) outgoing() []Record {
	var old []Record
	for _, r := range a.live.Load().of(Issuing, "") {
		if r.State == Active && r.Broker == a.cfg.Broker {
			r.State = Old
			old = append(old, r)
		}
	}
	return old
}

// firstPromise covers the SVIDs of the first hour.
func firstPromise(now, most time.Time) time.Time {
	t := now.Truncate(time.Hour).Add(3 * time.Hour)
	if t.After(most) {
		return most
	}
	return t
}

// checkChain refuses an issuing CA that our own bundle does not verify.
func (a *Authority) checkChain(der []byte, now time.Time) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("checking the issuing CA of %s: %w", a.cfg.Broker, err)
	}
	roots := x509.NewCertPool()
	for _, c := range a.Bundle().X509Authorities {
		roots.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := cert.Verify(opts); err != nil {
		return fmt.Errorf("checking the issuing CA of %s against the bundle: %w", a.cfg.Broker, err)
	}
	return nil
}

// oidSerialNumber is X.520's serialNumber.
var oidSerialNumber = asn1.ObjectIdentifier{2, 5, 4, 5}

// caTemplate is a signing certificate (SPIFFE X509-SVID §3.2, §4): the trust
// domain's own ID, keyCertSign and cRLSign, no extended usage. Its name is its
// key's, so that no two CAs are mistaken for each other.
func (a *Authority) caTemplate(name string, r Record, pub crypto.PublicKey, now, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			// X.520 bounds both at 64 characters; the URI has the whole name.
			Organization: []string{a.cfg.TrustDomain.Name()[:min(64, len(a.cfg.TrustDomain.Name()))]},
			CommonName:   name,
			ExtraNames:   []pkix.AttributeTypeAndValue{{Type: oidSerialNumber, Value: r.ID}},
		},
		NotBefore:             now.Add(-a.cfg.Lives.Backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          subjectKeyID(r.PublicKey),
		URIs:                  []*url.URL{a.cfg.TrustDomain.ID().URL()},
	}, nil
}

// subjectKeyID is the leftmost 160 bits of the SHA-256 of the whole
// SubjectPublicKeyInfo, after RFC 7093 §2: any unique value serves.
func subjectKeyID(spki []byte) []byte {
	d := sha256.Sum256(spki)
	return d[:20]
}

// newSerial returns 128 random bits, positive (RFC 5280 §4.1.2.2).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	serial := new(big.Int).SetBytes(b)
	if serial.Sign() <= 0 {
		return nil, errors.New("making a serial number: the random source gave nothing but zeros")
	}
	return serial, nil
}
