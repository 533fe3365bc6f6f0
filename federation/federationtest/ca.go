// Package federationtest has what tests of SVIDs share: an authority that signs
// whatever a test wants, the vectors of SPIFFE IDs and of certificate shapes,
// and a lint of what an issuer must keep to. It trusts the test; no program
// links it.
package federationtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A CA is a signing certificate and its key. Now is the time that the lives of
// what it signs lie around.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	Now  time.Time
}

// NewCA makes a self-signed CA. edit may be nil.
func NewCA(t testing.TB, now time.Time, edit func(*x509.Certificate)) *CA {
	t.Helper()
	return (&CA{Now: now}).Sub(t, edit)
}

// Sub makes a CA under c.
func (c *CA) Sub(t testing.TB, edit func(*x509.Certificate)) *CA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "CA " + rand.Text()},
		NotBefore: c.Now.Add(-time.Hour), NotAfter: c.Now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if edit != nil {
		edit(template)
	}
	key := NewKey(t)
	return &CA{parse(t, c.sign(t, template, key, key.Public())), key, c.Now}
}

// Leaf makes a certificate with these URI SANs, byte for byte, or with those
// that edit gives it.
func (c *CA) Leaf(t testing.TB, edit func(*x509.Certificate), uris ...string) *x509.Certificate {
	t.Helper()
	key := NewKey(t)
	return parse(t, c.leaf(t, key, edit, uris...))
}

// SelfSigned is Leaf under nobody.
func SelfSigned(t testing.TB, now time.Time, edit func(*x509.Certificate), uris ...string) *x509.Certificate {
	t.Helper()
	return (&CA{Now: now}).Leaf(t, edit, uris...)
}

// Issue makes a leaf and its key, with c's certificate at the end of the chain.
func (c *CA) Issue(t testing.TB, edit func(*x509.Certificate), uris ...string) tls.Certificate {
	t.Helper()
	key := NewKey(t)
	return tls.Certificate{Certificate: [][]byte{c.leaf(t, key, edit, uris...), c.Cert.Raw}, PrivateKey: key}
}

// SVID issues a well-made X509-SVID of id.
func (c *CA) SVID(t testing.TB, id spiffeid.ID) tls.Certificate {
	t.Helper()
	return c.Issue(t, nil, id.String())
}

// Web issues a certificate without a SPIFFE ID for hosts, names or addresses.
func (c *CA) Web(t testing.TB, hosts ...string) tls.Certificate {
	t.Helper()
	return c.Issue(t, func(cert *x509.Certificate) {
		for _, host := range hosts {
			if ip := net.ParseIP(host); ip != nil {
				cert.IPAddresses = append(cert.IPAddresses, ip)
			} else {
				cert.DNSNames = append(cert.DNSNames, host)
			}
		}
	})
}

// Bundle is td's, with c alone.
func (c *CA) Bundle(td spiffeid.TrustDomain) *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(td, []*x509.Certificate{c.Cert})
}

// Pool holds c alone.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Cert)
	return pool
}

// LeafFor is Leaf for a key of the caller's, in DER: what crypto/x509 does not
// parse can be shown too.
func (c *CA) LeafFor(t testing.TB, public crypto.PublicKey, edit func(*x509.Certificate), uris ...string) []byte {
	t.Helper()
	return c.sign(t, leafTemplate(t, c.Now, edit, uris...), nil, public)
}

func (c *CA) leaf(t testing.TB, key crypto.Signer, edit func(*x509.Certificate), uris ...string) []byte {
	t.Helper()
	return c.sign(t, leafTemplate(t, c.Now, edit, uris...), key, key.Public())
}

func leafTemplate(t testing.TB, now time.Time, edit func(*x509.Certificate), uris ...string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(uris) > 0 {
		template.ExtraExtensions = []pkix.Extension{RawSAN(t, true, uris...)}
	}
	if edit != nil {
		edit(template)
	}
	return template
}

func (c *CA) sign(t testing.TB, template *x509.Certificate, own crypto.Signer, public crypto.PublicKey) []byte {
	t.Helper()
	parent, signer := c.Cert, c.Key
	if parent == nil {
		parent, signer = template, own
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// RawSAN is a subject alternative name extension of these URIs, which no URL
// parser has touched.
func RawSAN(t testing.TB, critical bool, uris ...string) pkix.Extension {
	t.Helper()
	names := make([]asn1.RawValue, 0, len(uris))
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	return extension(t, asn1.ObjectIdentifier{2, 5, 29, 17}, critical, names)
}

func extension(t testing.TB, id asn1.ObjectIdentifier, critical bool, value any) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: id, Critical: critical, Value: der}
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
