package setup_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloudaws "github.com/credence-id/credence/exchangers/sandbox/aws"
	cloudazure "github.com/credence-id/credence/exchangers/sandbox/azure"
	cloudgcp "github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	"github.com/credence-id/credence/exchangers/sandbox/setup"
)

const (
	orders   = "spiffe://example.org/ns/shop/sa/orders"
	other    = "spiffe://example.org/ns/shop/sa/other"
	foreign  = "spiffe://neighbour.example/ns/shop/sa/orders"
	template = "spiffe://example.org/ns/{workload.kubernetes.namespace}/job"
	zero     = "00000000-0000-0000-0000-000000000000"
	tenant   = "11111111-2222-3333-4444-555555555555"
)

var long = "spiffe://example.org/ns/shop/sa/" + strings.Repeat("o", 127)

// world is our PKI under a corporate root, and the neighbours' under the same;
// and our issuer.
type world struct {
	t                        testing.TB
	issuer                   *issuertest.Issuer
	root, sub, mine, issuing *issuertest.CA // sub: the corporate CA between; mine: our own CA
	theirs                   *issuertest.CA
}

func newWorld(t testing.TB) *world {
	now := time.Now()
	ours := func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org"}}
		c.Subject.Organization = []string{"example.org"}
	}
	short := func(c *x509.Certificate) { c.NotAfter = now.Add(7 * 24 * time.Hour) }
	w := &world{t: t, issuer: issuertest.New(t), root: issuertest.NewCA(t, "Corporate root", now, nil)}
	w.sub = issuertest.NewCA(t, "Corporate CA", now, w.root)
	w.mine = issuertest.NewCA(t, "Credence CA", now, w.sub, ours)
	w.issuing = issuertest.NewCA(t, "Credence issuing CA", now, w.mine, ours, short)
	w.theirs = issuertest.NewCA(t, "Credence issuing CA", now, w.sub, func(c *x509.Certificate) {
		c.URIs, c.Subject.Organization = []*url.URL{{Scheme: "spiffe", Host: "neighbour.example"}}, []string{"neighbour.example"}
	})
	return w
}

// upstream has our issuing CA certified by the corporate CA, without one of
// ours that lasts.
func (w *world) upstream() {
	w.issuing = issuertest.NewCA(w.t, "Credence issuing CA", time.Now(), w.sub, func(c *x509.Certificate) {
		c.URIs, c.Subject.Organization = []*url.URL{{Scheme: "spiffe", Host: "example.org"}}, []string{"example.org"}
		c.NotAfter = time.Now().Add(7 * 24 * time.Hour)
	})
	w.mine = nil
}

func (w *world) facts(target exchangers.Target, shared bool, ids ...string) exchangers.Facts {
	f := exchangers.Facts{
		Now: time.Now(), TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Target: target, Issuer: issuertest.URL,
		Anchors: []*x509.Certificate{w.root.Certificate}, SharedRoot: shared,
	}
	f.JWKS, _ = json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	for _, ca := range w.chain() {
		f.Chain = append(f.Chain, ca.Certificate)
	}
	for i, id := range ids {
		f.Parties = append(f.Parties, exchangers.Party{Identity: "identity-" + string(rune('a'+i)), SPIFFEID: id, Subject: "CN=orders"})
	}
	return f
}

func (w *world) chain() []*issuertest.CA {
	if w.mine == nil {
		return []*issuertest.CA{w.issuing, w.sub}
	}
	return []*issuertest.CA{w.issuing, w.mine, w.sub}
}

// svids are what somebody presents.
type svids struct {
	id   string
	x509 *x509svid.SVID
	aud  string
	t    testing.TB
}

func (s svids) ID() spiffeid.ID                              { return spiffeid.RequireFromString(s.id) }
func (s svids) X509(context.Context) (*x509svid.SVID, error) { return s.x509, nil }
func (s svids) JWT(context.Context) (string, error) {
	now := time.Now().Unix()
	return issuertest.Sign(s.t, issuertest.RSA(), "RS256", nil, map[string]any{"iss": issuertest.URL, "sub": s.id, "aud": s.aud, "iat": now - 5, "exp": now + 900}), nil
}

