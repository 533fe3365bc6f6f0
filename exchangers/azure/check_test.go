package azure_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/exchangertest"
)

func TestCheck(t *testing.T) {
	type question = exchangers.Question
	set := func(change func(*azure.Settings)) func(*question) {
		return func(q *question) { change(q.Target.Settings.(*azure.Settings)) }
	}
	audience := func(s string) func(*question) {
		return set(func(a *azure.Settings) { a.TokenAudience = s })
	}
	issuer := func(s string) func(*question) { return func(q *question) { q.Registered.Issuer = s } }
	subject := func(s string) func(*question) { return func(q *question) { q.Registered.Subject = s } }
	parties := func(n int) func(*question) {
		return func(q *question) {
			q.Identity, q.Parties = "w0", nil
			for i := range n {
				q.Parties = append(q.Parties, exchangers.Party{Identity: fmt.Sprintf("w%d", i), SPIFFEID: fmt.Sprintf("spiffe://example.org/w%d", i), TokenTTL: time.Hour})
			}
		}
	}
	const fic = "cloud.federated_credential"
	exchangertest.Run(t, func(t testing.TB) question { return exchangertest.Question(t, settings()) }, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "issuer with a slash", Put: issuer(exchangertest.Issuer + "/"), Code: "issuer_slash", Field: fic + ".issuer"},
		{Name: "issuer in capitals", Put: issuer("https://Id.example.org/td"), Code: "issuer_case", Field: fic + ".issuer"},
		{Name: "issuer of 600 bytes", Put: func(q *question) {
			q.Issuer += strings.Repeat("a", 600-len(q.Issuer))
			q.Discovery = exchangertest.Discovery(t, q.Issuer, nil)
		}},
		{Name: "issuer of 601 bytes", Put: func(q *question) { q.Issuer += strings.Repeat("a", 601-len(q.Issuer)) }, Code: "issuer_long", Field: "broker.issuer"},
		{Name: "subject in capitals", Put: subject("spiffe://example.org/ns/shop/CheckOut"), Code: "subject_case", Field: fic + ".subject"},
		{Name: "subject with a slash", Put: subject(exchangertest.Subject + "/"), Code: "subject_slash", Field: fic + ".subject"},
		{Name: "a template", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/{node.name}" }, Warns: "subject_template"},
		{Name: "client is the tenant", Put: set(func(s *azure.Settings) { s.ClientID = strings.ToUpper(s.Tenant) }), Code: "client_is_tenant", Field: "client_id"},
		{Name: "client of zeros", Put: set(func(s *azure.Settings) { s.ClientID = "00000000-0000-0000-0000-000000000000" }), Code: "client_zero", Field: "client_id"},
		{Name: "no tenant", Put: set(func(s *azure.Settings) { s.Tenant = "common" }), Code: "target_tenant", Field: "tenant"},
		{Name: "a client's name", Put: set(func(s *azure.Settings) { s.ClientID = "orders" }), Code: "target_client_id", Field: "client_id"},
		{Name: "a scope without /.default", Put: set(func(s *azure.Settings) { s.Scope = arm }), Code: "target_scope", Field: "scope"},
		{Name: "a scope that is no URL", Put: set(func(s *azure.Settings) { s.Scope = "https://%/.default" }), Code: "target_scope", Field: "scope"},
		{Name: "a scope of China", Put: set(func(s *azure.Settings) { s.Scope = "https://management.chinacloudapi.cn/.default" }), Code: "scope_cloud", Field: "scope"},
		{Name: "the public scope in the government's", Put: set(func(s *azure.Settings) { s.Cloud = "usgov" }), Code: "scope_cloud", Field: "scope"},
		{Name: "graph of another cloud", Put: set(func(s *azure.Settings) { s.Scope = "https://graph.microsoft.us/.default" }), Code: "scope_cloud", Field: "scope"},
		{Name: "the government's", Put: set(func(s *azure.Settings) { s.Cloud, s.Scope = "usgov", "https://management.usgovcloudapi.net/.default" })},
		{Name: "endpoint of China", Put: func(q *question) { q.Target.Endpoint = "https://login.partner.microsoftonline.cn" }, Code: "endpoint_cloud", Field: "cloud"},
		{Name: "audience in small letters", Put: audience("api://azureadtokenexchange"), Code: "audience_case", Field: "audience"},
		{Name: "audience without api:", Put: audience("AzureADTokenExchange"), Code: "audience_scheme", Field: "audience"},
		{Name: "audience with a slash", Put: audience("api://AzureADTokenExchange/"), Code: "audience_slash", Field: "audience"},
		{Name: "audience of China", Put: audience("api://AzureADTokenExchangeChina"), Code: "audience_cloud", Field: "audience"},
		{Name: "audience of AWS", Put: audience("sts.amazonaws.com"), Warns: "audience_other_cloud"},
		{Name: "another audience", Put: audience("orders"), Warns: "audience_unusual"},
		{Name: "another audience in both", Put: func(q *question) {
			audience("API://azureadtokenexchange")(q)
			q.Registered.Audiences = []string{"API://azureadtokenexchange"}
		}, Warns: "audience_unusual"},
		{Name: "another audience in the cloud", Put: func(q *question) { q.Registered.Audiences = []string{"api://AzureADTokenExchange "} }, Code: "audience_whitespace", Field: fic + ".audience"},
		{Name: "two audiences", Put: func(q *question) { q.Registered.Audiences = []string{"api://AzureADTokenExchange", "x"} }, Code: "audience_many", Field: fic + ".audience"},
		{Name: "14 workloads", Put: parties(14)},
		{Name: "15 workloads", Put: parties(15), Warns: "credentials_soon"},
		{Name: "20 workloads", Put: parties(20), Warns: "credentials_soon"},
		{Name: "21 workloads", Put: parties(21), Code: "credentials_many", Field: fic},
		{Name: "21 Identities of one SPIFFE ID", Put: func(q *question) {
			parties(21)(q)
			for i := range q.Parties {
				q.Parties[i].SPIFFEID = exchangertest.Subject
			}
		}},
		{Name: "subject of 601 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 580) }, Code: "subject_long", Field: "identity.spiffe_id"},
	})
}
