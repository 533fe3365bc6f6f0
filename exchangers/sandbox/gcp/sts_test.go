package gcp_test

import (
	"crypto"
	"crypto/elliptic"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	audienceText = "The audience in ID Token ["
	issuerText   = "The issuer in ID Token "
	staleText    = " is stale to sign-in."
	signText     = "Unable to verify the ID Token signature."
	connectText  = "Error connecting to the given credential's issuer."
	targetText   = `The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`
	sizeText     = "The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your attribute mapping or the incoming assertion to produce a mapped attribute that is less than 127 bytes."
)

func TestExchange(t *testing.T) {
	w := newWorld(t, nil)
	raw := w.token(nil)
	c := w.sts(form(raw))
	if c.status != 200 || c.got["expires_in"] != 900.0 || c.got["token_type"] != "Bearer" ||
		c.got["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("%d %s", c.status, c.raw)
	}
	access := c.got["access_token"].(string)
	if me := w.whoami(access); me.status != 200 || me.got["principal"] != principal {
		t.Errorf("whoami: %d %s", me.status, me.raw)
	}
	e := w.recorder.Entries()[0]
	if e.Token != sandbox.HashToken(raw) || e.Status != 200 || e.Fields["scope"] != scope {
		t.Errorf("entry %+v", e)
	}
	if b, _ := json.Marshal(w.recorder.Entries()); strings.Contains(string(b), raw) || strings.Contains(string(b), access) {
		t.Error("a token is in the record")
	}
	w.now = start.Add(15 * time.Minute)
	if me := w.whoami(access); me.status != 401 {
		t.Errorf("after expiry: %d", me.status)
	}
}

