package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	credence "github.com/credence-id/credence/cmd/credence"
	"github.com/credence-id/credence/exchangers/sandbox"
	sandboxaws "github.com/credence-id/credence/exchangers/sandbox/aws"
	sandboxazure "github.com/credence-id/credence/exchangers/sandbox/azure"
	sandboxgcp "github.com/credence-id/credence/exchangers/sandbox/gcp"
)

// A seeded fault is one in what an operator writes: the Target, its Identity,
// or what stands in the cloud. Each cloud here is one of its own.
type seeded struct {
	name   string
	target string   // flow: {settings}
	cloud  string   // URL of the services
	lists  string   // the Identity; empty: seeded
	flags  []string // what the operator sees in the console
	code   string   // of the finding that ends it
	field  string
	warns  string // codes of those before, beside dev's
}

// seeds makes the clouds, and says what is wrong with each.
type seeds struct {
	t       *testing.T
	d       *devRun
	issuer  string
	subject string
	roots   *x509.CertPool
	anchors []*x509.Certificate
}

// The places of every cloud here.
const (
	seedAnchor   = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555"
	seedProfile  = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/66666666-7777-8888-9999-000000000000"
	seedRole     = "arn:aws:iam::123456789012:role/seeded"
	seedPool     = "projects/123/locations/global/workloadIdentityPools/pool-1"
	seedResource = "//iam.googleapis.com/" + seedPool + "/providers/prov-1"
	seedAccount  = "seeded@proj-1.iam.gserviceaccount.com"
	seedTenant   = "11111111-2222-4333-8444-555555555555"
	seedClient   = "aaaaaaaa-2222-4333-8444-555555555555"
	seedScope    = "https://management.azure.com/.default"
)

func (s *seeds) serve(h http.Handler) string {
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	s.t.Cleanup(server.Close)
	return server.URL
}

