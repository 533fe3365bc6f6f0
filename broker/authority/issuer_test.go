package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

// issued is all that an authority of td signs and publishes as certificates:
// leaves of every kind, one of them as long as an ID may be.
func issued(t *testing.T, td spiffeid.TrustDomain) (leaves, cas []*x509.Certificate, a *authority.Authority) {
	t.Helper()
	e := newEnv(t)
	cfg := e.config()
	cfg.TrustDomain, cfg.Issuer = td, ""
	a, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("a", 2048-len(td.IDString())-len("/credence/node/"))
	for name, key := range map[string]crypto.Signer{"n1": newKey(t), "n2": p384, long: newKey(t)} {
		g, err := identity.ForNode(td, name, digestOf(t, key.Public()), start, start.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, sign(t, a, g, key.Public(), &cas))
	}
	key := newKey(t)
	g, err := identity.ForBroker(td, digestOf(t, key.Public()), start, start.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	leaves = append(leaves, sign(t, a, g, key.Public(), &cas))
	return leaves, append(cas, a.Bundle().X509Authorities...), a
}

// sign returns the leaf, and adds what stands above it to cas.
func sign(t *testing.T, a *authority.Authority, g identity.Grant, pub crypto.PublicKey, cas *[]*x509.Certificate) *x509.Certificate {
	t.Helper()
	chain, err := a.SignX509(t.Context(), g, pub)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := federation.VerifyX509(chain, a, start); err != nil || id != g.ID() {
		t.Errorf("a peer sees %s, %v", id, err)
	}
	if err := federation.CheckLeaf(chain[0], start); err != nil {
		t.Error(err)
	}
	lintCerts(t, chain...)
	*cas = append(*cas, chain[1:]...)
	return chain[0]
}

// TestIssuedCertificates holds the issuer's rules of SPIFFE X509-SVID against
// all that is issued, in trust domains of every shape that a certificate can
// have.
func TestIssuedCertificates(t *testing.T) {
	for name, domain := range map[string]string{
		"ID-001 an ordinary one": "example.org", "XC-45 with an underscore": "trust_domain.example",
		"XC-47 an address": "1.2.3.4", "XC-49 of 255 bytes": strings.Repeat("a", 255),
	} {
		t.Run(name, func(t *testing.T) {
			leaves, cas, a := issued(t, spiffeid.RequireTrustDomainFromString(domain))
			for _, r := range federationtest.IssuerRules(domain) {
				t.Run(r.Name, func(t *testing.T) { holds(t, r, leaves, cas) })
			}
			t.Run("D-02 each CA has the trust domain's ID", func(t *testing.T) {
				for _, c := range cas {
					if len(c.URIs) != 1 {
						t.Errorf("%s has %d URIs", c.Subject, len(c.URIs))
					}
				}
			})
			t.Run("D-16 no name constraints", func(t *testing.T) { unconstrained(t, cas) })
			t.Run("X509-22 leaves have extended usage, CAs none", func(t *testing.T) {
				for _, c := range leaves {
					if len(c.ExtKeyUsage) != 2 {
						t.Errorf("%v", c.ExtKeyUsage)
					}
				}
				for _, c := range cas {
					if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 {
						t.Errorf("%s: %v", c.Subject, c.ExtKeyUsage)
					}
				}
			})
			t.Run("X509-33 the root signs itself, and lives are nested", func(t *testing.T) { nested(t, leaves, cas, a) })
		})
	}
}

func holds(t *testing.T, r federationtest.Rule, leaves, cas []*x509.Certificate) {
	t.Helper()
	var about []*x509.Certificate
	if r.Leaves {
		about = slices.Concat(about, leaves)
	}
	if r.CAs {
		about = slices.Concat(about, cas)
	}
	if len(about) == 0 {
		t.Error("it is about nothing")
	}
	for _, c := range about {
		if !r.Holds(c) {
			t.Errorf("not in %q %.80v", c.Subject, c.URIs)
		}
	}
}

func unconstrained(t *testing.T, cas []*x509.Certificate) {
	t.Helper()
	for _, c := range cas {
		for _, x := range c.Extensions {
			if x.Id.Equal([]int{2, 5, 29, 30}) {
				t.Errorf("%s has name constraints", c.Subject)
			}
		}
	}
}

func nested(t *testing.T, leaves, cas []*x509.Certificate, a *authority.Authority) {
	t.Helper()
	root, issuing := a.Bundle().X509Authorities[0], cas[0]
	if root.CheckSignatureFrom(root) != nil || issuing.CheckSignatureFrom(root) != nil {
		t.Error("the root signs neither itself nor the issuing CA")
	}
	within := func(c, parent *x509.Certificate) {
		if c.NotBefore.Before(parent.NotBefore) || c.NotAfter.After(parent.NotAfter) || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 128 {
			t.Errorf("%s: %s to %s, serial number %s", c.Subject, c.NotBefore, c.NotAfter, c.SerialNumber)
		}
	}
	within(issuing, root)
	for _, leaf := range leaves {
		within(leaf, issuing)
	}
}

// TestTrustDomainsThatNoCertificateCanHave are legal names of which crypto/x509
// parses no certificate: nothing is made for them.
func TestTrustDomainsThatNoCertificateCanHave(t *testing.T) {
	for name, domain := range map[string]string{"XC-43": "example..org", "XC-44": ".example.org", "XC-50": "example.org."} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			cfg := e.config()
			cfg.TrustDomain = spiffeid.RequireTrustDomainFromString(domain)
			if _, err := authority.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), domain) {
				t.Errorf("opened: %v", err)
			}
			if e.records.saves != 0 {
				t.Errorf("%d records were kept", len(e.records.rows))
			}
		})
	}
}

