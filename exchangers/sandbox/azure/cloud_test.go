package azure_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	tenantID = "11111111-2222-4333-8444-555555555555"
	domain   = "contoso.example"
	clientID = "aaaaaaaa-2222-4333-8444-555555555555"
	objectID = "bbbbbbbb-2222-4333-8444-555555555555"
	spiffeID = "spiffe://example.org/ns/shop/checkout"
	resource = "https://management.azure.com"
	defaults = resource + "/.default openid offline_access profile"
	urnJWT   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	formType = "application/x-www-form-urlencoded; charset=utf-8"
)

var start = time.Unix(1_800_000_000, 0)

type world struct {
	t        testing.TB
	issuer   *issuertest.Issuer
	cloud    *azure.Cloud
	recorder *sandbox.Recorder
	now      time.Time
}

func credential() azure.Credential {
	return azure.Credential{Name: "checkout", Issuer: issuertest.URL, Subject: spiffeID, Audience: azure.Audience}
}

func app(credentials ...azure.Credential) azure.App {
	return azure.App{Kind: azure.Application, ClientID: clientID, ObjectID: objectID, Credentials: credentials}
}

func newWorld(t testing.TB, change func(*azure.Config)) *world {
	w := &world{t: t, issuer: issuertest.New(t), recorder: sandbox.NewRecorder(10), now: start}
	cfg := azure.Config{
		Issuers:   sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext, Timeout: 10 * time.Second},
		Tenants:   []azure.Tenant{{ID: tenantID, Domain: domain, Apps: []azure.App{app(credential())}}},
		Resources: []string{resource, "https://vault.azure.net"},
		Key:       issuertest.RSA(),
		Now:       func() time.Time { return w.now },
		Log:       w.recorder.Record,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.cloud, err = azure.New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) put(a azure.App) {
	w.t.Helper()
	if err := w.cloud.PutApp(tenantID, a); err != nil {
		w.t.Fatal(err)
	}
}

func claims() map[string]any {
	return map[string]any{"iss": issuertest.URL, "sub": spiffeID, "aud": azure.Audience,
		"iat": start.Unix(), "exp": start.Add(15 * time.Minute).Unix()}
}

func (w *world) assertion(changes map[string]any) string {
	return issuertest.Sign(w.t, issuertest.RSA(), "RS256", nil, issuertest.With(claims(), changes))
}

func form(assertion string) url.Values {
	return url.Values{"client_assertion": {assertion}, "client_assertion_type": {urnJWT}, "client_id": {clientID},
		"client_info": {"1"}, "grant_type": {"client_credentials"}, "scope": {defaults}}
}

// A call is one request and what came back.
type call struct {
	method, path, contentType, body, bearer string

	status int
	header http.Header
	got    map[string]any
	raw    string
}

func (w *world) do(h http.Handler, c call) call {
	w.t.Helper()
	r := httptest.NewRequest(c.method, "https://login.example"+c.path, strings.NewReader(c.body))
	r.Header.Set("Content-Type", c.contentType)
	if c.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	c.status, c.header, c.raw, c.got = rec.Code, rec.Header(), rec.Body.String(), nil
	if err := json.Unmarshal(rec.Body.Bytes(), &c.got); err != nil {
		w.t.Errorf("body %q: %v", c.raw, err)
	}
	if c.header.Get("X-Ms-Request-Id") == "" {
		w.t.Error("no request id")
	}
	if c.status != http.StatusOK && (c.got["access_token"] != nil || strings.Contains(c.raw, "eyJ")) {
		w.t.Errorf("a refusal holds a token: %s", c.raw)
	}
	return c
}

func tokenCall(f url.Values) call {
	return call{method: "POST", path: "/" + tenantID + "/oauth2/v2.0/token", contentType: formType, body: f.Encode()}
}

func (w *world) token(f url.Values) call {
	w.t.Helper()
	return w.do(w.cloud.Login(), tokenCall(f))
}

func (c call) code() int {
	l, _ := c.got["error_codes"].([]any)
	if len(l) != 1 {
		return 0
	}
	n, _ := l[0].(float64)
	return int(n)
}

// access returns a token by the request that must succeed.
func (w *world) access() string {
	w.t.Helper()
	c := w.token(form(w.assertion(nil)))
	raw, _ := c.got["access_token"].(string)
	if c.status != http.StatusOK || raw == "" {
		w.t.Fatalf("the good request: %d %s", c.status, c.raw)
	}
	return raw
}

func (w *world) whoami(bearer string) call {
	w.t.Helper()
	return w.do(w.cloud.ARM(), call{method: "GET", path: "/whoami", bearer: bearer})
}