// otherCA is a CA that certifies nobody.
func otherCA(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// aws is an account that takes the seeded workload by both flows, changed.
func (s *seeds) aws(change func(*sandboxaws.Config)) (anywhere, sts string) {
	s.t.Helper()
	host := strings.TrimPrefix(s.issuer, "https://")
	cfg := sandboxaws.Config{
		Account: "123456789012", Region: "us-east-1", Roots: s.roots, LenientLoopbackIssuer: true,
		TrustAnchors:  []sandboxaws.TrustAnchor{{ARN: seedAnchor, Certificates: s.anchors, Enabled: true}},
		Profiles:      []sandboxaws.Profile{{ARN: seedProfile, RoleARNs: []string{seedRole}, Enabled: true}},
		OIDCProviders: []sandboxaws.OIDCProvider{{URL: s.issuer, ClientIDs: []string{"sts.amazonaws.com"}}},
		Roles: []sandboxaws.Role{{ARN: seedRole, TrustPolicy: fmt.Sprintf(`{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Principal":{"Service":"rolesanywhere.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
			 "Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":%q}}},
			{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/%s"},"Action":"sts:AssumeRoleWithWebIdentity",
			 "Condition":{"StringEquals":{"%s:sub":%q}}}]}`, s.subject, host, host, s.subject)}},
	}
	if change != nil {
		change(&cfg)
	}
	cloud, err := sandboxaws.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.serve(cloud.RolesAnywhere()), s.serve(cloud.STS())
}

// gcp is a pool, and a service account that the workload may impersonate.
func (s *seeds) gcp(change func(*sandboxgcp.Config)) string {
	s.t.Helper()
	cfg := sandboxgcp.Config{
		Issuers: sandbox.IssuersConfig{Roots: s.roots, LenientLoopbackIssuer: true},
		Pools: []sandboxgcp.Pool{{Project: "123", ID: "pool-1", Providers: []sandboxgcp.Provider{{ID: "prov-1", Issuer: s.issuer,
			AttributeMapping: map[string]string{"google.subject": "assertion.sub"}}}}},
		ServiceAccounts: []sandboxgcp.ServiceAccount{{Email: seedAccount, UniqueID: "1234567890", Bindings: []sandboxgcp.Binding{{
			Role: sandboxgcp.WorkloadIdentityUser, Members: []string{"principal://iam.googleapis.com/" + seedPool + "/subject/" + s.subject}}}}},
	}
	if change != nil {
		change(&cfg)
	}
	cloud, err := sandboxgcp.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/token", cloud.STS())
	mux.Handle("/v1/projects/", cloud.IAMCredentials())
	return s.serve(mux)
}

// azure is a tenant with an application that trusts the workload.
func (s *seeds) azure(change func(*sandboxazure.App)) string {
	s.t.Helper()
	app := sandboxazure.App{Kind: sandboxazure.Application, ClientID: seedClient, ObjectID: "bbbbbbbb-2222-4333-8444-555555555555",
		Credentials: []sandboxazure.Credential{{Name: "seeded", Issuer: s.issuer, Subject: s.subject, Audience: sandboxazure.Audience}}}
	if change != nil {
		change(&app)
	}
	cloud, err := sandboxazure.New(sandboxazure.Config{
		Issuers: sandbox.IssuersConfig{Roots: s.roots, LenientLoopbackIssuer: true}, Resources: []string{"https://management.azure.com"},
		Tenants: []sandboxazure.Tenant{{ID: seedTenant, Domain: "seeded.example", Apps: []sandboxazure.App{app}}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.serve(cloud.Login())
}

// rolesAnywhere are the faults of that flow.
func (s *seeds) rolesAnywhere() []seeded {
	healthy, _ := s.aws(nil)
	target := func(more string) string {
		return "aws_roles_anywhere: {role: '" + seedRole + "', trust_anchor: '" + seedAnchor + "', profile: '" + seedProfile + "'" + more + "}"
	}
	in := func(change func(*sandboxaws.Config)) string { url, _ := s.aws(change); return url }
	policy := func(from, to string) string {
		return in(func(c *sandboxaws.Config) {
			c.Roles[0].TrustPolicy = strings.ReplaceAll(c.Roles[0].TrustPolicy, from, to)
		})
	}
	const trust = "cloud.role.trust_policy"
	return []seeded{
		{name: "ra-healthy", target: target(""), cloud: healthy},
		{name: "ra-empty-subject", target: target(""), cloud: healthy, lists: "bare", code: "subject_empty", field: "identity.x509.subject"},
		{name: "ra-long-id", target: target(""), cloud: healthy, lists: "long257", code: "subject_long", field: "identity.spiffe_id"},
		{name: "ra-policy-case", target: target(""), cloud: healthy, flags: []string{"--registered-subject", strings.Replace(s.subject, "seeded", "Seeded", 1)}, code: "subject_case", field: trust},
		{name: "ra-other-account", target: strings.Replace(target(""), "iam::123456789012", "iam::999999999999", 1), cloud: healthy, code: "role_account", field: "role"},
		{name: "ra-other-region", target: target(""), cloud: "https://rolesanywhere.eu-west-1.amazonaws.com", code: "endpoint_region", field: "endpoint"},
		{name: "ra-other-anchor", target: target(""), code: "call_anchor_differs", field: "cloud.trust_anchor",
			cloud: in(func(c *sandboxaws.Config) { c.TrustAnchors[0].Certificates = []*x509.Certificate{otherCA(s.t)} })},
		{name: "ra-other-subject", target: target(""), cloud: policy(s.subject, s.subject+"x"), code: "call_trust_policy", field: trust},
		{name: "ra-no-tag-session", target: target(""), cloud: policy(`"sts:TagSession",`, ""), code: "call_trust_policy", field: trust},
		{name: "ra-role-shorter", target: target(", duration: 2h"), warns: "duration_over_default", code: "call_role_max_session", field: "duration",
			cloud: in(func(c *sandboxaws.Config) { c.Profiles[0].Duration = 12 * time.Hour })},
		{name: "ra-session-name", target: target(", session_name: orders"), cloud: healthy, warns: "session_name_accept", code: "call_profile_refuses", field: "cloud.profile"},
		{name: "ra-role-unlisted", target: target(""), code: "call_profile_refuses", field: "cloud.profile",
			cloud: in(func(c *sandboxaws.Config) { c.Profiles[0].RoleARNs = []string{seedRole + "-2"} })},
		{name: "ra-no-profile", target: strings.Replace(target(""), "profile/6", "profile/7", 1), cloud: healthy, code: "call_arn_unknown", field: "trust_anchor"},
		{name: "ra-anchor-off", target: target(""), code: "call_profile_refuses", field: "cloud.profile", cloud: in(func(c *sandboxaws.Config) { c.TrustAnchors[0].Enabled = false })},
	}
}

// webIdentity are the faults of that flow.
func (s *seeds) webIdentity() []seeded {
	_, healthy := s.aws(nil)
	target := func(more string) string { return "aws_web_identity: {role: '" + seedRole + "'" + more + "}" }
	in := func(change func(*sandboxaws.Config)) string { _, url := s.aws(change); return url }
	issuer := func(text string) []string { return []string{"--registered-issuer", text} }
	const provider, trust = "cloud.oidc_provider.url", "cloud.role.trust_policy"
	return []seeded{
		{name: "web-healthy", target: target(""), cloud: healthy, flags: append(issuer(s.issuer), "--registered-subject", s.subject, "--registered-audience", "sts.amazonaws.com")},
		{name: "web-slash", target: target(""), cloud: healthy, flags: issuer(s.issuer + "/"), code: "issuer_slash", field: provider},
		{name: "web-case", target: target(""), cloud: healthy, flags: issuer("HTTPS" + s.issuer[5:]), code: "issuer_case", field: provider},
		{name: "web-port", target: target(""), cloud: healthy, flags: issuer("https://127.0.0.1:1"), code: "issuer_port", field: provider},
		{name: "web-path", target: target(""), cloud: healthy, flags: issuer(s.issuer + "/td"), code: "issuer_path", field: provider},
		{name: "web-scheme", target: target(""), cloud: healthy, flags: issuer("http" + s.issuer[5:]), code: "issuer_scheme", field: provider},
		{name: "web-whitespace", target: target(""), cloud: healthy, flags: issuer(s.issuer + " "), code: "issuer_whitespace", field: provider},
		{name: "web-client-id", target: target(""), cloud: healthy, flags: []string{"--registered-audience", "sts.Amazonaws.com"}, code: "audience_case", field: "cloud.oidc_provider.client_ids"},
		{name: "web-long-id", target: target(""), cloud: healthy, lists: "long257", code: "subject_long", field: "identity.spiffe_id"},
		{name: "web-other-region", target: target(", region: eu-west-1"), cloud: "https://sts.us-east-1.amazonaws.com", code: "endpoint_region", field: "endpoint"},
		{name: "web-provider-slash", target: target(""), code: "call_issuer_unregistered", field: provider, cloud: in(func(c *sandboxaws.Config) { c.OIDCProviders[0].URL += "/" })},
		{name: "web-audience", target: target(", audience: orders"), cloud: healthy, code: "call_audience_unregistered", field: "cloud.oidc_provider.client_ids"},
		{name: "web-other-subject", target: target(""), code: "call_trust_policy", field: trust,
			cloud: in(func(c *sandboxaws.Config) {
				c.Roles[0].TrustPolicy = strings.ReplaceAll(c.Roles[0].TrustPolicy, s.subject, s.subject+"/x")
			})},
		{name: "web-no-role", target: strings.Replace(target(""), "role/seeded", "role/none", 1), cloud: healthy, code: "call_trust_policy", field: trust},
		{name: "web-role-shorter", target: target(", duration: 2h"), cloud: healthy, warns: "duration_over_default", code: "call_role_max_session", field: "duration"},
		{name: "web-unread", target: target(""), code: "call_issuer_unread", field: "broker.issuer", cloud: in(func(c *sandboxaws.Config) { c.Roots = nil })},
		{name: "web-second-role", target: target(", assume_role: {role: '" + seedRole + "-2'}"), cloud: healthy, code: "call_second_trust_policy", field: "assume_role.role"},
	}
}

// google are the faults of gcp.
func (s *seeds) google() []seeded {
	healthy := s.gcp(nil)
	target := func(more string) string {
		return "gcp: {audience: '" + seedResource + "', service_account: " + seedAccount + more + "}"
	}
	other := func(from, to string) string { return strings.Replace(target(""), from, to, 1) }
	provider := func(change func(*sandboxgcp.Provider)) string {
		return s.gcp(func(c *sandboxgcp.Config) { change(&c.Pools[0].Providers[0]) })
	}
	allowed := func(text string) []string { return []string{"--registered-audience", text} }
	const list = "cloud.provider.allowed_audiences"
	return []seeded{
		{name: "gcp-healthy", target: target(""), cloud: healthy, flags: allowed("https:" + seedResource)},
		{name: "gcp-direct", target: "gcp: {audience: '" + seedResource + "'}", cloud: healthy},
		{name: "gcp-issuer-slash", target: target(""), cloud: healthy, flags: []string{"--registered-issuer", s.issuer + "/"}, code: "issuer_slash", field: "cloud.provider.issuer_uri"},
		{name: "gcp-allowed-scheme", target: target(""), cloud: healthy, flags: allowed(seedResource), code: "audience_scheme", field: list},
		{name: "gcp-allowed-project", target: target(""), cloud: healthy, flags: allowed("https:" + strings.Replace(seedResource, "/123/", "/my-project/", 1)), code: "audience_project_id", field: list},
		{name: "gcp-long-id", target: target(""), cloud: healthy, lists: "long128", code: "subject_long", field: "identity.spiffe_id"},
		{name: "gcp-reserved", target: other("prov-1", "gcp-prov"), cloud: healthy, code: "provider_reserved", field: "audience"},
		{name: "gcp-scope", target: target(", scopes: ['https://management.azure.com/.default']"), cloud: healthy, code: "scope_unknown", field: "scopes"},
		{name: "gcp-account-number", target: other("proj-1", "12345"), cloud: healthy, code: "service_account_project", field: "service_account"},
		{name: "gcp-mtls", target: target(""), cloud: "https://sts.mtls.googleapis.com", code: "endpoint_mtls", field: "endpoint"},
		{name: "gcp-no-provider", target: other("prov-1", "prov-2"), cloud: healthy, code: "call_provider_unknown", field: "audience"},
		{name: "gcp-off", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) { p.Disabled = true }), code: "call_provider_unknown", field: "audience"},
		{name: "gcp-issuer", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) { p.Issuer += "/" }), code: "call_issuer_unregistered", field: "cloud.provider.issuer_uri"},
		{name: "gcp-audience", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) { p.AllowedAudiences = []string{seedResource} }), code: "call_audience_unregistered", field: list},
		{name: "gcp-condition", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) { p.AttributeCondition = "assertion.sub.endsWith('/other')" }),
			code: "call_attribute_condition", field: "cloud.provider.attribute_condition"},
		{name: "gcp-mapping", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) { p.AttributeMapping["google.subject"] = "assertion.email" }),
			code: "call_attribute_mapping", field: "cloud.provider.attribute_mapping"},
		{name: "gcp-keys", target: target(""), cloud: provider(func(p *sandboxgcp.Provider) {
			p.KeySet = []byte(`{"keys":[{"kty":"RSA","kid":"old","alg":"RS256","use":"sig","e":"AQAB","n":"` + strings.Repeat("z", 341) + `Q"}]}`)
		}), code: "call_issuer_unread", field: "broker.issuer"},
		{name: "gcp-binding", target: target(""), code: "call_service_account_binding", field: "cloud.service_account.binding",
			cloud: s.gcp(func(c *sandboxgcp.Config) { c.ServiceAccounts[0].Bindings = nil })},
		{name: "gcp-lifetime", target: target(", lifetime: 2h"), cloud: healthy, warns: "lifetime_policy", code: "call_lifetime_policy", field: "lifetime"},
	}
}

