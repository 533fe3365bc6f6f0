package federation_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	example  = spiffeid.RequireTrustDomainFromString("example.org")
	partner  = spiffeid.RequireTrustDomainFromString("partner.example")
	third    = spiffeid.RequireTrustDomainFromString("third.example")
	epoch    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	endpoint = spiffeid.RequireFromPath(partner, "/credence/broker")
)

// ca is a signing certificate and its key.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t testing.TB, edit func(*x509.Certificate)) *ca { return (*ca)(nil).sub(t, edit) }

// sub is a CA under c; under nil it signs itself.
func (c *ca) sub(t testing.TB, edit func(*x509.Certificate)) *ca {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "CA " + rand.Text()},
		NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if edit != nil {
		edit(template)
	}
	key := newKey(t)
	return &ca{c.sign(t, template, key, key.Public()), key}
}

// leaf is a certificate with these URI SANs, byte for byte.
func (c *ca) leaf(t testing.TB, edit func(*x509.Certificate), uris ...string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if len(uris) > 0 {
		template.ExtraExtensions = []pkix.Extension{rawSAN(t, uris)}
	}
	if edit != nil {
		edit(template)
	}
	key := newKey(t)
	return c.sign(t, template, key, key.Public())
}

func (c *ca) sign(t testing.TB, template *x509.Certificate, own crypto.Signer, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	parent, signer := template, own
	if c != nil {
		parent, signer = c.cert, c.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func rawSAN(t testing.TB, uris []string) pkix.Extension {
	t.Helper()
	var names []asn1.RawValue
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}

func pemOf(certs ...*x509.Certificate) []byte {
	var b strings.Builder
	for _, cert := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return []byte(b.String())
}

// jwkMembers is the inside of the JWK of key.
func jwkMembers(t testing.TB, key any) string {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(data), "{}")
}

func x509Entry(t testing.TB, cert *x509.Certificate) string {
	t.Helper()
	return `{"use":"x509-svid",` + jwkMembers(t, cert.PublicKey) + `,"x5c":["` + base64.StdEncoding.EncodeToString(cert.Raw) + `"]}`
}
