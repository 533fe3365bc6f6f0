package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/api"
)

// What a request for a token must look like (RFC 6749 §3.2, §5.2, RFC 8693
// §2.1): nothing is read twice, nothing is guessed.
func TestTokenForms(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	subject := f.token(t, e.claims("/billing/x")) // none of these spends it
	good := asking(subject, "audience", "orders")
	with := func(pairs ...string) url.Values {
		form := asking(subject, "audience", "orders")
		for i := 0; i < len(pairs); i += 2 {
			form.Add(pairs[i], pairs[i+1])
		}
		return form
	}
	without := func(name string, pairs ...string) url.Values {
		form := with()
		form.Del(name)
		for i := 0; i < len(pairs); i += 2 {
			form.Add(pairs[i], pairs[i+1])
		}
		return form
	}
	for name, row := range map[string]struct {
		form url.Values
		code string
	}{
		"no grant_type":                  {without("grant_type"), "invalid_request"},
		"another grant":                  {without("grant_type", "grant_type", "client_credentials"), "unsupported_grant_type"},
		"two grants":                     {with("grant_type", tokenExchange), "invalid_request"},
		"no subject_token":               {without("subject_token"), "invalid_request"},
		"two subject_tokens":             {with("subject_token", subject), "invalid_request"},
		"a second, empty one":            {with("subject_token", ""), "invalid_request"},
		"another's in capitals":          {with("Subject_Token", subject), "invalid_request"},
		"no subject_token_type":          {without("subject_token_type"), "invalid_request"},
		"an access token":                {without("subject_token_type", "subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), "invalid_request"},
		"an actor":                       {with("actor_token", subject, "actor_token_type", jwtType), "invalid_request"},
		"a client's secret":              {with("client_id", "a", "client_secret", "b"), "invalid_request"},
		"a client's assertion":           {with("client_assertion", subject), "invalid_request"},
		"a refresh token":                {with("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request"},
		"neither audience nor resource":  {without("audience"), "invalid_request"},
		"an empty audience alone":        {without("audience", "audience", ""), "invalid_request"},
		"both":                           {with("resource", "urn:credence:target:cloud"), "invalid_request"},
		"a resource of another kind":     {without("audience", "resource", "https://cloud.example"), "invalid_target"},
		"a resource without a name":      {without("audience", "resource", "urn:credence:target:"), "invalid_target"},
		"two resources":                  {without("audience", "resource", "urn:credence:target:a", "resource", "urn:credence:target:b"), "invalid_request"},
		"a target where none is":         {without("audience", "resource", "urn:credence:target:a"), "invalid_target"},
		"a scope of a JWT-SVID":          {with("scope", "read"), "invalid_scope"},
		"this endpoint as audience":      {without("audience", "audience", e.endpoint()), "invalid_target"},
		"this endpoint among others":     {with("audience", e.endpoint()), "invalid_target"},
		"seventeen audiences":            {url.Values{"grant_type": good["grant_type"], "subject_token": {subject}, "subject_token_type": {jwtType}, "audience": strings.Split(strings.Repeat("a", 17), "")}, "invalid_request"},
		"an audience of two kilobytes":   {without("audience", "audience", strings.Repeat("a", 2048)), "invalid_target"},
		"a token of more than it may be": {without("subject_token", "subject_token", strings.Repeat("a", 17<<10)), "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.ask(row.form)
			if got.status != 400 || got.Error != row.code || got.Description == "" || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
				t.Errorf("%+v", got)
			}
		})
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for name, row := range map[string]struct {
		change func(*http.Request)
		status int
		code   string
	}{
		"JSON":                      {header("Content-Type", "application/json"), 400, "invalid_request"},
		"no type":                   {func(r *http.Request) { r.Header.Del("Content-Type") }, 400, "invalid_request"},
		"compressed":                {header("Content-Encoding", "gzip"), 400, "invalid_request"},
		"a client that logs in":     {func(r *http.Request) { r.SetBasicAuth("a", "b") }, 401, "invalid_client"},
		"a bearer":                  {header("Authorization", "Bearer x"), 401, "invalid_client"},
		"parameters in the URL too": {func(r *http.Request) { r.URL.RawQuery = "audience=a" }, 400, "invalid_request"},
		"GET":                       {func(r *http.Request) { r.Method = "GET" }, 405, ""},
		"PUT":                       {func(r *http.Request) { r.Method = "PUT" }, 405, ""},
		"OPTIONS":                   {func(r *http.Request) { r.Method = "OPTIONS" }, 405, ""},
		"a slash at the end":        {func(r *http.Request) { r.URL.Path += "/" }, 404, ""},
		"escaped":                   {func(r *http.Request) { r.URL.RawPath, r.URL.Path = "/td/t%6fken", "/td/token" }, 404, ""},
		"without the issuer's path": {func(r *http.Request) { r.URL.Path = "/token" }, 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.ask(good, row.change)
			if got.status != row.status || got.Error != row.code || got.Token != "" || row.status == 405 && got.header.Get("Allow") != "POST" {
				t.Errorf("%+v", got)
			}
		})
	}
	t.Run("more than 64 KiB", func(t *testing.T) {
		if got := e.post(strings.NewReader(good.Encode() + "&x=" + strings.Repeat("a", 64<<10))); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no form", func(t *testing.T) {
		if got := e.post(strings.NewReader(good.Encode() + "&x=%zz")); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("and what is good is", func(t *testing.T) {
		form := with("requested_token_type", jwtType, "client_id", "anybody", "scope", "", "unknown", "x")
		if got := e.ask(form, header("Content-Type", "application/x-www-form-urlencoded;charset=UTF-8")); got.status != 200 {
			t.Errorf("%+v", got)
		}
	})
}

// A caller who never finishes holds no place among the exchanges.
func TestSlowBodies(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	form := asking(f.token(t, e.claims("/billing/x")), "audience", "orders").Encode()
	for range 70 { // more than are served at once
		conn, err := tls.Dial("tcp", e.listeners.Web.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST /td/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(form), form[:len(form)-1])
	}
	if got := e.post(strings.NewReader(form)); got.status != 200 {
		t.Errorf("%+v", got)
	}
}

// Strangers are slowed down before a signature is looked at, callers after.
func TestTokenLimits(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	started := time.Now()
	took := func() int { return int(time.Since(started)/time.Second) + 1 }
	served := 0
	var last reply
	for range 120 {
		if last = e.ask(asking(f.token(t, e.claims("/billing/x")), "audience", "orders")); last.status != 200 {
			break
		}
		served++
	}
	if last.status != 429 || last.Error != "slow_down" || last.header.Get("Retry-After") == "" || served < 60 || served > 60+5*took() {
		t.Errorf("after %d: %+v", served, last)
	}
	if got := e.ask(asking(f.token(t, e.claims("/billing/y")), "audience", "orders")); got.status != 200 {
		t.Errorf("another of the peer's: %+v", got)
	}
	refused := 0
	for range 400 {
		if last = e.ask(asking("x", "audience", "orders")); last.status == 429 {
			refused++
			break
		}
	}
	if refused == 0 || last.header.Get("Retry-After") == "" {
		t.Errorf("a stranger is never slowed down: %+v", last)
	}
	n := e.join("n1") // whom nobody slowed down
	if _, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}}); err != nil {
		t.Error(err)
	}
}

