package aws_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// form is the request that succeeds.
func (e *web) form(token fmt.Stringer) url.Values {
	return url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "DurationSeconds": {"900"},
		"RoleArn": {roleARN}, "RoleSessionName": {"sess"}, "WebIdentityToken": {token.String()},
	}
}

func (e *web) post(f url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "https://sts.us-east-1.amazonaws.com/", strings.NewReader(f.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return e.send(r)
}

func (e *web) send(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	e.cloud.STS().ServeHTTP(w, r)
	return w
}

func (e *web) wantCredential(t testing.TB) {
	t.Helper()
	if w := e.post(e.form(e.token())); w.Code != http.StatusOK {
		t.Fatalf("the good request: status %d: %s", w.Code, w.Body)
	}
}

type stsError struct {
	XMLName   xml.Name
	Type      string `xml:"Error>Type"`
	Code      string `xml:"Error>Code"`
	Message   string `xml:"Error>Message"`
	RequestID string `xml:"RequestId"`
}

// wantError fails unless the answer is that error, in STS's shape and without
// anything of a credential.
func wantError(t testing.TB, w *httptest.ResponseRecorder, status int, code, text string) {
	t.Helper()
	var got stsError
	if err := xml.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if w.Code != status || got.Code != code || !strings.Contains(got.Message, text) {
		t.Errorf("got %d %s; want %d %s %q", w.Code, w.Body, status, code, text)
	}
	if got.XMLName.Local != "ErrorResponse" || got.Type != "Sender" || got.RequestID == "" ||
		got.RequestID != w.Header().Get("X-Amzn-Requestid") || w.Header().Get("Content-Type") != "text/xml" {
		t.Errorf("shape: %v %s", w.Header(), w.Body)
	}
	noCredential(t, w.Body.String())
}

// A stsRow changes the form or the cloud; what it returns undoes the latter.
type stsRow struct {
	name   string
	change func(t *testing.T, e *web, f url.Values) (undo func())
	status int
	code   string
	text   string
}

func TestWebIdentityRefuses(t *testing.T) {
	for _, table := range [][]stsRow{formRows, tokenRows, claimRows, issuerRows, authorizationRows} {
		for _, row := range table {
			t.Run(row.name, func(t *testing.T) {
				e := newWeb(t)
				e.wantCredential(t)
				f := e.form(e.token())
				undo := row.change(t, e, f)
				wantError(t, e.post(f), row.status, row.code, row.text)
				if undo != nil {
					undo()
				}
				e.wantCredential(t)
			})
		}
	}
}

func set(name, value string) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, _ *web, f url.Values) func() { f.Set(name, value); return nil }
}

func del(name string) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, _ *web, f url.Values) func() { f.Del(name); return nil }
}

