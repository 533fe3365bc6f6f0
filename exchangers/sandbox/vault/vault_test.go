package vault_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/openbao/openbao/api/v2"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	"github.com/credence-id/credence/exchangers/sandbox/vault"
)

const (
	audience = "https://bao.example"
	spiffeID = "spiffe://example.org/ns/shop/checkout"
)

type world struct {
	t        testing.TB
	issuer   *issuertest.Issuer
	ca       *issuertest.CA
	server   *vault.Server
	recorder *sandbox.Recorder
	now      time.Time
}

func newWorld(t testing.TB, changes ...func(*vault.Config)) *world {
	t.Helper()
	w := &world{t: t, issuer: issuertest.New(t), recorder: sandbox.NewRecorder(50), now: time.Now().Truncate(time.Second)}
	w.ca = issuertest.NewCA(t, "root", w.now, nil)
	cfg := w.config()
	for _, f := range changes {
		f(&cfg)
	}
	var err error
	if w.server, err = vault.New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) config() vault.Config {
	cert := &vault.Cert{Roles: []vault.CertRole{
		{Name: "other", Certificates: []*x509.Certificate{w.ca.Certificate}, AllowedURISANs: []string{"spiffe://example.org/ns/other/*"}},
		{Name: "checkout", Certificates: []*x509.Certificate{w.ca.Certificate}, AllowedURISANs: []string{spiffeID}, Token: vault.Token{TTL: 20 * time.Minute}},
	}}
	return vault.Config{
		Issuers: sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext},
		Mounts: []vault.Mount{
			{Path: "jwt", JWT: &vault.JWT{DiscoveryURL: issuertest.URL, SupportedAlgs: []string{"RS256"}, Roles: []vault.JWTRole{
				{Name: "checkout", BoundAudiences: []string{audience, "other"}, BoundSubject: spiffeID, UserClaim: "sub", Token: vault.Token{TTL: 20 * time.Minute, Policies: []string{"orders"}}},
				{Name: "shop", BoundAudiences: []string{audience}, BoundClaims: map[string][]string{"sub": {"spiffe://example.org/*/shop/*", "x"}, "team": {"payments"}}, Glob: true, UserClaim: "team"},
				{Name: "exact", BoundAudiences: []string{audience}, BoundClaims: map[string][]string{"sub": {"spiffe://example.org/ns/shop/*"}}, UserClaim: "sub"},
				{Name: "end", BoundAudiences: []string{audience}, BoundClaims: map[string][]string{"sub": {"spiffe://*/shop/*/api"}}, Glob: true, UserClaim: "sub"},
				{Name: "numbers", BoundAudiences: []string{audience}, BoundClaims: map[string][]string{"groups": {"7", "b"}}, UserClaim: "groups"},
			}}},
			{Path: "any/jwt", JWT: &vault.JWT{DiscoveryURL: issuertest.URL, BoundIssuer: "https://example.com/", Roles: []vault.JWTRole{
				{Name: "checkout", BoundAudiences: []string{audience}, BoundSubject: spiffeID, UserClaim: "sub"}}}},
			{Path: "cert", Cert: cert},
			{Namespace: "team/shop", Path: "spiffe/cert", Cert: cert},
		},
		Now: func() time.Time { return w.now }, Log: w.recorder.Record,
	}
}

// token is a JWT that role checkout takes, with changes.
func (w *world) token(changes map[string]any) string {
	w.t.Helper()
	claims := map[string]any{"iss": issuertest.URL, "sub": spiffeID, "aud": []string{audience}, "iat": w.now.Unix(), "exp": w.now.Add(5 * time.Minute).Unix(), "team": "payments", "groups": []any{"a", 7}}
	return issuertest.Sign(w.t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, changes))
}

// leaf is a certificate that role checkout takes, with changes.
func (w *world) leaf(changes ...func(*x509.Certificate)) *x509.Certificate {
	named := func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "checkout"} }
	return w.ca.Issue(w.t, spiffeID, w.now, issuertest.EC().Public(), append([]func(*x509.Certificate){named}, changes...)...)
}