// of is somebody whom our CA certified, or the neighbour's.
func (w *world) of(id, aud string, theirs bool) svids {
	chain := w.chain()
	if theirs {
		chain = []*issuertest.CA{w.theirs, w.sub}
	}
	leaf := chain[0].Issue(w.t, id, time.Now(), issuertest.EC().Public(), func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "orders"} })
	s := &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{leaf}, PrivateKey: issuertest.EC()}
	for _, ca := range chain {
		s.Certificates = append(s.Certificates, ca.Certificate)
	}
	return svids{id, s, aud, w.t}
}

// build makes the sandbox of a plan, and the exchanger of the Target as it must
// be then.
func (w *world) build(f exchangers.Facts, c exchangers.Choices) exchangers.Exchanger {
	w.t.Helper()
	plan, err := f.Target.Settings.(exchangers.Planner).Setup(f, c)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		w.t.Fatal(err)
	}
	clouds, err := setup.Read(text)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, text)
	}
	settings := f.Target.Settings
	if doc, ok := clouds.Targets[f.Target.Name]; ok { // what the cloud chose
		raw, err := json.Marshal(doc[f.Target.Flow])
		if err == nil {
			err = json.Unmarshal(raw, settings)
		}
		if err == nil {
			err = settings.Validate()
		}
		if err != nil {
			w.t.Fatalf("the finished Target: %v\n%s", err, raw)
		}
	}
	return w.exchanger(settings, clouds)
}

