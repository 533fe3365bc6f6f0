package aws_test

import (
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/exchangertest"
)

func TestCheckOfRolesAnywhere(t *testing.T) {
	type question = exchangers.Question
	settings := func(change func(*aws.RolesAnywhere)) func(*question) {
		return func(q *question) { change(q.Target.Settings.(*aws.RolesAnywhere)) }
	}
	subject := func(s string) func(*question) { return func(q *question) { q.Parties[0].Subject = s } }
	const field = "identity.x509.subject"
	exchangertest.Run(t, func(t testing.TB) question {
		return exchangertest.Question(t, &aws.RolesAnywhere{Role: roleARN, TrustAnchor: anchorARN, Profile: profileARN})
	}, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "profile of another region", Put: settings(func(s *aws.RolesAnywhere) { s.Profile = strings.Replace(s.Profile, "us-east-1", "eu-west-1", 1) }), Code: "target_profile", Field: "profile"},
		{Name: "role of another account", Put: settings(func(s *aws.RolesAnywhere) { s.Role = strings.Replace(s.Role, "123456789012", "999956789012", 1) }), Code: "role_account", Field: "role"},
		{Name: "role of another partition", Put: settings(func(s *aws.RolesAnywhere) { s.Role = strings.Replace(s.Role, "arn:aws:", "arn:aws-cn:", 1) }), Code: "target_role", Field: "role"},
		{Name: "endpoint of another region", Put: func(q *question) { q.Target.Endpoint = "https://rolesanywhere.eu-west-1.amazonaws.com" }, Code: "endpoint_region", Field: "endpoint"},
		{Name: "endpoint of another service", Put: func(q *question) { q.Target.Endpoint = "https://sts.us-east-1.amazonaws.com" }, Code: "endpoint_region", Field: "endpoint"},
		{Name: "endpoint of the region", Put: func(q *question) { q.Target.Endpoint = "https://rolesanywhere-fips.us-east-1.amazonaws.com" }},
		{Name: "session name with a slash", Put: settings(func(s *aws.RolesAnywhere) { s.SessionName = "a/b" }), Code: "target_session_name", Field: "session_name"},
		{Name: "session name", Put: settings(func(s *aws.RolesAnywhere) { s.SessionName = "orders" }), Warns: "session_name_accept"},
		{Name: "duration of an hour", Put: settings(func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(time.Hour) })},
		{Name: "duration of two", Put: settings(func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(2 * time.Hour) }), Warns: "duration_over_default"},
		{Name: "duration of five minutes", Put: settings(func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(5 * time.Minute) }), Code: "target_duration", Field: "duration"},
		{Name: "empty subject", Put: subject(""), Code: "subject_empty", Field: field},
		{Name: "subject of no session tag", Put: subject(`CN=checkout,O=Acme\, Inc.`), Code: "subject_tag", Field: field},
		{Name: "subject with a star in hex", Put: subject(`CN=checkout,O=a\2ab`), Code: "subject_tag", Field: field},
		{Name: "subject of more than 256", Put: subject("CN=checkout,UID=" + strings.Repeat("a", 257)), Code: "subject_tag", Field: field},
		{Name: "subject of accents", Put: subject("CN=checkout, O=Société Générale + Fils")},
		{Name: "CN with a space", Put: subject("CN=check out"), Code: "subject_cn", Field: field},
		{Name: "CN of 61", Put: subject("CN=" + strings.Repeat("a", 61))},
		{Name: "CN of 62", Put: subject("CN=" + strings.Repeat("a", 62)), Warns: "subject_cn_long"},
		{Name: "CN of 65", Put: subject("CN=" + strings.Repeat("a", 65)), Code: "subject_cn", Field: field},
		{Name: "no CN", Put: subject("O=Acme"), Warns: "subject_no_cn"},
		{Name: "SPIFFE ID of 256", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 235) }},
		{Name: "SPIFFE ID of 257", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 236) }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "another SPIFFE ID in the policy", Put: func(q *question) { q.Registered.Subject = "spiffe://example.org/ns/Shop/checkout" }, Code: "subject_case", Field: "cloud.role.trust_policy"},
		{Name: "three anchors", Put: func(q *question) {
			q.Anchors = append(q.Anchors, exchangertest.Certify(t, nil, "b", nil).Certificate, exchangertest.Certify(t, nil, "c", nil).Certificate)
		}, Warns: "anchor_many"},
	})
}