var formRows = []stsRow{
	{"no Action", del("Action"), 400, "MissingAction", ""},
	{"unknown Action", set("Action", "AssumeRoot"), 400, "InvalidAction", "AssumeRoot"},
	{"S2 no Version", del("Version"), 400, "InvalidAction", "NO_VERSION_SPECIFIED"},
	{"S2 Version 2010-05-08", set("Version", "2010-05-08"), 400, "NoSuchVersion", ""},
	{"S3 no token", del("WebIdentityToken"), 400, "ValidationError", "webIdentityToken"},
	{"S3 no session name", del("RoleSessionName"), 400, "ValidationError", "roleSessionName"},
	{"no role", del("RoleArn"), 400, "ValidationError", "roleArn"},
	{"empty role", set("RoleArn", ""), 400, "ValidationError", "empty"},
	{"role that is no role", set("RoleArn", "arn:aws:iam::123456789012:user/orders"), 400, "ValidationError", "roleArn"},
	{"S4 session name with /", set("RoleSessionName", "a/b"), 400, "ValidationError", "1 validation error detected: Value 'a/b' at 'roleSessionName' failed to satisfy constraint"},
	{"S4 session name with :", set("RoleSessionName", "a:b"), 400, "ValidationError", "roleSessionName"},
	{"S4 session name of 65", set("RoleSessionName", strings.Repeat("x", 65)), 400, "ValidationError", "roleSessionName"},
	{"session name of 1", set("RoleSessionName", "x"), 400, "ValidationError", "roleSessionName"},
	{"S5 duration 899", set("DurationSeconds", "899"), 400, "ValidationError", "durationSeconds"},
	{"S5 duration 43201", set("DurationSeconds", "43201"), 400, "ValidationError", "durationSeconds"},
	{"duration with a sign", set("DurationSeconds", "+900"), 400, "ValidationError", "durationSeconds"},
	{"duration above the role's", set("DurationSeconds", "3601"), 400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
	{"S7 token of 20001", set("WebIdentityToken", strings.Repeat("x", 20001)), 400, "ValidationError", "webIdentityToken"},
	{"token of 3", set("WebIdentityToken", "x.y"), 400, "ValidationError", "webIdentityToken"},
	{"S25 ProviderId", set("ProviderId", "www.amazon.com"), 400, "ValidationError", "ProviderId"},
	{"policy that is no JSON", set("Policy", "{"), 400, "MalformedPolicyDocument", ""},
	{"policy of 2049", set("Policy", `{"a":"`+strings.Repeat("x", 2041)+`"}`), 400, "MalformedPolicyDocument", ""},
	{"policy ARN of no policy", set("PolicyArns.member.1.arn", roleARN), 400, "ValidationError", "policyArns"},
	{"11th policy ARN", set("PolicyArns.member.11.arn", "arn:aws:iam::aws:policy/ReadOnlyAccess"), 400, "ValidationError", "unknown"},
	{"token size 4097", set("MinimumSessionTokenSize", "4097"), 400, "ValidationError", "minimumSessionTokenSize"},
	{"unknown parameter", set("ExternalId", "x"), 400, "ValidationError", "ExternalId"},
	{"parameter twice", func(_ *testing.T, _ *web, f url.Values) func() {
		f.Add("RoleArn", roleARN)
		return nil
	}, 400, "ValidationError", "twice"},
	{"packed policy too large", func(_ *testing.T, e *web, f url.Values) func() {
		f.Set("Policy", `{"a":"`+strings.Repeat("x", 2000)+`"}`)
		for i := range 5 {
			f.Set(fmt.Sprintf("PolicyArns.member.%d.arn", i+1), "arn:aws:iam::aws:policy/"+strings.Repeat("x", 500))
		}
		return nil
	}, 400, "PackedPolicyTooLarge", ""},
}

func TestSTSRefusesRequests(t *testing.T) {
	e := newWeb(t)
	f := e.form(e.token()).Encode()
	request := func(method, target, contentType, body string) *http.Request {
		r := httptest.NewRequest(method, "https://sts.us-east-1.amazonaws.com"+target, strings.NewReader(body))
		if contentType != "" {
			r.Header.Set("Content-Type", contentType)
		}
		return r
	}
	const formType = "application/x-www-form-urlencoded"
	rows := []struct {
		name   string
		r      *http.Request
		status int
		code   string
	}{
		{"PUT", request("PUT", "/", formType, f), 405, "InvalidAction"},
		{"path", request("POST", "/x", formType, f), 404, "InvalidAction"},
		{"JSON", request("POST", "/", "application/json", `{}`), 400, "ValidationError"},
		{"no content type", request("POST", "/", "", f), 400, "ValidationError"},
		{"query and form", request("POST", "/?Action=GetCallerIdentity", formType, f), 400, "ValidationError"},
		{"GET with a body", request("GET", "/?"+f, formType, f), 400, "ValidationError"},
		{"empty form", request("POST", "/", formType, ""), 400, "MissingAction"},
		{"bad escape", request("POST", "/", formType, "Action=%zz"), 400, "ValidationError"},
		{"larger than 1 MiB", request("POST", "/", formType, f+"&x="+strings.Repeat("x", 1<<20)), 400, "ValidationError"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) { wantError(t, e.send(row.r), row.status, row.code, "") })
	}
	if w := e.send(request("GET", "/?"+f, "", "")); w.Code != http.StatusOK {
		t.Errorf("GET: %d %s", w.Code, w.Body)
	}
}

// jwt makes a row's change to the token.
func jwt(f func(token) token) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, e *web, form url.Values) func() {
		form.Set("WebIdentityToken", f(e.token()).String())
		return nil
	}
}

func text(f func(string) string) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, e *web, form url.Values) func() {
		form.Set("WebIdentityToken", f(e.token().String()))
		return nil
	}
}

const notJWT = "The ID Token provided is not a valid JWT."

