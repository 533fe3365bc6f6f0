package gcp_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	spiffeID  = "spiffe://example.org/ns/shop/checkout"
	poolName  = "projects/123/locations/global/workloadIdentityPools/pool-1"
	principal = "principal://iam.googleapis.com/" + poolName + "/subject/" + spiffeID
	set       = "principalSet://iam.googleapis.com/" + poolName
	email     = "orders@proj.iam.gserviceaccount.com"
	scope     = "https://www.googleapis.com/auth/cloud-platform"
	jwtType   = "urn:ietf:params:oauth:token-type:jwt"
)

// credential is what an access token looks like.
var credential = regexp.MustCompile(`ya29\.[A-Za-z0-9_-]{64}`)

var start = time.Unix(1_800_000_000, 0)

// A world is a cloud with one issuer, its servers and its clock.
type world struct {
	t        testing.TB
	issuer   *issuertest.Issuer
	cloud    *gcp.Cloud
	recorder *sandbox.Recorder
	now      time.Time
}

func provider() gcp.Provider {
	return gcp.Provider{ID: "prov-1", Issuer: issuertest.URL, AttributeMapping: map[string]string{
		"google.subject": "assertion.sub", "attribute.team": "has(assertion.team) ? assertion.team : 'none'",
		"google.groups": "has(assertion.groups) ? assertion.groups : []",
	}}
}

func account(members ...string) gcp.ServiceAccount {
	return gcp.ServiceAccount{Email: email, UniqueID: "111", Bindings: []gcp.Binding{{Role: gcp.WorkloadIdentityUser, Members: members}}}
}

func newWorld(t testing.TB, change func(*gcp.Config)) *world {
	w := &world{t: t, issuer: issuertest.New(t), recorder: sandbox.NewRecorder(10), now: start}
	cfg := gcp.Config{
		Issuers:         sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext},
		Pools:           []gcp.Pool{{Project: "123", ID: "pool-1", Providers: []gcp.Provider{provider()}}},
		ServiceAccounts: []gcp.ServiceAccount{account(principal)},
		Key:             issuertest.RSA(),
		Now:             func() time.Time { return w.now },
		Log:             w.recorder.Record,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.cloud, err = gcp.New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) put(p gcp.Provider) {
	w.t.Helper()
	if err := w.cloud.PutProvider(poolName, p); err != nil {
		w.t.Fatal(err)
	}
}

func claims() map[string]any {
	return map[string]any{"iss": issuertest.URL, "sub": spiffeID, "aud": "https://iam.googleapis.com/" + poolName + "/providers/prov-1",
		"iat": start.Unix(), "exp": start.Add(15 * time.Minute).Unix()}
}

func (w *world) token(changes map[string]any) string {
	return issuertest.Sign(w.t, issuertest.RSA(), "RS256", nil, issuertest.With(claims(), changes))
}

// A call is one request and what came back.
type call struct {
	method, path, contentType, body, bearer string
	header                                  http.Header

	status int
	got    map[string]any
	raw    string
}

func (w *world) do(h http.Handler, c call) call {
	w.t.Helper()
	r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
	if c.header != nil {
		r.Header = c.header
	}
	r.Header.Set("Content-Type", c.contentType)
	if c.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	b, _ := io.ReadAll(rec.Body)
	c.status, c.raw, c.got = rec.Code, string(b), nil
	if err := json.Unmarshal(b, &c.got); err != nil {
		w.t.Errorf("body %q: %v", b, err)
	}
	if rec.Header().Get("X-Request-Id") == "" {
		w.t.Error("no request id")
	}
	if c.status != http.StatusOK {
		if c.got["access_token"] != nil || c.got["accessToken"] != nil || c.got["token"] != nil || credential.MatchString(c.raw) {
			w.t.Errorf("a refusal holds a credential: %s", c.raw)
		}
	}
	return c
}

func form(token string) url.Values {
	return url.Values{"audience": {"//iam.googleapis.com/" + poolName + "/providers/prov-1"},
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"scope":                {scope}, "subject_token": {token}, "subject_token_type": {jwtType}}
}

func (w *world) sts(f url.Values) call {
	w.t.Helper()
	return w.do(w.cloud.STS(), call{method: "POST", path: "/v1/token", contentType: "application/x-www-form-urlencoded", body: f.Encode()})
}

// federated returns a token of the workload, which must be had.
func (w *world) federated() string {
	w.t.Helper()
	c := w.sts(form(w.token(nil)))
	raw, _ := c.got["access_token"].(string)
	if c.status != http.StatusOK || raw == "" {
		w.t.Fatalf("the good request: %d %s", c.status, c.raw)
	}
	return raw
}

func (w *world) iam(bearer, account, method, body string) call {
	w.t.Helper()
	return w.do(w.cloud.IAMCredentials(), call{method: "POST", contentType: "application/json", bearer: bearer, body: body,
		path: "/v1/projects/-/serviceAccounts/" + account + ":" + method})
}

func (w *world) whoami(bearer string) call {
	w.t.Helper()
	return w.do(w.cloud.Whoami(), call{method: "GET", path: "/whoami", bearer: bearer})
}
