package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/api"
)

// Bounds of CRLs. What they come to goes into every X509-SVID response, and
// clients of the Workload API take messages of 4 MB.
const (
	maxCRL      = 1 << 20
	maxCRLs     = 2 << 20 // all together
	maxCRLChain = 5
	maxIssuers  = 64
	crlSkew     = time.Minute
)

// A CRL is a current list of a CA under our own bundle (RFC 5280 §5). It is
// immutable.
type CRL struct {
	DER        []byte
	Number     *big.Int
	NextUpdate time.Time

	issuer [sha256.Size]byte // its name and key
}

// CRLs are those that hold now.
func (b *bundles) currentCRLs(now time.Time) (current []*CRL) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, l := range b.crls {
		if now.Before(l.NextUpdate) {
			current = append(current, l)
		}
	}
	return current
}

// takeCRLs takes the lists that came with our own bundle, in place of those
// that are held. A bad one is left out by itself, and the one that is held of
// its issuer stays: it withholds nothing, and revives nobody.
func (a *Agent) takeCRLs(ctx context.Context, in []*api.CRL) {
	anchors := x509.NewCertPool()
	for _, c := range a.bundles.roots(a.cfg.TrustDomain) {
		anchors.AddCert(c)
	}
	var taken []*CRL
	for _, m := range in {
		l, err := readCRL(m, anchors, a.cfg.Now())
		if err == nil {
			err = a.bundles.checkNumber(l)
		}
		if err != nil {
			a.cfg.Log.ErrorContext(ctx, "CRL not taken", "issuer", l.name(), "error", err)
			if l = a.bundles.heldCRL(l); l == nil {
				continue
			}
		}
		if slices.ContainsFunc(taken, func(o *CRL) bool { return o.issuer == l.issuer }) {
			a.cfg.Log.ErrorContext(ctx, "CRL not taken", "issuer", l.name(), "error", "another one of this issuer came with it")
			continue
		}
		taken = append(taken, l)
	}
	for size := 0; ; size = 0 {
		for _, l := range taken {
			size += len(l.DER)
		}
		if size <= maxCRLs && len(taken) <= maxIssuers {
			break
		}
		// The longest goes first: most is known without it.
		longest := slices.MaxFunc(taken, func(x, y *CRL) int { return len(x.DER) - len(y.DER) })
		a.cfg.Log.ErrorContext(ctx, "CRL not taken", "issuer", longest.name(), "error", fmt.Sprintf("%d CRLs of %d bytes are more than workloads take", len(taken), size))
		taken = slices.DeleteFunc(taken, func(l *CRL) bool { return l == longest })
	}
	a.bundles.putCRLs(taken)
}

func (l *CRL) name() string {
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%x", l.issuer[:8])
}

// readCRL reads a list and holds it against its issuer's certificate, and that
// against our anchors. Where its issuer is good and the list is not, that says
// whose it is.
func readCRL(m *api.CRL, anchors *x509.CertPool, now time.Time) (*CRL, error) {
	switch n := len(m.GetIssuer()); {
	case len(m.GetDer()) > maxCRL:
		return nil, fmt.Errorf("%d bytes, at most %d are taken", len(m.GetDer()), maxCRL)
	case n == 0 || n > maxCRLChain:
		return nil, fmt.Errorf("its issuer comes with %d certificates, 1 to %d are taken", n, maxCRLChain)
	}
	issuer, err := x509.ParseCertificate(m.GetIssuer()[0])
	if err != nil {
		return nil, fmt.Errorf("its issuer: %w", err)
	}
	l := &CRL{DER: m.GetDer(), issuer: issuerOf(issuer)}
	between := x509.NewCertPool()
	for _, der := range m.GetIssuer()[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("above its issuer: %w", err)
		}
		between.AddCert(c)
	}
	// A name of the CA's own plays no part; that it is one, and may sign CRLs,
	// does.
	if !issuer.IsCA || issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return nil, errors.New("its issuer may sign no CRL")
	}
	if _, err := issuer.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("its issuer does not verify under our bundle: %w", err)
	}
	return l, l.read(issuer, now)
}

