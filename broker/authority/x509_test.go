package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

func TestSignX509(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	a := e.open()
	key := newKey(t)
	tests := []struct {
		name        string
		grant       identity.Grant
		id          string
		subject     string
		dns         []string
		sanCritical bool
	}{
		{
			name:        "a node has no subject",
			grant:       nodeGrant(t, key.Public(), start, time.Hour),
			id:          "spiffe://example.org/credence/node/n1",
			sanCritical: true,
		},
		{
			name: "a workload with a subject and DNS names",
			grant: grant(t, identity.Identity{X509: &identity.X509{
				Subject: `CN=checkout,OU=a\,b,O=Acme Ü`, DNSNames: []string{"checkout.shop.svc"}, TTL: time.Hour,
			}}, identity.Request{Keys: []identity.KeyDigest{digestOf(t, key.Public())}, Time: start}),
			id:      "spiffe://example.org/shop/checkout",
			subject: `CN=checkout,OU=a\,b,O=Acme Ü`,
			dns:     []string{"checkout.shop.svc"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			chain, err := a.SignX509(t.Context(), tt.grant, key.Public())
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 2 {
				t.Fatalf("chain of %d, want the leaf and the issuing CA", len(chain))
			}
			leaf := chain[0]
			if got := leaf.Subject.String(); got != tt.subject {
				t.Errorf("subject %q, want %q", got, tt.subject)
			}
			if diff := cmp.Diff(tt.dns, leaf.DNSNames); diff != "" {
				t.Error(diff)
			}
			if !leaf.NotBefore.Equal(start.Add(-time.Minute)) || !leaf.NotAfter.Equal(start.Add(time.Hour)) {
				t.Errorf("lives %s to %s", leaf.NotBefore, leaf.NotAfter)
			}
			if crit, ok := critical(leaf, 17); !ok || crit != tt.sanCritical {
				t.Errorf("SAN critical %v", crit)
			}
			if crit, ok := critical(leaf, 15); !ok || !crit {
				t.Error("key usage is not there and critical")
			}
			if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || !leaf.BasicConstraintsValid {
				t.Error("not a leaf's usage")
			}
			if want := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}; !slices.Equal(leaf.ExtKeyUsage, want) {
				t.Errorf("extended usage %v", leaf.ExtKeyUsage)
			}
			if leaf.Version != 3 || leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 || len(leaf.URIs) != 1 {
				t.Errorf("version %d, %s, %d URIs", leaf.Version, leaf.SignatureAlgorithm, len(leaf.URIs))
			}
			if len(leaf.SubjectKeyId) == 0 || string(leaf.AuthorityKeyId) != string(chain[1].SubjectKeyId) {
				t.Error("key identifiers do not chain")
			}
			if leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 128 || leaf.SerialNumber.BitLen() < 96 {
				t.Errorf("serial number %s", leaf.SerialNumber)
			}
			id, _, err := x509svid.Verify(chain, a, x509svid.WithTime(start))
			if err != nil || id != spiffeid.RequireFromString(tt.id) {
				t.Errorf("go-spiffe sees %s, %v", id, err)
			}
			pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x509svid.ParseRaw(slices.Concat(chain[0].Raw, chain[1].Raw), pkcs8); err != nil {
				t.Error(err)
			}
			opensslVerify(t, a, chain)
		})
	}
}

// critical finds an extension under id-ce (2.5.29).
func critical(c *x509.Certificate, arc int) (critical, ok bool) {
	for _, x := range c.Extensions {
		if x.Id.Equal([]int{2, 5, 29, arc}) {
			return x.Critical, true
		}
	}
	return false, false
}

// opensslVerify has OpenSSL hold RFC 5280 against the chain, where there is one.
func opensslVerify(t *testing.T, a *authority.Authority, chain []*x509.Certificate) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("no openssl on this machine: not verified with it")
		return
	}
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		var b strings.Builder
		for _, c := range certs {
			pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, purpose := range []string{"sslclient", "sslserver"} {
		cmd := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-purpose", purpose,
			"-attime", big.NewInt(start.Unix()).String(),
			"-CAfile", write("root.pem", a.Bundle().X509Authorities...),
			"-untrusted", write("ca.pem", chain[1:]...), write("leaf.pem", chain[0]))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

func TestSigningCertificates(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	a := e.open()
	key := newKey(t)
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	root, ca := a.Bundle().X509Authorities[0], chain[1]
	for name, c := range map[string]*x509.Certificate{"root": root, "issuing CA": ca} {
		if !c.IsCA || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(c.ExtKeyUsage) > 0 {
			t.Errorf("%s: usage %v, %v", name, c.KeyUsage, c.ExtKeyUsage)
		}
		for _, arc := range []int{15, 19} {
			if crit, ok := critical(c, arc); !ok || !crit {
				t.Errorf("%s: extension %d is not there and critical", name, arc)
			}
		}
		if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://example.org" {
			t.Errorf("%s: URIs %v", name, c.URIs)
		}
		if c.Subject.SerialNumber == "" || c.Subject.Organization[0] != "example.org" || len(c.SubjectKeyId) == 0 {
			t.Errorf("%s: subject %s", name, c.Subject)
		}
	}
	if !ca.MaxPathLenZero || root.MaxPathLen != -1 {
		t.Errorf("path lengths %d, %d", ca.MaxPathLen, root.MaxPathLen)
	}
	if got := ca.NotAfter.Sub(start); got != 72*time.Hour {
		t.Errorf("issuing CA lives %s", got)
	}
	if got := root.NotAfter.Sub(start); got != 3652*24*time.Hour {
		t.Errorf("root lives %s", got)
	}
}

