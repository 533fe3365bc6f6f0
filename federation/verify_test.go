package federation_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

func certs(all ...*x509.Certificate) []*x509.Certificate { return all }

// TestVerifyX509Vectors are the certificate vectors of section B: one fault each.
func TestVerifyX509Vectors(t *testing.T) {
	root, other := newCA(t, nil), newCA(t, nil)
	mid := root.sub(t, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	deep := mid.sub(t, nil)
	oldMid := root.sub(t, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Minute) })
	const w = "spiffe://example.org/w"
	good := root.leaf(t, nil, w)
	selfLeaf := (*ca)(nil).leaf(t, nil, w)
	usage := func(u x509.KeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.KeyUsage = u }
	}
	tests := []struct {
		name  string
		shown []*x509.Certificate
		ok    bool
	}{
		{"good", certs(good), true},
		{"XC-17 under an intermediate with pathLen 0", certs(mid.leaf(t, nil, w), mid.cert), true},
		{"XC-73 root appended", certs(good, root.cert), true},
		{"XC-22 no SAN", certs(root.leaf(t, nil)), false},
		{"XC-23 DNS SAN only", certs(root.leaf(t, func(c *x509.Certificate) { c.DNSNames = []string{"a.example"} })), false},
		{"XC-24 two SPIFFE IDs", certs(root.leaf(t, nil, w, "spiffe://example.org/x")), false},
		{"XC-25 two URIs", certs(root.leaf(t, nil, w, "https://example.org/w")), false},
		{"one URI twice", certs(root.leaf(t, nil, w, w)), false},
		{"XC-29 scheme https", certs(root.leaf(t, nil, "https://example.org/w")), false},
		{"XC-30 scheme in capitals", certs(root.leaf(t, nil, "SPIFFE://example.org/w")), false},
		{"XC-32 no path", certs(root.leaf(t, nil, "spiffe://example.org")), false},
		{"XC-33 slash only", certs(root.leaf(t, nil, "spiffe://example.org/")), false},
		{"XC-34 trailing slash", certs(root.leaf(t, nil, w+"/")), false},
		{"XC-35 percent", certs(root.leaf(t, nil, "spiffe://example.org/%77")), false},
		{"XC-37 fragment", certs(root.leaf(t, nil, w+"#f")), false},
		{"XC-38 empty fragment", certs(root.leaf(t, nil, w+"#")), false},
		{"empty query", certs(root.leaf(t, nil, w+"?")), false},
		{"XC-39 port", certs(root.leaf(t, nil, "spiffe://example.org:8080/w")), false},
		{"XC-40 user", certs(root.leaf(t, nil, "spiffe://u@example.org/w")), false},
		{"XC-48 2,048 bytes", certs(root.leaf(t, nil, "spiffe://example.org/"+strings.Repeat("a", 2027))), true},
		{"2,049 bytes", certs(root.leaf(t, nil, "spiffe://example.org/"+strings.Repeat("a", 2028))), false},
		{"XC-52 signed by another's CA", certs(other.leaf(t, nil, w)), false},
		{"ID of a trust domain without bundle", certs(root.leaf(t, nil, "spiffe://other.example/w")), false},
		{"XC-54 leaf is a CA", certs(root.leaf(t, func(c *x509.Certificate) { c.IsCA = true }, w)), false},
		{"XC-56 keyCertSign", certs(root.leaf(t, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign), w)), false},
		{"XC-57 cRLSign", certs(root.leaf(t, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign), w)), false},
		{"XC-64 unknown critical extension", certs(root.leaf(t, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
				Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		}, w)), false},
		{"XC-66 expired", certs(root.leaf(t, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) }, w)), false},
		{"XC-67 not yet valid", certs(root.leaf(t, func(c *x509.Certificate) { c.NotBefore = epoch.Add(time.Minute) }, w)), false},
		{"XC-69 self-signed", certs(selfLeaf), false},
		{"XC-72 root first", certs(root.cert, good), false},
		{"XC-74 empty chain", nil, false},
		{"XC-82 path length", certs(deep.leaf(t, nil, w), deep.cert, mid.cert), false},
		{"XC-83 expired intermediate", certs(oldMid.leaf(t, nil, w), oldMid.cert), false},
		{"eleven certificates", append(certs(good), certs(root.cert, root.cert, root.cert, root.cert, root.cert,
			root.cert, root.cert, root.cert, root.cert, root.cert)...), false},
	}
	bundle := x509bundle.FromX509Authorities(example, certs(root.cert))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, chains, err := federation.VerifyX509(tt.shown, bundle, epoch)
			if (err == nil) != tt.ok {
				t.Fatalf("error %v, want ok = %v", err, tt.ok)
			}
			if err != nil && (!id.IsZero() || chains != nil) {
				t.Errorf("a refusal names %s", id)
			}
		})
	}
}

func TestVerifyX509RefusesALeafAmongTheAuthorities(t *testing.T) { // XC-70
	leaf := (*ca)(nil).leaf(t, nil, "spiffe://example.org/w")
	bundle := x509bundle.FromX509Authorities(example, certs(leaf))
	if _, _, err := federation.VerifyX509(certs(leaf), bundle, epoch); err == nil {
		t.Error("a leaf verified by itself")
	}
}

func TestVerifyX509RefusesALongTrustDomain(t *testing.T) { // ID-103
	root := newCA(t, nil)
	name := strings.Repeat(strings.Repeat("a", 63)+".", 4) // 256 with its last letter
	for _, tt := range []struct {
		name string
		ok   bool
	}{{name[:255-1] + "b", true}, {name[:255] + "b", false}} {
		td := spiffeid.RequireTrustDomainFromString(tt.name)
		bundle := x509bundle.FromX509Authorities(td, certs(root.cert))
		_, _, err := federation.VerifyX509(certs(root.leaf(t, nil, "spiffe://"+tt.name+"/w")), bundle, epoch)
		if (err == nil) != tt.ok {
			t.Errorf("trust domain of %d bytes: %v", len(tt.name), err)
		}
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
	leaf := root.leaf(t, func(c *x509.Certificate) { c.NotAfter = root.cert.NotAfter }, "spiffe://example.org/w")
	bundle := x509bundle.FromX509Authorities(example, certs(root.cert))
	wrong := mixedUp{x509bundle.FromX509Authorities(partner, certs(root.cert))}
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

func TestPinnedBundle(t *testing.T) {
	root, other := newCA(t, nil), newCA(t, nil)
	mid := root.sub(t, nil)
	leaf := mid.leaf(t, nil, "spiffe://partner.example/w")
	chain := certs(leaf, mid.cert, root.cert)
	tests := []struct {
		name  string
		shown []*x509.Certificate
		print string
		ok    bool
	}{
		{"the anchor", chain, federation.Fingerprint(root.cert), true},
		{"an intermediate", chain, federation.Fingerprint(mid.cert), true},
		{"a CA that signed nothing here", append(chain[:3:3], other.cert), federation.Fingerprint(other.cert), false},
		{"a CA that is not shown", chain, federation.Fingerprint(other.cert), false},
		{"the leaf", chain, federation.Fingerprint(leaf), false},
		{"the leaf, shown twice", append(chain[:3:3], leaf), federation.Fingerprint(leaf), false},
		{"nothing shown", nil, federation.Fingerprint(root.cert), false},
		{"no fingerprint", chain, "", false},
		{"upper case", chain, "sha256:" + strings.ToUpper(federation.Fingerprint(root.cert)[7:]), false},
		{"too short", chain, federation.Fingerprint(root.cert)[:70], false},
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
