package issuertest

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Provider is an OpenID provider that people sign in with: a real TLS server, as
// strict as OpenID Connect Core, RFC 6749, 7636, 8252 and 9700 let it be. Whoever
// opens its authorization endpoint is the person that Set names, at once. It shares
// no code with those that it judges.
type Provider struct {
	URL      string
	ClientID string // of its one client: public, with PKCE, its redirect URI /callback on loopback
	Server   *httptest.Server

	t  testing.TB
	mu sync.Mutex // guards what follows

	person   map[string]any                     // claims of whoever signs in
	token    func(claims map[string]any) string // makes the ID token
	answer   func(back url.Values)              // changes what the browser brings back
	document func(map[string]any)               // changes the discovery document
	codes    map[string]grant                   // unspent
	refused  []string                           // what it did not like
	requests int                                // of the authorization endpoint
}

type grant struct {
	redirect, challenge, nonce string
}

// NewProvider starts a provider whose key set holds RSA() under kid "k1" and EC()
// under kid "ec1".
func NewProvider(t testing.TB) *Provider {
	p := &Provider{ClientID: "credence", t: t, codes: map[string]grant{}, person: map[string]any{"sub": "ana"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET /jwks", JSON(t, KeySet(JWK("k1", RSA().Public()), JWK("ec1", EC().Public()))))
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.redeem)
	p.Server = httptest.NewUnstartedServer(mux)
	p.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.Server.StartTLS()
	t.Cleanup(p.Server.Close)
	p.URL = p.Server.URL
	return p
}

// CA is its certificate, in PEM.
func (p *Provider) CA() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Server.Certificate().Raw}))
}

// Roots verify it.
func (p *Provider) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Server.Certificate())
	return pool
}

func (p *Provider) with(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// SetPerson says who signs in.
func (p *Provider) SetPerson(claims map[string]any) { p.with(func() { p.person = claims }) }

// SetToken has ID tokens made by fn, of the claims that they should have.
func (p *Provider) SetToken(fn func(claims map[string]any) string) { p.with(func() { p.token = fn }) }

// SetAnswer changes what the browser brings back.
func (p *Provider) SetAnswer(fn func(back url.Values)) { p.with(func() { p.answer = fn }) }

// SetDocument changes the discovery document.
func (p *Provider) SetDocument(fn func(map[string]any)) { p.with(func() { p.document = fn }) }

// Refused is what the provider did not like, in the order of its coming.
func (p *Provider) Refused() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.refused...)
}

// Requests is how often somebody came to sign in.
func (p *Provider) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Claims are those of an ID token now, with changes; nil removes.
func (p *Provider) Claims(nonce string, changes map[string]any) map[string]any {
	now := time.Now()
	return change(map[string]any{
		"iss": p.URL, "aud": p.ClientID, "sub": "ana", "nonce": nonce, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
	}, changes)
}

func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	d := map[string]any{
		"issuer": p.URL, "jwks_uri": p.URL + "/jwks", "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "ES256"}, "code_challenge_methods_supported": []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
	}
	p.with(func() {
		if p.document != nil {
			p.document(d)
		}
	})
	_ = json.NewEncoder(w).Encode(d)
}

// authorize is the authorization endpoint (RFC 6749 §4.1.1). What it cannot tell
// the client it tells the browser.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	q := r.URL.Query()
	refuse := func(why string) {
		p.refused = append(p.refused, why)
		http.Error(w, why, http.StatusBadRequest)
	}
	for name, values := range q {
		if len(values) != 1 {
			refuse("parameter " + name + " twice")
			return
		}
	}
	back, err := url.Parse(q.Get("redirect_uri"))
	host := ""
	if err == nil {
		host = back.Hostname()
	}
	switch {
	case q.Get("client_id") != p.ClientID:
		refuse("another client")
	case err != nil || back.Scheme != "http" || host != "127.0.0.1" || back.Port() == "" || back.Path != "/callback" || back.RawQuery != "" || back.Fragment != "":
		refuse("a redirect_uri that is not registered: " + q.Get("redirect_uri"))
	case q.Get("response_type") != "code":
		refuse("response_type " + q.Get("response_type"))
	case !strings.Contains(" "+q.Get("scope")+" ", " openid "):
		refuse("no scope openid")
	case q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43:
		refuse("no code challenge of S256")
	case len(q.Get("state")) < 20:
		refuse("no state, or a short one")
	case len(q.Get("nonce")) < 20:
		refuse("no nonce, or a short one")
	default:
		code := rand.Text()
		p.codes[code] = grant{q.Get("redirect_uri"), q.Get("code_challenge"), q.Get("nonce")}
		answer := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}}
		if p.answer != nil {
			p.answer(answer)
		}
		back.RawQuery = answer.Encode()
		http.Redirect(w, r, back.String(), http.StatusFound)
	}
}

// Mint makes a code of a sign-in of somebody else's: what an attacker has who wants
// it redeemed elsewhere. An empty redirect is any. It is called by what SetAnswer
// set.
func (p *Provider) Mint(redirect, verifier, nonce string) string {
	code, sum := rand.Text(), sha256.Sum256([]byte(verifier))
	p.codes[code] = grant{redirect, b64(sum[:]), nonce}
	return code
}

// redeem is the token endpoint (RFC 6749 §4.1.3, RFC 7636 §4.6).
func (p *Provider) redeem(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	refuse := func(code, why string) {
		p.refused = append(p.refused, why)
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": why})
	}
	if err := r.ParseForm(); err != nil || r.URL.RawQuery != "" {
		refuse("invalid_request", "no form")
		return
	}
	f := r.PostForm
	g, known := p.codes[f.Get("code")]
	delete(p.codes, f.Get("code")) // once, however it goes
	sum := sha256.Sum256([]byte(f.Get("code_verifier")))
	switch {
	case r.Header.Get("Authorization") != "" || f.Has("client_secret"):
		refuse("invalid_client", "a public client shows no secret")
	case f.Get("client_id") != p.ClientID:
		refuse("invalid_client", "another client")
	case f.Get("grant_type") != "authorization_code":
		refuse("unsupported_grant_type", "another grant")
	case !known:
		refuse("invalid_grant", "no such code")
	case g.redirect != "" && f.Get("redirect_uri") != g.redirect:
		refuse("invalid_grant", "another redirect_uri")
	case len(f.Get("code_verifier")) < 43 || b64(sum[:]) != g.challenge:
		refuse("invalid_grant", "another code verifier")
	default:
		claims := p.Claims(g.nonce, p.person)
		token := ""
		if p.token != nil {
			token = p.token(claims)
		} else {
			token = Sign(p.t, RSA(), "RS256", nil, claims)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 300, "id_token": token})
	}
}