// entra are the faults of azure.
func (s *seeds) entra() []seeded {
	healthy := s.azure(nil)
	target := func(more string) string {
		return "azure: {tenant: " + seedTenant + ", client_id: " + seedClient + ", scope: '" + seedScope + "'" + more + "}"
	}
	other := func(from, to string) string { return strings.Replace(target(""), from, to, 1) }
	credential := func(change func(*sandboxazure.Credential)) string {
		return s.azure(func(a *sandboxazure.App) { change(&a.Credentials[0]) })
	}
	const fic = "cloud.federated_credential"
	return []seeded{
		{name: "az-healthy", target: target(""), cloud: healthy, flags: []string{"--registered-issuer", s.issuer, "--registered-subject", s.subject, "--registered-audience", sandboxazure.Audience}},
		{name: "az-issuer-slash", target: target(""), cloud: healthy, flags: []string{"--registered-issuer", s.issuer + "/"}, code: "issuer_slash", field: fic + ".issuer"},
		{name: "az-subject-case", target: target(""), cloud: healthy, flags: []string{"--registered-subject", strings.Replace(s.subject, "demo", "Demo", 1)}, code: "subject_case", field: fic + ".subject"},
		{name: "az-audience-space", target: target(""), cloud: healthy, flags: []string{"--registered-audience", " " + sandboxazure.Audience}, code: "audience_whitespace", field: fic + ".audience"},
		{name: "az-audience-case", target: target(", audience: 'api://azureadtokenexchange'"), cloud: healthy, code: "audience_case", field: "audience"},
		{name: "az-audience-cloud", target: target(", audience: 'api://AzureADTokenExchangeUSGov'"), cloud: healthy, code: "audience_cloud", field: "audience"},
		{name: "az-scope-cloud", target: other("management.azure.com", "management.chinacloudapi.cn"), cloud: healthy, code: "scope_cloud", field: "scope"},
		{name: "az-endpoint-cloud", target: target(""), cloud: "https://login.microsoftonline.us", code: "endpoint_cloud", field: "cloud"},
		{name: "az-client-tenant", target: other(seedClient, seedTenant), cloud: healthy, code: "client_is_tenant", field: "client_id"},
		{name: "az-many", target: target(""), cloud: healthy, lists: "many", code: "credentials_many", field: fic},
		{name: "az-long-id", target: target(""), cloud: healthy, lists: "long601", code: "subject_long", field: "identity.spiffe_id"},
		{name: "az-no-credential", target: target(""), cloud: s.azure(func(a *sandboxazure.App) { a.Credentials = nil }), code: "call_credential_none", field: fic},
		{name: "az-issuer", target: target(""), cloud: credential(func(c *sandboxazure.Credential) { c.Issuer += "/" }), code: "call_issuer_unregistered", field: fic + ".issuer"},
		{name: "az-subject", target: target(""), cloud: credential(func(c *sandboxazure.Credential) { c.Subject += "/" }), code: "call_subject_unregistered", field: fic + ".subject"},
		{name: "az-audience", target: target(""), cloud: credential(func(c *sandboxazure.Credential) { c.Audience = "orders" }), code: "call_audience_unregistered", field: fic + ".audience"},
		{name: "az-expression", target: target(""), code: "call_expression_refused", field: fic + ".subject",
			cloud: credential(func(c *sandboxazure.Credential) {
				c.Subject, c.Expression = "", "claims['sub'] matches 'spiffe://dev.example/*'"
			})},
		{name: "az-client", target: other("client_id: aaaaaaaa", "client_id: aaaaaaab"), cloud: healthy, code: "call_client_unknown", field: "client_id"},
		{name: "az-tenant", target: other("tenant: 1", "tenant: 2"), cloud: healthy, code: "call_tenant_unknown", field: "tenant"},
		{name: "az-resource", target: other("management.azure.com", "vault.azure.net"), cloud: healthy, code: "call_resource_unknown", field: "scope"},
	}
}