type call struct {
	method, path, namespace, body, token string
	chain                                []*x509.Certificate
	plain                                bool // no TLS
}

// do returns the status, the answer and the refusal's text.
func (w *world) do(c call) (int, map[string]any, string) {
	w.t.Helper()
	r := httptest.NewRequest(c.method, "https://bao.example/v1/"+c.path, strings.NewReader(c.body))
	r.TLS.PeerCertificates = c.chain
	if c.plain {
		r.TLS = nil
	}
	if c.namespace != "" {
		r.Header.Set("X-Vault-Namespace", c.namespace)
	}
	if c.token != "" {
		r.Header.Set("X-Vault-Token", c.token)
	}
	rec := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(rec, r)
	if rec.Code == http.StatusNoContent {
		return rec.Code, nil, ""
	}
	var got map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		w.t.Fatalf("%v: %s", err, rec.Body)
	}
	if rec.Code == http.StatusOK {
		return rec.Code, got, ""
	}
	list, _ := got["errors"].([]any)
	if len(list) != 1 || len(got) != 1 || rec.Header().Get("Content-Type") != "application/json" {
		w.t.Fatalf("not a refusal of these servers: %d %s", rec.Code, rec.Body)
	}
	return rec.Code, nil, list[0].(string)
}

func (w *world) jwt(role, token string) call {
	body, _ := json.Marshal(map[string]string{"role": role, "jwt": token})
	return call{method: "POST", path: "auth/jwt/login", body: string(body)}
}

func (w *world) cert(name string, chain ...*x509.Certificate) call {
	body, _ := json.Marshal(map[string]string{"name": name})
	return call{method: "PUT", path: "auth/cert/login", body: string(body), chain: chain}
}

// in logs in.
func (w *world) in(c call) (token string, auth map[string]any) {
	w.t.Helper()
	status, got, text := w.do(c)
	if status != http.StatusOK {
		w.t.Fatalf("%s: %d %s", c.path, status, text)
	}
	auth = got["auth"].(map[string]any)
	return auth["client_token"].(string), auth
}

