package azure_test

import (
	"crypto"
	"crypto/elliptic"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func TestToken(t *testing.T) {
	w := newWorld(t, nil)
	raw := w.assertion(nil)
	c := w.token(form(raw))
	if c.status != 200 || c.got["expires_in"] != 3599.0 || c.got["ext_expires_in"] != 3599.0 || c.got["token_type"] != "Bearer" {
		t.Fatalf("%d %s", c.status, c.raw)
	}
	if c.header.Get("Cache-Control") != "no-store, no-cache" || c.header.Get("Pragma") != "no-cache" {
		t.Errorf("headers %v", c.header)
	}
	access := c.got["access_token"].(string)
	j, err := sandbox.ParseJWT(access)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"aud": resource, "iss": "https://sts.windows.net/" + tenantID + "/", "appid": clientID,
		"appidacr": "2", "idtyp": "app", "oid": objectID, "sub": objectID, "tid": tenantID} {
		if j.Claims[name] != want {
			t.Errorf("%s = %v", name, j.Claims[name])
		}
	}
	want := map[string]any{"oid": objectID, "appid": clientID, "tid": tenantID, "aud": resource,
		"expires": start.Add(time.Hour).UTC().Format(time.RFC3339)}
	if d := cmp.Diff(want, w.whoami(access).got); d != "" {
		t.Errorf("whoami (-want +got):\n%s", d)
	}
	e := w.recorder.Entries()[0]
	if e.Token != sandbox.HashToken(raw) || e.Fields["client_id"] != clientID {
		t.Errorf("entry %+v", e)
	}
	if b, _ := json.Marshal(w.recorder.Entries()); strings.Contains(string(b), "eyJ") {
		t.Error("a token is in the record")
	}
}

