package gcp_test

import (
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/exchangertest"
	"github.com/credence-id/credence/exchangers/gcp"
)

func TestCheck(t *testing.T) {
	type question = exchangers.Question
	set := func(change func(*gcp.Settings)) func(*question) {
		return func(q *question) { change(q.Target.Settings.(*gcp.Settings)) }
	}
	both := func(all ...func(*question)) func(*question) {
		return func(q *question) {
			for _, one := range all {
				one(q)
			}
		}
	}
	allowed := func(all ...string) func(*question) {
		return func(q *question) { q.Registered.Audiences = all }
	}
	endpoint := func(s string) func(*question) { return func(q *question) { q.Target.Endpoint = s } }
	x509SVID := set(func(s *gcp.Settings) { s.SVID = "x509" })
	const list = "cloud.provider.allowed_audiences"
	exchangertest.Run(t, func(t testing.TB) question { return exchangertest.Question(t, impersonating()) }, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "project's ID", Put: set(func(s *gcp.Settings) { s.Provider = strings.Replace(s.Provider, "/123/", "/my-project/", 1) }), Code: "target_audience", Field: "audience"},
		{Name: "reserved pool", Put: set(func(s *gcp.Settings) { s.Provider = strings.Replace(s.Provider, "pool-1", "gcp-pool", 1) }), Code: "provider_reserved", Field: "audience"},
		{Name: "reserved provider", Put: set(func(s *gcp.Settings) { s.Provider = strings.Replace(s.Provider, "prov-1", "gcp-prov", 1) }), Code: "provider_reserved", Field: "audience"},
		{Name: "issuer URI with a slash", Put: func(q *question) { q.Registered.Issuer = exchangertest.Issuer + "/" }, Code: "issuer_slash", Field: "cloud.provider.issuer_uri"},
		{Name: "X.509's endpoint", Put: endpoint("https://sts.mtls.googleapis.com"), Code: "endpoint_mtls", Field: "endpoint"},
		{Name: "OIDC's endpoint", Put: endpoint("https://sts.googleapis.com")},
		{Name: "OIDC's endpoint for X.509", Put: both(endpoint("https://sts.googleapis.com"), x509SVID), Code: "endpoint_no_mtls", Field: "endpoint"},
		{Name: "an endpoint that is no URL", Put: endpoint("https://%"), Code: "target_endpoint", Field: "endpoint"},
		{Name: "allowed as it is", Put: allowed("x", "https:"+resource)},
		{Name: "allowed without https:", Put: allowed(resource), Code: "audience_scheme", Field: list},
		{Name: "allowed with the project's ID", Put: allowed(strings.Replace("https:"+resource, "/123/", "/my-project/", 1)), Code: "audience_project_id", Field: list},
		{Name: "allowed of another provider", Put: allowed("https:" + strings.Replace(resource, "prov-1", "prov-2", 1)), Code: "audience_path", Field: list},
		{Name: "eleven allowed", Put: allowed(strings.Split(strings.Repeat("x ", 10)+"https:"+resource, " ")...), Code: "audience_many", Field: list},
		{Name: "service account of a number", Put: set(func(s *gcp.Settings) { s.ServiceAccount = "orders@123456.iam.gserviceaccount.com" }), Code: "service_account_project", Field: "service_account"},
		{Name: "delegate of a number", Put: set(func(s *gcp.Settings) { s.Delegates = []string{"orders@123456.iam.gserviceaccount.com"} }), Code: "service_account_project", Field: "delegates"},
		{Name: "service account of a domain's project", Put: set(func(s *gcp.Settings) { s.ServiceAccount = "orders@proj.example.com.iam.gserviceaccount.com" })},
		{Name: "a person", Put: set(func(s *gcp.Settings) { s.ServiceAccount = "ana@example.com" }), Code: "target_service_account", Field: "service_account"},
		{Name: "none", Put: func(q *question) { q.Target.Settings = settings() }},
		{Name: "lifetime of two hours", Put: set(func(s *gcp.Settings) { s.Lifetime = exchangers.Duration(2 * time.Hour) }), Warns: "lifetime_policy"},
		{Name: "a scope of Azure's", Put: set(func(s *gcp.Settings) { s.Scopes = []string{"https://management.azure.com/.default"} }), Code: "scope_unknown", Field: "scopes"},
		{Name: "a scope that is not a URL", Put: set(func(s *gcp.Settings) { s.Scopes = []string{"cloud-platform"} }), Code: "target_scopes", Field: "scopes"},
		{Name: "another scope of Google's", Put: set(func(s *gcp.Settings) { s.Scopes = []string{"https://mail.google.com/"} })},
		{Name: "subject of 127 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 106) }},
		{Name: "subject of 128 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 107) }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "subject of the binding", Put: func(q *question) { q.Registered.Subject = strings.ToUpper(exchangertest.Subject) }, Code: "subject_case", Field: "cloud.service_account.binding"},
		{Name: "a token of two days", Put: func(q *question) { q.Parties[0].TokenTTL = 48 * time.Hour }, Code: "life_long", Field: "broker.target_ttl"},
		{Name: "nine keys", Put: func(q *question) {
			var keys []map[string]any
			for _, kid := range "123456789" {
				keys = append(keys, exchangertest.Key("k"+string(kid), 2048))
			}
			q.JWKS = exchangertest.KeySet(t, keys...)
		}, Warns: "jwks_upload"},

		{Name: "X.509", Put: x509SVID},
		{Name: "X.509, subject of 128 bytes", Put: both(x509SVID, func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 107) }), Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "X.509 of 391 days", Put: both(x509SVID, func(q *question) { q.Parties[0].X509TTL = 391 * 24 * time.Hour }), Code: "life_long", Field: "identity.x509.ttl"},
		{Name: "X.509 of another root", Put: both(x509SVID, func(q *question) {
			q.Anchors = []*x509.Certificate{exchangertest.Certify(t, nil, "other", nil).Certificate}
		}), Code: "chain_no_anchor", Field: "broker.upstream"},
		{Name: "X.509 of an RSA key too long", Put: both(x509SVID, func(q *question) {
			q.Anchors[0].PublicKey = &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 8191, 1), E: 65537}
		}), Code: "anchor_key", Field: "broker.upstream"},
	})
}