func (w *world) exchanger(settings exchangers.Settings, clouds *setup.Clouds) exchangers.Exchanger {
	w.t.Helper()
	mux := http.NewServeMux()
	issuers := sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext}
	var err error
	switch {
	case clouds.AWS != nil:
		clouds.AWS.Roots, clouds.AWS.DialContext = w.issuer.Roots(), w.issuer.DialContext
		var c *cloudaws.Cloud
		if c, err = cloudaws.New(*clouds.AWS); err == nil {
			mux.Handle("/sessions", c.RolesAnywhere())
			mux.Handle("/", c.STS())
		}
	case clouds.GCP != nil:
		clouds.GCP.Issuers = issuers
		var c *cloudgcp.Cloud
		if c, err = cloudgcp.New(*clouds.GCP); err == nil {
			token := c.STS()
			if s, ok := settings.(*gcp.Settings); ok && s.SVID == "x509" {
				token = c.MTLS()
			}
			mux.Handle("/v1/token", token)
			mux.Handle("/v1/projects/", c.IAMCredentials())
		}
	case clouds.Azure != nil:
		clouds.Azure.Issuers, clouds.Azure.Resources = issuers, []string{"https://management.azure.com"}
		var c *cloudazure.Cloud
		if c, err = cloudazure.New(*clouds.Azure); err == nil {
			mux.Handle("/", c.Login())
		}
	}
	if err != nil {
		w.t.Fatalf("the cloud does not take it: %v", err)
	}
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	w.t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots, Timeout: 10 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.CloseIdleConnections)
	var x exchangers.Exchanger
	switch s := settings.(type) {
	case *gcp.Settings:
		x, err = gcp.New(gcp.Config{Settings: s, Endpoint: server.URL, Client: client})
	case *azure.Settings:
		x, err = azure.New(azure.Config{Settings: s, Endpoint: server.URL, Client: client})
	default:
		x, err = aws.New(aws.Config{Settings: s, Endpoint: server.URL, Client: client})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

func anywhere(change func(*aws.RolesAnywhere)) exchangers.Target {
	s := &aws.RolesAnywhere{
		Role: "arn:aws:iam::123456789012:role/team/orders", TrustAnchor: "arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/" + zero,
		Profile: "arn:aws:rolesanywhere:eu-west-1:123456789012:profile/" + zero,
	}
	change(s)
	return exchangers.Target{Name: "aws-orders", Flow: "aws_roles_anywhere", Settings: s}
}

func webIdentity(change func(*aws.WebIdentity)) exchangers.Target {
	s := &aws.WebIdentity{Role: "arn:aws:iam::123456789012:role/orders"}
	change(s)
	return exchangers.Target{Name: "aws-web", Flow: "aws_web_identity", Settings: s}
}

func google(change func(*gcp.Settings)) exchangers.Target {
	s := &gcp.Settings{
		Provider:       "//iam.googleapis.com/projects/424242424242/locations/global/workloadIdentityPools/pool-a/providers/prov-a",
		ServiceAccount: "orders@proj-ect.iam.gserviceaccount.com",
	}
	change(s)
	return exchangers.Target{Name: "gcp.orders", Flow: "gcp", Settings: s}
}

func entra(change func(*azure.Settings)) exchangers.Target {
	s := &azure.Settings{Tenant: tenant, ClientID: zero, Scope: "https://management.azure.com/.default"}
	change(s)
	return exchangers.Target{Name: "azure", Flow: "azure", Settings: s}
}

// TestTheSandboxOfAPlan: what was set up lets the workload in, and nobody else.
func TestTheSandboxOfAPlan(t *testing.T) {
	const managed = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/orders"
	plain := func(*aws.RolesAnywhere) {}
	for name, row := range map[string]struct {
		target   exchangers.Target
		ids      []string // default: orders
		shared   bool
		upstream bool
		x509     bool
		choices  exchangers.Choices
		in, out  []string // beside orders, and beside other
	}{
		"roles anywhere": {target: anywhere(plain), x509: true},
		"roles anywhere, a known anchor": {target: anywhere(func(s *aws.RolesAnywhere) {
			s.TrustAnchor = strings.ReplaceAll(s.TrustAnchor, zero, tenant)
			s.Profile = strings.ReplaceAll(s.Profile, zero, tenant)
		}), x509: true},
		"roles anywhere, a session name, 2h": {target: anywhere(func(s *aws.RolesAnywhere) {
			s.SessionName, s.Duration = "orders", exchangers.Duration(2*time.Hour)
		}), x509: true},
		"roles anywhere, China": {target: anywhere(func(s *aws.RolesAnywhere) {
			in := strings.NewReplacer("arn:aws:", "arn:aws-cn:", "eu-west-1", "cn-north-1").Replace
			s.Role, s.TrustAnchor, s.Profile = in(s.Role), in(s.TrustAnchor), in(s.Profile)
		}), x509: true},
		"roles anywhere, our own CA":      {target: anywhere(plain), x509: true, shared: true},
		"roles anywhere, the issuer":      {target: anywhere(plain), x509: true, shared: true, upstream: true},
		"roles anywhere, several":         {target: anywhere(plain), x509: true, ids: []string{orders, other + "2"}, in: []string{other + "2"}},
		"roles anywhere, a template":      {target: anywhere(plain), x509: true, ids: []string{orders, template}, in: []string{"spiffe://example.org/ns/a/job"}, out: []string{"spiffe://example.org/ns/a/b/job", "spiffe://example.org/ns/job"}},
		"roles anywhere, issuer, pattern": {target: anywhere(plain), x509: true, shared: true, upstream: true, ids: []string{orders, template}, in: []string{"spiffe://example.org/ns/a/job"}},
		"roles anywhere, a second role": {target: anywhere(func(s *aws.RolesAnywhere) {
			s.AssumeRole = &aws.AssumeRole{Role: "arn:aws:iam::123456789012:role/second", ExternalID: "customer:42/x"}
		}), x509: true},
		"web identity":             {target: webIdentity(func(*aws.WebIdentity) {})},
		"web identity, a template": {target: webIdentity(func(*aws.WebIdentity) {}), ids: []string{orders, template}, in: []string{"spiffe://example.org/ns/a/job"}, out: []string{"spiffe://example.org/ns/a/b/job"}},
		"web identity, GovCloud": {target: webIdentity(func(s *aws.WebIdentity) {
			s.Role, s.TokenAudience = "arn:aws-us-gov:iam::123456789012:role/orders", "gov"
		})},
		"web identity, a second role": {target: webIdentity(func(s *aws.WebIdentity) {
			s.AssumeRole = &aws.AssumeRole{Role: "arn:aws:iam::123456789012:role/second"}
		})},
		"gcp":                {target: google(func(*gcp.Settings) {})},
		"gcp, direct":        {target: google(func(s *gcp.Settings) { s.ServiceAccount = "" })},
		"gcp, uploaded keys": {target: google(func(*gcp.Settings) {}), choices: exchangers.Choices{UploadKeys: true}},
		"gcp, a template":    {target: google(func(*gcp.Settings) {}), ids: []string{orders, template}, in: []string{"spiffe://example.org/ns/a/job"}, out: []string{"spiffe://example.org/ns/a/b/job"}},
		"gcp, a long ID":     {target: google(func(*gcp.Settings) {}), ids: []string{orders, long}, in: []string{long}, out: []string{long + "o"}},
		"gcp, delegates": {target: google(func(s *gcp.Settings) {
			s.Delegates = []string{"first-one@proj-ect.iam.gserviceaccount.com", "second@other-proj.iam.gserviceaccount.com"}
		})},
		"gcp, quota":              {target: google(func(s *gcp.Settings) { s.QuotaProject = "proj-ect" })},
		"gcp, X.509":              {target: google(func(s *gcp.Settings) { s.SVID = "x509" }), x509: true},
		"gcp, X.509, own CA":      {target: google(func(s *gcp.Settings) { s.SVID = "x509" }), x509: true, shared: true},
		"gcp, X.509, issuer":      {target: google(func(s *gcp.Settings) { s.SVID = "x509" }), x509: true, shared: true, upstream: true, ids: []string{orders, template}},
		"gcp, X.509, template":    {target: google(func(s *gcp.Settings) { s.SVID = "x509" }), x509: true, ids: []string{orders, template}, in: []string{"spiffe://example.org/ns/a/job"}, out: []string{"spiffe://example.org/ns/a/b/job"}},
		"azure, a new app":        {target: entra(func(*azure.Settings) {})},
		"azure, an app":           {target: entra(func(s *azure.Settings) { s.ClientID = tenant })},
		"azure, several":          {target: entra(func(s *azure.Settings) { s.ClientID = tenant }), ids: []string{orders, other + "2"}, in: []string{other + "2"}},
		"azure, by its domain":    {target: entra(func(s *azure.Settings) { s.Tenant = "contoso.example" })},
		"azure, government":       {target: entra(func(s *azure.Settings) { s.Cloud = "usgov" })},
		"azure, managed identity": {target: entra(func(s *azure.Settings) { s.ClientID = tenant }), choices: exchangers.Choices{ManagedIdentity: managed}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if row.upstream {
				w.upstream()
			}
			if row.ids == nil {
				row.ids = []string{orders}
			}
			x := w.build(w.facts(row.target, row.shared, row.ids...), row.choices)
			aud := row.target.Settings.Audience()
			try := func(id string, theirs, in bool) {
				t.Helper()
				cred, err := x.Exchange(t.Context(), w.of(id, aud, theirs))
				var refusal *exchangers.Error
				switch {
				case in && err != nil:
					t.Errorf("%s is refused: %v", id, err)
				case !in && err == nil:
					t.Errorf("%s (of the neighbour's CA: %v) is let in: %v", id, theirs, cred.Expires)
				case !in && !errors.As(err, &refusal):
					t.Errorf("%s: %v is not the cloud's refusal", id, err)
				}
			}
			for _, id := range append([]string{orders}, row.in...) {
				try(id, false, true)
			}
			for _, id := range append([]string{other}, row.out...) {
				try(id, false, false)
			}
			if row.x509 && row.shared {
				try(orders, true, false)
				try(foreign, true, false)
			}
			if !row.x509 {
				try(foreign, false, false)
			}
		})
	}
}