// Rows E of the contract that change the request alone.
func TestTokenRefuses(t *testing.T) {
	set := func(name, value string) func(*world, *call, url.Values) {
		return func(_ *world, _ *call, f url.Values) { f.Set(name, value) }
	}
	del := func(name string) func(*world, *call, url.Values) {
		return func(_ *world, _ *call, f url.Values) { f.Del(name) }
	}
	claim := func(name string, v any) func(*world, *call, url.Values) {
		return func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", w.assertion(map[string]any{name: v}))
		}
	}
	signed := func(key crypto.Signer, alg string, header map[string]any) func(*world, *call, url.Values) {
		return func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", issuertest.Sign(w.t, key, alg, header, claims()))
		}
	}
	header := func(name string, v any) func(*world, *call, url.Values) {
		return signed(issuertest.RSA(), "RS256", map[string]any{name: v})
	}
	tenant := func(name string) func(*world, *call, url.Values) {
		return func(_ *world, c *call, _ url.Values) { c.path = "/" + name + "/oauth2/v2.0/token" }
	}
	sec := func(d time.Duration) int64 { return start.Add(d).Unix() }
	const request, client = "invalid_request", "invalid_client"
	for name, tc := range map[string]struct {
		change func(*world, *call, url.Values)
		status int
		kind   string
		code   int
		text   string
	}{
		"E1 GET":                {func(_ *world, c *call, _ url.Values) { c.method = "GET" }, 400, request, 900561, ""},
		"E2 JSON":               {func(_ *world, c *call, _ url.Values) { c.contentType = "application/json" }, 400, request, 900144, "grant_type"},
		"E2 no grant_type":      {del("grant_type"), 400, request, 900144, "'grant_type'"},
		"no client_id":          {del("client_id"), 400, request, 900144, "'client_id'"},
		"no scope":              {del("scope"), 400, request, 900144, "'scope'"},
		"field twice":           {func(_ *world, _ *call, f url.Values) { f.Add("scope", defaults) }, 400, request, 90100, "'scope'"},
		"empty field":           {set("client_id", ""), 400, request, 90100, "'client_id'"},
		"claims are no JSON":    {set("claims", "x"), 400, request, 90100, "'claims'"},
		"claims of nothing":     {set("claims", "{}"), 400, request, 90100, "'claims'"},
		"claim of another kind": {set("claims", `{"access_token":{"acrs":{"essential":true}}}`), 400, request, 90100, "'claims'"},
		"ID token's claims":     {set("claims", `{"access_token":{"xms_cc":{"values":["CP1"]}},"id_token":{}}`), 400, request, 90100, "'claims'"},
		"no capability":         {set("claims", `{"access_token":{"xms_cc":{"values":[]}}}`), 400, request, 90100, "'claims'"},
		"nbf is no text":        {set("claims", `{"access_token":{"nbf":{"essential":true,"value":1}}}`), 400, request, 90100, "'claims'"},
		"nbf to come":           {set("claims", `{"access_token":{"nbf":{"essential":true,"value":"4102444800"}}}`), 400, request, 90100, "'claims'"},
		"E3 other grant":        {set("grant_type", "password"), 400, "unsupported_grant_type", 70003, ""},
		"E4 unknown tenant":     {tenant("99999999-2222-4333-8444-555555555555"), 400, request, 90002, ""},
		"E4 unknown domain":     {tenant("fabrikam.example"), 400, request, 90002, ""},
		"E4 malformed tenant":   {tenant("not_a_tenant"), 400, request, 900023, ""},
		"common":                {tenant("common"), 400, request, 50059, ""},
		"organizations":         {tenant("organizations"), 400, request, 50059, ""},
		"unknown client":        {set("client_id", objectID), 400, "unauthorized_client", 700016, ""},
		"E6 no assertion":       {del("client_assertion"), 401, client, 7000218, ""},
		"client secret":         {set("client_secret", "x"), 401, client, 7000215, ""},
		"E7 no assertion type":  {del("client_assertion_type"), 400, request, 900144, ""},
		"E7 SAML assertion":     {set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"), 400, request, 50027, ""},
		"E8 no typ":             {header("typ", nil), 400, request, 5002727, ""},
		"E8 JOSE":               {header("typ", "JOSE"), 400, request, 5002727, ""},
		"E8 at+jwt":             {header("typ", "at+jwt"), 400, request, 5002727, ""},
		"E9 ES256":              {signed(issuertest.EC(), "ES256", map[string]any{"kid": "ec1"}), 400, request, 5002738, "Invalid JWT token. 'ES256' is not a supported signature algorithm"},
		"E9 ES384":              {signed(issuertest.NewEC(elliptic.P384()), "ES384", nil), 400, request, 5002738, ""},
		"E9 EdDSA":              {signed(issuertest.RSA(), "EdDSA", nil), 400, request, 5002738, ""},
		"RS512":                 {signed(issuertest.RSA(), "RS512", nil), 400, request, 5002738, ""},
		"none":                  {signed(issuertest.RSA(), "none", nil), 400, request, 5002738, ""},
		"HS256":                 {signed(issuertest.RSA(), "HS256", nil), 400, request, 5002738, ""},
		"E9b EC key for RS256":  {header("kid", "ec1"), 400, request, 5002730, "Unsupported key for the signing algorithm."},
		"E11 no kid":            {header("kid", nil), 401, client, 5002723, ""},
		"E12 unknown kid":       {header("kid", "k9"), 401, client, 7000272, "The certificate with identifier 'k9'"},
		"E14 no iss":            {claim("iss", nil), 400, request, 90014, "'iss'"},
		"E14 no aud":            {claim("aud", nil), 400, request, 90014, "'aud'"},
		"E14 no sub":            {claim("sub", nil), 400, request, 90014, "'sub'"},
		"E14 no exp":            {claim("exp", nil), 400, request, 90014, "'exp'"},
		"iss with slash":        {claim("iss", issuertest.URL+"/"), 401, client, 700211, "No matching federated identity record found for presented assertion issuer '" + issuertest.URL + "/'."},
		"iss with space":        {claim("iss", " "+issuertest.URL), 401, client, 700211, ""},
		"E16 aud in other case": {claim("aud", strings.ToLower(azure.Audience)), 400, request, 700212, ""},
		"aud of another cloud":  {claim("aud", "sts.amazonaws.com"), 400, request, 700212, ""},
		"E16 two aud":           {claim("aud", []string{azure.Audience, "sts.amazonaws.com"}), 401, client, 5002741, "2 audience values provided, maximum allowed is 1."},
		"E17 sub in other case": {claim("sub", strings.Replace(spiffeID, "checkout", "Checkout", 1)), 401, client, 700213, "presented assertion subject '"},
		"sub with space":        {claim("sub", spiffeID+" "), 401, client, 700213, ""},
		"E17 sub with slash":    {claim("sub", spiffeID+"/"), 401, client, 700213, ""},
		"E18 exp 301 s ago":     {claim("exp", sec(-301*time.Second)), 401, client, 700024, "Client assertion is not within its valid time range."},
		"E18 exp 300 s ago":     {claim("exp", sec(-300*time.Second)), 401, client, 700024, ""},
		"E18 nbf 301 s ahead":   {claim("nbf", sec(301*time.Second)), 401, client, 700024, ""},
		"iat 301 s ahead":       {claim("iat", sec(301*time.Second)), 401, client, 700024, ""},
		"exp as text":           {claim("exp", "1800000900"), 400, request, 50027, ""},
		"nbf as text":           {claim("nbf", "1800000000"), 400, request, 50027, ""},
		"E13 payload changed": {func(w *world, _ *call, f url.Values) {
			a, b := strings.Split(w.assertion(nil), "."), strings.Split(w.assertion(map[string]any{"jti": "other"}), ".")
			f.Set("client_assertion", a[0]+"."+b[1]+"."+a[2])
		}, 401, client, 700027, ""},
		"E28 newline": {func(_ *world, _ *call, f url.Values) {
			f.Set("client_assertion", f.Get("client_assertion")+"\n")
		}, 400, request, 50027, ""},
		"key in the header": {header("jku", "https://evil.example"), 400, request, 50027, ""},
		"E29 Entra's token": {func(w *world, _ *call, f url.Values) { f.Set("client_assertion", w.access()) }, 400, request, 700222, ""},
		"E29 authority's":   {claim("iss", "https://login.example/"+tenantID+"/v2.0"), 400, request, 700222, ""},
		"E21 resource":      {set("scope", "https://graph.example/.default"), 400, "invalid_resource", 500011, ""},
		"no .default":       {set("scope", resource+"/user_impersonation"), 400, "invalid_scope", 1002012, ""},
		"two resources":     {set("scope", resource+"/.default https://vault.azure.net/.default"), 400, "invalid_scope", 70011, ""},
		"OpenID alone":      {set("scope", "openid"), 400, "invalid_scope", 70011, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f := form(w.assertion(nil))
			c := tokenCall(f)
			tc.change(w, &c, f)
			c.body = f.Encode()
			c = w.do(w.cloud.Login(), c)
			text, _ := c.got["error_description"].(string)
			if c.status != tc.status || c.got["error"] != tc.kind || c.code() != tc.code ||
				!strings.Contains(text, tc.text) || !strings.HasPrefix(text, fmt.Sprintf("AADSTS%d: ", tc.code)) {
				t.Errorf("%d %s", c.status, c.raw)
			}
			w.access()
		})
	}
}