// read fills in what the list says.
func (l *CRL) read(issuer *x509.Certificate, now time.Time) error {
	list, err := x509.ParseRevocationList(l.DER)
	switch {
	case err != nil:
		return err
	case len(list.Raw) != len(l.DER):
		return errors.New("something follows it")
	case !bytes.Equal(list.RawIssuer, issuer.RawSubject):
		return fmt.Errorf("it is of %s, not of %s", list.Issuer, issuer.Subject)
	case list.Number == nil:
		return errors.New("it has no number")
	case list.ThisUpdate.After(now.Add(crlSkew)):
		return fmt.Errorf("it is from %s, which is to come", list.ThisUpdate.UTC().Format(time.RFC3339))
	case !now.Before(list.NextUpdate):
		return fmt.Errorf("it ended at %s", list.NextUpdate.UTC().Format(time.RFC3339))
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("its signature: %w", err)
	}
	l.Number, l.NextUpdate = list.Number, list.NextUpdate
	return nil
}

func issuerOf(c *x509.Certificate) [sha256.Size]byte {
	name := sha256.Sum256(c.RawSubject)
	return sha256.Sum256(append(name[:], c.RawSubjectPublicKeyInfo...))
}

// notRevoked refuses a chain of which something is on a list of its issuer:
// whoever has the key of an issuing CA that was replaced would otherwise pose as
// the broker for as long as that CA lives.
func notRevoked(chain, roots []*x509.Certificate, lists []*CRL) error {
	for _, l := range lists {
		var list *x509.RevocationList
		for _, c := range chain {
			if !l.of(c, chain, roots) {
				continue
			}
			var err error
			if list == nil {
				if list, err = x509.ParseRevocationList(l.DER); err != nil {
					return fmt.Errorf("reading a CRL that was taken: %w", err)
				}
			}
			if slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
				return fmt.Errorf("the server shows a certificate that is revoked: serial number %x of %s", c.SerialNumber, c.Issuer)
			}
		}
	}
	return nil
}

// of says whether a list is of the CA that signed a certificate.
func (l *CRL) of(c *x509.Certificate, among ...[]*x509.Certificate) bool {
	for _, issuer := range slices.Concat(among...) {
		if bytes.Equal(issuer.RawSubject, c.RawIssuer) && issuerOf(issuer) == l.issuer {
			return true
		}
	}
	return false
}

// checkNumber refuses a list older than the newest that was taken of its
// issuer, or another one of the same number (RFC 5280 §5.2.3).
func (b *bundles) checkNumber(l *CRL) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	last, ok := b.newest[l.issuer]
	if !ok {
		return nil
	}
	switch c := l.Number.Cmp(last.number); {
	case c < 0:
		return fmt.Errorf("its number %s is below %s, which was taken before", l.Number, last.number)
	case c == 0 && sha256.Sum256(l.DER) != last.sum:
		return fmt.Errorf("another list of number %s was taken before", l.Number)
	}
	return nil
}

// heldCRL is what is held of the issuer of another list.
func (b *bundles) heldCRL(of *CRL) *CRL {
	if of == nil {
		return nil
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if i := slices.IndexFunc(b.crls, func(l *CRL) bool { return l.issuer == of.issuer }); i >= 0 {
		return b.crls[i]
	}
	return nil
}

// numbered is the newest list that was taken of an issuer.
type numbered struct {
	number *big.Int
	sum    [sha256.Size]byte
}

// putCRLs replaces all lists.
func (b *bundles) putCRLs(lists []*CRL) {
	b.mu.Lock()
	changed := !slices.EqualFunc(b.crls, lists, func(x, y *CRL) bool { return bytes.Equal(x.DER, y.DER) })
	if changed {
		b.crls = lists
	}
	if b.newest == nil || len(b.newest) > 4*maxIssuers {
		b.newest = make(map[[sha256.Size]byte]numbered) // CAs come and go
	}
	for _, l := range lists {
		b.newest[l.issuer] = numbered{l.Number, sha256.Sum256(l.DER)}
	}
	b.mu.Unlock()
	if changed {
		b.changed.ring()
	}
}