// RFC 8414, and discovery that clouds take as before.
func TestTokenMetadata(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	base := strings.TrimSuffix(e.issuer, "/td")
	c := e.client(nil)
	response, body := do(t, c, "GET", base+"/.well-known/oauth-authorization-server/td", nil)
	var got map[string]any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{
		"issuer": e.issuer, "token_endpoint": e.endpoint(), "jwks_uri": e.issuer + "/keys", "response_types_supported": []any{"none"},
		"grant_types_supported": []any{tokenExchange}, "token_endpoint_auth_methods_supported": []any{"none"},
	}, got); d != "" {
		t.Error(d)
	}
	if response.Header.Get("ETag") == "" || response.Header.Get("Cache-Control") == "" || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%v", response.Header)
	}
	if _, again := do(t, c, "GET", base+"/.well-known/oauth-authorization-server/td", nil); !bytes.Equal(again, body) {
		t.Error("other bytes")
	}
	if r, _ := do(t, c, "GET", base+"/.well-known/oauth-authorization-server/td", http.Header{"If-None-Match": {response.Header.Get("ETag")}}); r.StatusCode != 304 {
		t.Errorf("with its tag: %d", r.StatusCode)
	}
	for _, path := range []string{"/.well-known/oauth-authorization-server", "/.well-known/oauth-authorization-server/", "/.well-known/oauth-authorization-server/td/"} {
		if r, _ := do(t, c, "GET", base+path, nil); r.StatusCode != 404 {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	_, discovery := do(t, c, "GET", e.issuer+"/.well-known/openid-configuration", nil)
	var fields map[string]any
	if err := json.Unmarshal(discovery, &fields); err != nil || len(fields) != 5 {
		t.Errorf("discovery is %s", discovery)
	}
}