func TestErrorShape(t *testing.T) {
	w := newWorld(t, nil)
	f := form("x")
	r := httptest.NewRequest("POST", "https://login.example/"+tenantID+"/oauth2/v2.0/token", strings.NewReader(f.Encode()))
	r.Header.Set("Content-Type", formType)
	const correlation = "cccccccc-2222-4333-8444-555555555555"
	r.Header.Set("client-request-id", correlation)
	rec := httptest.NewRecorder()
	w.cloud.Login().ServeHTTP(rec, r)
	var got map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	shape := regexp.MustCompile(`^AADSTS50027: .* Trace ID: [0-9a-f-]{36} Correlation ID: ` + correlation + ` Timestamp: 2027-01-15 08:00:00Z$`)
	if text, _ := got["error_description"].(string); !shape.MatchString(text) {
		t.Errorf("description %q", text)
	}
	if got["correlation_id"] != correlation || got["trace_id"] != rec.Header().Get("X-Ms-Request-Id") ||
		got["timestamp"] != "2027-01-15 08:00:00Z" || got["error_uri"] != "https://login.microsoftonline.com/error?code=50027" {
		t.Errorf("got %v", got)
	}
}

func TestTokenTakes(t *testing.T) {
	sec := func(d time.Duration) int64 { return start.Add(d).Unix() }
	for name, change := range map[string]func(*world, *call, url.Values){
		"domain":            func(_ *world, c *call, _ url.Values) { c.path = "/" + domain + "/oauth2/v2.0/token" },
		"upper-case tenant": func(_ *world, c *call, _ url.Values) { c.path = "/" + strings.ToUpper(tenantID) + "/oauth2/v2.0/token" },
		"resource alone":    func(_ *world, _ *call, f url.Values) { f.Set("scope", resource+"/.default") },
		"CP1": func(_ *world, _ *call, f url.Values) {
			f.Set("claims", `{"access_token":{"xms_cc":{"values":["CP1"]}}}`)
		},
		"exp 299 s ago": func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", w.assertion(map[string]any{"iat": sec(-time.Hour), "exp": sec(-299 * time.Second)}))
		},
		"nbf 299 s ahead": func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", w.assertion(map[string]any{"nbf": sec(299 * time.Second)}))
		},
		"nbf 300 s ahead": func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", w.assertion(map[string]any{"nbf": sec(300 * time.Second)}))
		},
		"aud in an array": func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", w.assertion(map[string]any{"aud": []string{azure.Audience}}))
		},
		"the other typ": func(w *world, _ *call, f url.Values) {
			f.Set("client_assertion", issuertest.Sign(w.t, issuertest.RSA(), "RS256", map[string]any{"typ": "http://openid.net/specs/jwt/1.0"}, claims()))
		},
	} {
		w := newWorld(t, nil)
		f := form(w.assertion(nil))
		c := tokenCall(f)
		change(w, &c, f)
		c.body = f.Encode()
		if c = w.do(w.cloud.Login(), c); c.status != 200 {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
}

// Rows in which the directory or the issuer changes instead of the request.
func TestStateRefuses(t *testing.T) {
	document := func(changes map[string]any) func(*world) {
		return func(w *world) { w.issuer.SetDiscovery(issuertest.JSON(w.t, w.issuer.Document(changes))) }
	}
	apps := func(a azure.App) func(*world) { return func(w *world) { w.put(a) } }
	other := credential()
	other.Name, other.Issuer, other.Subject = "other", "https://example.com/other", "spiffe://example.org/other"
	mine := credential()
	mine.Subject = "spiffe://example.org/first"
	other.Subject = spiffeID
	flexible := credential()
	flexible.Subject, flexible.Expression = "", "claims['sub'] matches 'spiffe://example.org/*'"
	for name, tc := range map[string]struct {
		change func(*world)
		status int
		code   int
	}{
		"E17 sub of another issuer": {apps(app(mine, other)), 401, 700213},
		"E19 discovery down":        {func(w *world) { w.issuer.SetDiscovery(issuertest.Status(503)) }, 400, 501661},
		"E19 discovery is HTML": {func(w *world) {
			w.issuer.SetDiscovery(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) })
		}, 400, 501661},
		"E19 empty authorization":     {document(map[string]any{"authorization_endpoint": ""}), 400, 501661},
		"E19 empty subject types":     {document(map[string]any{"subject_types_supported": []string{}}), 400, 501661},
		"no subject types":            {document(map[string]any{"subject_types_supported": nil}), 400, 501661},
		"E19 jwks_uri http":           {document(map[string]any{"jwks_uri": "http://example.com/jwks"}), 400, 501661},
		"E19 issuer differs":          {document(map[string]any{"issuer": "https://example.com"}), 400, 501661},
		"keys down":                   {func(w *world) { w.issuer.SetKeys(issuertest.Status(500)) }, 400, 501661},
		"E23 flexible credential":     {apps(app(flexible)), 400, 7002241},
		"E24 no credential":           {apps(app()), 401, 70025},
		"app deleted":                 {func(w *world) { w.cloud.DeleteApp(tenantID, clientID) }, 400, 700016},
		"credential of other subject": {apps(app(mine)), 401, 700213},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			tc.change(w)
			if c := w.token(form(w.assertion(nil))); c.status != tc.status || c.code() != tc.code {
				t.Errorf("%d %s", c.status, c.raw)
			}
			w.issuer.Reset(t)
			w.put(app(credential()))
			w.access()
		})
	}
}