func TestCheckOfWebIdentity(t *testing.T) {
	type question = exchangers.Question
	settings := func(change func(*aws.WebIdentity)) func(*question) {
		return func(q *question) { change(q.Target.Settings.(*aws.WebIdentity)) }
	}
	issuer := func(s string) func(*question) { return func(q *question) { q.Registered.Issuer = s } }
	const url = "cloud.oidc_provider.url"
	exchangertest.Run(t, func(t testing.TB) question { return exchangertest.Question(t, &aws.WebIdentity{Role: webRoleARN}) }, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "provider with a slash", Put: issuer(exchangertest.Issuer + "/"), Code: "issuer_slash", Field: url},
		{Name: "provider in capitals", Put: issuer("https://ID.example.org/td"), Code: "issuer_case", Field: url},
		{Name: "provider with a port", Put: issuer("https://id.example.org:443/td"), Code: "issuer_port", Field: url},
		{Name: "provider of another path", Put: issuer("https://id.example.org/t"), Code: "issuer_path", Field: url},
		{Name: "provider without https", Put: issuer("id.example.org/td"), Code: "issuer_scheme", Field: url},
		{Name: "provider with a space", Put: issuer(exchangertest.Issuer + " "), Code: "issuer_whitespace", Field: url},
		{Name: "provider that looks alike", Put: issuer("https://id.exаmple.org/td"), Code: "issuer_homograph", Field: url},
		{Name: "issuer of 256 bytes", Put: func(q *question) { q.Issuer += strings.Repeat("a", 256-len(q.Issuer)) }, Code: "issuer_long", Field: "broker.issuer"},
		{Name: "client ID in capitals", Put: func(q *question) { q.Registered.Audiences = []string{"STS.amazonaws.com"} }, Code: "audience_case", Field: "cloud.oidc_provider.client_ids"},
		{Name: "another client ID", Put: func(q *question) { q.Registered.Audiences = []string{"sts.example.com"} }, Code: "audience_other", Field: "cloud.oidc_provider.client_ids"},
		{Name: "Google's audience", Put: settings(func(s *aws.WebIdentity) {
			s.TokenAudience = "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/prov"
		}), Warns: "audience_other_cloud"},
		{Name: "Azure's audience", Put: settings(func(s *aws.WebIdentity) { s.TokenAudience = "api://AzureADTokenExchange" }), Warns: "audience_other_cloud"},
		{Name: "endpoint of another region", Put: func(q *question) { q.Target.Endpoint = "https://sts.eu-west-1.amazonaws.com" }, Code: "endpoint_region", Field: "endpoint"},
		{Name: "region of another partition", Put: settings(func(s *aws.WebIdentity) { s.Region = "cn-north-1" }), Code: "target_region", Field: "region"},
		{Name: "session name of a SPIFFE ID", Put: settings(func(s *aws.WebIdentity) { s.SessionName = "spiffe://td/x" }), Code: "target_session_name", Field: "session_name"},
		{Name: "duration of two hours", Put: settings(func(s *aws.WebIdentity) { s.Duration = exchangers.Duration(2 * time.Hour) }), Warns: "duration_over_default"},
		{Name: "subject of 255", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 234) }},
		{Name: "subject of 256", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 235) }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "subject in the policy", Put: func(q *question) { q.Registered.Subject = "spiffe://example.org/ns/shop/checkout/" }, Code: "subject_slash", Field: "cloud.role.trust_policy"},
	})
}
