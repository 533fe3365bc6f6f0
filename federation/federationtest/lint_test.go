package federationtest_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/credence-id/credence/federation/federationtest"
)

// TestTheLintFindsWhatMustNotBeIssued holds the lint against the vectors, so
// that a rule which finds nothing is not taken for one that holds.
func TestTheLintFindsWhatMustNotBeIssued(t *testing.T) {
	broken := map[string]bool{}
	for _, v := range federationtest.X509Vectors(t, time.Now(), "/w") {
		t.Run(v.Name, func(t *testing.T) {
			if v.Issue == federationtest.NotIssued {
				return
			}
			found := ""
			for i, der := range v.Shown {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					found = err.Error()
					continue
				}
				for _, r := range federationtest.IssuerRules(v.Bundle.TrustDomain().Name()) {
					if about := r.Leaves && i == 0 || r.CAs && i > 0; about && !r.Holds(c) {
						found, broken[r.Name] = r.Name, true
					}
				}
			}
			if (found != "") != (v.Issue == federationtest.MustNot) {
				t.Errorf("found %q", found)
			}
		})
	}
	for _, r := range federationtest.IssuerRules("example.org") {
		if !broken[r.Name] {
			t.Errorf("no vector breaks %s", r.Name)
		}
	}
}
