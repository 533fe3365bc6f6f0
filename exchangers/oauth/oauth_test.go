package oauth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const tokenTypes = "urn:ietf:params:oauth:token-type:"

// world holds both kinds of server.
type world struct {
	as, vault *server
	ca        *authority
}

func newWorld(t testing.TB) *world {
	ca := newAuthority(t)
	return &world{newAS(t), newVault(t, ca), ca}
}

func (w *world) tokenURL() string { return w.as.URL + "/realms/shop/token" }

func (w *world) exchange() *oauth.TokenExchange {
	return &oauth.TokenExchange{TokenURL: w.tokenURL(), TokenAudience: audience}
}

func (w *world) assertion() *oauth.ClientAssertion {
	return &oauth.ClientAssertion{TokenURL: w.tokenURL(), TokenAudience: audience}
}

func (w *world) bearer() *oauth.JWTBearer {
	return &oauth.JWTBearer{TokenURL: w.tokenURL(), TokenAudience: audience}
}

func (w *world) vaultJWT() *oauth.VaultJWT {
	return &oauth.VaultJWT{URL: w.vault.URL, TokenAudience: audience, Role: "checkout"}
}

func (w *world) vaultCert() *oauth.VaultCert {
	return &oauth.VaultCert{URL: w.vault.URL, Role: "checkout"}
}

// on is the server that settings lead to.
func (w *world) on(s *oauth.Settings) *server {
	if s.VaultJWT != nil || s.VaultCert != nil {
		return w.vault
	}
	return w.as
}

func (w *world) svids(t testing.TB) svids { return svids{t: t, x509: w.ca.svid(t, workload)} }

