package azure_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloud "github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// sovereign serves one host alone, as that cloud's authority.
type sovereign struct {
	host  string
	cloud *cloud.Cloud
	forms []url.Values
}

func (s *sovereign) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.Host != s.host {
		return nil, errors.New("no such host: " + r.URL.Host)
	}
	in := r.Clone(r.Context())
	in.Host = r.URL.Host
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		form, _ := url.ParseQuery(string(b))
		s.forms = append(s.forms, form)
		in.Body = io.NopCloser(strings.NewReader(string(b)))
	} else {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	s.cloud.Login().ServeHTTP(w, in)
	return w.Result(), nil
}

// An app or managed identity of each cloud, at that cloud's host, with its
// audience; and refused with another's, or at another's host.
func TestClouds(t *testing.T) {
	for _, row := range []struct{ name, authority, host, audience, other string }{
		{"", "", "login.microsoftonline.com", "api://AzureADTokenExchange", "api://AzureADTokenExchangeUSGov"},
		{"public", "", "login.microsoftonline.com", "api://AzureADTokenExchange", "api://AzureADTokenExchangeChina"},
		{"usgov", "", "login.microsoftonline.us", "api://AzureADTokenExchangeUSGov", "api://AzureADTokenExchange"},
		{"", "https://login.microsoftonline.us", "login.microsoftonline.us", "api://AzureADTokenExchangeUSGov", "api://AzureADTokenExchange"},
		{"china", "", "login.chinacloudapi.cn", "api://AzureADTokenExchangeChina", "api://AzureADTokenExchange"},
		{"china", "https://login.partner.microsoftonline.cn", "login.partner.microsoftonline.cn", "api://AzureADTokenExchangeChina", "api://AzureADTokenExchange"},
	} {
		for _, kind := range []cloud.Kind{cloud.Application, cloud.ManagedIdentity} {
			t.Run(row.name+row.authority+"/"+string(kind), func(t *testing.T) {
				issuer := issuertest.New(t)
				made, err := cloud.New(cloud.Config{
					Issuers: sandbox.IssuersConfig{Roots: issuer.Roots(), DialContext: issuer.DialContext}, Audience: row.audience,
					Tenants: []cloud.Tenant{{ID: tenantID, Apps: []cloud.App{{Kind: kind, ClientID: clientID, ObjectID: objectID,
						Credentials: []cloud.Credential{{Name: "checkout", Issuer: issuertest.URL, Subject: workload, Audience: row.audience}}}}}},
					Resources: []string{arm}, Key: issuertest.RSA(),
				})
				if err != nil {
					t.Fatal(err)
				}
				s := settings()
				s.Cloud, s.Authority = row.name, row.authority
				if s.Audience() != row.audience {
					t.Errorf("audience %s", s.Audience())
				}
				x, err := azure.New(azure.Config{Settings: s, Client: &http.Client{Transport: &sovereign{host: row.host, cloud: made}}})
				if err != nil {
					t.Fatal(err)
				}
				w := &world{}
				cred, err := x.Exchange(t.Context(), w.jwt(t, "RS256", map[string]any{"aud": row.other}))
				if e := refused(t, cred, err); e.Code != "AADSTS700212" {
					t.Errorf("%+v", e)
				}
				if _, err := x.Exchange(t.Context(), w.jwt(t, "RS256", map[string]any{"aud": row.audience})); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestAuthorityOfAnotherCloud(t *testing.T) {
	for name, row := range map[string]struct {
		cloud, authority, endpoint string
		good                       bool
	}{
		"unknown cloud":              {cloud: "germany"},
		"government's, public":       {cloud: "public", authority: "https://login.microsoftonline.us"},
		"public, government":         {cloud: "usgov", authority: "https://LOGIN.microsoftonline.com./"},
		"China's, government":        {cloud: "usgov", authority: "https://login.partner.microsoftonline.cn"},
		"endpoint of another":        {cloud: "usgov", endpoint: "https://login.microsoftonline.com"},
		"endpoint of a region":       {endpoint: "https://westus2.login.microsoft.com", good: true},
		"endpoint, government":       {cloud: "usgov", endpoint: "https://login.microsoftonline.us", good: true},
		"endpoint of nobody's":       {cloud: "china", endpoint: "https://sandbox.example", good: true},
		"endpoint against authority": {authority: "https://login.microsoftonline.us", endpoint: "https://login.microsoftonline.com"},
	} {
		s := settings()
		s.Cloud, s.Authority = row.cloud, row.authority
		if _, err := azure.New(azure.Config{Settings: s, Endpoint: row.endpoint}); (err == nil) != row.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScopes(t *testing.T) {
	w := newWorld(t)
	for _, resource := range []string{arm, "https://vault.azure.net", "https://graph.microsoft.com", "api://" + clientID, objectID, "https://storage.azure.com/"} {
		issuer := w.issuer
		made, err := cloud.New(cloud.Config{
			Issuers: sandbox.IssuersConfig{Roots: issuer.Roots(), DialContext: issuer.DialContext},
			Tenants: []cloud.Tenant{{ID: tenantID, Apps: []cloud.App{{Kind: cloud.ManagedIdentity, ClientID: clientID, ObjectID: objectID,
				Credentials: []cloud.Credential{{Name: "checkout", Issuer: issuertest.URL, Subject: workload, Audience: cloud.Audience}}}}}},
			Resources: []string{resource}, Key: issuertest.RSA(),
		})
		if err != nil {
			t.Fatal(err)
		}
		s := settings()
		s.Scope = resource + "/.default"
		cred, err := exchanger(t, s, serve(t, made.Login())).Exchange(t.Context(), w.jwt(t, "RS256", nil))
		if err != nil || len(cred.Bearer.Scopes) != 1 || cred.Bearer.Scopes[0] != s.Scope {
			t.Errorf("%s: %v", resource, err)
		}
	}
}

// The resource challenges, the answer passes its claims on, and works.
func TestContinuousAccess(t *testing.T) {
	w := newWorld(t)
	protected := serve(t, w.cloud.ARM())
	s := settings()
	s.ContinuousAccess = true
	x := exchanger(t, s, w.server)
	ask := func(token exchangers.Secret) (int, string) {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, protected.URL+"/whoami", nil)
		r.Header.Set("Authorization", "Bearer "+token.Reveal())
		resp, err := protected.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		m := regexp.MustCompile(`insufficient_claims", claims="([^"]+)"`).FindStringSubmatch(resp.Header.Get("WWW-Authenticate"))
		if m == nil {
			return resp.StatusCode, ""
		}
		claims, err := base64.StdEncoding.DecodeString(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(claims)
	}
	cred, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(cred.Expires); left < 23*time.Hour {
		t.Errorf("expires in %s: the token is not for continuous access", left)
	}
	if status, _ := ask(cred.Bearer.Token); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	w.later.Store(int64(10 * time.Second))
	w.cloud.RevokeSessions(clientID)
	status, claims := ask(cred.Bearer.Token)
	if status != http.StatusUnauthorized || claims == "" {
		t.Fatalf("status %d, claims %q", status, claims)
	}
	challenged, ok := x.(exchangers.Challenged)
	if !ok {
		t.Fatal("it takes no challenge")
	}
	if cred, err = challenged.Answer(t.Context(), w.jwt(t, "RS256", nil), claims); err != nil {
		t.Fatal(err)
	}
	if status, _ := ask(cred.Bearer.Token); status != http.StatusOK {
		t.Errorf("the answer does not work: status %d", status)
	}
	if _, err := exchanger(t, settings(), w.server).(exchangers.Challenged).Answer(t.Context(), w.jwt(t, "RS256", nil), claims); err == nil {
		t.Error("a Target without continuous_access answered")
	}
	for _, bad := range []string{"", "{}", "[]", "x", claims + claims, `{"a":"` + strings.Repeat("x", 4<<10) + `"}`} {
		if _, err := challenged.Answer(t.Context(), w.jwt(t, "RS256", nil), bad); err == nil {
			t.Errorf("passed on: %.40q", bad)
		}
	}
}

// Only a Target that asks for it says that its programs handle challenges.
func TestCapabilityIsSentOnlyWhereSet(t *testing.T) {
	w := newWorld(t)
	for _, on := range []bool{true, false} {
		s := settings()
		s.ContinuousAccess = on
		tr := &sovereign{host: "login.microsoftonline.com", cloud: w.cloud}
		x, err := azure.New(azure.Config{Settings: s, Client: &http.Client{Transport: tr}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil)); err != nil {
			t.Fatal(err)
		}
		if got := tr.forms[len(tr.forms)-1].Get("claims"); strings.Contains(got, "CP1") != on {
			t.Errorf("continuous_access %v: claims %q", on, got)
		}
	}
}

func FuzzCheckClaims(f *testing.F) {
	f.Add(`{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}`)
	f.Fuzz(func(t *testing.T, claims string) {
		if azure.CheckClaims(claims) == nil && !strings.HasPrefix(strings.TrimLeft(claims, " \t\r\n"), "{") {
			t.Errorf("taken: %q", claims)
		}
	})
}