// resources are the Targets, and the Identities that list them. But for seeded
// they are nobody's here: those faults are found before the cloud is asked.
func (s *seeds) resources(all []seeded, ca string) string {
	var yaml strings.Builder
	lists := map[string][]string{}
	for _, f := range all {
		fmt.Fprintf(&yaml, "kind: Target\nname: %s\n%s\nendpoint: %s\nca_file: %s\n---\n", f.name, f.target, f.cloud, ca)
		who := f.lists
		if who == "" {
			who = "seeded"
		}
		lists[who] = append(lists[who], f.name)
	}
	identity := func(name, id, x509, uid, targets string) {
		fmt.Fprintf(&yaml, "kind: Identity\nname: %s\nspiffe_id: %s\nmatch: [{node.name: dev, workload.unix.uid: %q}]\n%stargets: [%s]\n---\n", name, id, uid, x509, targets)
	}
	names := func(who string) string { return strings.Join(lists[who], ", ") }
	identity("seeded", "/demo/seeded", "x509: {subject: CN=seeded}\n", fmt.Sprint(os.Getuid()), names("seeded"))
	identity("bare", "/demo/bare", "", "4711", names("bare"))
	for _, n := range []int{128, 257, 601} {
		who := fmt.Sprintf("long%d", n)
		segments := strings.Repeat("/"+strings.Repeat("a", 99), n/100)
		segments = segments[:min(len(segments), n-len("spiffe://dev.example")-4)]
		segments = "/a" + segments + strings.Repeat("b", n-len("spiffe://dev.example")-2-len(segments))
		identity(who, segments, "x509: {subject: CN="+who+"}\n", "4711", names(who))
	}
	for i := range 21 {
		identity(fmt.Sprintf("many%d", i), fmt.Sprintf("/demo/many%d", i), "", "4711", names("many"))
	}
	return yaml.String()
}

