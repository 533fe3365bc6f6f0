package federation_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

func certs(all ...*x509.Certificate) []*x509.Certificate { return all }

// TestVerifyX509Vectors are the certificate vectors of section B, as peers show
// them.
func TestVerifyX509Vectors(t *testing.T) {
	for _, v := range federationtest.X509Vectors(t, epoch, "/w") {
		t.Run(v.Name, func(t *testing.T) {
			shown, err := parseAll(v.Shown)
			var id spiffeid.ID
			var chains [][]*x509.Certificate
			if err == nil {
				id, chains, err = federation.VerifyX509(shown, v.Bundle, epoch)
			}
			if (err == nil) != v.Peer {
				t.Fatalf("error %v, want accepted = %v", err, v.Peer)
			}
			if err == nil && id.String() != v.ID {
				t.Errorf("accepted as %s", id)
			}
			if err != nil && (!id.IsZero() || chains != nil) {
				t.Errorf("a refusal names %s", id)
			}
		})
	}
}

// TestCheckLeafVectors are the same, as if we were about to show them
// ourselves: then an issuer's duties count too.
func TestCheckLeafVectors(t *testing.T) {
	for _, v := range federationtest.X509Vectors(t, epoch, "/w") {
		t.Run(v.Name, func(t *testing.T) {
			shown, err := parseAll(v.Shown)
			if err == nil && len(shown) == 0 {
				return // endpoint's to refuse
			}
			if err == nil {
				err = federation.CheckLeaf(shown[0], epoch)
			}
			if (err == nil) != v.Own {
				t.Errorf("error %v, want fit = %v", err, v.Own)
			}
		})
	}
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	return all, nil
}

// TestSPIFFEIDVectorsInCertificates are the vectors of section A as the URI SAN
// of a leaf that their own trust domain's CA signed.
func TestSPIFFEIDVectorsInCertificates(t *testing.T) {
	refused := map[string]bool{
		"ID-001": true, // no leaf's: it has no path
		// Legal names of trust domains, but crypto/x509 parses no certificate
		// with them: we refuse more than we must.
		"ID-016": true, "ID-017": true, "ID-018": true, "ID-019": true,
	}
	root := newCA(t, nil)
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			td := example
			if id, err := spiffeid.FromString(v.Input); err == nil {
				td = id.TrustDomain()
			}
			der := root.Issue(t, nil, v.Input).Certificate[0]
			shown, err := parseAll([][]byte{der})
			var id spiffeid.ID
			if err == nil {
				id, _, err = federation.VerifyX509(shown, root.Bundle(td), epoch)
			}
			if want := v.Valid() && !refused[v.ID]; (err == nil) != want || (want && id.String() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, id, err, v.Reason)
			}
		})
	}
}

func TestParseIDVectors(t *testing.T) {
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			id, err := federation.ParseID(v.Input)
			if (err == nil) != v.Valid() || (err == nil && id.String() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, id, err, v.Reason)
			}
		})
	}
}

func TestParseTrustDomainVectors(t *testing.T) {
	for _, v := range federationtest.TrustDomains(t) {
		t.Run(v.ID, func(t *testing.T) {
			td, err := federation.ParseTrustDomain(v.Input)
			if (err == nil) != v.Valid() || (err == nil && td.Name() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, td, err, v.Reason)
			}
		})
	}
}

// mixedUp gives one trust domain's bundle for another.
type mixedUp struct{ *x509bundle.Bundle }

func (m mixedUp) GetX509BundleForTrustDomain(spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return m.Bundle, nil
}

func TestVerifyX509WantsItsInputs(t *testing.T) {
	root := newCA(t, nil)
	// Valid at the real present too, which crypto/x509 takes the zero time for.
	leaf := root.Leaf(t, func(c *x509.Certificate) { c.NotAfter = root.Cert.NotAfter }, "spiffe://example.org/w")
	bundle := x509bundle.FromX509Authorities(example, certs(root.Cert))
	wrong := mixedUp{x509bundle.FromX509Authorities(partner, certs(root.Cert))}
	for name, err := range map[string]error{
		"no bundles":              second(federation.VerifyX509(certs(leaf), nil, epoch)),
		"no time":                 second(federation.VerifyX509(certs(leaf), bundle, time.Time{})),
		"another domain's bundle": second(federation.VerifyX509(certs(leaf), wrong, epoch)),
		"an empty bundle":         second(federation.VerifyX509(certs(leaf), x509bundle.New(example), epoch)),
	} {
		if err == nil {
			t.Errorf("%s: verified", name)
		}
	}
}

func second(_ spiffeid.ID, _ [][]*x509.Certificate, err error) error { return err }

// Regression: CVE-2024-2048
func TestPinnedBundle(t *testing.T) {
	root, other := newCA(t, nil), newCA(t, nil)
	mid := root.Sub(t, nil)
	leaf := mid.Leaf(t, nil, "spiffe://partner.example/w")
	chain := certs(leaf, mid.Cert, root.Cert)
	tests := []struct {
		name  string
		shown []*x509.Certificate
		print string
		ok    bool
	}{
		{"the anchor", chain, federation.Fingerprint(root.Cert), true},
		{"an intermediate", chain, federation.Fingerprint(mid.Cert), true},
		{"a CA that signed nothing here", append(chain[:3:3], other.Cert), federation.Fingerprint(other.Cert), false},
		{"a CA that is not shown", chain, federation.Fingerprint(other.Cert), false},
		{"the leaf", chain, federation.Fingerprint(leaf), false},
		{"the leaf, shown twice", append(chain[:3:3], leaf), federation.Fingerprint(leaf), false},
		{"nothing shown", nil, federation.Fingerprint(root.Cert), false},
		{"no fingerprint", chain, "", false},
		{"upper case", chain, "sha256:" + strings.ToUpper(federation.Fingerprint(root.Cert)[7:]), false},
		{"too short", chain, federation.Fingerprint(root.Cert)[:70], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := federation.PinnedBundle(partner, tt.shown, tt.print)
			if err == nil {
				_, _, err = federation.VerifyX509(tt.shown, b, epoch)
			}
			if (err == nil) != tt.ok {
				t.Errorf("error %v, want ok = %v", err, tt.ok)
			}
		})
	}
}
