package issuertest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// A CA issues certificates for tests.
type CA struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// NewCA returns a CA of EC's kind of key, self-signed or, where by is set,
// issued by that one. It is valid from an hour before now for ten years.
func NewCA(t testing.TB, name string, now time.Time, by *CA, changes ...func(*x509.Certificate)) *CA {
	t.Helper()
	key := EC()
	if by != nil {
		key = NewEC(key.Curve)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, change := range changes {
		change(template)
	}
	ca := &CA{key: key}
	if by == nil {
		by = &CA{template, key}
	}
	ca.Certificate = by.sign(t, template, key.Public())
	return ca
}

// Issue returns the certificate of a workload, as SPIFFE likes it: valid from a
// minute before now for an hour, with the ID as its only name.
func (ca *CA) Issue(t testing.TB, id string, now time.Time, key crypto.PublicKey, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), URIs: []*url.URL{uri}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	return ca.sign(t, template, key)
}

func (ca *CA) sign(t testing.TB, template *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, key, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Revoke signs a revocation list.
func (ca *CA) Revoke(list *x509.RevocationList) ([]byte, error) {
	return x509.CreateRevocationList(rand.Reader, list, ca.Certificate, ca.key)
}
