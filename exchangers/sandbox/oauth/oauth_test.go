package oauth_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	"github.com/credence-id/credence/exchangers/sandbox/oauth"
)

const (
	identifier = "https://login.example"
	spiffeID   = "spiffe://example.org/checkout"
	exchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	bearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	jwtType    = "urn:ietf:params:oauth:token-type:jwt"
	assertion  = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

type world struct {
	t        testing.TB
	issuer   *issuertest.Issuer
	server   *oauth.Server
	recorder *sandbox.Recorder
	now      time.Time
}

func newWorld(t testing.TB, changes ...func(*oauth.Config)) *world {
	t.Helper()
	w := &world{t: t, issuer: issuertest.New(t), recorder: sandbox.NewRecorder(10), now: time.Unix(1_800_000_000, 0)}
	cfg := oauth.Config{
		Issuers: sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext}, Identifier: identifier,
		Grants: []oauth.Grant{
			{Issuer: issuertest.URL, Subject: spiffeID, ClientID: "shop", Scopes: []string{"orders:read", "orders:write"}, Resources: []string{"https://orders.example", "ledger"}},
			{Issuer: issuertest.URL, Subject: spiffeID + "/2"},
		},
		Now: func() time.Time { return w.now }, Log: w.recorder.Record,
	}
	for _, f := range changes {
		f(&cfg)
	}
	var err error
	if w.server, err = oauth.New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// token is a JWT that is taken, with changes.
func (w *world) token(changes map[string]any) string {
	w.t.Helper()
	claims := map[string]any{"iss": issuertest.URL, "sub": spiffeID, "aud": identifier, "iat": w.now.Unix(), "exp": w.now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
	return issuertest.Sign(w.t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, changes))
}

func (w *world) do(r *http.Request) (int, map[string]any) {
	w.t.Helper()
	rec := httptest.NewRecorder()
	h := w.server.Token()
	if r.URL.Path == "/whoami" {
		h = w.server.Whoami()
	}
	h.ServeHTTP(rec, r)
	var got map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		w.t.Fatalf("%v: %s", err, rec.Body)
	}
	if rec.Header().Get("Cache-Control") != "no-store" {
		w.t.Errorf("cached: %v", rec.Header())
	}
	if rec.Code != 200 && got["access_token"] != nil {
		w.t.Errorf("a refusal holds a token: %v", got)
	}
	return rec.Code, got
}