var tokenRows = []stsRow{
	{"S8 two segments", text(func(s string) string { return s[:strings.LastIndex(s, ".")] }), 400, "InvalidIdentityToken", notJWT},
	{"S8 trailing newline", text(func(s string) string { return s + "\n" }), 400, "InvalidIdentityToken", notJWT},
	{"S8 padded", text(func(s string) string { return s + "==" }), 400, "InvalidIdentityToken", notJWT},
	{"S9 none", jwt(func(k token) token {
		k = k.head("alg", "none")
		k.sign = func(string) []byte { return nil }
		return k
	}), 400, "InvalidIdentityToken", notJWT},
	{"S9 HS256 with the public key", jwt(func(k token) token {
		k = k.head("alg", "HS256")
		k.sign = func(s string) []byte {
			der, _ := x509.MarshalPKIXPublicKey(rsaKey().Public())
			h := hmac.New(sha256.New, der)
			h.Write([]byte(s))
			return h.Sum(nil)
		}
		return k
	}), 400, "InvalidIdentityToken", notJWT},
	{"S9 PS256", jwt(func(k token) token {
		k = k.head("alg", "PS256")
		k.sign = func(s string) []byte {
			sum := sha256.Sum256([]byte(s))
			sig, err := rsa.SignPSS(rand.Reader, rsaKey(), crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			if err != nil {
				panic(err)
			}
			return sig
		}
		return k
	}), 400, "InvalidIdentityToken", notJWT},
	{"S9 EdDSA", jwt(func(k token) token {
		k = k.head("alg", "EdDSA")
		k.sign = func(s string) []byte {
			_, priv, _ := ed25519.GenerateKey(rand.Reader)
			return ed25519.Sign(priv, []byte(s))
		}
		return k
	}), 400, "InvalidIdentityToken", notJWT},
	{"ES256 with an RSA key of that kid", func(t *testing.T, e *web, f url.Values) func() {
		k := e.token().head("alg", "ES256")
		k.key = newKey(t, elliptic.P256())
		f.Set("WebIdentityToken", k.String())
		return nil
	}, 400, "InvalidIdentityToken", notJWT},
	{"ES256 with a P-384 key of that kid", func(_ *testing.T, e *web, f url.Values) func() {
		e.issuer.set(func(i *issuer) { i.keys = append(i.keys, jwk("p384", ecKey().Public())) })
		e.Add(time.Hour)
		k := e.token().head("alg", "ES256").head("kid", "p384")
		k.key = ecKey()
		f.Set("WebIdentityToken", k.String())
		return nil
	}, 400, "InvalidIdentityToken", notJWT},
	{"key for another algorithm", func(t *testing.T, e *web, f url.Values) func() {
		key := jwk("rs384", rsaKey().Public())
		key["alg"] = "RS384"
		e.issuer.set(func(i *issuer) { i.keys = append(i.keys, key) })
		e.Add(time.Hour)
		f.Set("WebIdentityToken", e.token().head("kid", "rs384").String())
		return nil
	}, 400, "InvalidIdentityToken", notJWT},
	{"S17 payload changed", func(_ *testing.T, e *web, f url.Values) func() {
		good, other := strings.Split(e.token().String(), "."), strings.Split(e.token().with("sub", spiffeID+"2").String(), ".")
		f.Set("WebIdentityToken", good[0]+"."+other[1]+"."+good[2])
		return nil
	}, 400, "InvalidIdentityToken", notJWT},
	{"header changed", func(_ *testing.T, e *web, f url.Values) func() {
		good, other := strings.Split(e.token().String(), "."), strings.Split(e.token().head("typ", "at+jwt").String(), ".")
		f.Set("WebIdentityToken", other[0]+"."+good[1]+"."+good[2])
		return nil
	}, 400, "InvalidIdentityToken", notJWT},
	{"S18 unknown kid", jwt(func(k token) token { return k.head("kid", "other") }), 400, "InvalidIdentityToken", "Couldn't retrieve verification key"},
	{"no kid", jwt(func(k token) token { return k.head("kid", "") }), 400, "InvalidIdentityToken", "Couldn't retrieve verification key"},
}

const noProvider = "No OpenIDConnect provider found in your account for "

func claim(name string, v any) func(*testing.T, *web, url.Values) func() {
	return jwt(func(k token) token { return k.with(name, v) })
}

func noClaim(name string) func(*testing.T, *web, url.Values) func() {
	return jwt(func(k token) token { return k.without(name) })
}

// number writes a claim of the payload as that text.
func number(name, text string) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, e *web, f url.Values) func() {
		k := e.token()
		c := map[string]string{"iat": fmt.Sprint(k.claims["iat"]), "exp": fmt.Sprint(k.claims["exp"])}
		c[name] = text
		k.raw = fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"iat":%s,"exp":%s}`, issuerURL, spiffeID, audience, c["iat"], c["exp"])
		f.Set("WebIdentityToken", k.String())
		return nil
	}
}

func offset(name string, d time.Duration) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, e *web, f url.Values) func() {
		f.Set("WebIdentityToken", e.token().with(name, e.Now().Add(d).Unix()).String())
		return nil
	}
}

var claimRows = []stsRow{
	{"S10 iss with a trailing slash", claim("iss", issuerURL+"/"), 400, "InvalidIdentityToken", noProvider + issuerURL + "/"},
	{"S10 iss in another case", claim("iss", strings.ToUpper(issuerURL)), 400, "InvalidIdentityToken", noProvider},
	{"S10 iss of another account's provider", claim("iss", "https://other.example.org"), 400, "InvalidIdentityToken", noProvider},
	{"no iss", noClaim("iss"), 400, "InvalidIdentityToken", "Missing a required claim: iss."},
	{"S12 two audiences", claim("aud", []string{audience, "client"}), 400, "InvalidIdentityToken", "audiences"},
	{"azp that is not registered", claim("azp", "stranger"), 400, "InvalidIdentityToken", "Incorrect token audience"},
	{"another audience", claim("aud", "api://AzureADTokenExchange"), 400, "InvalidIdentityToken", "Incorrect token audience"},
	{"audience in another case", claim("aud", "STS.amazonaws.com"), 400, "InvalidIdentityToken", "Incorrect token audience"},
	{"no aud", noClaim("aud"), 400, "InvalidIdentityToken", "Missing a required claim: aud."},
	{"S13 no sub", noClaim("sub"), 400, "InvalidIdentityToken", "Missing a required claim: sub."},
	{"S13 sub of 5", claim("sub", "12345"), 400, "InvalidIdentityToken", "sub"},
	{"S13 sub of 256", claim("sub", strings.Repeat("x", 256)), 400, "InvalidIdentityToken", "sub"},
	{"S13 no iat", noClaim("iat"), 400, "InvalidIdentityToken", "Missing a required claim: iat."},
	{"S13 no exp", noClaim("exp"), 400, "InvalidIdentityToken", "Missing a required claim: exp."},
	{"S14 exp as fraction", number("exp", "1795262500.0"), 400, "InvalidIdentityToken", "exp"},
	{"S14 exp in scientific notation", number("exp", "1.7952625e9"), 400, "InvalidIdentityToken", "exp"},
	{"iat in scientific notation", number("iat", "1.7e9"), 400, "InvalidIdentityToken", "iat"},
	{"exp as text", claim("exp", "1795262500"), 400, "InvalidIdentityToken", "exp"},
	{"S15 expired 1 s ago", offset("exp", -time.Second), 400, "ExpiredTokenException", "Token expired: current date/time 1795262400 must be before the expiration date/time 1795262399"},
	{"expires now", offset("exp", 0), 400, "ExpiredTokenException", "Token expired"},
	{"nbf ahead", offset("nbf", time.Second), 400, "InvalidIdentityToken", "nbf"},
	{"nbf as text", claim("nbf", "0"), 400, "InvalidIdentityToken", "nbf"},
	{"iat ahead", offset("iat", time.Second), 400, "InvalidIdentityToken", "iat"},
	{"amr that is no list", claim("amr", "pwd"), 400, "InvalidIdentityToken", "amr"},
	{"S24 source identity with /", claim("https://aws.amazon.com/source_identity", "a/b"), 400, "InvalidIdentityToken", "source identity"},
	{"source identity of 1", claim("https://aws.amazon.com/source_identity", "a"), 400, "InvalidIdentityToken", "source identity"},
	{"tags that are no object", claim("https://aws.amazon.com/tags", "x"), 400, "InvalidIdentityToken", "tags"},
	{"tag with two values", claim("https://aws.amazon.com/tags", map[string]any{"principal_tags": map[string]any{"Team": []string{"a", "b"}}}), 400, "InvalidIdentityToken", "tags"},
	{"tag of AWS", claim("https://aws.amazon.com/tags", map[string]any{"principal_tags": map[string]any{"aws:x": []string{"a"}}}), 400, "InvalidIdentityToken", "tags"},
	{"tag whose key is too long", claim("https://aws.amazon.com/tags", map[string]any{"principal_tags": map[string]any{strings.Repeat("k", 129): []string{"a"}}}), 400, "InvalidIdentityToken", "tags"},
	{"transitive key without tag", claim("https://aws.amazon.com/tags", map[string]any{
		"principal_tags": map[string]any{"Team": []string{"a"}}, "transitive_tag_keys": []string{"Project"}}), 400, "InvalidIdentityToken", "tags"},
	{"tags in flattened form", claim("https://aws.amazon.com/tags/principal_tags/Team", "a"), 400, "InvalidIdentityToken", "not supported"},
}

// served makes a row's change to what the issuer serves, an hour later, when
// nothing of it is cached any more.
func served(f func(*issuer)) func(*testing.T, *web, url.Values) func() {
	return func(_ *testing.T, e *web, form url.Values) func() {
		e.issuer.set(func(i *issuer) {
			f(i)
		})
		e.Add(time.Hour)
		form.Set("WebIdentityToken", e.token().String())
		return func() {
			e.issuer.set(func(i *issuer) {
				i.status, i.document["issuer"], i.keys = http.StatusOK, issuerURL, []map[string]any{jwk("rs", rsaKey().Public())}
			})
			e.Add(time.Minute)
		}
	}
}

const noKey = "Couldn't retrieve verification key from your identity provider"

var issuerRows = []stsRow{
	{"S18 key removed, cache expired", served(func(i *issuer) { i.keys = []map[string]any{jwk("next", rsaKey().Public())} }), 400, "InvalidIdentityToken", noKey},
	{"S19 answers 500", served(func(i *issuer) { i.status = 500 }), 400, "InvalidIdentityToken", noKey},
	{"S19 discovery names another issuer", served(func(i *issuer) { i.document["issuer"] = issuerURL + "/" }), 400, "InvalidIdentityToken", noKey},
	{"RSA key of 1024 bits", func(t *testing.T, e *web, form url.Values) func() {
		undo := served(func(i *issuer) { i.keys = append(i.keys, jwk("small", smallRSA().Public())) })(t, e, form)
		k := e.token().head("kid", "small")
		k.key = smallRSA()
		form.Set("WebIdentityToken", k.String())
		return undo
	}, 400, "InvalidIdentityToken", notJWT},
	{"more than 100 EC keys", served(func(i *issuer) {
		for n := range 101 {
			i.keys = append(i.keys, jwk(fmt.Sprint(n), ecKey().Public()))
		}
	}), 400, "InvalidIdentityToken", noKey},
	{"more than 100 RSA keys", served(func(i *issuer) {
		for n := range 100 {
			i.keys = append(i.keys, jwk(fmt.Sprint(n), rsaKey().Public()))
		}
	}), 400, "InvalidIdentityToken", noKey},
}

// trust makes a row's change to the trust policy.
func trust(old, new string) func(*testing.T, *web, url.Values) func() {
	return func(t *testing.T, e *web, _ url.Values) func() {
		r := e.role
		if r.TrustPolicy = strings.Replace(r.TrustPolicy, old, new, 1); r.TrustPolicy == e.role.TrustPolicy {
			t.Fatalf("%q is not in the policy", old)
		}
		must(t, e.cloud.PutRole(r))
		return func() { must(t, e.cloud.PutRole(e.role)) }
	}
}

const notAuthorized = "Not authorized to perform sts:AssumeRoleWithWebIdentity"

var authorizationRows = []stsRow{
	{"no such role", set("RoleArn", roleARN+"2"), 403, "AccessDenied", notAuthorized},
	{"role of another account", set("RoleArn", strings.Replace(roleARN, account, "000000000000", 1)), 403, "AccessDenied", notAuthorized},
	{"role by name without path", set("RoleArn", "arn:aws:iam::123456789012:role/orders"), 403, "AccessDenied", notAuthorized},
	{"another principal", trust("oidc-provider/id.example.org/main", "oidc-provider/id.example.org"), 403, "AccessDenied", notAuthorized},
	{"another action", trust("sts:AssumeRoleWithWebIdentity", "sts:AssumeRole"), 403, "AccessDenied", notAuthorized},
	{"another subject", claim("sub", spiffeID+"2"), 403, "AccessDenied", notAuthorized},
	{"another registered audience", claim("aud", "client"), 403, "AccessDenied", notAuthorized},
	{"S22 condition on a custom claim", func(t *testing.T, e *web, f url.Values) func() {
		f.Set("WebIdentityToken", e.token().with("spiffe_claim", "x").String())
		return trust("id.example.org/main:sub\":\""+spiffeID, "id.example.org/main:spiffe_claim\":\"x")(t, e, f)
	}, 403, "AccessDenied", notAuthorized},
	{"S23 tags without sts:TagSession", claim("https://aws.amazon.com/tags",
		map[string]any{"principal_tags": map[string]any{"Team": []string{"x"}}}), 403, "AccessDenied", notAuthorized},
	{"source identity without sts:SetSourceIdentity", claim("https://aws.amazon.com/source_identity", "ana"), 403, "AccessDenied", notAuthorized},
	{"explicit deny", trust(`"Statement":[`, `"Statement":[{"Effect":"Deny","Principal":"*","Action":"sts:*",
		"Condition":{"StringLike":{"id.example.org/main:sub":"spiffe://*"}}},`), 403, "AccessDenied", notAuthorized},
}

// S19 and S20: an issuer that cannot be reached in time or not be trusted.
func TestWebIdentityIssuerOutOfReach(t *testing.T) {
	t.Run("down", func(t *testing.T) {
		e := newWeb(t)
		e.issuer.Close()
		wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", noKey)
	})
	t.Run("slow", func(t *testing.T) {
		e := newWeb(t, func(cfg *aws.Config) { cfg.FetchTimeout = 20 * time.Millisecond })
		e.issuer.set(func(i *issuer) { i.hang = true })
		wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", noKey)
	})
	t.Run("not trusted", func(t *testing.T) {
		e := newWeb(t, func(cfg *aws.Config) { cfg.Roots = x509.NewCertPool() })
		wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", noKey)
	})
	// The certificate of the CA is not among what the server sends: its
	// thumbprint could not be seen, but the leaf's is.
	t.Run("S20 another thumbprint", func(t *testing.T) {
		e := newWeb(t, func(cfg *aws.Config) {
			cfg.Roots, cfg.OIDCProviders[0].Thumbprints = nil, []string{strings.Repeat("0", 40)}
		})
		wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", "doesn't match configured thumbprint")
		must(t, e.cloud.PutOIDCProvider(aws.OIDCProvider{URL: issuerURL, ClientIDs: []string{audience}, Thumbprints: []string{e.issuer.thumbprint()}}))
		e.wantCredential(t)
	})
	t.Run("S20 its thumbprint, another name", func(t *testing.T) {
		e := newWeb(t, func(cfg *aws.Config) { cfg.Roots = nil })
		other := "https://other.example.org/main"
		must(t, e.cloud.PutOIDCProvider(aws.OIDCProvider{URL: other, ClientIDs: []string{audience}, Thumbprints: []string{e.issuer.thumbprint()}}))
		wantError(t, e.post(e.form(e.token().with("iss", other))), 400, "InvalidIdentityToken", "doesn't match configured thumbprint")
	})
	t.Run("thumbprint beside a root", func(t *testing.T) {
		e := newWeb(t, func(cfg *aws.Config) { cfg.OIDCProviders[0].Thumbprints = []string{strings.Repeat("0", 40)} })
		e.wantCredential(t)
	})
	for name, bad := range map[string][]string{"upper case": {strings.Repeat("A", 40)}, "SHA-256": {strings.Repeat("a", 64)}, "six": slices.Repeat([]string{strings.Repeat("a", 40)}, 6)} {
		if err := newWeb(t).cloud.PutOIDCProvider(aws.OIDCProvider{URL: issuerURL, Thumbprints: bad}); err == nil {
			t.Errorf("thumbprints in %s are taken", name)
		}
	}
	t.Run("provider removed", func(t *testing.T) {
		e := newWeb(t)
		e.wantCredential(t)
		must(t, e.cloud.RemoveOIDCProvider(issuerURL))
		wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", noProvider)
		must(t, e.cloud.PutOIDCProvider(aws.OIDCProvider{URL: issuerURL, ClientIDs: []string{audience}}))
		e.wantCredential(t)
	})
}

// Keys are believed for an hour: a removed one verifies until then, and fetches
// are not made for each token.
func TestWebIdentityKeyCache(t *testing.T) {
	e := newWeb(t)
	e.wantCredential(t)
	e.issuer.set(func(i *issuer) { i.keys = []map[string]any{jwk("next", rsaKey().Public())} })
	e.Add(time.Hour - time.Second)
	e.wantCredential(t)
	e.issuer.set(func(i *issuer) {
		if i.fetches != 1 {
			t.Errorf("%d fetches", i.fetches)
		}
	})
	e.Add(time.Second)
	wantError(t, e.post(e.form(e.token())), 400, "InvalidIdentityToken", noKey)
}

func TestWebIdentityLeeway(t *testing.T) {
	e := newWeb(t, func(cfg *aws.Config) { cfg.JWTLeeway = 5 * time.Minute })
	exp := func(d time.Duration) *httptest.ResponseRecorder {
		return e.post(e.form(e.token().with("exp", e.Now().Add(d).Unix())))
	}
	if w := exp(-299 * time.Second); w.Code != http.StatusOK {
		t.Errorf("299 s past: %s", w.Body)
	}
	wantError(t, exp(-300*time.Second), 400, "ExpiredTokenException", "")
	if w := e.post(e.form(e.token().with("nbf", e.Now().Add(300*time.Second).Unix()))); w.Code != http.StatusOK {
		t.Errorf("nbf at the leeway: %s", w.Body)
	}
}

// What is just within the limits passes.
func TestWebIdentityTakes(t *testing.T) {
	trusted := strings.Replace(webPolicy, `"id.example.org/main:sub":"`+spiffeID+`",`, "", 1)
	for name, change := range map[string]func(*web, url.Values){
		"sub of 6": func(e *web, f url.Values) { f.Set("WebIdentityToken", e.token().with("sub", "123456").String()) },
		"sub of 255": func(e *web, f url.Values) {
			f.Set("WebIdentityToken", e.token().with("sub", strings.Repeat("x", 255)).String())
		},
		"a second left": func(e *web, f url.Values) {
			f.Set("WebIdentityToken", e.token().with("exp", e.Now().Unix()+1).String())
		},
		"nbf now":    func(e *web, f url.Values) { f.Set("WebIdentityToken", e.token().with("nbf", e.Now().Unix()).String()) },
		"name of 64": func(_ *web, f url.Values) { f.Set("RoleSessionName", strings.Repeat("x", 64)) },
		"900 s":      func(_ *web, f url.Values) { f.Set("DurationSeconds", "900") },
		"aud in a list": func(e *web, f url.Values) {
			f.Set("WebIdentityToken", e.token().with("aud", []string{audience}).String())
		},
	} {
		e := newWeb(t)
		e.role.TrustPolicy = trusted
		must(t, e.cloud.PutRole(e.role))
		f := e.form(e.token())
		change(e, f)
		if w := e.post(f); w.Code != http.StatusOK {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
}

// ecKey is one P-384 key for the whole test binary, smallRSA one of 1024 bits.
var (
	ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			panic(err)
		}
		return k
	})
	smallRSA = sync.OnceValue(func() *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			panic(err)
		}
		return k
	})
)

func TestWebIdentityAlgorithms(t *testing.T) {
	e := newWeb(t)
	for alg, curve := range map[string]elliptic.Curve{"RS256": nil, "RS384": nil, "RS512": nil,
		"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		t.Run(alg, func(t *testing.T) {
			k := e.token().head("alg", alg)
			if curve != nil {
				key := newKey(t, curve)
				e.issuer.set(func(i *issuer) { i.keys = append(i.keys, jwk(alg, key.Public())) })
				e.Add(time.Minute)
				k = e.token().head("alg", alg).head("kid", alg)
				k.key = key
			}
			if w := e.post(e.form(k)); w.Code != http.StatusOK {
				t.Error(w.Body)
			}
		})
	}
}

// S12: azp takes the place of aud, which becomes oaud.
func TestWebIdentityAuthorizedParty(t *testing.T) {
	e := newWeb(t)
	k := e.token().with("aud", []string{"one", "two"}).with("azp", "client")
	wantError(t, e.post(e.form(k)), 403, "AccessDenied", notAuthorized)
	trust(`"StringEquals":{`, `"ForAllValues:StringEquals":{"id.example.org/main:oaud":["one","two"]},"StringEquals":{`)(t, e, nil)
	r := e.role
	r.TrustPolicy = strings.Replace(webPolicy, `:aud":"sts.amazonaws.com"`, `:aud":"client"`, 1)
	must(t, e.cloud.PutRole(r))
	w := e.post(e.form(k))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<Audience>client</Audience>") {
		t.Error(w.Body)
	}
}

func TestWebIdentityTagsAndSourceIdentity(t *testing.T) {
	e := newWeb(t)
	trust(`["sts:AssumeRoleWithWebIdentity"]`, `["sts:AssumeRoleWithWebIdentity","sts:TagSession","sts:SetSourceIdentity"]`)(t, e, nil)
	k := e.token().with("https://aws.amazon.com/source_identity", "ana").with("https://aws.amazon.com/tags",
		map[string]any{"principal_tags": map[string]any{"Team": []string{"payments"}}, "transitive_tag_keys": []string{"Team"}})
	w := e.post(e.form(k))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<SourceIdentity>ana</SourceIdentity>") {
		t.Fatal(w.Body)
	}
	s := e.cloud.Sessions()[0]
	if diff := cmp.Diff(map[string]string{"Team": "payments"}, s.Tags); diff != "" || s.SourceIdentity != "ana" {
		t.Errorf("%+v %s", s, diff)
	}
}

func TestWebIdentityOutput(t *testing.T) {
	e := newWeb(t)
	f := e.form(e.token())
	f.Set("MinimumSessionTokenSize", "4096")
	w := e.post(f)
	var got struct {
		XMLName xml.Name
		Subject string `xml:"AssumeRoleWithWebIdentityResult>SubjectFromWebIdentityToken"`
		Arn     string `xml:"AssumeRoleWithWebIdentityResult>AssumedRoleUser>Arn"`
		ID      string `xml:"AssumeRoleWithWebIdentityResult>AssumedRoleUser>AssumedRoleId"`
		Key     string `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret  string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Token   string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
		Expires string `xml:"AssumeRoleWithWebIdentityResult>Credentials>Expiration"`
		Issuer  string `xml:"AssumeRoleWithWebIdentityResult>Provider"`
		Request string `xml:"ResponseMetadata>RequestId"`
	}
	must(t, xml.Unmarshal(w.Body.Bytes(), &got))
	if got.XMLName.Space != "https://sts.amazonaws.com/doc/2011-06-15/" || got.XMLName.Local != "AssumeRoleWithWebIdentityResponse" ||
		got.Subject != spiffeID || got.Arn != "arn:aws:sts::123456789012:assumed-role/orders/sess" ||
		!strings.HasPrefix(got.ID, "AROA") || !strings.HasSuffix(got.ID, ":sess") ||
		!strings.HasPrefix(got.Key, "ASIA") || len(got.Key) != 20 || len(got.Secret) != 40 || len(got.Token) < 4096 ||
		got.Expires != "2026-11-21T12:15:00Z" || got.Issuer != e.cloud.ProviderARN(issuerURL) || got.Request == "" {
		t.Errorf("%+v", got)
	}
	if _, err := base64.StdEncoding.DecodeString(got.Secret); err != nil {
		t.Error(err)
	}
}

// The record names what was refused and why, and holds no token.
func TestRecord(t *testing.T) {
	rec := sandbox.NewRecorder(10)
	e := newWeb(t, func(cfg *aws.Config) { cfg.Log = rec.Record })
	k := e.token().with("aud", "client").String()
	f := e.form(e.token())
	f.Set("WebIdentityToken", k)
	w := e.post(f)
	got := rec.Entries()[0]
	want := sandbox.Entry{Time: e.Now(), ID: w.Header().Get("X-Amzn-Requestid"), Service: "sts", Method: "POST", Path: "/",
		Status: 403, Code: "AccessDenied", Reason: "the trust policy of " + roleARN + " does not allow sts:AssumeRoleWithWebIdentity",
		Token:  sandbox.HashToken(k),
		Fields: map[string]string{"Action": "AssumeRoleWithWebIdentity", "RoleArn": roleARN, "RoleSessionName": "sess"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
