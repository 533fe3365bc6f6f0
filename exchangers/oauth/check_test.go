package oauth_test

import (
	"crypto/x509"
	"testing"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/exchangertest"
	"github.com/credence-id/credence/exchangers/oauth"
)

func TestCheck(t *testing.T) {
	type question = exchangers.Question
	cert := func(q *question) {
		q.Target.Settings = &oauth.Settings{VaultCert: &oauth.VaultCert{URL: "https://vault.example", Role: "orders"}}
	}
	exchangertest.Run(t, func(t testing.TB) question {
		return exchangertest.Question(t, &oauth.Settings{JWTBearer: &oauth.JWTBearer{TokenURL: "https://as.example/token", TokenAudience: "https://as.example"}})
	}, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "no mode", Put: func(q *question) { q.Target.Settings = &oauth.Settings{} }, Code: "target_settings", Field: "settings"},
		{Name: "audience with a slash", Put: func(q *question) { q.Registered.Audiences = []string{"https://as.example/"} }, Code: "audience_slash", Field: "server.audience"},
		{Name: "issuer with a slash", Put: func(q *question) { q.Registered.Issuer = exchangertest.Issuer + "/" }, Code: "issuer_slash", Field: "server.issuer"},
		{Name: "cert", Put: cert},
		{Name: "cert, without a CN", Put: func(q *question) { cert(q); q.Parties[0].Subject = "O=Acme" }, Code: "subject_no_cn", Field: "identity.x509.subject"},
		{Name: "cert, of another root", Put: func(q *question) {
			cert(q)
			q.Anchors = []*x509.Certificate{exchangertest.Certify(t, nil, "other", nil).Certificate}
		}, Code: "chain_no_anchor", Field: "broker.upstream"},
	})
}
