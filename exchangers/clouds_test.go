package exchangers_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/oauth"
	judgeaws "github.com/credence-id/credence/exchangers/sandbox/aws"
	judgeazure "github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/clouds"
	judgegcp "github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	anchorARN  = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555"
	profileARN = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/66666666-7777-8888-9999-000000000000"
	roleARN    = "arn:aws:iam::123456789012:role/anywhere"
	webRoleARN = "arn:aws:iam::123456789012:role/web"
	poolName   = "projects/123/locations/global/workloadIdentityPools/pool-1"
	tenantID   = "11111111-2222-4333-8444-555555555555"
	clientID   = "aaaaaaaa-2222-4333-8444-555555555555"
	objectID   = "bbbbbbbb-2222-4333-8444-555555555555"
	issuerName = "example.com/credence"
	identifier = "https://login.example"
)

// The flows, and the audience of each.
const (
	anywhere, web, google, entra          = "aws_roles_anywhere", "aws_web_identity", "gcp", "azure"
	exchange, assertion, grant, bao, cert = "token_exchange", "client_assertion", "jwt_bearer", "vault_jwt", "vault_cert"
)

var audiences = map[string]string{
	web: "sts.amazonaws.com", google: "https://iam.googleapis.com/" + poolName + "/providers/prov-1", entra: "api://AzureADTokenExchange",
	exchange: identifier, assertion: identifier, grant: identifier, bao: "https://bao.example",
}

// A sky is one workload's account in every cloud, each served as credence
// sandbox run does, an issuer, and our exchangers for them.
type sky struct {
	*clouds.Clouds
	id     spiffeid.ID
	issuer *issuertest.Issuer
	ca     *issuertest.CA
	leaf   *x509.Certificate
	client *http.Client
	roots  *x509.CertPool // of the clouds' web servers
	x      map[string]exchangers.Exchanger
}