// checked is what target check says, for programs.
type checked struct {
	Name     string
	OK       bool
	Change   string
	Findings []struct {
		Step, State, Code, Field string
		Byte                     int
		Found, Change            string
	}
}

func (d *devRun) checkTarget(t *testing.T, name string, flags ...string) (int, checked) {
	t.Helper()
	var out, errs bytes.Buffer
	args := append([]string{"target", "check", name, "-o", "json", "--socket", d.json.WorkloadSocket}, flags...)
	if !slices.Contains(flags, "--call") {
		args = append(args, "--admin", d.json.AdminSocket)
	}
	code := credence.Run(soon(t), args, strings.NewReader(""), &out, &errs)
	var c checked
	if err := json.Unmarshal(out.Bytes(), &c); err != nil || c.Name != name || c.OK != (code == 0) {
		t.Fatalf("exit code %d: %v\n%s%s", code, err, out.String(), errs.String())
	}
	return code, c
}

// judge holds findings against what a fault is to be found as: as the first, and
// with what is to be changed.
func (c checked) judge(t *testing.T, f seeded) {
	t.Helper()
	var warns []string
	last := c.Findings[len(c.Findings)-1]
	for _, finding := range c.Findings {
		switch finding.State {
		case "warning":
			if !strings.Contains(" issuer_loopback issuer_private_ca ", " "+finding.Code+" ") {
				warns = append(warns, finding.Code)
			}
		case "problem":
			if finding != last || finding.Code != f.code || finding.Field != f.field || finding.Change == "" || c.Change != finding.Change {
				t.Errorf("it ends with %+v", finding)
			}
		}
	}
	if got := strings.Join(warns, " "); got != f.warns {
		t.Errorf("it warns of %q", got)
	}
	if f.warns == "call_not_made" || f.warns == "call_other_identity" {
		if !strings.Contains(last.Change, "sudo -u '#4711' SPIFFE_ENDPOINT_SOCKET=") || !strings.HasSuffix(last.Change, "credence target check "+f.name+" --call") {
			t.Errorf("how to run it: %s", last.Change)
		}
		return
	}
	if f.code == "" && (last.Step != "exchange" || last.State != "done") || f.code != "" && last.State != "problem" {
		t.Errorf("it ends with %+v", last)
	}
}

