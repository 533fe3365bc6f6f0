package authority_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

// notOurs are lints of the web's public PKI that contradict SPIFFE or ask for
// what only that PKI has. All others hold: those of RFC 5280, 5480 and 8813,
// and what the CA/Browser Forum asks of keys, serial numbers, usages and times.
var notOurs = map[string]string{
	"e_ext_san_uniform_resource_identifier_present": "X509-SVID §2: the URI is the identity",
	"e_ext_san_uri_host_not_fqdn_or_ip":             "SPIFFE-ID §2.1: a trust domain's name need not be a host's",

	"e_sub_cert_cert_policy_empty":            "no policy of a public CA",
	"e_sub_cert_certificate_policies_missing": "no policy of a public CA",
	"e_sub_ca_certificate_policies_missing":   "no policy of a public CA",

	"e_sub_cert_aia_missing":                         "the chain goes with the SVID, and there is no OCSP",
	"e_sub_cert_aia_does_not_contain_ocsp_url":       "the chain goes with the SVID, and there is no OCSP",
	"w_sub_cert_aia_does_not_contain_issuing_ca_url": "the chain goes with the SVID, and there is no OCSP",
	"w_sub_ca_aia_missing":                           "the chain goes with the SVID, and there is no OCSP",
	"w_sub_ca_aia_does_not_contain_issuing_ca_url":   "the chain goes with the SVID, and there is no OCSP",
	"e_sub_ca_crl_distribution_points_missing":       "they are the owner's choice",

	"e_ca_country_name_missing":                  "a trust domain is in no country",
	"e_sub_cert_country_name_must_appear":        "a workload is in no country",
	"e_sub_cert_province_must_appear":            "a workload is in no province",
	"e_sub_cert_locality_name_must_appear":       "a workload is in no locality",
	"e_subject_common_name_not_exactly_from_san": "a CN is the identity's name, for clouds that map it",
	"w_subject_common_name_included":             "a CN is the identity's name, for clouds that map it",
	"e_dnsname_not_valid_tld":                    "names inside a cluster have no public domain",
}

// lintCerts holds certificates of ours against a linter that is not ours.
func lintCerts(t testing.TB, certs ...*x509.Certificate) {
	t.Helper()
	for _, c := range certs {
		z, err := zx509.ParseCertificate(c.Raw)
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range zlint.LintCertificate(z).Results {
			if _, exempt := notOurs[name]; r.Status >= lint.Warn && !exempt {
				t.Errorf("lint of %q %.80v: %s: %s %s", c.Subject, c.URIs, r.Status, name, r.Details)
			}
		}
	}
}

func lintCRL(t testing.TB, der []byte) {
	t.Helper()
	z, err := zx509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range zlint.LintRevocationList(z).Results {
		if r.Status >= lint.Warn {
			t.Errorf("lint of a CRL: %s: %s %s", r.Status, name, r.Details)
		}
	}
}

// Every kind of certificate and list that is signed, with and without what
// owners may choose.
func TestLint(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*authority.Config){
		"": nil,
		"constraints and distribution points": func(c *authority.Config) {
			c.NameConstraints, c.CRLURLs = true, []string{"http://crl.example.org/%s"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.issuer, e.change = "", change
			a := e.open()
			for _, key := range []crypto.Signer{newKey(t), rsaKey} {
				for _, i := range []identity.Identity{
					{},
					{X509: &identity.X509{Subject: "CN=checkout,O=Acme", DNSNames: []string{"checkout.svc"}}},
				} {
					g := grant(t, i, identity.Request{Keys: []identity.KeyDigest{digestOf(t, key.Public())}, Time: start})
					chain, err := a.SignX509(t.Context(), g, key.Public())
					if err != nil {
						t.Fatal(err)
					}
					lintCerts(t, chain...)
				}
			}
			lintCerts(t, a.Bundle().X509Authorities...)
			if err := a.Revoke(t.Context(), []authority.Revocation{{
				Serial: big.NewInt(77), Issuer: of(a, authority.Issuing, authority.Active).ID, NotAfter: start.Add(time.Hour),
			}}); err != nil {
				t.Fatal(err)
			}
			for _, l := range a.CRLs() {
				lintCRL(t, l.DER)
			}
		})
	}
}

// The linter finds something where there is something, so that its silence
// says something.
func TestLintFinds(t *testing.T) {
	p := newPKI(t, "Corporate Root", nil, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment; c.NotAfter = c.NotBefore })
	found := &finder{TB: t}
	lintCerts(found, p.cert)
	if !strings.Contains(found.text, "e_") {
		t.Errorf("found %q", found.text)
	}
}

type finder struct {
	testing.TB
	text string
}

func (f *finder) Errorf(format string, args ...any) { f.text += args[3].(string) + "\n" }