func TestLogins(t *testing.T) {
	w := newWorld(t)
	elsewhere := w.cert("checkout", w.leaf())
	elsewhere.path, elsewhere.namespace = "auth/spiffe/cert/login", "team/shop/"
	inPath := w.cert("checkout", w.leaf())
	inPath.path = "team/shop/auth/spiffe/cert/login"
	half := w.cert("checkout", w.leaf())
	half.path, half.namespace = "shop/auth/spiffe/cert/login", "team"
	other := w.jwt("checkout", issuertest.Sign(t, issuertest.EC(), "ES256", map[string]any{"kid": "ec1"},
		map[string]any{"iss": "https://example.com/", "sub": spiffeID, "aud": audience, "iat": w.now.Unix(), "exp": w.now.Unix() + 60}))
	other.path = "auth/any/jwt/login"
	intermediate := issuertest.NewCA(t, "intermediate", w.now, w.ca)
	below := intermediate.Issue(t, spiffeID, w.now, issuertest.EC().Public(), func(c *x509.Certificate) { c.Subject.CommonName = "checkout" })
	const short, long = 1200.0, 768 * 3600.0
	for name, row := range map[string]struct {
		call
		namespace, display string
		life               float64
	}{
		"jwt":                   {w.jwt("checkout", w.token(nil)), "", "jwt-" + spiffeID, short},
		"a second audience":     {w.jwt("checkout", w.token(map[string]any{"aud": []string{"x", audience}})), "", "jwt-" + spiffeID, short},
		"globs":                 {w.jwt("shop", w.token(nil)), "", "jwt-payments", long},
		"glob to the end":       {w.jwt("end", w.token(map[string]any{"sub": spiffeID + "/api"})), "", "jwt-" + spiffeID + "/api", long},
		"another bound issuer":  {other, "", "any/jwt-" + spiffeID, long},
		"cert":                  {w.cert("checkout", w.leaf()), "", "cert-checkout", short},
		"cert without a name":   {w.cert("", w.leaf()), "", "cert-checkout", short},
		"below an intermediate": {w.cert("checkout", below, intermediate.Certificate), "", "cert-checkout", short},
		"namespace":             {elsewhere, "team/shop", "spiffe/cert-checkout", short}, "namespace in the path": {inPath, "team/shop", "spiffe/cert-checkout", short},
		"namespace in both": {half, "team/shop", "spiffe/cert-checkout", short},
	} {
		t.Run(name, func(t *testing.T) {
			token, auth := w.in(row.call)
			if auth["lease_duration"] != row.life || auth["accessor"] == "" || auth["renewable"] != false {
				t.Errorf("%v", auth)
			}
			self := call{method: "GET", path: "auth/token/lookup-self", namespace: row.namespace, token: token}
			status, got, text := w.do(self)
			if status != http.StatusOK {
				t.Fatalf("lookup-self: %d %s", status, text)
			}
			data := got["data"].(map[string]any)
			if data["display_name"] != row.display || data["ttl"] != row.life || data["id"] != token {
				t.Errorf("%v", data)
			}
			began := w.now
			defer func() { w.now = began }()
			w.now = began.Add(time.Duration(row.life)*time.Second - time.Second)
			if status, _, text := w.do(self); status != http.StatusOK {
				t.Errorf("a second before its end: %d %s", status, text)
			}
			w.now = w.now.Add(time.Second)
			if status, _, text := w.do(self); status != http.StatusForbidden || text != "permission denied" {
				t.Errorf("at its end: %d %s", status, text)
			}
		})
	}
	if b, _ := json.Marshal(w.recorder.Entries()); strings.Contains(string(b), "eyJ") || strings.Contains(string(b), `"s.`) || !strings.Contains(string(b), `"role":"checkout"`) {
		t.Errorf("the record: %s", b)
	}
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	token, _ := w.in(w.jwt("checkout", w.token(nil)))
	self := call{method: "GET", path: "auth/token/lookup-self", token: token}
	with := func(f func(*call)) call {
		c := self
		f(&c)
		return c
	}
	for name, row := range map[string]struct {
		call
		status int
	}{
		"it":                    {self, 200},
		"by POST":               {with(func(c *call) { c.method = "POST" }), 200},
		"another":               {with(func(c *call) { c.token += "x" }), 403},
		"none":                  {with(func(c *call) { c.token = "" }), 403},
		"in another namespace":  {with(func(c *call) { c.namespace = "team/shop" }), 403},
		"of a namespace's path": {with(func(c *call) { c.path = "team/shop/" + c.path }), 403},
		"another call":          {with(func(c *call) { c.path = "auth/token/create" }), 403},
		"a mount of its name":   {with(func(c *call) { c.path = "xauth/token/lookup-self" }), 403},
		"DELETE":                {with(func(c *call) { c.method = "DELETE" }), 405},
		"revoke by GET":         {with(func(c *call) { c.path = "auth/token/revoke-self" }), 405},
	} {
		if status, _, text := w.do(row.call); status != row.status {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	if status, _, text := w.do(with(func(c *call) { c.method, c.path = "PUT", "auth/token/revoke-self" })); status != 204 {
		t.Errorf("revoked: %d %s", status, text)
	}
	if status, _, _ := w.do(self); status != 403 {
		t.Errorf("after it: %d", status)
	}
}

func TestJWTLoginRefuses(t *testing.T) {
	const (
		validating = "error validating token: "
		signature  = validating + "error verifying token signature: failed to verify id token signature"
		iss        = validating + "invalid issuer (iss) claim"
		aud        = validating + "invalid audience (aud) claim: audience claim does not match any expected audience"
		timeless   = validating + "no issued at (iat), not before (nbf), or expiration time (exp) claims in token"
	)
	claim := func(name string, v any) func(*world) call {
		return func(w *world) call { return w.jwt("checkout", w.token(map[string]any{name: v})) }
	}
	role := func(name string, changes map[string]any) func(*world) call {
		return func(w *world) call { return w.jwt(name, w.token(changes)) }
	}
	body := func(text string) func(*world) call {
		return func(w *world) call { return call{method: "POST", path: "auth/jwt/login", body: text} }
	}
	for name, row := range map[string]struct {
		make   func(*world) call
		status int
		text   string
	}{
		"no JSON":           {body("role=checkout"), 400, "failed to parse JSON input"},
		"parameter twice":   {body(`{"role":"checkout","role":"shop","jwt":"x"}`), 400, "failed to parse JSON input"},
		"role is a number":  {body(`{"role":7,"jwt":"x"}`), 400, `Field validation failed: error converting input for field "role"`},
		"no role":           {body(`{"jwt":"x"}`), 400, "missing role"},
		"another case":      {body(`{"Role":"checkout","jwt":"x"}`), 400, "missing role"},
		"no token":          {body(`{"role":"checkout"}`), 400, "missing token"},
		"another role":      {role("stock", nil), 400, `role "stock" could not be found`},
		"no JWT":            {body(`{"role":"checkout","jwt":"x"}`), 400, validating + "error verifying token signature: malformed jwt"},
		"by GET":            {func(w *world) call { c := w.jwt("checkout", w.token(nil)); c.method = "GET"; return c }, 405, "unsupported operation"},
		"another mount":     {func(w *world) call { c := w.jwt("checkout", w.token(nil)); c.path = "auth/oidc/login"; return c }, 403, "permission denied"},
		"another namespace": {func(w *world) call { c := w.jwt("checkout", w.token(nil)); c.namespace = "team"; return c }, 403, "permission denied"},
		"iss with slash":    {claim("iss", issuertest.URL+"/"), 400, iss},
		"no iss":            {claim("iss", nil), 400, iss},
		"neighbour":         {claim("sub", spiffeID+"/2"), 400, validating + "invalid subject (sub) claim"},
		"no sub":            {claim("sub", nil), 400, validating + "invalid subject (sub) claim"},
		"aud with slash":    {claim("aud", audience+"/"), 400, aud},
		"aud in upper case": {claim("aud", strings.ToUpper(audience)), 400, aud},
		"no aud":            {claim("aud", nil), 400, aud},
		"aud is no text":    {claim("aud", []any{7}), 400, aud},
		"no exp":            {claim("exp", nil), 400, timeless},
		"no iat":            {claim("iat", nil), 400, timeless},
		"exp is no number":  {claim("exp", "1900000000"), 400, timeless},
		"expired":           {func(w *world) call { return w.jwt("checkout", w.token(map[string]any{"exp": w.now.Unix() - 61})) }, 400, validating + "invalid expiration time (exp) claim: token is expired"},
		"not yet":           {func(w *world) call { return w.jwt("checkout", w.token(map[string]any{"nbf": w.now.Unix() + 61})) }, 400, validating + "invalid not before (nbf) claim: token not yet valid"},
		"made in the future": {func(w *world) call {
			return w.jwt("checkout", w.token(map[string]any{"nbf": w.now.Unix(), "iat": w.now.Unix() + 61}))
		}, 400, validating + "invalid issued at (iat) claim: token issued in the future"},
		"ES256, not supported": {func(w *world) call {
			return w.jwt("checkout", issuertest.Sign(t, issuertest.EC(), "ES256", map[string]any{"kid": "ec1"}, map[string]any{"iss": issuertest.URL}))
		}, 400, validating + "invalid algorithm (alg) header parameter: token signed with unexpected algorithm"},
		"HS256": {func(w *world) call {
			return w.jwt("checkout", issuertest.Sign(t, issuertest.RSA(), "HS256", nil, map[string]any{"iss": issuertest.URL}))
		}, 400, signature},
		"unknown kid": {func(w *world) call {
			return w.jwt("checkout", issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": "k2"}, map[string]any{"iss": issuertest.URL}))
		}, 400, signature},
		"no kid": {func(w *world) call {
			return w.jwt("checkout", issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": nil}, map[string]any{"iss": issuertest.URL}))
		}, 400, signature},
		"payload changed": {func(w *world) call {
			a, b := strings.Split(w.token(nil), "."), strings.Split(w.token(map[string]any{"sub": "x"}), ".")
			return w.jwt("checkout", a[0]+"."+b[1]+"."+a[2])
		}, 400, signature},
		"key for encryption": {func(w *world) call {
			jwk := issuertest.JWK("k1", issuertest.RSA().Public())
			jwk["use"] = "enc"
			w.issuer.SetKeys(issuertest.JSON(t, issuertest.KeySet(jwk)))
			return w.jwt("checkout", w.token(nil))
		}, 400, signature},
		"bound claim":             {role("shop", map[string]any{"team": "billing"}), 400, `error validating claims: claim "team" does not match any associated bound claim values`},
		"bound claim is missing":  {role("numbers", map[string]any{"groups": nil, "x": 1}), 400, `claim "groups" not found in token`},
		"glob is of the whole":    {role("shop", map[string]any{"sub": "x-spiffe://example.org/ns/shop/a"}), 400, `error validating claims: claim "sub" does not match any associated bound claim values`},
		"glob to the end":         {role("end", map[string]any{"sub": spiffeID + "/api/x"}), 400, `error validating claims: claim "sub" does not match any associated bound claim values`},
		"a star is no glob there": {role("exact", nil), 400, `error validating claims: claim "sub" does not match any associated bound claim values`},
		"no user claim":           {role("shop", map[string]any{"team": nil}), 400, `claim "team" not found in token`},
		"user claim is no text":   {role("numbers", nil), 400, `claim "groups" could not be converted to string`},
		"issuer down": {func(w *world) call {
			w.issuer.SetDiscovery(issuertest.Status(503))
			w.server.Issuers().Forget()
			return w.jwt("checkout", w.token(nil))
		}, 400, "error configuring token validator: error fetching the keys of oidc_discovery_url"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if status, _, text := w.do(row.make(w)); status != row.status || text != row.text {
				t.Errorf("%d %s", status, text)
			}
			w.issuer.Reset(t)
			w.server.Issuers().Forget()
			if status, _, text := w.do(w.jwt("checkout", w.token(nil))); status != 200 {
				t.Errorf("the good request: %d %s", status, text)
			}
		})
	}
}

func TestCertLoginRefuses(t *testing.T) {
	const unknown, constraints = "invalid certificate or no client certificate supplied", "no chain matching all constraints could be found for this login certificate"
	stranger := func(w *world) *x509.Certificate {
		ca := issuertest.NewCA(t, "root", w.now, nil, func(c *x509.Certificate) { c.Subject.CommonName = "stranger" })
		return ca.Issue(t, spiffeID, w.now, issuertest.EC().Public())
	}
	for name, row := range map[string]struct {
		make   func(*world) call
		status int
		text   string
	}{
		"no TLS":         {func(w *world) call { c := w.cert("checkout"); c.plain = true; return c }, 400, "tls connection required"},
		"no certificate": {func(w *world) call { return w.cert("checkout") }, 400, "client certificate must be supplied"},
		"another CA":     {func(w *world) call { return w.cert("checkout", stranger(w)) }, 400, unknown},
		"no such role":   {func(w *world) call { return w.cert("stock", w.leaf()) }, 400, unknown},
		"another role":   {func(w *world) call { return w.cert("other", w.leaf()) }, 400, constraints},
		"neighbour": {func(w *world) call {
			return w.cert("checkout", w.ca.Issue(t, spiffeID+"/2", w.now, issuertest.EC().Public()))
		}, 400, constraints},
		"no URI": {func(w *world) call {
			return w.cert("", w.leaf(func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"a"} }))
		}, 400, constraints},
		"no CN": {func(w *world) call {
			return w.cert("checkout", w.leaf(func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"a"}} }))
		}, 500, "missing name in alias"},
		"for servers": {func(w *world) call {
			return w.cert("checkout", w.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))
		}, 500, "failed to verify client's certificate: x509: certificate specifies an incompatible key usage"},
		"expired": {func(w *world) call {
			return w.cert("checkout", w.leaf(func(c *x509.Certificate) { c.NotAfter = w.now.Add(-time.Second) }))
		}, 500, "failed to verify client's certificate: x509: certificate has expired or is not yet valid"},
		"name is no text": {func(w *world) call { c := w.cert("", w.leaf()); c.body = `{"name":true}`; return c }, 400, `Field validation failed: error converting input for field "name"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if status, _, text := w.do(row.make(w)); status != row.status || !strings.HasPrefix(text, row.text) {
				t.Errorf("%d %s", status, text)
			}
			if status, _, text := w.do(w.cert("checkout", w.leaf())); status != 200 {
				t.Errorf("the good request: %d %s", status, text)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*vault.Config){
		"neither":               func(c *vault.Config) { c.Mounts[0].JWT = nil },
		"both":                  func(c *vault.Config) { c.Mounts[0].Cert = c.Mounts[2].Cert },
		"twice":                 func(c *vault.Config) { c.Mounts = append(c.Mounts, c.Mounts[0]) },
		"twice, said otherwise": func(c *vault.Config) { c.Mounts[2].Path = "jwt" },
		"path":                  func(c *vault.Config) { c.Mounts[0].Path = "/jwt" },
		"namespace":             func(c *vault.Config) { c.Mounts[0].Namespace = "team/" },
		"issuer":                func(c *vault.Config) { c.Mounts[0].JWT.DiscoveryURL = "http://example.com" },
		"algorithm":             func(c *vault.Config) { c.Mounts[0].JWT.SupportedAlgs = []string{"HS256"} },
		"role twice":            func(c *vault.Config) { c.Mounts[0].JWT.Roles[1].Name = "checkout" },
		"role without a name":   func(c *vault.Config) { c.Mounts[0].JWT.Roles[1].Name = "" },
		"no audience":           func(c *vault.Config) { c.Mounts[0].JWT.Roles[0].BoundAudiences = nil },
		"no subject":            func(c *vault.Config) { c.Mounts[0].JWT.Roles[0].BoundSubject = "" },
		"no user claim":         func(c *vault.Config) { c.Mounts[0].JWT.Roles[0].UserClaim = "" },
		"claim without values":  func(c *vault.Config) { c.Mounts[0].JWT.Roles[1].BoundClaims = map[string][]string{"sub": nil} },
		"life":                  func(c *vault.Config) { c.Mounts[0].JWT.Roles[0].Token.TTL = time.Millisecond },
		"life of cert":          func(c *vault.Config) { c.Mounts[2].Cert.Roles[0].Token.TTL = -time.Second },
		"no CA":                 func(c *vault.Config) { c.Mounts[2].Cert.Roles[0].Certificates = nil },
		"no URIs":               func(c *vault.Config) { c.Mounts[2].Cert.Roles[0].AllowedURISANs = nil },
		"cert role twice":       func(c *vault.Config) { c.Mounts[2].Cert.Roles[0].Name = "checkout" },
	} {
		w := newWorld(t)
		cfg := w.config()
		change(&cfg)
		if _, err := vault.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	w := newWorld(t)
	cfg := w.config()
	cfg.Mounts[2].Cert.Roles[0].Certificates = []*x509.Certificate{w.leaf()}
	if _, err := vault.New(cfg); err == nil {
		t.Error("a leaf is a CA")
	}
}

// Headers that stand twice are of two minds.
func TestHeadersStandOnce(t *testing.T) {
	w := newWorld(t)
	token, _ := w.in(w.jwt("checkout", w.token(nil)))
	for name, status := range map[string]int{"X-Vault-Token": 403, "X-Vault-Namespace": 404, "X-Other": 200} {
		r := httptest.NewRequest("GET", "https://bao.example/v1/auth/token/lookup-self", nil)
		r.Header.Set("X-Vault-Token", token)
		if name != "X-Vault-Token" {
			r.Header.Add(name, "")
		}
		r.Header.Add(name, token)
		rec := httptest.NewRecorder()
		w.server.Handler().ServeHTTP(rec, r)
		if rec.Code != status {
			t.Errorf("%s twice: %d %s", name, rec.Code, rec.Body)
		}
	}
}

// Tokens that live are bounded; those that have ended make room.
func TestTokensAreBounded(t *testing.T) {
	w := newWorld(t)
	login := w.jwt("checkout", w.token(map[string]any{"exp": w.now.Add(time.Hour).Unix()}))
	for range 4_000 {
		w.in(login)
	}
	if status, _, text := w.do(login); status != 503 || text != "too many tokens live" {
		t.Errorf("one more: %d %s", status, text)
	}
	w.now = w.now.Add(20 * time.Minute)
	if status, _, text := w.do(login); status != 200 {
		t.Errorf("when they have ended: %d %s", status, text)
	}
}

// OpenBao's own client logs in both ways, looks at its token, and understands
// what is refused.
func TestOpenBaoClient(t *testing.T) {
	w := newWorld(t)
	s := httptest.NewUnstartedServer(w.server.Handler())
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	client := func(namespace string, chain ...*x509.Certificate) *api.Client {
		cfg := api.DefaultConfig()
		cfg.Address, cfg.MaxRetries = s.URL, 0
		transport := s.Client().Transport.(*http.Transport).Clone()
		if chain != nil {
			transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{chain[0].Raw}, PrivateKey: issuertest.EC()}}
		}
		cfg.HttpClient = &http.Client{Transport: transport}
		t.Cleanup(transport.CloseIdleConnections)
		c, err := api.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.ClearToken()
		if namespace != "" {
			c.SetNamespace(namespace)
		}
		return c
	}
	for name, row := range map[string]struct {
		client *api.Client
		path   string
		body   map[string]any
	}{
		"jwt":  {client(""), "auth/jwt/login", map[string]any{"role": "checkout", "jwt": w.token(nil)}},
		"cert": {client("team/shop", w.leaf()), "auth/spiffe/cert/login", map[string]any{"name": "checkout"}},
	} {
		secret, err := row.client.Logical().WriteWithContext(t.Context(), row.path, row.body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if life, err := secret.TokenTTL(); err != nil || life != 20*time.Minute {
			t.Errorf("%s: %s, %v", name, life, err)
		}
		row.client.SetToken(secret.Auth.ClientToken)
		self, err := row.client.Auth().Token().LookupSelfWithContext(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if id, err := self.TokenID(); err != nil || id != secret.Auth.ClientToken {
			t.Errorf("%s: %s, %v", name, id, err)
		}
		if err := row.client.Auth().Token().RevokeSelfWithContext(t.Context(), ""); err != nil {
			t.Errorf("%s: revoking: %v", name, err)
		}
		var refused *api.ResponseError
		if _, err := row.client.Auth().Token().LookupSelfWithContext(t.Context()); !errors.As(err, &refused) || refused.StatusCode != 403 || len(refused.Errors) != 1 || refused.Errors[0] != "permission denied" {
			t.Errorf("%s: after it: %v", name, err)
		}
	}
	var refused *api.ResponseError
	_, err := client("").Logical().WriteWithContext(t.Context(), "auth/jwt/login", map[string]any{"role": "stock", "jwt": w.token(nil)})
	if !errors.As(err, &refused) || refused.StatusCode != 400 || len(refused.Errors) != 1 || refused.Errors[0] != `role "stock" could not be found` {
		t.Errorf("another role: %v", err)
	}
	w.server.Faults.Queue(1, sandbox.Fault{Kind: sandbox.FaultThrottled})
	if _, err := client("").Auth().Token().LookupSelf(); !errors.As(err, &refused) || refused.StatusCode != 429 || refused.Errors[0] != "rate limit quota exceeded" {
		t.Errorf("throttled: %v", err)
	}
}

// The server's clock is the switchboard's.
func TestClock(t *testing.T) {
	w := newWorld(t)
	w.server.Faults.SetClockOffset(10 * time.Minute)
	if status, _, text := w.do(w.jwt("checkout", w.token(nil))); status != 400 || !strings.Contains(text, "expired") {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := w.do(w.cert("checkout", w.leaf(func(c *x509.Certificate) { c.NotAfter = w.now.Add(5 * time.Minute) }))); status != 500 || !strings.Contains(text, "expired") {
		t.Errorf("%d %s", status, text)
	}
}