// refusals are the rows G of the contract that change the request alone.
func TestExchangeRefuses(t *testing.T) {
	set := func(name, value string) func(*world, url.Values) {
		return func(_ *world, f url.Values) { f.Set(name, value) }
	}
	claim := func(name string, v any) func(*world, url.Values) {
		return func(w *world, f url.Values) { f.Set("subject_token", w.token(map[string]any{name: v})) }
	}
	signed := func(key crypto.Signer, alg, kid string) func(*world, url.Values) {
		return func(w *world, f url.Values) {
			f.Set("subject_token", issuertest.Sign(w.t, key, alg, map[string]any{"kid": kid}, claims()))
		}
	}
	header := func(name string, v any) func(*world, url.Values) {
		return func(w *world, f url.Values) {
			f.Set("subject_token", issuertest.Sign(w.t, issuertest.RSA(), "RS256", map[string]any{name: v}, claims()))
		}
	}
	sec := func(d time.Duration) int64 { return start.Add(d).Unix() }
	for name, tc := range map[string]struct {
		change func(*world, url.Values)
		code   string
		text   string
	}{
		"G2 other grant":           {set("grant_type", "client_credentials"), "unsupported_grant_type", ""},
		"no grant":                 {set("grant_type", ""), "invalid_request", ""},
		"G3 asks for an ID token":  {set("requested_token_type", "urn:ietf:params:oauth:token-type:id_token"), "invalid_request", ""},
		"G3 SAML":                  {set("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), "invalid_request", ""},
		"G5 unknown provider":      {set("audience", "//iam.googleapis.com/"+poolName+"/providers/prov-2"), "invalid_target", targetText},
		"G5 unknown pool":          {set("audience", "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool-2/providers/prov-1"), "invalid_target", targetText},
		"audience with https":      {set("audience", "https://iam.googleapis.com/"+poolName+"/providers/prov-1"), "invalid_request", `Invalid value for "audience"`},
		"audience with project ID": {set("audience", strings.Replace("//iam.googleapis.com/"+poolName+"/providers/prov-1", "123", "proj", 1)), "invalid_request", `Invalid value for "audience"`},
		"G6 mtls token type":       {set("subject_token_type", "urn:ietf:params:oauth:token-type:mtls"), "invalid_request", ""},
		"G7 iss with slash":        {claim("iss", issuertest.URL+"/"), "invalid_grant", issuerText + issuertest.URL + "/ does not match the expected one in config: " + issuertest.URL + "."},
		"G7 no iss":                {claim("iss", nil), "invalid_grant", issuerText + "null does not match"},
		"G8 aud of another cloud":  {claim("aud", "sts.amazonaws.com"), "invalid_grant", audienceText + "sts.amazonaws.com] does not match the expected audience."},
		"G8 no aud":                {claim("aud", nil), "invalid_grant", audienceText},
		"a second aud":             {claim("aud", []string{"//iam.googleapis.com/" + poolName + "/providers/prov-1", "sts.amazonaws.com"}), "invalid_grant", audienceText},
		"no exp":                   {claim("exp", nil), "invalid_grant", staleText},
		"no iat":                   {claim("iat", nil), "invalid_grant", "issued at null is stale"},
		"exp as a fraction":        {claim("exp", 1.8000009e9+0.5), "invalid_grant", staleText},
		"exp as text":              {claim("exp", "1800000900"), "invalid_grant", staleText},
		"exp before iat":           {claim("exp", sec(-time.Second)), "invalid_grant", staleText},
		"iat 61 s ahead":           {claim("iat", sec(61*time.Second)), "invalid_grant", staleText},
		"nbf 61 s ahead":           {claim("nbf", sec(61*time.Second)), "invalid_grant", staleText},
		"G10 24 h and 1 s":         {claim("exp", sec(24*time.Hour+time.Second)), "invalid_grant", staleText},
		"G11 ES384":                {signed(issuertest.NewEC(elliptic.P384()), "ES384", "ec1"), "invalid_grant", signText},
		"G11 RS512":                {signed(issuertest.RSA(), "RS512", "k1"), "invalid_grant", signText},
		"G11 PS256":                {signed(issuertest.RSA(), "PS256", "k1"), "invalid_grant", signText},
		"G11 none":                 {signed(issuertest.RSA(), "none", "k1"), "invalid_grant", signText},
		"G11 HS256":                {signed(issuertest.RSA(), "HS256", "k1"), "invalid_grant", signText},
		"RS256 with an EC key":     {signed(issuertest.RSA(), "RS256", "ec1"), "invalid_grant", connectText},
		"signed by another key":    {signed(issuertest.EC(), "ES256", "k1"), "invalid_grant", connectText},
		"G12 payload changed": {func(w *world, f url.Values) {
			a, b := strings.Split(f.Get("subject_token"), "."), strings.Split(w.token(map[string]any{"sub": "spiffe://example.org/admin"}), ".")
			f.Set("subject_token", a[0]+"."+b[1]+"."+a[2])
		}, "invalid_grant", signText},
		"G13 unknown kid":      {header("kid", "k9"), "invalid_grant", connectText},
		"G13 no kid":           {header("kid", nil), "invalid_grant", connectText},
		"key in the header":    {header("jwk", map[string]any{}), "invalid_grant", ""},
		"crit":                 {header("crit", []string{"exp"}), "invalid_grant", ""},
		"two segments":         {set("subject_token", "e30.e30"), "invalid_grant", ""},
		"trailing newline":     {func(w *world, f url.Values) { f.Set("subject_token", f.Get("subject_token")+"\n") }, "invalid_grant", ""},
		"G15 128 bytes":        {claim("sub", strings.Repeat("a", 128)), "invalid_request", sizeText},
		"G15 64 of two bytes":  {claim("sub", strings.Repeat("é", 64)), "invalid_request", sizeText},
		"G16 no sub to map":    {claim("sub", nil), "invalid_request", ""},
		"G16 empty sub":        {claim("sub", ""), "invalid_request", ""},
		"sub is a number":      {claim("sub", 7), "invalid_request", ""},
		"groups are no list":   {claim("groups", "admins"), "invalid_request", ""},
		"attributes over 8 KB": {claim("team", strings.Repeat("a", 8<<10)), "invalid_request", ""},
		"G17 no scope":         {func(_ *world, f url.Values) { f.Del("scope") }, "invalid_scope", ""},
		"scope foo":            {set("scope", "foo"), "invalid_scope", ""},
		"no subject token":     {func(_ *world, f url.Values) { f.Del("subject_token") }, "invalid_request", ""},
		"duplicate field":      {func(_ *world, f url.Values) { f.Add("scope", scope) }, "invalid_request", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f := form(w.token(nil))
			tc.change(w, f)
			c := w.sts(f)
			text, _ := c.got["error_description"].(string)
			if c.status != 400 || c.got["error"] != tc.code || !strings.Contains(text, tc.text) {
				t.Errorf("%d %s", c.status, c.raw)
			}
			if e := w.recorder.Entries()[0]; e.Code != tc.code || e.Status != 400 || e.Reason == "" {
				t.Errorf("entry %+v", e)
			}
			w.federated()
		})
	}
}

func TestExchangeTakes(t *testing.T) {
	sec := func(d time.Duration) int64 { return start.Add(d).Unix() }
	for name, tc := range map[string]struct {
		claims map[string]any
		expire any // expires_in
	}{
		"aud without https":        {map[string]any{"aud": "//iam.googleapis.com/" + poolName + "/providers/prov-1"}, 900.0},
		"aud in an array":          {map[string]any{"aud": []string{"https://iam.googleapis.com/" + poolName + "/providers/prov-1"}}, 900.0},
		"G15 127 bytes":            {map[string]any{"sub": strings.Repeat("a", 127)}, 900.0},
		"G18 5 minutes":            {map[string]any{"exp": sec(5 * time.Minute)}, 300.0},
		"24 h become one":          {map[string]any{"exp": sec(24 * time.Hour)}, 3600.0},
		"iat 60 s ahead":           {map[string]any{"iat": sec(time.Minute)}, 900.0},
		"exp 59 s ago, no life":    {map[string]any{"iat": sec(-time.Hour), "exp": sec(-59 * time.Second)}, nil},
		"one second left, no life": {map[string]any{"exp": sec(time.Second)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			if c := w.sts(form(w.token(tc.claims))); c.status != 200 || c.got["expires_in"] != tc.expire {
				t.Errorf("%d %s", c.status, c.raw)
			}
		})
	}
}

func TestExpiryAtTheEdge(t *testing.T) {
	w := newWorld(t, nil)
	exp := start.Add(15 * time.Minute)
	raw := w.token(nil)
	for _, tc := range []struct {
		after  time.Duration
		status int
	}{{59 * time.Second, 200}, {60 * time.Second, 400}, {61 * time.Second, 400}} {
		w.now = exp.Add(tc.after)
		if c := w.sts(form(raw)); c.status != tc.status {
			t.Errorf("%v after exp: %d %s", tc.after, c.status, c.raw)
		}
	}
}

func TestRequestForm(t *testing.T) {
	w := newWorld(t, nil)
	good := form(w.token(nil))
	asJSON := func(names map[string]string, extra ...string) string {
		o := map[string]string{}
		for name := range good {
			key := name
			if n := names[name]; n != "" {
				key = n
			}
			o[key] = good.Get(name)
		}
		for _, e := range extra {
			o[e] = "x"
		}
		b, _ := json.Marshal(o)
		return string(b)
	}
	camel := map[string]string{"grant_type": "grantType", "requested_token_type": "requestedTokenType",
		"subject_token": "subjectToken", "subject_token_type": "subjectTokenType"}
	const js, urlencoded = "application/json", "application/x-www-form-urlencoded"
	for name, tc := range map[string]struct {
		call
		want int
	}{
		"form":           {call{method: "POST", path: "/v1/token", contentType: urlencoded, body: good.Encode()}, 200},
		"JSON, snake":    {call{method: "POST", path: "/v1/token", contentType: js, body: asJSON(nil)}, 200},
		"JSON, camel":    {call{method: "POST", path: "/v1/token?$alt=json", contentType: js + "; charset=UTF-8", body: asJSON(camel)}, 200},
		"both spellings": {call{method: "POST", path: "/v1/token", contentType: js, body: asJSON(nil, "grantType")}, 400},
		"unknown name":   {call{method: "POST", path: "/v1/token", contentType: js, body: asJSON(nil, "shoe")}, 400},
		"JSON value is no text": {call{method: "POST", path: "/v1/token", contentType: js,
			body: strings.Replace(asJSON(nil), `"`+scope+`"`, "1", 1)}, 400},
		"G1 GET":             {call{method: "GET", path: "/v1/token", contentType: urlencoded}, 405},
		"other path":         {call{method: "POST", path: "/v2/token", contentType: urlencoded, body: good.Encode()}, 404},
		"other content type": {call{method: "POST", path: "/v1/token", contentType: "text/plain", body: good.Encode()}, 400},
		"huge":               {call{method: "POST", path: "/v1/token", contentType: urlencoded, body: good.Encode() + "&x=" + strings.Repeat("x", 1<<20)}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			if c := w.do(w.cloud.STS(), tc.call); c.status != tc.want {
				t.Errorf("%d %s", c.status, c.raw)
			}
			w.federated()
		})
	}
}

