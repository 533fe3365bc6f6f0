// Package upstreamtest is the contract of an upstream: of whoever certifies
// our CA keys. It has a corporate PKI of its own, two tiers, to stand behind
// drivers.
package upstreamtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// An Upstream is what drivers implement.
type Upstream interface {
	Sign(ctx context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error)
}

// A PKI is a root and a CA under it that may sign CAs.
type PKI struct {
	Root, CA       *x509.Certificate
	RootKey, CAKey crypto.Signer
}

// New makes a PKI. Each change is made to the template of the CA.
func New(t testing.TB, changes ...func(*x509.Certificate)) *PKI {
	t.Helper()
	p := &PKI{RootKey: Key(t), CAKey: Key(t)}
	now := time.Now().Truncate(time.Second)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Acme Root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(8760 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	p.Root = Sign(t, root, root, p.RootKey.Public(), p.RootKey)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Acme Issuing CA 7"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(4380 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 2,
	}
	for _, change := range changes {
		change(ca)
	}
	p.CA = Sign(t, ca, p.Root, p.CAKey.Public(), p.RootKey)
	return p
}

// Key makes a key.
func Key(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Sign makes a certificate.
func Sign(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Request is a CSR as broker/authority makes them.
func Request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "Credence issuing CA", Organization: []string{"example.org"}},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: "example.org"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Run holds an upstream, with p behind it, to the contract.
func Run(t *testing.T, p *PKI, u Upstream) {
	key := Key(t)
	t.Run("a CA of ours is signed", func(t *testing.T) {
		chain, anchors, err := u.Sign(t.Context(), Request(t, key), 72*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if len(chain) != 2 || !chain[1].Equal(p.CA) || len(anchors) != 1 || !anchors[0].Equal(p.Root) {
			t.Fatalf("a chain of %d and %d anchors", len(chain), len(anchors))
		}
		ours := chain[0]
		if pub, ok := ours.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
			t.Error("it is another key's")
		}
		if !ours.IsCA || ours.MaxPathLen != 0 || !ours.MaxPathLenZero || ours.KeyUsage&x509.KeyUsageCertSign == 0 {
			t.Errorf("CA %t, path length %d, usage %b", ours.IsCA, ours.MaxPathLen, ours.KeyUsage)
		}
		if len(ours.URIs) != 1 || ours.URIs[0].String() != "spiffe://example.org" {
			t.Errorf("URIs %s", ours.URIs)
		}
		if left := time.Until(ours.NotAfter); left > 73*time.Hour || left < 71*time.Hour {
			t.Errorf("it lives for %s", left)
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(anchors[0])
		between.AddCert(chain[1])
		if _, err := ours.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Error(err)
		}
	})
	t.Run("it lives no longer than what signs it", func(t *testing.T) {
		chain, _, err := u.Sign(t.Context(), Request(t, key), 5*8760*time.Hour)
		if err == nil && chain[0].NotAfter.After(p.CA.NotAfter) {
			t.Errorf("it ends at %s, its CA at %s", chain[0].NotAfter, p.CA.NotAfter)
		}
	})
	t.Run("a request that its key did not sign", func(t *testing.T) {
		csr := Request(t, key)
		csr[len(csr)-1] ^= 1
		if _, _, err := u.Sign(t.Context(), csr, time.Hour); err == nil {
			t.Error("it was signed")
		}
	})
	t.Run("no request", func(t *testing.T) {
		if _, _, err := u.Sign(t.Context(), []byte("nothing"), time.Hour); err == nil {
			t.Error("it was signed")
		}
	})
}