func TestExchanges(t *testing.T) {
	w := newWorld(t)
	with := func(change func(*oauth.TokenExchange)) *oauth.Settings {
		m := w.exchange()
		change(m)
		return &oauth.Settings{TokenExchange: m}
	}
	assert := func(change func(*oauth.ClientAssertion)) *oauth.Settings {
		m := w.assertion()
		change(m)
		return &oauth.Settings{ClientAssertion: m}
	}
	named := w.bearer()
	named.ClientID, named.Scopes, named.Resources = "shop", []string{"orders:read"}, []string{"https://orders.example"}
	elsewhere := w.vaultCert()
	elsewhere.Mount, elsewhere.Namespace = "spiffe/cert", "team/shop"
	slash := w.vaultJWT()
	slash.URL += "/"
	vault := &exchangers.Vault{Address: w.vault.URL}
	rows := map[string]struct {
		settings *oauth.Settings
		jwts     int
		life     time.Duration
		scopes   []string
		vault    *exchangers.Vault
	}{
		"token exchange": {settings: with(func(m *oauth.TokenExchange) {}), jwts: 1},
		"for a service": {settings: with(func(m *oauth.TokenExchange) {
			m.Resources, m.Scopes = []string{"https://orders.example"}, []string{"orders:read"}
		}), jwts: 1, scopes: []string{"orders:read"}},
		"for two":        {settings: with(func(m *oauth.TokenExchange) { m.RequestedAudiences = []string{"ledger", "stock"} }), jwts: 1},
		"as a client":    {settings: with(func(m *oauth.TokenExchange) { m.ClientID, m.ClientAuth = "shop", "jwt-bearer" }), jwts: 2},
		"public client":  {settings: with(func(m *oauth.TokenExchange) { m.ClientID = "shop" }), jwts: 1},
		"assertion":      {settings: assert(func(m *oauth.ClientAssertion) {}), jwts: 1},
		"jwt-spiffe":     {settings: assert(func(m *oauth.ClientAssertion) { m.ClientAuth, m.ClientID = "jwt-spiffe", "shop" }), jwts: 1},
		"two scopes":     {settings: assert(func(m *oauth.ClientAssertion) { m.Scopes = []string{"orders:write", "orders:read"} }), jwts: 1, scopes: []string{"orders:write", "orders:read"}},
		"JWT bearer":     {settings: &oauth.Settings{JWTBearer: w.bearer()}, jwts: 1},
		"with all of it": {settings: &oauth.Settings{JWTBearer: named}, jwts: 1, scopes: []string{"orders:read"}},
		"vault jwt":      {settings: &oauth.Settings{VaultJWT: w.vaultJWT()}, jwts: 1, life: 20 * time.Minute, vault: vault},
		"vault slash":    {settings: &oauth.Settings{VaultJWT: slash}, jwts: 1, life: 20 * time.Minute, vault: vault},
		"vault cert":     {settings: &oauth.Settings{VaultCert: w.vaultCert()}, life: 20 * time.Minute, vault: vault},
		"vault mount":    {settings: &oauth.Settings{VaultCert: elsewhere}, life: 20 * time.Minute, vault: &exchangers.Vault{Address: w.vault.URL, Namespace: "team/shop"}},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			x, calls := exchanger(t, row.settings, w.on(row.settings)), 0
			present := w.svids(t)
			present.calls = &calls
			if row.life == 0 {
				row.life = 10 * time.Minute
			}
			if row.scopes == nil && row.vault == nil {
				row.scopes = []string{"orders:read", "orders:write"}
			}
			before := time.Now()
			cred, err := x.Exchange(t.Context(), present)
			if err != nil {
				t.Fatal(err)
			}
			if cred.Expires.Before(before.Add(row.life)) || cred.Expires.After(time.Now().Add(row.life)) {
				t.Errorf("it ends at %s, asked %s", cred.Expires, before)
			}
			if token := cred.Bearer.Token.Reveal(); !strings.HasPrefix(token, "oauth-") && !strings.HasPrefix(token, "s.") || calls != row.jwts || cred.RequestID == "" {
				t.Errorf("%d JWT-SVIDs, want %d: %+v", calls, row.jwts, cred)
			}
			if diff := cmp.Diff(row.scopes, cred.Bearer.Scopes) + cmp.Diff(row.vault, cred.Bearer.Vault); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, err := x.Exchange(t.Context(), present)
			if err != nil || again.Bearer.Token.Reveal() == cred.Bearer.Token.Reveal() {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// A server may give less than was asked for, and another type where it is asked.
func TestLessIsGiven(t *testing.T) {
	w := newWorld(t)
	m := w.exchange()
	m.Scopes, m.RequestedTokenType = []string{"orders:read", "orders:write"}, tokenTypes+"id_token"
	w.as.spoiled(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json;charset=UTF-8")
		_, _ = io.WriteString(rw, `{"access_token":"a","token_type":"N_A","expires_in":60,"scope":"orders:read","refresh_token":"never-kept","issued_token_type":"`+m.RequestedTokenType+`"}`)
	})
	cred, err := exchanger(t, &oauth.Settings{TokenExchange: m}, w.as).Exchange(t.Context(), w.svids(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"orders:read"}, cred.Bearer.Scopes); diff != "" || strings.Contains(fmt.Sprintf("%+v", cred), "never-kept") {
		t.Errorf("%+v: %s", cred, diff)
	}
}

// Each refusal names the way out, and leaves nothing behind: the same request
// as it should be succeeds after it.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	tx := func(change func(*oauth.TokenExchange)) *oauth.Settings {
		m := w.exchange()
		change(m)
		return &oauth.Settings{TokenExchange: m}
	}
	vj := func(change func(*oauth.VaultJWT)) *oauth.Settings {
		m := w.vaultJWT()
		change(m)
		return &oauth.Settings{VaultJWT: m}
	}
	vc := func(change func(*oauth.VaultCert)) *oauth.Settings {
		m := w.vaultCert()
		change(m)
		return &oauth.Settings{VaultCert: m}
	}
	assertion, bearer := &oauth.Settings{ClientAssertion: w.assertion()}, &oauth.Settings{JWTBearer: w.bearer()}
	exchange, jwt, cert := tx(func(*oauth.TokenExchange) {}), vj(func(*oauth.VaultJWT) {}), vc(func(*oauth.VaultCert) {})
	claim := func(name string, v any) svids {
		s := w.svids(t)
		s.changes = map[string]any{name: v}
		return s
	}
	signed := func(by *authority, id string) svids { return svids{t: t, x509: by.svid(t, id)} }
	now := time.Now().Unix()
	rows := map[string]struct {
		settings *oauth.Settings
		present  svids
		code     string
		hint     string
	}{
		"audience with a slash":     {exchange, claim("aud", []string{audience + "/"}), "invalid_grant", "byte for byte"},
		"audience in another case":  {bearer, claim("aud", strings.ToUpper(audience)), "invalid_grant", "byte for byte"},
		"two audiences":             {assertion, claim("aud", []string{audience, "https://other.example"}), "invalid_client", "byte for byte"},
		"no audience":               {exchange, claim("aud", nil), "invalid_grant", "byte for byte"},
		"another issuer":            {assertion, claim("iss", "https://example.com/other"), "invalid_client", "issuer"},
		"the neighbour":             {exchange, claim("sub", neighbour), "invalid_grant", ""},
		"expired":                   {assertion, claim("exp", now-65), "invalid_client", "clocks"},
		"of tomorrow":               {bearer, claim("iat", now+3600), "invalid_grant", "clocks"},
		"without jti":               {exchange, claim("jti", nil), "invalid_grant", ""},
		"the same jti, twice":       {tx(func(m *oauth.TokenExchange) { m.ClientAuth = "jwt-bearer" }), claim("jti", "one"), "invalid_grant", ""},
		"no such client":            {tx(func(m *oauth.TokenExchange) { m.ClientID = "nobody" }), w.svids(t), "invalid_client", "client"},
		"no such scope":             {tx(func(m *oauth.TokenExchange) { m.Scopes = []string{"all"} }), w.svids(t), "invalid_scope", "scopes"},
		"no such resource":          {tx(func(m *oauth.TokenExchange) { m.Resources = []string{"https://elsewhere.example"} }), w.svids(t), "invalid_target", "resources"},
		"no such audience":          {tx(func(m *oauth.TokenExchange) { m.RequestedAudiences = []string{"ledger", "x"} }), w.svids(t), "invalid_target", "requested_audiences"},
		"no such type":              {tx(func(m *oauth.TokenExchange) { m.RequestedTokenType = tokenTypes + "saml2" }), w.svids(t), "invalid_request", "requested_token_type"},
		"no such path":              {tx(func(m *oauth.TokenExchange) { m.TokenURL += "s" }), w.svids(t), "not_found", "token_url"},
		"vault: audience":           {jwt, claim("aud", "x"), "login_refused", "bound_audiences"},
		"vault: the neighbour":      {jwt, claim("sub", neighbour), "login_refused", ""},
		"vault: expired":            {jwt, claim("exp", now-65), "login_refused", "clocks"},
		"vault: not yet":            {jwt, claim("nbf", now+600), "login_refused", "clocks"},
		"vault: of tomorrow":        {jwt, svids{t: t, changes: map[string]any{"nbf": now, "iat": now + 600}}, "login_refused", "clocks"},
		"vault: another issuer":     {jwt, claim("iss", issuertest.URL+"/"), "login_refused", "bound_issuer"},
		"vault: ES256":              {jwt, svids{t: t, alg: "ES256"}, "login_refused", "jwt_supported_algs"},
		"vault: unknown key":        {jwt, svids{t: t, kid: "k2"}, "login_refused", "published key"},
		"vault: cert's mount":       {vj(func(m *oauth.VaultJWT) { m.Mount = "cert" }), w.svids(t), "login_refused", "mount"},
		"cert: expired":             {cert, svids{t: t, x509: w.ca.until(t, time.Now().Add(-time.Second))}, "login_refused", "clocks"},
		"vault: no such role":       {vj(func(m *oauth.VaultJWT) { m.Role = "x" }), w.svids(t), "login_refused", "check role"},
		"vault: no such mount":      {vj(func(m *oauth.VaultJWT) { m.Mount = "oidc" }), w.svids(t), "login_refused", "check mount"},
		"vault: no such namespace":  {vj(func(m *oauth.VaultJWT) { m.Namespace = "x" }), w.svids(t), "login_refused", "namespace"},
		"cert: the neighbour":       {cert, signed(w.ca, neighbour), "login_refused", "allowed_uri_sans"},
		"cert: of another CA":       {cert, signed(newAuthority(t), workload), "login_refused", "bundle"},
		"cert: no such role":        {vc(func(m *oauth.VaultCert) { m.Role = "x" }), w.svids(t), "login_refused", "bundle"},
		"cert: jwt's mount":         {vc(func(m *oauth.VaultCert) { m.Mount = "jwt" }), w.svids(t), "login_refused", "mount"},
		"cert: without a CN":        {cert, svids{t: t, x509: w.ca.named(t, workload, "")}, "login_refused", "x509.subject"},
		"cert: namespace forgotten": {vc(func(m *oauth.VaultCert) { m.Mount = "spiffe/cert" }), w.svids(t), "login_refused", "namespace"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			cred, err := exchanger(t, row.settings, w.on(row.settings)).Exchange(t.Context(), row.present)
			if e := refused(t, cred, err); e.Class != exchangers.Config || e.Code != row.code || !strings.Contains(e.Hint, row.hint) || e.Message == "" {
				t.Errorf("%+v", e)
			}
			original := map[*server]*oauth.Settings{w.as: exchange, w.vault: jwt}[w.on(row.settings)]
			switch {
			case row.settings.ClientAssertion != nil:
				original = assertion
			case row.settings.JWTBearer != nil:
				original = bearer
			case row.settings.VaultCert != nil:
				original = cert
			}
			if _, err := exchanger(t, original, w.on(original)).Exchange(t.Context(), w.svids(t)); err != nil {
				t.Errorf("and then: %v", err)
			}
		})
	}
}

