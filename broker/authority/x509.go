package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// Bounds of a Grant's age. The future is for a clock that was set back.
const (
	maxGrantAge = 30 * time.Second
	maxSkew     = time.Minute
)

// checkGrant holds what both kinds of SVID ask of a Grant.
func (a *Authority) checkGrant(g identity.Grant, now time.Time) error {
	switch {
	case g.IsZero():
		return errors.New("nothing is granted")
	case g.ID().TrustDomain() != a.cfg.TrustDomain:
		return fmt.Errorf("this is the authority of %s", a.cfg.TrustDomain)
	case g.ID().Path() == "": // SPIFFE X509-SVID §3.1
		return errors.New("the ID has no path")
	case now.Sub(g.Made()) > maxGrantAge:
		return fmt.Errorf("the grant was made at %s, more than %s ago", g.Made().UTC(), maxGrantAge)
	case g.Made().Sub(now) > maxSkew:
		return fmt.Errorf("the grant was made at %s, in the future", g.Made().UTC())
	case !g.Expires().After(now):
		return fmt.Errorf("the grant ended at %s", g.Expires().UTC())
	}
	return nil
}

// SignX509 signs the X509-SVID that g grants, for pub: P-256, P-384 or RSA of
// 2048 to 4096 bits, and no authority's key. It refuses the zero Grant, one
// made more than 30 s ago, one for another key and one for a JWT-SVID. The
// chain is leaf first, without the anchor. The SVID ends no later than the Grant
// says, the issuing CA does, or a third of that CA's life from now.
func (a *Authority) SignX509(ctx context.Context, g identity.Grant, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	now := a.cfg.Now()
	spki, err := a.checkX509(g, pub, now)
	if err != nil {
		return nil, fmt.Errorf("signing an X509-SVID for %s: %w", g.ID(), err)
	}
	for {
		ca := a.live.Load().issuing
		if ca == nil || !now.Before(ca.NotAfter) {
			return nil, fmt.Errorf("signing an X509-SVID for %s: there is no valid issuing CA", g.ID())
		}
		notAfter := earliest(g.Expires(), ca.NotAfter, now.Add(a.cfg.Lives.Issuing/3)).Truncate(time.Second)
		longer(&a.ahead.x509, notAfter.Sub(now))
		if notAfter.After(ca.LastExpiry) {
			end, again, err := a.promise(ctx, ca.Record, now, notAfter)
			if err != nil {
				return nil, fmt.Errorf("signing an X509-SVID for %s: %w", g.ID(), err)
			}
			if again {
				continue
			}
			notAfter = end.Truncate(time.Second)
		}
		leaf, err := a.signLeaf(ca, g, pub, spki, now, notAfter)
		if err != nil {
			return nil, fmt.Errorf("signing an X509-SVID for %s: %w", g.ID(), err)
		}
		return append([]*x509.Certificate{leaf}, ca.chain...), nil
	}
}

func earliest(t time.Time, more ...time.Time) time.Time {
	for _, u := range more {
		if u.Before(t) {
			t = u
		}
	}
	return t
}

// checkX509 holds a grant against the key that it is for, and returns the key
// as DER SubjectPublicKeyInfo.
func (a *Authority) checkX509(g identity.Grant, pub crypto.PublicKey, now time.Time) (spki []byte, err error) {
	if err := a.checkGrant(g, now); err != nil {
		return nil, err
	}
	if g.Key().IsZero() || len(g.Audiences()) > 0 || g.Alg() != "" {
		return nil, errors.New("the grant is for a JWT-SVID")
	}
	if err := checkKey(pub); err != nil {
		return nil, err
	}
	if spki, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return nil, err
	}
	d := digest(spki)
	if d != g.Key() {
		return nil, errors.New("the grant is for another key")
	}
	if _, ours := a.live.Load().keys[d]; ours {
		return nil, errors.New("the key is an authority's")
	}
	return spki, nil
}

// checkKey takes the keys of decision 20.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k == nil || (k.Curve != elliptic.P256() && k.Curve != elliptic.P384()) {
			return errors.New("the key is on another curve than P-256 and P-384")
		}
		if _, err := k.ECDH(); err != nil {
			return errors.New("the key is no point of its curve")
		}
		return nil
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < 2048 || k.N.BitLen() > 4096 || k.N.Bit(0) == 0 {
			return errors.New("the RSA key has no odd modulus of 2048 to 4096 bits")
		}
		if k.E < 65537 || k.E&1 == 0 {
			return errors.New("the RSA key's exponent is even or below 65537")
		}
		return nil
	}
	return fmt.Errorf("a key of type %T is not certified: want P-256, P-384 or RSA", pub)
}

// signLeaf is SPIFFE X509-SVID §2 to §4 for a leaf.
func (a *Authority) signLeaf(ca *issuingCA, g identity.Grant, pub crypto.PublicKey, spki []byte, now, notAfter time.Time) (*x509.Certificate, error) {
	template, err := a.leafTemplate(g, spki, now, notAfter)
	if err != nil {
		return nil, err
	}
	template.CRLDistributionPoints = ca.crl
	if template.NotBefore.Before(ca.cert.NotBefore) {
		template.NotBefore = ca.cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back what was signed: %w", err)
	}
	if err := checkLeaf(leaf, template, ca.cert); err != nil {
		return nil, fmt.Errorf("checking what was signed: %w", err)
	}
	return leaf, nil
}

func (a *Authority) leafTemplate(g identity.Grant, spki []byte, now, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	subject, err := identity.ParseSubject(g.Subject())
	if err != nil {
		return nil, err
	}
	rawSubject, err := asn1.Marshal(subject)
	if err != nil {
		return nil, fmt.Errorf("encoding subject %q: %w", g.Subject(), err)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            rawSubject, // empty: crypto/x509 then makes the SAN critical (§3.1)
		NotBefore:             now.Add(-a.cfg.Lives.Backdate).Truncate(time.Second),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          subjectKeyID(spki),
		URIs:                  []*url.URL{g.ID().URL()},
		DNSNames:              g.DNSNames(),
	}, nil
}

// checkLeaf looks at what was signed as a relying party would: crypto/x509 has
// already verified the signature.
func checkLeaf(leaf, template, ca *x509.Certificate) error {
	switch {
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != template.URIs[0].String():
		return errors.New("it has not exactly the granted ID")
	case leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("it could sign others")
	case !slices.Equal(leaf.ExtKeyUsage, template.ExtKeyUsage) || len(leaf.UnknownExtKeyUsage) > 0:
		return errors.New("it is for other uses than server and client")
	case !slices.Equal(leaf.DNSNames, template.DNSNames) || len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return errors.New("it has other names than granted")
	case !bytes.Equal(leaf.RawSubject, template.RawSubject) || !bytes.Equal(leaf.RawIssuer, ca.RawSubject):
		return errors.New("it has another subject or issuer")
	case leaf.NotAfter.After(ca.NotAfter) || leaf.NotBefore.Before(ca.NotBefore) || leaf.NotAfter.After(template.NotAfter):
		return errors.New("it lives longer than granted, or than its CA")
	case leaf.SerialNumber.Cmp(template.SerialNumber) != 0 || len(leaf.UnhandledCriticalExtensions) > 0:
		return errors.New("it has another serial number or unknown extensions")
	}
	return nil
}
