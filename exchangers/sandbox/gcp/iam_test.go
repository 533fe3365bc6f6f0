package gcp_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

const (
	goodBody   = `{"scope":["https://www.googleapis.com/auth/devstorage.read_only"],"lifetime":"900s"}`
	deniedText = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."
)

func (w *world) impersonated() string {
	w.t.Helper()
	c := w.iam(w.federated(), email, "generateAccessToken", goodBody)
	raw, _ := c.got["accessToken"].(string)
	if c.status != 200 || raw == "" {
		w.t.Fatalf("the good request: %d %s", c.status, c.raw)
	}
	return raw
}

func rpc(c call) map[string]any {
	e, _ := c.got["error"].(map[string]any)
	return e
}

func TestGenerateAccessToken(t *testing.T) {
	w := newWorld(t, nil)
	c := w.iam(w.federated(), email, "generateAccessToken", goodBody)
	if c.status != 200 || c.got["expireTime"] != start.Add(900*time.Second).UTC().Format(time.RFC3339) {
		t.Fatalf("%d %s", c.status, c.raw)
	}
	me := w.whoami(c.got["accessToken"].(string))
	if d := cmp.Diff(map[string]any{"principal": email, "scopes": []any{"https://www.googleapis.com/auth/devstorage.read_only"},
		"expires": c.got["expireTime"]}, me.got); d != "" {
		t.Errorf("whoami (-want +got):\n%s", d)
	}
	w.now = start.Add(900 * time.Second)
	if me := w.whoami(c.got["accessToken"].(string)); me.status != 401 {
		t.Errorf("after expiry: %d", me.status)
	}
}