// What a server says for itself or by its status becomes a class, and nothing
// but a whole success a credential.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	const ok = `"access_token":"` + secret + `","token_type":"bearer","issued_token_type":"` + tokenTypes + `access_token","expires_in":60`
	const auth = `{"auth":{"client_token":"` + secret + `","lease_duration":60`
	rows := map[string]struct {
		vault  bool
		status int
		kind   string // of the content; empty: JSON's
		body   string
		code   string
		class  exchangers.Class
		says   string
	}{
		"good":                       {body: `{` + ok + `}`},
		"and more":                   {body: `{` + ok + `,"x":{"error":"in it"},"scope":"a b"}`},
		"no error":                   {body: `{` + ok + `,"error":null}`},
		"no issued type":             {body: `{"access_token":"a","token_type":"Bearer","expires_in":60}`},
		"vault good":                 {vault: true, body: auth + `},"errors":null,"warnings":["w"]}`},
		"an error beside it":         {body: `{` + ok + `,"error":"x ` + secret + `"}`, code: "x [redacted]", class: exchangers.Config},
		"an odd error beside it":     {body: `{` + ok + `,"Error":{"code":1}}`, class: exchangers.Config},
		"vault errors beside it":     {vault: true, body: auth + `},"errors":["` + secret + ` is bad"]}`, code: "login_refused", class: exchangers.Config, says: "[redacted] is bad"},
		"vault error beside it":      {vault: true, body: auth + `},"error":"x"}`, code: "login_refused", class: exchangers.Config},
		"vault errors in it":         {vault: true, body: auth + `,"errors":["x"]}}`, code: "login_refused", class: exchangers.Config},
		"twice":                      {body: `{` + ok + `,"access_token":"b"}`, code: "unusable_answer", class: exchangers.Outage, says: "twice"},
		"twice, in another case":     {body: `{` + ok + `,"Expires_In":90}`, code: "unusable_answer", class: exchangers.Outage, says: "twice"},
		"an error taken back":        {body: `{"error":"x","error":null,` + ok + `}`, code: "unusable_answer", class: exchangers.Outage, says: "twice"},
		"more behind it":             {body: `{` + ok + `} {}`, code: "unusable_answer", class: exchangers.Outage},
		"cut off":                    {body: `{` + ok, code: "unusable_answer", class: exchangers.Outage},
		"a list":                     {body: `[{` + ok + `}]`, code: "unusable_answer", class: exchangers.Outage},
		"nothing":                    {code: "unusable_answer", class: exchangers.Outage},
		"another case":               {body: `{"Access_Token":"a","token_type":"Bearer","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "no access_token"},
		"a page":                     {kind: "text/html", body: `{` + ok + `}`, code: "unusable_answer", class: exchangers.Outage, says: "application/json"},
		"a token that is no text":    {body: `{"access_token":7,"token_type":"Bearer","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage},
		"a token of two lines":       {body: `{"access_token":"a\nb","token_type":"Bearer","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "printable"},
		"a token too long":           {body: `{"access_token":"` + strings.Repeat("a", 64<<10+1) + `","token_type":"Bearer","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "longer"},
		"an answer too long":         {body: `{` + ok + `,"x":"` + strings.Repeat("a", 1<<20) + `"}`, code: "unreached", class: exchangers.Outage, says: "1 MiB"},
		"no type":                    {body: `{"access_token":"` + secret + `","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "token_type"},
		"a DPoP token":               {body: `{"access_token":"` + secret + `","token_type":"DPoP","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "DPoP"},
		"N_A for an access token":    {body: `{"access_token":"a","token_type":"N_A","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "N_A"},
		"a refresh token":            {body: `{"access_token":"a","token_type":"N_A","issued_token_type":"` + tokenTypes + `refresh_token","expires_in":60}`, code: "unusable_answer", class: exchangers.Outage, says: "refresh"},
		"no end":                     {body: `{"access_token":"a","token_type":"Bearer"}`, code: "unusable_answer", class: exchangers.Outage, says: "expires_in"},
		"an end in text":             {body: `{"access_token":"a","token_type":"Bearer","expires_in":"60"}`, code: "unusable_answer", class: exchangers.Outage, says: "expires_in"},
		"an end now":                 {body: `{"access_token":"a","token_type":"Bearer","expires_in":0}`, code: "unusable_answer", class: exchangers.Outage, says: "expires_in"},
		"an end before":              {body: `{"access_token":"a","token_type":"Bearer","expires_in":-60}`, code: "unusable_answer", class: exchangers.Outage, says: "expires_in"},
		"an end never":               {body: `{"access_token":"a","token_type":"Bearer","expires_in":1e300}`, code: "unusable_answer", class: exchangers.Outage, says: "expires_in"},
		"created":                    {status: 201, body: `{` + ok + `}`, class: exchangers.Config},
		"a redirect":                 {status: 307, body: `{` + ok + `}`, class: exchangers.Config, says: "redirects are not followed"},
		"slow down":                  {status: 400, body: `{"error":"slow_down"}`, code: "slow_down", class: exchangers.Throttled},
		"not now":                    {status: 400, body: `{"error":"temporarily_unavailable"}`, code: "temporarily_unavailable", class: exchangers.Outage},
		"too many":                   {status: 429, body: `{"error":"invalid_client"}`, code: "invalid_client", class: exchangers.Throttled},
		"down":                       {status: 503, kind: "text/html", body: `<html>`, class: exchangers.Outage, says: "HTTP status 503"},
		"a description with a token": {status: 400, body: `{"error":"invalid_grant","error_description":"eyJhbGciOiJSUzI1NiJ9.eyJh.c\r\n bad"}`, code: "invalid_grant", class: exchangers.Config, says: "[redacted] bad"},
		"vault: no auth":             {vault: true, body: `{"auth":null,"data":{}}`, code: "unusable_answer", class: exchangers.Outage, says: "no auth"},
		"vault: no token":            {vault: true, body: `{"auth":{"client_token":"","lease_duration":60}}`, code: "unusable_answer", class: exchangers.Outage, says: "client_token"},
		"vault: never ends":          {vault: true, body: `{"auth":{"client_token":"` + secret + `","lease_duration":0}}`, code: "unusable_answer", class: exchangers.Config, says: "token_ttl"},
		"vault: a few uses":          {vault: true, body: auth + `,"num_uses":3}}`, code: "unusable_answer", class: exchangers.Config, says: "token_num_uses"},
		"vault: second factor":       {vault: true, body: `{"auth":{"client_token":"","lease_duration":60,"mfa_requirement":{"mfa_request_id":"x"}}}`, code: "unusable_answer", class: exchangers.Config, says: "second factor"},
		"vault: auth twice":          {vault: true, body: auth + `},"auth":{}}`, code: "unusable_answer", class: exchangers.Outage, says: "twice"},
		"vault: token twice":         {vault: true, body: auth + `,"client_token":"b"}}`, code: "unusable_answer", class: exchangers.Outage},
		"vault: sealed":              {vault: true, status: 503, body: `{"errors":["Vault is sealed"]}`, code: "login_refused", class: exchangers.Outage, says: "sealed"},
		"vault: a replica behind":    {vault: true, status: 412, body: `{"errors":["required index state not present"]}`, code: "login_refused", class: exchangers.Outage},
		"vault: a standby":           {vault: true, status: 307, body: ``, code: "login_refused", class: exchangers.Config, says: "redirects are not followed"},
		"vault: issuer unread":       {vault: true, status: 400, body: `{"errors":["error configuring token validator: 503 Service Unavailable: "]}`, code: "login_refused", class: exchangers.Propagation},
		"vault: keys unread":         {vault: true, status: 400, body: `{"errors":["error validating token: error verifying token signature: fetching keys oidc: get keys failed: 503"]}`, code: "login_refused", class: exchangers.Propagation},
		"vault: quota":               {vault: true, status: 429, body: `{"errors":["request path: rate limit quota exceeded"]}`, code: "login_refused", class: exchangers.Throttled},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := &oauth.Settings{TokenExchange: w.exchange()}
			if row.vault {
				s = &oauth.Settings{VaultJWT: w.vaultJWT()}
			}
			on := w.on(s)
			on.spoiled(func(rw http.ResponseWriter, _ *http.Request) {
				if row.kind == "" {
					row.kind = "application/json"
				}
				rw.Header().Set("Content-Type", row.kind)
				rw.Header().Set("Location", on.URL+"/elsewhere")
				rw.Header().Set("Retry-After", "7")
				if row.status != 0 {
					rw.WriteHeader(row.status)
				}
				_, _ = io.WriteString(rw, row.body)
			})
			defer on.spoiled(nil)
			x := exchanger(t, s, on)
			cred, err := x.Exchange(t.Context(), w.svids(t))
			if row.class == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e := refused(t, cred, err)
			if e.Class != row.class || e.Code != row.code || !strings.Contains(e.Error(), row.says) {
				t.Errorf("%+v", e)
			}
			if e.Code != "unreached" && e.Code != "unusable_answer" && e.RetryAfter != 7*time.Second {
				t.Errorf("it pauses for %s", e.RetryAfter)
			}
			on.spoiled(nil)
			if _, err := x.Exchange(t.Context(), w.svids(t)); err != nil {
				t.Errorf("and then: %v", err)
			}
		})
	}
	for _, path := range append(w.as.paths(), w.vault.paths()...) {
		if path == "/elsewhere" {
			t.Error("a redirect was followed")
		}
	}
}

// A server that takes no certificate of ours says so in TLS, and is not asked
// again and again. By TLS 1.3 the request is under way by then, and a reset
// connection may swallow what the server says.
func TestACertificateRefusedInTLS(t *testing.T) {
	w := newWorld(t)
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			strict := serve(t, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(), MaxVersion: version}, nil)
			m := w.vaultCert()
			m.URL = strict.URL
			cred, err := exchanger(t, &oauth.Settings{VaultCert: m}, strict).Exchange(t.Context(), w.svids(t))
			e := refused(t, cred, err)
			said := e.Class == exchangers.Config && e.Code == "certificate_refused"
			swallowed := version == tls.VersionTLS13 && e.Class == exchangers.Outage && e.Code == "unreached"
			if !said && !swallowed || len(strict.paths()) != 0 {
				t.Errorf("%+v", e)
			}
		})
	}
	other := w.vaultCert()
	other.URL = w.as.URL
	x, err := oauth.New(oauth.Config{Settings: &oauth.Settings{VaultCert: other}})
	if err != nil {
		t.Fatal(err)
	}
	cred, err := x.Exchange(t.Context(), w.svids(t))
	if e := refused(t, cred, err); e.Class != exchangers.Outage || e.Code != "untrusted_certificate" {
		t.Errorf("a server that nobody vouches for: %+v", e)
	}
}

// The Target's endpoint comes before the settings' URL, and its ca_file before
// the system's roots.
func TestEndpoint(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pemOf(w.as.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	m := w.exchange()
	m.TokenURL = "https://nowhere.invalid/token"
	x, err := oauth.New(oauth.Config{Settings: &oauth.Settings{TokenExchange: m}, Endpoint: w.tokenURL(), CAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Exchange(t.Context(), w.svids(t)); err != nil {
		t.Error(err)
	}
	c := w.vaultCert()
	c.URL = "https://nowhere.invalid"
	if x, err = oauth.New(oauth.Config{Settings: &oauth.Settings{VaultCert: c}, Endpoint: w.vault.URL + "/", CAFile: file}); err != nil {
		t.Fatal(err)
	}
	cred, err := x.Exchange(t.Context(), w.svids(t))
	if err != nil || cred.Bearer.Vault.Address != w.vault.URL {
		t.Errorf("%+v, %v", cred.Bearer, err)
	}
}

type none struct{ svids }

func (none) JWT(context.Context) (string, error) { return "", nil }

// Without an SVID nobody is asked.
func TestNothingToPresent(t *testing.T) {
	w := newWorld(t)
	for _, s := range []*oauth.Settings{{TokenExchange: w.exchange()}, {ClientAssertion: w.assertion()}, {JWTBearer: w.bearer()}, {VaultJWT: w.vaultJWT()}, {VaultCert: w.vaultCert()}} {
		if cred, err := exchanger(t, s, w.on(s)).Exchange(t.Context(), none{svids{t: t}}); err == nil || cred.Bearer != nil {
			t.Errorf("%v, %v", cred, err)
		}
	}
	if len(w.as.paths())+len(w.vault.paths()) != 0 {
		t.Error("a server was asked")
	}
}

// A life is counted from before the question: a slow answer makes no token
// longer.
func TestLifeBeginsWithTheQuestion(t *testing.T) {
	w := newWorld(t)
	for _, s := range []*oauth.Settings{{TokenExchange: w.exchange()}, {VaultJWT: w.vaultJWT()}} {
		asked := time.Now()
		now := asked.Add(-time.Minute)
		x, err := oauth.New(oauth.Config{Settings: s, Roots: w.on(s).roots(), Now: func() time.Time { now = now.Add(time.Minute); return now }})
		if err != nil {
			t.Fatal(err)
		}
		cred, err := x.Exchange(t.Context(), w.svids(t))
		if life := cred.Expires.Sub(asked); err != nil || life != 10*time.Minute && life != 20*time.Minute {
			t.Errorf("%s, %v", life, err)
		}
	}
}

// A token of another type than was asked for is not the one that was asked for.
func TestAnotherTypeThanRequested(t *testing.T) {
	w := newWorld(t)
	m := w.exchange()
	m.RequestedTokenType = tokenTypes + "access_token"
	x := exchanger(t, &oauth.Settings{TokenExchange: m}, w.as)
	for issued, good := range map[string]bool{tokenTypes + "access_token": true, tokenTypes + "id_token": false, tokenTypes + "jwt": false} {
		w.as.spoiled(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(rw, `{"access_token":"`+secret+`","token_type":"Bearer","expires_in":60,"issued_token_type":"`+issued+`"}`)
		})
		cred, err := x.Exchange(t.Context(), w.svids(t))
		if good && err == nil {
			continue
		}
		if e := refused(t, cred, err); good || !strings.Contains(e.Message, "requested_token_type") {
			t.Errorf("%s: %+v", issued, e)
		}
	}
}

type opaque struct{ svids }

func (opaque) JWT(context.Context) (string, error) { return secret, nil }

// What was presented is told to nobody, whatever it looks like, when a server
// says it again.
func TestWhatWasPresentedIsNotTold(t *testing.T) {
	w := newWorld(t)
	for _, s := range []*oauth.Settings{{TokenExchange: w.exchange()}, {ClientAssertion: w.assertion()}, {JWTBearer: w.bearer()}, {VaultJWT: w.vaultJWT()}} {
		w.on(s).spoiled(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			rw.Header().Set("X-Request-Id", secret)
			rw.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(rw, `{"error":"no `+secret+`","error_description":"no `+secret+`","errors":["no `+secret+`"]}`)
		})
		cred, err := exchanger(t, s, w.on(s)).Exchange(t.Context(), opaque{w.svids(t)})
		if e := refused(t, cred, err); e.Message != "no [redacted]" {
			t.Errorf("%+v", e)
		}
	}
}
