package federation_test

import (
	"crypto/x509"
	"testing"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

// TestDecided are the contradictions in SPIFFE's documents that the package
// comment decides.
func TestDecided(t *testing.T) {
	const w = "spiffe://example.org/w"
	with := func(id string, usage x509.KeyUsage) *ca {
		return newCA(t, func(c *x509.Certificate) {
			c.KeyUsage = usage
			if id != "" {
				c.ExtraExtensions = append(c.ExtraExtensions, federationtest.RawSAN(t, false, id))
			}
		})
	}
	// believed: the CA comes in by a bundle document, and a leaf of it verifies.
	believed := func(t *testing.T, c *ca) {
		t.Helper()
		b, err := federation.ParseBundle(example, []byte(`{"keys":[`+x509Entry(t, c.Cert)+`]}`))
		if err != nil || len(b.Ignored) > 0 {
			t.Fatal(err, b)
		}
		if _, _, err := federation.VerifyX509(certs(c.Leaf(t, nil, w)), b.X509Bundle(), epoch); err != nil {
			t.Error(err)
		}
	}
	t.Run("D-01 capitals are refused, wherever they stand", func(t *testing.T) {
		root := newCA(t, nil)
		for _, id := range []string{"SPIFFE://example.org/w", "Spiffe://example.org/w", "spiffe://Example.org/w"} {
			_, err := federation.ParseID(id)
			_, _, inCert := federation.VerifyX509(certs(root.Leaf(t, nil, id)), root.Bundle(example), epoch)
			if err == nil || inCert == nil {
				t.Errorf("%s: as text %v, in a certificate %v", id, err, inCert)
			}
		}
		if _, err := federation.ParseTrustDomain("Example.org"); err == nil {
			t.Error("a trust domain's name was folded")
		}
	})
	t.Run("D-02 a CA needs no SPIFFE ID", func(t *testing.T) { believed(t, with("", x509.KeyUsageCertSign)) })
	t.Run("D-03 a CA's ID may end in a slash", func(t *testing.T) { believed(t, with("spiffe://example.org/", x509.KeyUsageCertSign)) })
	t.Run("D-13 a CA may have digitalSignature", func(t *testing.T) {
		believed(t, with("spiffe://example.org", x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature))
	})
	key, other := jwkMembers(t, newKey(t).Public()), jwkMembers(t, newKey(t).Public())
	t.Run("D-04 wit-svid is a use of its own", func(t *testing.T) {
		b, err := federation.ParseBundle(partner, []byte(`{"keys":[{"use":"wit-svid","kid":"w",`+key+`}]}`))
		if err != nil || len(b.Ignored) > 0 || len(b.WITAuthorities()) != 1 || len(b.JWTAuthorities()) != 0 {
			t.Errorf("%v, %+v", err, b)
		}
	})
	t.Run("D-06 the hint is spiffe_refresh_hint", func(t *testing.T) {
		b, err := federation.ParseBundle(partner, []byte(`{"refresh_hint":60,"keys":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		if hint, ok := b.RefreshHint(); ok {
			t.Errorf("refresh_hint was taken for it: %s", hint)
		}
	})
	t.Run("D-12 a kid is unique within its use", func(t *testing.T) {
		b, err := federation.ParseBundle(partner, []byte(`{"keys":[{"use":"jwt-svid","kid":"k",`+key+`},{"use":"wit-svid","kid":"k",`+other+`}]}`))
		if err != nil || len(b.Ignored) > 0 || len(b.WITAuthorities()) != 1 || len(b.JWTAuthorities()) != 1 {
			t.Errorf("%v, %+v", err, b)
		}
	})
	t.Run("D-14 an issuer's duties are asked of our own alone", func(t *testing.T) {
		root := newCA(t, nil)
		leaf := root.Leaf(t, func(c *x509.Certificate) {
			c.KeyUsage, c.ExtKeyUsage = 0, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, w)
		_, _, peers := federation.VerifyX509(certs(leaf), root.Bundle(example), epoch)
		if own := federation.CheckLeaf(leaf, epoch); peers != nil || own == nil {
			t.Errorf("a peer's: %v; ours: %v", peers, own)
		}
	})
}