func TestOnlyTheFirstHundredKeys(t *testing.T) {
	w := newWorld(t, nil)
	var keys []map[string]any
	for i := range 100 {
		keys = append(keys, issuertest.JWK(fmt.Sprint("x", i), issuertest.RSA().Public()))
	}
	w.issuer.SetKeys(issuertest.JSON(t, issuertest.KeySet(append(keys, issuertest.JWK("k1", issuertest.RSA().Public()))...)))
	if c := w.token(form(w.assertion(nil))); c.code() != 7000272 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

// E26: inside the cache time a rotated key is unknown.
func TestRotation(t *testing.T) {
	w := newWorld(t, nil)
	w.access()
	w.issuer.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("k2", issuertest.RSA().Public()))))
	f := form(issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": "k2"}, claims()))
	if c := w.token(f); c.code() != 7000272 {
		t.Errorf("at once: %d %s", c.status, c.raw)
	}
	w.now = w.now.Add(time.Minute)
	if c := w.token(f); c.status != 200 {
		t.Errorf("later: %d %s", c.status, c.raw)
	}
}

func TestLenientAlgorithms(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.LenientAlgorithms = true })
	for alg, want := range map[string]int{"RS512": 200, "PS256": 200, "ES256": 400} {
		key := crypto.Signer(issuertest.RSA())
		if alg == "ES256" {
			key = issuertest.EC()
		}
		if c := w.token(form(issuertest.Sign(t, key, alg, nil, claims()))); c.status != want {
			t.Errorf("%s: %d %s", alg, c.status, c.raw)
		}
	}
}