// TestIssuedTokens holds the issuer's rules of SPIFFE JWT-SVID against what is
// signed.
func TestIssuedTokens(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	bundle, err := federation.ParseBundle(td, a.Bundle().Document)
	if err != nil || len(bundle.Ignored) > 0 {
		t.Fatal(err, bundle.Ignored)
	}
	for _, alg := range []string{"ES256", "RS256"} {
		token, err := a.SignJWT(t.Context(), jwtGrant(t, alg, start, "reports"))
		if err != nil {
			t.Fatal(err)
		}
		header, claims := parts(t, token) // three parts in base64url without padding: JWT-01
		kid, _ := header["kid"].(string)
		exp, _ := claims["exp"].(json.Number)
		seconds, notInteger := exp.Int64()
		for name, ok := range map[string]bool{
			"JWT-01 compact, nothing around it":           strings.Count(token, ".") == 2 && strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") == "",
			"JWT-03 alg, kid and typ alone":               len(header) == 3,
			"JWT-05 alg of the table":                     header["alg"] == alg,
			"JWT-07 kid of the bundle":                    kid != "" && bundle.JWTAuthorities()[kid] != nil,
			"JWT-08 typ JWT":                              header["typ"] == "JWT",
			"JWT-09 sub is the granted ID":                claims["sub"] == "spiffe://example.org/shop/checkout",
			"JWT-11 aud is the granted one":               claims["aud"] == "reports",
			"JWT-14 exp is ahead, by an hour at most":     seconds > start.Unix() && seconds <= start.Add(time.Hour).Unix(),
			"D-05 JWT-25 aud a string and exp an integer": claims["aud"] == "reports" && notInteger == nil,
			"D-20 no nbf":                                 claims["nbf"] == nil,
		} {
			t.Run(alg+" "+name, func(t *testing.T) {
				if !ok {
					t.Errorf("header %v, claims %v", header, claims)
				}
			})
		}
	}
	t.Run("D-15 JC-21 no token for a trust domain's ID", func(t *testing.T) {
		_, err := identity.NewSet(identity.Config{TrustDomain: td, JWT: true}, identity.Resources{Identities: []identity.Identity{{
			Name: "x", SPIFFEID: "spiffe://example.org", JWT: &identity.JWT{Audiences: identity.Plain("a")},
			Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}},
		}}})
		if err == nil {
			t.Error("an Identity may grant it")
		}
	})
}

// TestPublishedKeyIDs is D-12: no two keys of the bundle share a kid, and
// certificates have none.
func TestPublishedKeyIDs(t *testing.T) {
	t.Run("D-12", func(t *testing.T) {
		var document struct {
			Keys []struct {
				Use string   `json:"use"`
				Kid *string  `json:"kid"`
				X5C []string `json:"x5c"`
			} `json:"keys"`
		}
		if err := json.Unmarshal(newEnv(t).openReady().Bundle().Document, &document); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, k := range document.Keys {
			switch k.Use {
			case "x509-svid":
				if k.Kid != nil || len(k.X5C) != 1 {
					t.Errorf("an X.509 authority with kid %v and %d certificates", k.Kid, len(k.X5C))
				}
			case "jwt-svid":
				if k.Kid == nil || *k.Kid == "" || seen[*k.Kid] {
					t.Errorf("kid %v", k.Kid)
					continue
				}
				seen[*k.Kid] = true
			default:
				t.Errorf("use %q", k.Use)
			}
		}
		if len(seen) != 4 {
			t.Errorf("%d JWT keys, want two of each algorithm", len(seen))
		}
	})
}