// Rows in which the cloud changes instead of the request.
func TestProviderState(t *testing.T) {
	with := func(change func(*gcp.Provider)) func(*world) {
		return func(w *world) {
			p := provider()
			change(&p)
			w.put(p)
		}
	}
	for name, tc := range map[string]struct {
		change func(*world)
		code   string // empty: taken
		text   string
	}{
		"G5 disabled provider": {with(func(p *gcp.Provider) { p.Disabled = true }), "invalid_target", targetText},
		"G5 deleted provider":  {func(w *world) { w.cloud.DeleteProvider(poolName, "prov-1") }, "invalid_target", targetText},
		"G5 disabled pool": {func(w *world) {
			w.cloud.PutPool(gcp.Pool{Project: "123", ID: "pool-1", Disabled: true, Providers: []gcp.Provider{provider()}})
		}, "invalid_target", targetText},
		"G5 deleted pool":           {func(w *world) { w.cloud.DeletePool(poolName) }, "invalid_target", targetText},
		"G8 default aud turned off": {with(func(p *gcp.Provider) { p.AllowedAudiences = []string{"mine"} }), "invalid_grant", audienceText},
		"condition holds":           {with(func(p *gcp.Provider) { p.AttributeCondition = "assertion.sub.startsWith('spiffe://example.org/')" }), "", ""},
		"condition on attributes": {with(func(p *gcp.Provider) {
			p.AttributeCondition = "attribute.team == 'none' && google.subject.endsWith('/checkout')"
		}), "", ""},
		"condition false": {with(func(p *gcp.Provider) { p.AttributeCondition = "assertion.sub == 'x'" }), "unauthorized_client",
			"The given credential is rejected by the attribute condition."},
		"condition fails":            {with(func(p *gcp.Provider) { p.AttributeCondition = "assertion.gone == 'x'" }), "unauthorized_client", ""},
		"condition costs too much":   {with(func(p *gcp.Provider) { p.AttributeCondition = costly }), "unauthorized_client", ""},
		"G16 mapping reads no claim": {with(func(p *gcp.Provider) { p.AttributeMapping["attribute.x"] = "assertion.gone" }), "invalid_request", ""},
		"G16 maps to empty":          {with(func(p *gcp.Provider) { p.AttributeMapping["google.subject"] = "''" }), "invalid_request", ""},
		"integers stay integers":     {with(func(p *gcp.Provider) { p.AttributeCondition = "assertion.exp - assertion.iat == 900" }), "", ""},
		"uploaded keys":              {with(func(p *gcp.Provider) { p.KeySet = keySet("k1", issuertest.RSA().Public()) }), "", ""},
		"uploaded, unknown kid":      {with(func(p *gcp.Provider) { p.KeySet = keySet("k2", issuertest.RSA().Public()) }), "invalid_grant", connectText},
		"G13 key set 500":            {func(w *world) { w.issuer.SetKeys(issuertest.Status(500)) }, "invalid_grant", connectText},
		"G13 issuer down":            {func(w *world) { w.issuer.SetDiscovery(issuertest.Status(503)) }, "invalid_grant", connectText},
		"discovery of another": {func(w *world) {
			w.issuer.SetDiscovery(issuertest.JSON(w.t, w.issuer.Document(map[string]any{"issuer": "https://example.com"})))
		}, "invalid_grant", connectText},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			tc.change(w)
			c := w.sts(form(w.token(nil)))
			text, _ := c.got["error_description"].(string)
			code, _ := c.got["error"].(string)
			if code != tc.code || !strings.Contains(text, tc.text) || (c.status == 200) != (tc.code == "") {
				t.Errorf("%d %s", c.status, c.raw)
			}
			w.issuer.Reset(t)
			if err := w.cloud.PutPool(gcp.Pool{Project: "123", ID: "pool-1", Providers: []gcp.Provider{provider()}}); err != nil {
				t.Fatal(err)
			}
			w.federated()
		})
	}
}

