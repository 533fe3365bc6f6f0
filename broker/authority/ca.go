package authority

import (
	"context"
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

// makeRoot makes the trust domain's root where there is none and nobody else's
// is awaited. Records without any root are not an empty store: to start anew
// would split the domain.
func (a *Authority) makeRoot(ctx context.Context) error {
	records := a.live.Load().records
	lost := func(r Record) bool { return r.Use == Root && r.Reason == keyIsLost } // ForgetKeys: it has no successor yet
	if slices.ContainsFunc(records, func(r Record) bool { return r.Use == Root && r.published() && !lost(r) }) {
		return nil
	}
	if a.cfg.Upstream != nil || a.byHand() {
		return nil
	}
	if len(records) > 0 && !slices.ContainsFunc(records, lost) {
		return fmt.Errorf("opening the authority: %d authorities are kept, but no root that is published", len(records))
	}
	if err := a.lead(ctx); err != nil {
		return err
	}
	now := a.now()
	r, err := a.newRoot(ctx, now)
	if err != nil {
		return err
	}
	r.State, r.ActivatedAt = Active, now
	if err := a.change(ctx, r); err != nil {
		return err
	}
	a.cfg.Log.InfoContext(ctx, "root made", "authority", r.ID, "trust_domain", a.cfg.TrustDomain.Name(), "not_after", r.NotAfter)
	return nil
}

// byHand says whether our first root is one that Install brings.
func (a *Authority) byHand() bool { return a.cfg.Upstream == nil && a.cfg.UpstreamName == byHand }

// newRoot makes a root of our own, published.
func (a *Authority) newRoot(ctx context.Context, now time.Time) (Record, error) {
	r, signer, err := newRecord(ctx, a.cfg.RootKeys, Root, "P256")
	if err != nil {
		return Record{}, err
	}
	template, err := a.caTemplate("Credence root", r, now, now.Add(a.cfg.Lives.Root))
	if err != nil {
		return Record{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return Record{}, fmt.Errorf("signing the root of %s: %w", a.cfg.TrustDomain, err)
	}
	r.Chain = [][]byte{der}
	r.State, r.PublishedAt, r.NotAfter = Published, stamp(now), template.NotAfter
	return r, nil
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

// newIssuing makes an issuing CA that signer signs, active.
func (a *Authority) newIssuing(ctx context.Context, now time.Time, signer Record) (Record, error) {
	if !now.Before(signer.NotAfter) {
		return Record{}, fmt.Errorf("renewing the issuing CA: %s %s ended at %s", signer.Use, signer.ID, signer.NotAfter)
	}
	parents, err := parseChain(signer)
	if err != nil {
		return Record{}, err
	}
	signing, err := openKey(ctx, a.cfg.RootKeys, signer)
	if err != nil {
		return Record{}, err
	}
	r, key, err := newRecord(ctx, a.cfg.Keys, Issuing, "P256")
	if err != nil {
		return Record{}, err
	}
	template, err := a.caTemplate("Credence issuing CA", r, now, earliest(now.Add(a.cfg.Lives.Issuing), signer.NotAfter))
	if err != nil {
		return Record{}, err
	}
	template.MaxPathLenZero = true // it signs leaves only
	template.CRLDistributionPoints = a.crlURLs(signer.ID, parents[0])
	der, err := x509.CreateCertificate(rand.Reader, template, parents[0], key.Public(), signing)
	if err != nil {
		return Record{}, fmt.Errorf("signing the issuing CA of %s: %w", a.cfg.Broker, err)
	}
	r.Broker, r.Parent, r.Chain = a.cfg.Broker, signer.ID, [][]byte{der}
	if signer.Use == Domain {
		r.Chain = append(r.Chain, signer.Chain...)
	}
	if err := a.checkChain(r, now); err != nil {
		return Record{}, err
	}
	a.keep(r, key)
	r.State, r.PublishedAt, r.ActivatedAt, r.NotAfter = Active, stamp(now), now, template.NotAfter
	r.LastExpiry = firstPromise(now, r.NotAfter)
	return r, nil
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

// checkChain refuses a CA that the bundle last published does not verify.
func (a *Authority) checkChain(r Record, now time.Time) error {
	chain, err := parseChain(r)
	if err != nil {
		return err
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range a.Bundle().X509Authorities {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("checking the issuing CA of %s against the bundle: %w", a.cfg.Broker, err)
	}
	return nil
}

// oidSerialNumber is X.520's serialNumber.
var oidSerialNumber = asn1.ObjectIdentifier{2, 5, 4, 5}

// caTemplate is a signing certificate (SPIFFE X509-SVID §3.2, §4): the trust
// domain's own ID, keyCertSign and cRLSign, no extended usage. Its name is its
// key's, so that no two CAs are mistaken for each other.
func (a *Authority) caTemplate(name string, r Record, now, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               a.caName(name, r),
		NotBefore:             now.Add(-a.cfg.Lives.Backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          subjectKeyID(r.PublicKey),
		URIs:                  []*url.URL{a.cfg.TrustDomain.ID().URL()},
	}
	if a.cfg.NameConstraints { // RFC 5280 §4.2.1.10: critical
		template.PermittedDNSDomainsCritical = true
		template.PermittedURIDomains = []string{a.cfg.TrustDomain.Name()}
	}
	return template, nil
}

func (a *Authority) caName(name string, r Record) pkix.Name {
	td := a.cfg.TrustDomain.Name()
	return pkix.Name{
		Organization: []string{td[:min(64, len(td))]}, // X.520 bounds it; the URI has the whole name
		CommonName:   name,
		ExtraNames:   []pkix.AttributeTypeAndValue{{Type: oidSerialNumber, Value: r.ID}},
	}
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