func TestGenerateAccessTokenTakes(t *testing.T) {
	w := newWorld(t, nil)
	bearer := w.federated()
	for name, c := range map[string]call{
		"what the REST client sends": {path: "/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken?%24alt=json%3Benum-encoding%3Dint",
			body: `{"name":"projects/-/serviceAccounts/` + email + `","scope":["` + scope + `"],"lifetime":"3600s","delegates":[]}`},
		"unique ID":   {path: "/v1/projects/-/serviceAccounts/111:generateAccessToken", body: goodBody},
		"no lifetime": {path: "/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken", body: `{"scope":["` + scope + `"]}`},
	} {
		c.method, c.contentType, c.bearer = "POST", "application/json", bearer
		c.header = map[string][]string{"X-Goog-Request-Params": {"name=x"}, "X-Goog-Api-Client": {"gl-go/1"}}
		if c = w.do(w.cloud.IAMCredentials(), c); c.status != 200 {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
}

func TestGenerateAccessTokenRefuses(t *testing.T) {
	body := func(b string) func(*world, *call) { return func(_ *world, c *call) { c.body = b } }
	path := func(p string) func(*world, *call) { return func(_ *world, c *call) { c.path = p } }
	members := func(m ...string) func(*world, *call) {
		return func(w *world, _ *call) {
			if err := w.cloud.PutServiceAccount(account(m...)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	const invalid, unauthenticated, denied = "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED"
	for name, tc := range map[string]struct {
		change func(*world, *call)
		status int
		code   string
		text   string
	}{
		"I1 no bearer":      {func(_ *world, c *call) { c.bearer = "" }, 401, unauthenticated, ""},
		"I1 unknown bearer": {func(_ *world, c *call) { c.bearer += "x" }, 401, unauthenticated, ""},
		"I1 expired bearer": {func(w *world, _ *call) { w.now = start.Add(15 * time.Minute) }, 401, unauthenticated, ""},
		"I2 project ID":     {path("/v1/projects/proj/serviceAccounts/" + email + ":generateAccessToken"), 400, invalid, ""},
		"unknown method":    {path("/v1/projects/-/serviceAccounts/" + email + ":signBlob"), 404, "NOT_FOUND", ""},
		"GET":               {func(_ *world, c *call) { c.method = "GET" }, 404, "NOT_FOUND", ""},
		"I3 no binding":     {members(), 403, denied, deniedText},
		"I3 no account":     {path("/v1/projects/-/serviceAccounts/gone@proj.iam.gserviceaccount.com:generateAccessToken"), 403, denied, deniedText},
		"account disabled": {func(w *world, _ *call) {
			s := account(principal)
			s.Disabled = true
			w.cloud.PutServiceAccount(s)
		}, 403, denied, deniedText},
		"account deleted":       {func(w *world, _ *call) { w.cloud.DeleteServiceAccount(email) }, 403, denied, deniedText},
		"I4 another subject":    {members(principal + "-2"), 403, denied, deniedText},
		"I4 another case":       {members(strings.Replace(principal, "checkout", "Checkout", 1)), 403, denied, deniedText},
		"I4 another attribute":  {members(set + "/attribute.team/payments"), 403, denied, deniedText},
		"another group":         {members(set + "/group/admins"), 403, denied, deniedText},
		"another pool":          {members(strings.Replace(set, "pool-1", "pool-2", 1) + "/*"), 403, denied, deniedText},
		"I6 no scope":           {body(`{"scope":[]}`), 400, invalid, ""},
		"I6 scope foo":          {body(`{"scope":["foo"]}`), 400, invalid, ""},
		"scope elsewhere":       {body(`{"scope":["https://evil.example/auth/x"]}`), 400, invalid, ""},
		"scope is text":         {body(`{"scope":"` + scope + `"}`), 400, invalid, ""},
		"life 0":                {body(`{"scope":["` + scope + `"],"lifetime":"0s"}`), 400, invalid, "Lifetime of access token must be larger then zero."},
		"life 3601":             {body(`{"scope":["` + scope + `"],"lifetime":"3601s"}`), 400, invalid, "constraints/iam.allowServiceAccountCredentialLifetimeExtension"},
		"life in minutes":       {body(`{"scope":["` + scope + `"],"lifetime":"15m"}`), 400, invalid, ""},
		"life is a number":      {body(`{"scope":["` + scope + `"],"lifetime":900}`), 400, invalid, ""},
		"negative life":         {body(`{"scope":["` + scope + `"],"lifetime":"-1s"}`), 400, invalid, ""},
		"unknown field":         {body(`{"scope":["` + scope + `"],"shoe":1}`), 400, invalid, "Unknown name"},
		"duplicate field":       {body(`{"scope":["` + scope + `"],"scope":["` + scope + `"]}`), 400, invalid, ""},
		"wrong content type":    {func(_ *world, c *call) { c.contentType = "text/plain" }, 400, invalid, ""},
		"delegate of odd form":  {body(`{"scope":["` + scope + `"],"delegates":["` + email + `"]}`), 400, invalid, ""},
		"delegate without role": {body(`{"scope":["` + scope + `"],"delegates":["projects/-/serviceAccounts/` + email + `"]}`), 403, denied, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := call{method: "POST", path: "/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken",
				contentType: "application/json", bearer: w.federated(), body: goodBody}
			tc.change(w, &c)
			c = w.do(w.cloud.IAMCredentials(), c)
			e := rpc(c)
			text, _ := e["message"].(string)
			if c.status != tc.status || e["status"] != tc.code || e["code"] != float64(tc.status) || !strings.Contains(text, tc.text) {
				t.Errorf("%d %s", c.status, c.raw)
			}
			w.now = start
			if err := w.cloud.PutServiceAccount(account(principal)); err != nil {
				t.Fatal(err)
			}
			w.impersonated()
		})
	}
}

func TestPermissionDeniedDetails(t *testing.T) {
	w := newWorld(t, nil)
	c := w.iam(w.federated(), "gone@proj.iam.gserviceaccount.com", "generateIdToken", `{"audience":"a"}`)
	want := map[string]any{"error": map[string]any{"code": 403.0, "status": "PERMISSION_DENIED",
		"message": "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).",
		"details": []any{map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED",
			"domain": "iam.googleapis.com", "metadata": map[string]any{"permission": "iam.serviceAccounts.getOpenIdToken"}}}}}
	if d := cmp.Diff(want, c.got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestBindingsGrant(t *testing.T) {
	for name, m := range map[string]string{
		"attribute": set + "/attribute.team/payments", "group": set + "/group/sre", "whole pool": set + "/*", "subject": principal,
	} {
		w := newWorld(t, func(c *gcp.Config) { c.ServiceAccounts = []gcp.ServiceAccount{account(m)} })
		f := form(w.token(map[string]any{"team": "payments", "groups": []string{"dev", "sre"}}))
		c := w.iam(w.sts(f).got["access_token"].(string), email, "generateAccessToken", goodBody)
		if c.status != 200 {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
}

func TestNarrowScopeCannotImpersonate(t *testing.T) {
	w := newWorld(t, nil)
	f := form(w.token(nil))
	f.Set("scope", "https://www.googleapis.com/auth/devstorage.read_only")
	c := w.iam(w.sts(f).got["access_token"].(string), email, "generateAccessToken", goodBody)
	if c.status != 403 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestDelegates(t *testing.T) {
	const first, second = "first@proj.iam.gserviceaccount.com", "second@proj.iam.gserviceaccount.com"
	creator := func(email, id string, members ...string) gcp.ServiceAccount {
		return gcp.ServiceAccount{Email: email, UniqueID: id, Bindings: []gcp.Binding{{Role: gcp.TokenCreator, Members: members}}}
	}
	w := newWorld(t, func(c *gcp.Config) {
		c.ServiceAccounts = []gcp.ServiceAccount{creator(first, "1", principal), creator(second, "2", "serviceAccount:"+first),
			creator(email, "3", "serviceAccount:"+second)}
	})
	const body = `{"scope":["` + scope + `"],"delegates":["projects/-/serviceAccounts/` + first + `","projects/-/serviceAccounts/` + second + `"]}`
	try := func(want int) {
		t.Helper()
		if c := w.iam(w.federated(), email, "generateAccessToken", body); c.status != want {
			t.Errorf("%d %s", c.status, c.raw)
		}
	}
	try(200)
	if err := w.cloud.PutServiceAccount(creator(second, "2")); err != nil { // I8
		t.Fatal(err)
	}
	try(403)
	user := account("serviceAccount:" + first)
	user.Email, user.UniqueID = second, "2"
	if err := w.cloud.PutServiceAccount(user); err != nil { // workloadIdentityUser is not enough in a chain
		t.Fatal(err)
	}
	try(403)
	if err := w.cloud.PutServiceAccount(creator(second, "2", "serviceAccount:"+first)); err != nil {
		t.Fatal(err)
	}
	try(200)
}

func TestLifetimeExtension(t *testing.T) {
	w := newWorld(t, func(c *gcp.Config) { c.AllowLifetimeExtension = true })
	for life, want := range map[string]int{"3601s": 200, "43200s": 200, "43201s": 400} {
		if c := w.iam(w.federated(), email, "generateAccessToken", `{"scope":["`+scope+`"],"lifetime":"`+life+`"}`); c.status != want {
			t.Errorf("%s: %d %s", life, c.status, c.raw)
		}
	}
}

func TestGenerateIDToken(t *testing.T) {
	w := newWorld(t, nil)
	c := w.iam(w.federated(), email, "generateIdToken", `{"audience":"https://svc","includeEmail":true}`)
	raw, _ := c.got["token"].(string)
	j, err := sandbox.ParseJWT(raw)
	if err != nil {
		t.Fatalf("%d %s: %v", c.status, c.raw, err)
	}
	if err := j.Verify(issuertest.RSA().Public(), "RS256"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]any{"iss": "https://accounts.google.com", "aud": "https://svc", "sub": "111", "azp": "111", "email": email, "email_verified": true} {
		if j.Claims[name] != want {
			t.Errorf("%s = %v", name, j.Claims[name])
		}
	}
	for name, body := range map[string]string{"I7 empty audience": `{"audience":""}`, "no audience": `{}`, "unknown field": `{"audience":"a","scope":["x"]}`} {
		if c := w.iam(w.federated(), email, "generateIdToken", body); c.status != 400 {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
	rec := newRecorder()
	w.cloud.Certs().ServeHTTP(rec, httptest.NewRequest("GET", "/oauth2/v3/certs", nil))
	keys, err := sandbox.ParseKeySet(rec.Body.Bytes())
	if err != nil || keys[0].ID != j.KeyID {
		t.Errorf("certs: %v %v", keys, err)
	}
}

// I9: what disabling a provider stops, and what not.
func TestDisabledProviderLeavesTokens(t *testing.T) {
	w := newWorld(t, nil)
	old := w.federated()
	p := provider()
	p.Disabled = true
	w.put(p)
	if c := w.iam(old, email, "generateAccessToken", goodBody); c.status != 200 {
		t.Errorf("old token: %d %s", c.status, c.raw)
	}
	if c := w.sts(form(w.token(nil))); c.got["error"] != "invalid_target" {
		t.Errorf("new exchange: %d %s", c.status, c.raw)
	}
}

func TestDisabledAccountStopsItsTokens(t *testing.T) {
	w := newWorld(t, nil)
	raw := w.impersonated()
	s := account(principal)
	s.Disabled = true
	if err := w.cloud.PutServiceAccount(s); err != nil {
		t.Fatal(err)
	}
	if c := w.whoami(raw); c.status != 401 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestWhoamiRefuses(t *testing.T) {
	w := newWorld(t, nil)
	raw := w.impersonated()
	for name, c := range map[string]call{
		"no token":   {method: "GET", path: "/"},
		"unknown":    {method: "GET", path: "/", bearer: "ya29.x"},
		"other path": {method: "GET", path: "/b", bearer: raw},
		"POST":       {method: "POST", path: "/", bearer: raw},
	} {
		if c := w.do(w.cloud.Whoami(), c); c.status != 401 && c.status != 404 || rpc(c)["status"] == nil {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
}