// costly multiplies six lists of ten.
var costly = func() string {
	list := "[0,1,2,3,4,5,6,7,8,9]"
	return list + ".all(a, " + list + ".all(b, " + list + ".all(c, " + list + ".all(d, " + list + ".all(e, " + list + ".all(f, a >= 0))))))"
}()

func keySet(kid string, key crypto.PublicKey) []byte {
	b, err := json.Marshal(issuertest.KeySet(issuertest.JWK(kid, key)))
	if err != nil {
		panic(err)
	}
	return b
}

func TestES256(t *testing.T) {
	w := newWorld(t, nil)
	raw := issuertest.Sign(t, issuertest.EC(), "ES256", map[string]any{"kid": "ec1"}, claims())
	if c := w.sts(form(raw)); c.status != 200 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestKeyForAnotherUse(t *testing.T) {
	w := newWorld(t, nil)
	k := issuertest.With(issuertest.JWK("k1", issuertest.RSA().Public()), map[string]any{"use": "jwt-svid"})
	w.issuer.SetKeys(issuertest.JSON(t, issuertest.KeySet(k)))
	if c := w.sts(form(w.token(nil))); c.got["error_description"] != connectText {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestAllowedAudience(t *testing.T) {
	w := newWorld(t, nil)
	p := provider()
	p.AllowedAudiences = []string{"mine"}
	w.put(p)
	if c := w.sts(form(w.token(map[string]any{"aud": "mine"}))); c.status != 200 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestLenientTokenLife(t *testing.T) {
	w := newWorld(t, func(c *gcp.Config) { c.LenientTokenLife = true })
	if c := w.sts(form(w.token(map[string]any{"exp": start.Add(11 * 365 * 24 * time.Hour).Unix()}))); c.status != 200 || c.got["expires_in"] != 3600.0 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestIssuerDownAndRotated(t *testing.T) {
	w := newWorld(t, nil)
	w.federated()
	w.issuer.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("k2", issuertest.RSA().Public()))))
	f := form(issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": "k2"}, claims()))
	if c := w.sts(f); c.got["error_description"] != connectText {
		t.Errorf("inside the cache time: %d %s", c.status, c.raw)
	}
	w.now = w.now.Add(time.Minute)
	if c := w.sts(f); c.status != 200 {
		t.Errorf("a minute later: %d %s", c.status, c.raw)
	}
}

func TestThrottled(t *testing.T) {
	w := newWorld(t, nil)
	w.cloud.STSFaults.Queue(1, sandbox.Fault{Kind: sandbox.FaultThrottled})
	r, err := http.NewRequest("POST", "/v1/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	w.cloud.STS().ServeHTTP(rec, r)
	if rec.Code != 429 || !strings.Contains(rec.Body.String(), `"error":"quota_exceeded"`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	w.federated()
}