// TestTargetCheckNamesTheFault seeds more than forty misconfigurations, at least ten
// a cloud, into what works: the broker, the agent and the clouds are real, or
// the sandbox. Each is named, and named first.
func TestTargetCheckNamesTheFault(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	s := &seeds{t: t, d: d, issuer: d.json.OIDCIssuer, subject: "spiffe://dev.example/demo/seeded", roots: x509.NewCertPool()}
	web, err := os.ReadFile(d.json.CAFile)
	if err != nil || !s.roots.AppendCertsFromPEM(web) {
		t.Fatal("no CA", err)
	}
	for block, rest := pem.Decode([]byte(d.admin(t, "bundle", "show", "-o", "pem"))); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		s.anchors = append(s.anchors, c)
	}
	for _, name := range d.json.Targets {
		t.Run("dev's "+name, func(t *testing.T) {
			_, c := d.checkTarget(t, name)
			c.judge(t, seeded{})
		})
	}
	server := httptest.NewTLSServer(http.NotFoundHandler()) // all have one certificate
	server.Close()
	ca := filepath.Join(tempDir(t), "ca.pem")
	web = append(web, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})...)
	if err := os.WriteFile(ca, web, 0o600); err != nil {
		t.Fatal(err)
	}
	_, elsewhere := s.aws(nil)
	all := []seeded{{name: "web-elsewhere", target: "aws_web_identity: {role: '" + seedRole + "'}", cloud: elsewhere, lists: "bare", warns: "call_not_made"}}
	for cloud, faults := range map[string][]seeded{"aws_roles_anywhere": s.rolesAnywhere(), "aws_web_identity": s.webIdentity(), "gcp": s.google(), "azure": s.entra()} {
		n := 0
		for _, f := range faults {
			if f.code != "" {
				n++
			}
		}
		if n < 10 {
			t.Errorf("%s has %d faults", cloud, n)
		}
		all = append(all, faults...)
	}
	d.apply(t, s.resources(all, ca))
	for _, f := range all {
		t.Run(f.name, func(t *testing.T) {
			_, c := d.checkTarget(t, f.name, f.flags...)
			c.judge(t, f)
		})
	}
	t.Run("as the workload", func(t *testing.T) {
		_, c := d.checkTarget(t, "ra-healthy", "--call")
		c.judge(t, seeded{})
		if len(c.Findings) != 1 {
			t.Errorf("%+v", c.Findings)
		}
		_, c = d.checkTarget(t, "ra-other-anchor", "--call")
		c.judge(t, seeded{code: "call_anchor_differs", field: "cloud.trust_anchor"})
		_, c = d.checkTarget(t, "web-elsewhere", "--call")
		c.judge(t, seeded{code: "call_denied", field: "identity.match"})
	})
	t.Run("another Identity than asked about", func(t *testing.T) {
		d.apply(t, "kind: Identity\nname: twin\nspiffe_id: /demo/twin\nmatch: [{node.name: dev, workload.unix.uid: \"4711\"}]\ntargets: [gcp-direct]\n")
		_, c := d.checkTarget(t, "gcp-direct", "--identity", "twin")
		c.judge(t, seeded{name: "gcp-direct", warns: "call_other_identity"})
	})
	t.Run("what it cannot do", func(t *testing.T) {
		none := filepath.Join(tempDir(t), "none.sock")
		for _, tt := range []struct {
			code int
			says string
			args []string
		}{
			{2, "takes X509-SVIDs", []string{"ra-healthy", "--registered-issuer", "x"}},
			{2, "takes X509-SVIDs", []string{"ra-healthy", "--registered-audience", "x"}},
			{2, "--identity and --call", []string{"gcp-direct", "--call", "--identity", "twin"}},
			{2, "nowhere", []string{"nowhere"}},
			{1, "does not list", []string{"gcp-direct", "--identity", "bare"}},
			{3, none, []string{"gcp-direct", "--socket", none}},
			{3, none, []string{"gcp-direct", "--call", "--socket", none}},
			{3, none, []string{"gcp-direct", "--admin", none}},
		} {
			args := append([]string{"target", "check"}, tt.args...)
			for flag, value := range map[string]string{"--admin": d.json.AdminSocket, "--socket": d.json.WorkloadSocket} {
				if !slices.Contains(args, flag) && (flag != "--admin" || !slices.Contains(args, "--call")) {
					args = append(args, flag, value)
				}
			}
			if code, out, errs := credenceCmd(t, "", args...); code != tt.code || !strings.Contains(out+errs, tt.says) {
				t.Errorf("%s: exit code %d: %s%s", tt.args, code, out, errs)
			}
		}
	})
	t.Run("without an agent", func(t *testing.T) {
		t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
		code, out, errs := credenceCmd(t, "", "target", "check", "gcp-direct", "--admin", d.json.AdminSocket)
		if code != 0 || !strings.Contains(out, "the exchange was not made: no agent is named; a node's last report is of "+s.subject) {
			t.Errorf("exit code %d: %s%s", code, out, errs)
		}
		if code, out, _ := credenceCmd(t, "", "target", "check", "gcp-direct", "--call"); code != 1 || !strings.Contains(out, "change: set SPIFFE_ENDPOINT_SOCKET") {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
	t.Run("for people", func(t *testing.T) {
		code, out, errs := credenceCmd(t, "", "target", "check", "web-healthy", "--registered-issuer", s.issuer+"/", "--admin", d.json.AdminSocket)
		caret := fmt.Sprintf("ours       %s\nthe cloud  %s/\n           %s^ byte %d\nchange: ", s.issuer, s.issuer, strings.Repeat(" ", len(s.issuer)), len(s.issuer)+1)
		if code != 1 || !strings.Contains(out, caret) || !strings.Contains(out, "\nno  issuer") {
			t.Errorf("exit code %d: %s\n%s", code, out, errs)
		}
	})
}