func newSky(t testing.TB, id string) *sky {
	t.Helper()
	s := &sky{id: spiffeid.RequireFromString(id), issuer: issuertest.New(t), ca: issuertest.NewCA(t, "root", time.Now(), nil)}
	s.leaf = s.ca.Issue(t, id, time.Now(), issuertest.EC().Public(), func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "checkout"} })
	config := accounts(id, pemOf(s.ca.Certificate), pemOf(s.issuer.Server.Certificate()))
	config.Issuers.Resolve = map[string]string{"example.com": s.issuer.Server.Listener.Addr().String()}
	if err := config.Check(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Clouds, err = clouds.New(config, nil); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil)
	server.Close()
	if err := s.Serve(server.TLS.Certificates[0], nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.roots = x509.NewCertPool()
	s.roots.AddCert(server.Certificate())
	if s.client, err = exchangers.HTTPClient(exchangers.HTTPConfig{Roots: s.roots}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.CloseIdleConnections)
	s.exchangers(t)
	return s
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// accounts let one SPIFFE ID in, where the cloud lets that be said of it.
func accounts(id, ca, web string) clouds.Config {
	config := clouds.Config{
		Issuers: clouds.Issuers{CAFile: web},
		AWS: &clouds.AWS{
			Account: "123456789012", Region: "us-east-1", RatePerSecond: 10_000,
			TrustAnchors: []clouds.TrustAnchor{{ARN: anchorARN, Certificates: ca}},
			Profiles:     []clouds.Profile{{ARN: profileARN, Roles: []string{roleARN}}},
			Roles: []clouds.Role{
				{ARN: roleARN, TrustPolicy: clouds.Policy(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"rolesanywhere.amazonaws.com"},
					"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],"Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":%q}}}]}`, id))},
				{ARN: webRoleARN, TrustPolicy: clouds.Policy(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/%[1]s"},
					"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{"%[1]s:sub":%[2]q}}}]}`, issuerName, id))},
			},
			OIDCProviders: []clouds.Provider{{URL: issuertest.URL, ClientIDs: []string{audiences["aws_web_identity"]}}},
		},
		GCP: &clouds.GCP{Pools: []clouds.Pool{{Project: "123", ID: "pool-1", Providers: []clouds.PoolProvider{{
			ID: "prov-1", OIDC: &clouds.OIDC{Issuer: issuertest.URL}, AttributeMapping: map[string]string{"google.subject": "assertion.sub"},
		}}}}},
		OAuth: &clouds.OAuth{Identifier: identifier, Grants: []clouds.Grant{{Issuer: issuertest.URL, Subject: id, ClientID: "checkout"}}},
		Vault: &clouds.Vault{Mounts: []clouds.Mount{
			{Path: "jwt", JWT: &clouds.VaultJWT{DiscoveryURL: issuertest.URL, SupportedAlgs: []string{"RS256"}, Roles: []clouds.VaultJWTRole{
				{Name: "checkout", BoundAudiences: []string{audiences[bao]}, BoundSubject: id, UserClaim: "sub", TokenTTL: clouds.Duration(20 * time.Minute)}}}},
			{Path: "cert", Cert: &clouds.VaultCert{Roles: []clouds.VaultCertRole{
				{Name: "checkout", Certificate: ca, AllowedURISANs: []string{id}, TokenTTL: clouds.Duration(20 * time.Minute)}}}},
		}},
		Azure: &clouds.Azure{Tenants: []clouds.Tenant{{ID: tenantID, Apps: []clouds.App{{ClientID: clientID, ObjectID: objectID}}}}},
	}
	if len(id) <= 600 {
		config.Azure.Tenants[0].Apps[0].Credentials = []clouds.Credential{{Name: "checkout", Issuer: issuertest.URL, Subject: id}}
	}
	return config
}

func (s *sky) exchangers(t testing.TB) {
	t.Helper()
	s.x = map[string]exchangers.Exchanger{}
	for flow, make := range map[string]func() (exchangers.Exchanger, error){
		anywhere: func() (exchangers.Exchanger, error) {
			return aws.New(aws.Config{Settings: &aws.RolesAnywhere{Role: roleARN, TrustAnchor: anchorARN, Profile: profileARN}, Endpoint: s.URLs()["rolesanywhere"], Client: s.client})
		},
		web: func() (exchangers.Exchanger, error) {
			return aws.New(aws.Config{Settings: &aws.WebIdentity{Role: webRoleARN, TokenAudience: audiences[web], Region: "us-east-1"}, Endpoint: s.URLs()["sts"], Client: s.client})
		},
		google: func() (exchangers.Exchanger, error) {
			return gcp.New(gcp.Config{Settings: &gcp.Settings{Provider: "//iam.googleapis.com/" + poolName + "/providers/prov-1"}, Endpoint: s.URLs()["gcp_sts"], Client: s.client})
		},
		entra: func() (exchangers.Exchanger, error) {
			return azure.New(azure.Config{Settings: &azure.Settings{Tenant: tenantID, ClientID: clientID, Scope: "https://management.azure.com/.default"}, Endpoint: s.URLs()["entra"], Client: s.client})
		},
		exchange: func() (exchangers.Exchanger, error) {
			return s.oauth(oauth.Settings{TokenExchange: &oauth.TokenExchange{TokenURL: s.URLs()["oauth_token"] + "/token", TokenAudience: identifier}})
		},
		assertion: func() (exchangers.Exchanger, error) {
			return s.oauth(oauth.Settings{ClientAssertion: &oauth.ClientAssertion{TokenURL: s.URLs()["oauth_token"] + "/token", TokenAudience: identifier}})
		},
		grant: func() (exchangers.Exchanger, error) {
			return s.oauth(oauth.Settings{JWTBearer: &oauth.JWTBearer{TokenURL: s.URLs()["oauth_token"] + "/token", TokenAudience: identifier}})
		},
		bao: func() (exchangers.Exchanger, error) {
			return s.oauth(oauth.Settings{VaultJWT: &oauth.VaultJWT{URL: s.URLs()["vault"], TokenAudience: audiences[bao], Role: "checkout"}})
		},
		cert: func() (exchangers.Exchanger, error) {
			return s.oauth(oauth.Settings{VaultCert: &oauth.VaultCert{URL: s.URLs()["vault"], Role: "checkout"}})
		},
	} {
		x, err := make()
		if err != nil {
			t.Fatalf("%s: %v", flow, err)
		}
		s.x[flow] = x
	}
}

func (s *sky) oauth(settings oauth.Settings) (exchangers.Exchanger, error) {
	return oauth.New(oauth.Config{Settings: &settings, Roots: s.roots})
}

// presented are the SVIDs that a test presents.
type presented struct {
	t        testing.TB
	s        *sky
	audience string
	alg      string // empty is RS256
	life     time.Duration
}

func (p presented) ID() spiffeid.ID { return p.s.id }

func (p presented) X509(context.Context) (*x509svid.SVID, error) {
	return &x509svid.SVID{ID: p.s.id, Certificates: []*x509.Certificate{p.s.leaf}, PrivateKey: issuertest.EC()}, nil
}

func (p presented) JWT(context.Context) (string, error) {
	key, header := crypto.Signer(issuertest.RSA()), map[string]any(nil)
	if p.alg == "ES256" {
		key, header = issuertest.EC(), map[string]any{"kid": "ec1"}
	} else {
		p.alg = "RS256"
	}
	if p.life == 0 {
		p.life = 15 * time.Minute
	}
	now := time.Now()
	return issuertest.Sign(p.t, key, p.alg, header, map[string]any{"iss": issuertest.URL, "sub": p.s.id.String(), "aud": []string{p.audience},
		"iat": now.Unix(), "exp": now.Add(p.life).Unix(), "jti": rand.Text()}), nil
}

// exchange returns the credential, or the refusal's code.
func (s *sky) exchange(t testing.TB, flow string, p presented) (exchangers.Credential, string) {
	t.Helper()
	p.t, p.s = t, s
	if p.audience == "" {
		p.audience = audiences[flow]
	}
	c, err := s.x[flow].Exchange(t.Context(), p)
	if err == nil {
		return c, ""
	}
	var refusal *exchangers.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("%s: %v", flow, err)
	}
	return exchangers.Credential{}, refusal.Code
}

// asked counts the requests of a service so far.
func (s *sky) asked(service string) int {
	w := httptest.NewRecorder()
	s.Switchboard().ServeHTTP(w, httptest.NewRequest("GET", "/requests?service="+service, nil))
	return strings.Count(w.Body.String(), `"id":`)
}

// offset moves the clocks of all clouds.
func (s *sky) offset(d time.Duration) {
	s.AWS.STSFaults.SetClockOffset(d)
	s.GCP.STSFaults.SetClockOffset(d)
	s.Azure.LoginFaults.SetClockOffset(d)
	s.OAuth.TokenFaults.SetClockOffset(d)
	s.Vault.Faults.SetClockOffset(d)
}

// works says whether a credential is good for a protected call now.
func (s *sky) works(t testing.TB, flow string, c exchangers.Credential) bool {
	t.Helper()
	if c.AWS != nil {
		for _, held := range s.AWS.Sessions() {
			if held.AccessKeyID == c.AWS.AccessKeyID {
				return true
			}
		}
		return false
	}
	urls, about := s.URLs(), map[string]string{google: "gcp_whoami", entra: "azure_arm", bao: "vault", cert: "vault"}
	url := urls[about[flow]] + "/whoami"
	if about[flow] == "" {
		url = urls["oauth_whoami"] + "/whoami"
	} else if about[flow] == "vault" {
		url = urls["vault"] + "/v1/auth/token/lookup-self"
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.Bearer.Token.Reveal())
	resp, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

var flows = []string{anywhere, web, google, entra, exchange, assertion, grant, bao, cert}

const checkout = "spiffe://example.org/ns/shop/checkout"

// A token for one cloud is of no use at another.
func TestConfusedDeputy(t *testing.T) {
	s := newSky(t, checkout)
	refuses := map[string]string{web: "InvalidIdentityToken", google: "invalid_grant", entra: "AADSTS700212",
		exchange: "invalid_grant", assertion: "invalid_client", grant: "invalid_grant", bao: "login_refused"}
	for at, code := range refuses {
		for of, audience := range audiences {
			want := code
			if audience == audiences[at] {
				want = ""
			}
			if _, got := s.exchange(t, at, presented{audience: audience}); got != want {
				t.Errorf("a token for %s at %s: %q, want %q", of, at, got, want)
			}
		}
	}
}

// One key, one ID and one form of token are taken everywhere; ES256 is not.
func TestOneLayoutForAllClouds(t *testing.T) {
	s := newSky(t, checkout)
	for alg, want := range map[string]map[string]string{
		"RS256": {anywhere: "", web: "", google: "", entra: "", exchange: "", assertion: "", grant: "", bao: "", cert: ""},
		"ES256": {anywhere: "", web: "", google: "", entra: "AADSTS5002738", exchange: "", assertion: "", grant: "", bao: "login_refused", cert: ""},
	} {
		got := map[string]string{}
		for _, flow := range flows {
			_, got[flow] = s.exchange(t, flow, presented{alg: alg})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", alg, diff)
		}
	}
}

// A SPIFFE ID is too long for one cloud after the other.
func TestLengthLadder(t *testing.T) {
	for _, row := range []struct {
		length  int
		refused []string
	}{
		{127, nil}, {128, []string{google}}, {255, []string{google}}, {256, []string{web, google}}, {257, []string{anywhere, web, google}},
		{600, []string{anywhere, web, google}}, {601, []string{anywhere, web, google, entra}}, {2048, []string{anywhere, web, google, entra}},
	} {
		id := "spiffe://example.org/"
		s := newSky(t, id+strings.Repeat("a", row.length-len(id)))
		var refused []string
		for _, flow := range flows {
			if _, code := s.exchange(t, flow, presented{}); code != "" {
				refused = append(refused, flow)
			}
		}
		if diff := cmp.Diff(row.refused, refused); diff != "" {
			t.Errorf("%d bytes: %s", row.length, diff)
		}
	}
}

// A credential works until its Expires, as the cloud sees it, and at Google not
// for longer than the SVID.
func TestExpiryIsNotOverstated(t *testing.T) {
	s := newSky(t, checkout)
	for _, life := range []time.Duration{5 * time.Minute, time.Hour} {
		for _, flow := range flows {
			s.offset(0)
			began := time.Now()
			c, code := s.exchange(t, flow, presented{life: life})
			if code != "" {
				t.Fatalf("%s: %s", flow, code)
			}
			if flow == google && c.Expires.After(began.Add(life+time.Second)) {
				t.Errorf("gcp: until %s, the SVID only until %s", c.Expires, began.Add(life))
			}
			s.offset(time.Until(c.Expires) - 2*time.Second)
			if !s.works(t, flow, c) {
				t.Errorf("%s: it is said to live until %s, and doesn't", flow, c.Expires)
			}
			s.offset(time.Until(c.Expires) + 5*time.Second)
			if s.works(t, flow, c) {
				t.Errorf("%s: it lives on after %s: that is understated by far", flow, c.Expires)
			}
		}
	}
}

// With the issuer down, what is held works on, new exchanges fail with the
// class that is tried again, at a pace, and certificates don't care.
func TestIssuerOutage(t *testing.T) {
	s := newSky(t, checkout)
	held := map[string]exchangers.Credential{}
	for _, flow := range flows {
		held[flow], _ = s.exchange(t, flow, presented{})
	}
	down := issuertest.Status(http.StatusServiceUnavailable)
	s.issuer.SetDiscovery(down)
	s.issuer.SetKeys(down)
	s.AWS.Issuers().Forget()
	s.GCP.Issuers().Forget()
	s.Azure.Issuers().Forget()
	s.OAuth.Issuers().Forget()
	s.Vault.Issuers().Forget()
	codes := map[string]string{anywhere: "", web: "InvalidIdentityToken", google: "invalid_grant", entra: "AADSTS501661",
		exchange: "invalid_grant", assertion: "invalid_client", grant: "invalid_grant", bao: "login_refused", cert: ""}
	services := map[string]string{web: "sts", google: "gcp_sts", entra: "entra", bao: "vault"} // an OAuth server has no words for it
	for _, flow := range flows {
		if !s.works(t, flow, held[flow]) {
			t.Errorf("%s: what is held works no more", flow)
		}
		if _, code := s.exchange(t, flow, presented{}); code != codes[flow] {
			t.Errorf("%s: %q, want %q", flow, code, codes[flow])
		}
	}
	for flow, service := range services {
		before := s.asked(service)
		now := time.Now()
		source := exchangers.NewSource(exchangers.SourceConfig{Target: flow, Exchanger: s.x[flow], SVIDs: presented{t: t, s: s, audience: audiences[flow]},
			Now: func() time.Time { return now }, Jitter: func() float64 { return 0.5 }})
		for range 600 { // ten minutes, in which a program asks ten times a second
			for range 10 {
				if _, err := source.Credential(t.Context()); err == nil {
					t.Errorf("%s: a credential", flow)
				}
			}
			now = now.Add(time.Second)
		}
		source.Close()
		// 5, 10, 20, 40 s, then once a minute; Entra's client reads metadata besides.
		if n := s.asked(service) - before; n < 10 || n > 26 {
			t.Errorf("%s: %d requests in ten minutes of outage", flow, n)
		}
	}
	s.issuer.Reset(t)
	for _, flow := range flows {
		if _, code := s.exchange(t, flow, presented{}); code != "" {
			t.Errorf("%s: afterwards: %s", flow, code)
		}
	}
}

// Exchangers ask once, whatever a cloud answers: their Source tries again.
func TestExchangersAskOnce(t *testing.T) {
	s := newSky(t, checkout)
	for flow, service := range map[string]string{anywhere: "rolesanywhere", web: "sts", google: "gcp_sts",
		exchange: "oauth_token", assertion: "oauth_token", grant: "oauth_token", bao: "vault", cert: "vault"} {
		for _, kind := range []string{"429", "500", "503"} {
			before := s.asked(service)
			w := httptest.NewRecorder()
			s.Switchboard().ServeHTTP(w, httptest.NewRequest("POST", "/faults", strings.NewReader(fmt.Sprintf(`{"service":%q,"kind":%q}`, service, kind))))
			if _, code := s.exchange(t, flow, presented{}); w.Code != 200 || code == "" {
				t.Errorf("%s: no refusal after a %s", flow, kind)
			}
			if n := s.asked(service) - before; n != 1 {
				t.Errorf("%s: %d requests for a %s", flow, n, kind)
			}
		}
	}
}

// What stops when access is taken away at the cloud, and what lives on until
// when. The table is in the test's output.
func TestRevocationTable(t *testing.T) {
	type row struct {
		revoke func(*sky)
		code   string
		longer time.Duration // that a held credential may live on
	}
	rows := map[string]row{
		anywhere: {func(s *sky) {
			if err := s.AWS.ImportCRL(anchorARN, crlOf(t, s)); err != nil {
				t.Fatal(err)
			}
		}, "AccessDeniedException", time.Hour},
		web: {func(s *sky) {
			if err := s.AWS.RemoveOIDCProvider(issuertest.URL); err != nil {
				t.Fatal(err)
			}
		}, "InvalidIdentityToken", time.Hour},
		google: {func(s *sky) {
			p := judgegcp.Provider{ID: "prov-1", Disabled: true, Issuer: issuertest.URL, AttributeMapping: map[string]string{"google.subject": "assertion.sub"}}
			if err := s.GCP.PutProvider(poolName, p); err != nil {
				t.Fatal(err)
			}
		}, "invalid_target", time.Hour},
		entra: {func(s *sky) {
			if err := s.Azure.PutApp(tenantID, judgeazure.App{Kind: judgeazure.Application, ClientID: clientID, ObjectID: objectID}); err != nil {
				t.Fatal(err)
			}
		}, "AADSTS70025", time.Hour},
	}
	t.Logf("%-18s  %-45s  %s", "flow", "next exchange", "held credentials live on for")
	for _, flow := range []string{anywhere, web, google, entra} { // the others have nothing to take away while they run
		r, s := rows[flow], newSky(t, checkout)
		held, code := s.exchange(t, flow, presented{life: time.Hour})
		if code != "" {
			t.Fatalf("%s: %s", flow, code)
		}
		r.revoke(s)
		if _, code = s.exchange(t, flow, presented{}); code != r.code {
			t.Errorf("%s: a new exchange after it: %q, want %q", flow, code, r.code)
		}
		lives := time.Duration(0)
		for d := time.Duration(0); d <= 2*time.Hour && s.worksIn(t, d, flow, held); d += 5 * time.Minute {
			lives = d
		}
		if lives < 50*time.Minute || lives > r.longer {
			t.Errorf("%s: what is held lives on for %s", flow, lives)
		}
		t.Logf("%-18s  %-45s  up to %s", flow, "refused: "+r.code, lives+5*time.Minute)
	}
}

// worksIn says whether a credential works when the clouds' clocks are ahead.
func (s *sky) worksIn(t testing.TB, d time.Duration, flow string, c exchangers.Credential) bool {
	t.Helper()
	s.offset(d)
	return s.works(t, flow, c)
}

func crlOf(t testing.TB, s *sky) judgeaws.CRL {
	t.Helper()
	now := time.Now()
	der, err := s.ca.Revoke(&x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: s.leaf.SerialNumber, RevocationTime: now}}})
	if err != nil {
		t.Fatal(err)
	}
	return judgeaws.CRL{Data: der, Enabled: true}
}