func TestSignX509LongTrustDomain(t *testing.T) {
	e := newEnv(t)
	long := spiffeid.RequireTrustDomainFromString(strings.Repeat("a", 60) + ".example.org")
	cfg := e.config()
	cfg.TrustDomain, cfg.Issuer = long, ""
	a, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	g, err := identity.ForBroker(long, digestOf(t, key.Public()), start, start.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignX509(t.Context(), g, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	opensslVerify(t, a, chain)
}

func TestSignX509Refuses(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	key, other := newKey(t), newKey(t)
	good := nodeGrant(t, key.Public(), start, time.Hour)
	foreign, err := identity.ForNode(spiffeid.RequireTrustDomainFromString("other.org"), "n1", good.Key(), start, start.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		grant identity.Grant
		pub   crypto.PublicKey
		want  string
	}{
		{"the zero grant", identity.Grant{}, key.Public(), "nothing is granted"},
		{"a grant of 31 s ago", nodeGrant(t, key.Public(), start.Add(-31*time.Second), time.Hour), key.Public(), "ago"},
		{"a grant from the future", nodeGrant(t, key.Public(), start.Add(61*time.Second), time.Hour), key.Public(), "future"},
		{"a grant that ended", nodeGrant(t, key.Public(), start.Add(-10*time.Second), 10*time.Second), key.Public(), "ended"},
		{"another key", good, other.Public(), "another key"},
		{"no key", good, nil, "not certified"},
		{"a grant for a JWT-SVID", jwtGrant(t, "ES256", start, "a"), key.Public(), "for a JWT-SVID"},
		{"another trust domain's", foreign, key.Public(), "authority of example.org"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.SignX509(t.Context(), tt.grant, tt.pub)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start.Add(-30*time.Second), time.Hour), key.Public()); err != nil {
		t.Errorf("a grant of 30 s ago: %v", err)
	}
}

// Regression: GHSA-8cqv-pj7f-pwpc
func TestSignX509Keys(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	ec := func(c elliptic.Curve) crypto.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	// The size alone is judged: no private key is needed for these.
	modulus := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.SetBit(n, 0, 1)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	even := modulus(2048)
	even.SetBit(even, 0, 0)
	tests := []struct {
		name string
		pub  crypto.PublicKey
		ok   bool
	}{
		{"P-256", ec(elliptic.P256()), true},
		{"P-384", ec(elliptic.P384()), true},
		{"P-224", ec(elliptic.P224()), false},
		{"P-521", ec(elliptic.P521()), false},
		{"Ed25519", edwards, false},
		{"RSA 2048", &rsa.PublicKey{N: modulus(2048), E: 65537}, true},
		{"RSA 4096", &rsa.PublicKey{N: modulus(4096), E: 65537}, true},
		{"RSA 2047", &rsa.PublicKey{N: modulus(2047), E: 65537}, false},
		{"RSA 4097", &rsa.PublicKey{N: modulus(4097), E: 65537}, false},
		{"RSA with an even modulus", &rsa.PublicKey{N: even, E: 65537}, false},
		{"RSA with exponent 3", &rsa.PublicKey{N: modulus(2048), E: 3}, false},
		{"RSA with an even exponent", &rsa.PublicKey{N: modulus(2048), E: 65538}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.SignX509(t.Context(), nodeGrant(t, tt.pub, start, time.Hour), tt.pub)
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
		})
	}
	// Nobody may get a certificate for a key that signs for the trust domain.
	for _, r := range e.records.rows {
		pub, err := x509.ParsePKIXPublicKey(r.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.SignX509(t.Context(), nodeGrant(t, pub, start, time.Hour), pub)
		if err == nil || !strings.Contains(err.Error(), "authority's") {
			t.Errorf("the key of %s %s: %v", r.Use, r.Alg, err)
		}
	}
}

func TestSignX509EndsWithItsCA(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	key := newKey(t)
	sign := func(ttl time.Duration) (time.Duration, error) {
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), ttl), key.Public())
		if err != nil {
			return 0, err
		}
		return chain[0].NotAfter.Sub(e.clock.now()), nil
	}
	if got, err := sign(48 * time.Hour); got != 24*time.Hour || err != nil {
		t.Errorf("a long SVID lives %s (%v), want a third of the issuing CA", got, err)
	}
	e.clock.set(start.Add(71 * time.Hour)) // nobody has renewed it
	if got, err := sign(4 * time.Hour); got != time.Hour || err != nil {
		t.Errorf("an SVID lives %s (%v), want no longer than its CA", got, err)
	}
	e.clock.set(start.Add(72 * time.Hour))
	if _, err := sign(time.Hour); err == nil || !strings.Contains(err.Error(), "issuing CA") {
		t.Errorf("signed by an issuing CA that has ended: %v", err)
	}
}

func TestSignX509SerialsDiffer(t *testing.T) {
	a := newEnv(t).open()
	key := newKey(t)
	seen := map[string]bool{}
	for range 50 {
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		seen[chain[0].SerialNumber.String()] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d serial numbers in 50 certificates", len(seen))
	}
}