func TestConfiguration(t *testing.T) {
	w := newWorld(t, nil)
	c := w.do(w.cloud.Login(), call{method: "GET", path: "/" + domain + "/v2.0/.well-known/openid-configuration?"})
	base := "https://login.example/" + tenantID
	for name, want := range map[string]string{"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token",
		"jwks_uri": base + "/discovery/v2.0/keys", "authorization_endpoint": base + "/oauth2/v2.0/authorize"} {
		if c.got[name] != want {
			t.Errorf("%s = %v", name, c.got[name])
		}
	}
	c = w.do(w.cloud.Login(), call{method: "GET", path: "/" + tenantID + "/discovery/v2.0/keys"})
	keys, err := sandbox.ParseKeySet([]byte(c.raw))
	if err != nil || len(keys) != 1 {
		t.Errorf("keys %v %v", keys, err)
	}
	for path, want := range map[string]int{"/unknown.example/v2.0/.well-known/openid-configuration": 400, "/" + tenantID + "/oauth2/token": 404, "/": 404} {
		if c := w.do(w.cloud.Login(), call{method: "GET", path: path}); c.status != want {
			t.Errorf("%s: %d %s", path, c.status, c.raw)
		}
	}
}

func TestARMRefuses(t *testing.T) {
	w := newWorld(t, nil)
	f := form(w.assertion(nil))
	f.Set("scope", "https://vault.azure.net/.default")
	vault := w.token(f).got["access_token"].(string)
	good := w.access()
	own, err := sandbox.ParseJWT(good)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(key crypto.Signer, changes map[string]any) string {
		return issuertest.Sign(t, key, "RS256", map[string]any{"kid": own.KeyID}, issuertest.With(own.Claims, changes))
	}
	for name, tc := range map[string]struct {
		bearer string
		after  time.Duration
		code   string
	}{
		"no token":        {"", 0, "AuthenticationFailed"},
		"garbage":         {"x", 0, "InvalidAuthenticationToken"},
		"the assertion":   {w.assertion(nil), 0, "InvalidAuthenticationToken"},
		"another key":     {forge(issuertest.NewRSA(2048), nil), 0, "InvalidAuthenticationToken"},
		"other audience":  {vault, 0, "InvalidAuthenticationTokenAudience"},
		"unknown tenant":  {forge(issuertest.RSA(), map[string]any{"tid": objectID}), 0, "InvalidAuthenticationTokenTenant"},
		"other issuer":    {forge(issuertest.RSA(), map[string]any{"iss": "https://sts.windows.net/"}), 0, "InvalidAuthenticationTokenTenant"},
		"expired":         {good, time.Hour, "ExpiredAuthenticationToken"},
		"not yet valid":   {good, -time.Second, "ExpiredAuthenticationToken"},
		"no expiry":       {forge(issuertest.RSA(), map[string]any{"exp": nil}), 0, "ExpiredAuthenticationToken"},
		"good to the end": {good, time.Hour - time.Second, ""},
	} {
		w.now = start.Add(tc.after)
		c := w.whoami(tc.bearer)
		e, _ := c.got["error"].(map[string]any)
		code, _ := e["code"].(string)
		if code != tc.code || (c.status == 200) != (tc.code == "") || c.status != 200 && c.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
	w.now = start
	if c := w.do(w.cloud.ARM(), call{method: "POST", path: "/whoami", bearer: good}); c.status != 404 {
		t.Errorf("POST: %d", c.status)
	}
}