func (w *world) post(f url.Values) (int, map[string]any) {
	r := httptest.NewRequest("POST", "https://login.example/token", strings.NewReader(f.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.do(r)
}

func (w *world) whoami(token string) (int, map[string]any) {
	r := httptest.NewRequest("GET", "https://login.example/whoami", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return w.do(r)
}

func (w *world) exchange() url.Values {
	return url.Values{"grant_type": {exchange}, "subject_token": {w.token(nil)}, "subject_token_type": {jwtType}}
}

func (w *world) credentials() url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "client_assertion": {w.token(nil)}, "client_assertion_type": {assertion}}
}

func (w *world) bearer() url.Values {
	return url.Values{"grant_type": {bearer}, "assertion": {w.token(nil)}}
}

func TestGrants(t *testing.T) {
	w := newWorld(t)
	both := w.exchange()
	both.Set("client_assertion", w.token(nil))
	both.Set("client_assertion_type", strings.Replace(assertion, "bearer", "spiffe", 1))
	narrow := w.exchange()
	narrow.Set("scope", "orders:read")
	narrow["resource"], narrow["audience"] = []string{"https://orders.example"}, []string{"ledger"}
	for name, row := range map[string]struct {
		form  url.Values
		scope string
		aud   int
	}{
		"token exchange": {w.exchange(), "orders:read orders:write", 0}, "client credentials": {w.credentials(), "orders:read orders:write", 0},
		"JWT bearer": {w.bearer(), "orders:read orders:write", 0}, "exchange by a client": {both, "orders:read orders:write", 0}, "narrower": {narrow, "orders:read", 2},
	} {
		status, got := w.post(row.form)
		if status != 200 || got["scope"] != row.scope || got["token_type"] != "Bearer" || got["expires_in"] != 600.0 || (row.form.Get("grant_type") == exchange) != (got["issued_token_type"] != nil) {
			t.Errorf("%s: %d %v", name, status, got)
			continue
		}
		access := got["access_token"].(string)
		if status, me := w.whoami(access); status != 200 || me["sub"] != spiffeID || me["client_id"] != "shop" || row.aud != len(asList(me["aud"])) {
			t.Errorf("%s: %d %v", name, status, me)
		}
		w.now = w.now.Add(10 * time.Minute)
		if status, me := w.whoami(access); status != 401 {
			t.Errorf("%s: after its life: %d %v", name, status, me)
		}
		w.now = w.now.Add(-10 * time.Minute)
	}
	if b, _ := json.Marshal(w.recorder.Entries()); strings.Contains(string(b), "eyJ") || strings.Contains(string(b), "oauth-") {
		t.Errorf("a token is in the record: %s", b)
	}
}

func asList(v any) []any { l, _ := v.([]any); return l }

func TestTokenRefuses(t *testing.T) {
	set := func(name, value string) func(*world, url.Values) {
		return func(_ *world, f url.Values) { f.Set(name, value) }
	}
	claim := func(name string, v any) func(*world, url.Values) {
		return func(w *world, f url.Values) { f.Set("subject_token", w.token(map[string]any{name: v})) }
	}
	for name, row := range map[string]struct {
		change func(*world, url.Values)
		status int
		code   string
	}{
		"no grant":           {func(_ *world, f url.Values) { f.Del("grant_type") }, 400, "unsupported_grant_type"},
		"password grant":     {set("grant_type", "password"), 400, "unsupported_grant_type"},
		"no token":           {func(_ *world, f url.Values) { f.Del("subject_token") }, 400, "invalid_request"},
		"no token type":      {func(_ *world, f url.Values) { f.Del("subject_token_type") }, 400, "invalid_request"},
		"SAML":               {set("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), 400, "invalid_request"},
		"asks for another":   {set("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), 400, "invalid_request"},
		"unknown parameter":  {set("nonce", "x"), 400, "invalid_request"},
		"secret":             {set("client_secret", "x"), 400, "invalid_request"},
		"parameter twice":    {func(_ *world, f url.Values) { f.Add("scope", "a"); f.Add("scope", "b") }, 400, "invalid_request"},
		"empty parameter":    {set("scope", ""), 400, "invalid_request"},
		"another scope":      {set("scope", "orders:delete"), 400, "invalid_scope"},
		"another resource":   {set("resource", "https://ledger.example"), 400, "invalid_target"},
		"another audience":   {set("audience", "stock"), 400, "invalid_target"},
		"no JWT":             {set("subject_token", "x"), 400, "invalid_grant"},
		"newline":            {func(_ *world, f url.Values) { f.Set("subject_token", f.Get("subject_token")+"\n") }, 400, "invalid_grant"},
		"iss with slash":     {claim("iss", issuertest.URL+"/"), 400, "invalid_grant"},
		"neighbour":          {claim("sub", spiffeID+"/3"), 400, "invalid_grant"},
		"no sub":             {claim("sub", nil), 400, "invalid_grant"},
		"aud of another":     {claim("aud", "sts.amazonaws.com"), 400, "invalid_grant"},
		"aud with slash":     {claim("aud", identifier+"/"), 400, "invalid_grant"},
		"two aud":            {claim("aud", []string{identifier, "x"}), 400, "invalid_grant"},
		"no jti":             {claim("jti", nil), 400, "invalid_grant"},
		"no exp":             {claim("exp", nil), 400, "invalid_grant"},
		"expired":            {claim("exp", 1_800_000_000-60), 400, "invalid_grant"},
		"for over an hour":   {claim("exp", 1_800_000_000+3601), 400, "invalid_grant"},
		"not yet":            {claim("nbf", 1_800_000_000+61), 400, "invalid_grant"},
		"made in the future": {claim("iat", 1_800_000_000+61), 400, "invalid_grant"},
		"HS256": {func(w *world, f url.Values) {
			f.Set("subject_token", issuertest.Sign(w.t, issuertest.RSA(), "HS256", nil, map[string]any{"iss": issuertest.URL, "sub": spiffeID}))
		}, 400, "invalid_grant"},
		"assertion of no one": {func(w *world, f url.Values) { f.Set("client_assertion_type", assertion) }, 401, "invalid_client"},
		"assertion's type": {func(w *world, f url.Values) {
			f.Set("client_assertion", w.token(nil))
			f.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
		}, 401, "invalid_client"},
		"assertion of no client": {func(w *world, f url.Values) {
			f.Set("client_assertion", w.token(map[string]any{"sub": spiffeID + "/2"}))
			f.Set("client_assertion_type", assertion)
		}, 401, "invalid_client"},
		"another client's ID": {func(w *world, f url.Values) {
			f.Set("client_assertion", w.token(nil))
			f.Set("client_assertion_type", assertion)
			f.Set("client_id", "stock")
		}, 401, "invalid_client"},
		"one token as both": {func(_ *world, f url.Values) {
			f.Set("client_assertion", f.Get("subject_token"))
			f.Set("client_assertion_type", assertion)
		}, 400, "invalid_grant"},
		"a stranger's ID": {set("client_id", "stock"), 401, "invalid_client"},
		"payload changed": {func(w *world, f url.Values) {
			a, b := strings.Split(w.token(nil), "."), strings.Split(w.token(nil), ".")
			f.Set("subject_token", a[0]+"."+b[1]+"."+a[2])
		}, 400, "invalid_grant"},
		"issuer down": {func(w *world, _ url.Values) {
			w.issuer.SetDiscovery(issuertest.Status(503))
			w.server.Issuers().Forget()
		}, 400, "invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f := w.exchange()
			row.change(w, f)
			if status, got := w.post(f); status != row.status || got["error"] != row.code || got["error_description"] == "" {
				t.Errorf("%d %v", status, got)
			}
			w.issuer.Reset(t)
			if status, got := w.post(w.exchange()); status != 200 {
				t.Errorf("the good request: %d %v", status, got)
			}
		})
	}
}

func TestReplay(t *testing.T) {
	w := newWorld(t)
	f := w.exchange()
	if status, _ := w.post(f); status != 200 {
		t.Fatal(status)
	}
	if status, got := w.post(f); status != 400 || got["error"] != "invalid_grant" {
		t.Errorf("a second time: %d %v", status, got)
	}
}

func TestClientsAreAsked(t *testing.T) {
	w := newWorld(t, func(c *oauth.Config) { c.ClientAuthentication = true })
	if status, got := w.post(w.exchange()); status != 401 || got["error"] != "invalid_client" {
		t.Errorf("%d %v", status, got)
	}
	f := w.credentials()
	f.Del("client_assertion")
	f.Del("client_assertion_type")
	if status, got := newWorld(t).post(f); status != 401 || got["error"] != "invalid_client" {
		t.Errorf("%d %v", status, got)
	}
	f = w.bearer()
	f.Set("client_id", "stock")
	if status, got := w.post(f); status != 400 || got["error"] != "invalid_grant" {
		t.Errorf("%d %v", status, got)
	}
}

func TestRequestForm(t *testing.T) {
	w := newWorld(t)
	for name, r := range map[string]*http.Request{
		"GET":   httptest.NewRequest("GET", "https://login.example/token", nil),
		"path":  httptest.NewRequest("POST", "https://login.example/tokens", nil),
		"query": httptest.NewRequest("POST", "https://login.example/token?grant_type=x", nil),
		"JSON":  httptest.NewRequest("POST", "https://login.example/token", strings.NewReader("{}")),
	} {
		r.Header.Set("Content-Type", "application/json")
		if status, got := w.do(r); status < 400 || got["error"] == nil {
			t.Errorf("%s: %d %v", name, status, got)
		}
	}
	basic := httptest.NewRequest("POST", "https://login.example/token", strings.NewReader(w.exchange().Encode()))
	basic.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	basic.SetBasicAuth("shop", "secret")
	if status, got := w.do(basic); status != 401 || got["error"] != "invalid_client" {
		t.Errorf("a secret: %d %v", status, got)
	}
}

func TestNewRefuses(t *testing.T) {
	good := oauth.Grant{Issuer: issuertest.URL, Subject: spiffeID}
	for name, cfg := range map[string]oauth.Config{
		"no identifier": {}, "http": {Identifier: "http://login.example"}, "twice": {Identifier: identifier, Grants: []oauth.Grant{good, good}},
		"no subject": {Identifier: identifier, Grants: []oauth.Grant{{Issuer: issuertest.URL}}}, "issuer": {Identifier: identifier, Grants: []oauth.Grant{{Issuer: "https://a:1", Subject: "x"}}},
	} {
		if _, err := oauth.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Go's own OAuth client gets tokens by every grant, and its errors say what the
// server said.
func TestGoOAuthClient(t *testing.T) {
	w := newWorld(t, func(c *oauth.Config) { c.Now = time.Now })
	w.now = time.Now()
	s := httptest.NewTLSServer(w.server.Token())
	defer s.Close()
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, s.Client())
	for name, params := range map[string]url.Values{
		"client credentials": {"client_assertion": {w.token(nil)}, "client_assertion_type": {assertion}},
		"token exchange":     {"grant_type": {exchange}, "subject_token": {w.token(nil)}, "subject_token_type": {jwtType}, "resource": {"https://orders.example"}},
		"JWT bearer":         {"grant_type": {bearer}, "assertion": {w.token(nil)}},
	} {
		c := clientcredentials.Config{TokenURL: s.URL + "/token", Scopes: []string{"orders:read"}, EndpointParams: params, AuthStyle: oauth2.AuthStyleInParams}
		got, err := c.Token(ctx)
		if err != nil || !got.Valid() || got.Type() != "Bearer" || got.Extra("scope") != "orders:read" {
			t.Errorf("%s: %v %v", name, got, err)
			continue
		}
		if status, me := w.whoami(got.AccessToken); status != 200 || me["sub"] != spiffeID {
			t.Errorf("%s: %d %v", name, status, me)
		}
		var refused *oauth2.RetrieveError
		if _, err := c.Token(ctx); !errors.As(err, &refused) || refused.ErrorCode != "invalid_grant" && refused.ErrorCode != "invalid_client" {
			t.Errorf("%s, again: %v", name, err)
		}
	}
}
