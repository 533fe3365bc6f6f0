package server_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

const (
	tokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	jwtType       = "urn:ietf:params:oauth:token-type:jwt"
)

func (e *env) endpoint() string { return e.issuer + "/token" }

// exchanging is an Identity of n1's uid 33 that may ask for evidence, and one of
// the partner's billing.
func (e *env) exchanging() string {
	return `kind: Identity
name: web
spiffe_id: /web
match: [{node.name: n1, workload.unix.uid: 33}]
jwt: {audiences: [orders, ledger, "` + e.endpoint() + `"]}
x509: {ttl: 1h}
---
kind: Identity
name: billing
spiffe_id: /partner/billing
match: [{peer.trust_domain: partner.example, peer.path: "/billing/*"}]
jwt: {audiences: ["**"]}
---
kind: Peer
name: partner.example
url: ` + partnerURL + `
https_web: {}
accept: ["/billing/*", "/shipping/*"]
`
}

// evidence asks a node for a JWT-SVID of uid 33.
func (n *node) evidence(t testing.TB, audience string) string {
	t.Helper()
	r, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{audience}})
	if err != nil || len(r.GetSvids()) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	return r.GetSvids()[0].GetToken()
}

// foreign is partner.example: a CA and a JWT key that its bundle has.
type foreign struct {
	ca   *federationtest.CA
	key  crypto.Signer
	next crypto.Signer // not published yet
}

func newForeign(t testing.TB) *foreign {
	return &foreign{federationtest.NewCA(t, time.Now(), nil), federationtest.NewKey(t), federationtest.NewKey(t)}
}

func (f *foreign) bundle(t testing.TB, keys map[string]crypto.Signer) []byte {
	t.Helper()
	b := spiffebundle.New(partner)
	b.AddX509Authority(f.ca.Cert)
	for id, key := range keys {
		if err := b.AddJWTAuthority(id, key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	document, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// believe makes the broker believe the partner.
func (e *env) believe(f *foreign) {
	e.t.Helper()
	e.peers.set(partnerURL, f.bundle(e.t, map[string]crypto.Signer{"k1": f.key}))
	if _, err := e.admin().RefreshPeer(e.t.Context(), &api.RefreshPeerRequest{TrustDomain: "partner.example"}); err != nil {
		e.t.Fatal(err)
	}
}

// claims are those of good evidence of the partner.
func (e *env) claims(id string) map[string]any {
	now := e.now()
	return map[string]any{
		"sub": "spiffe://partner.example" + id, "aud": e.endpoint(), "iat": now.Unix(), "exp": now.Add(4 * time.Minute).Unix(), "jti": rand64(),
	}
}

func rand64() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return b64(b[:])
}

func sign(t testing.TB, key any, alg jose.SignatureAlgorithm, header map[jose.HeaderKey]any, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for name, value := range header {
		options = options.WithHeader(name, value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// token is evidence of the partner's workload.
func (f *foreign) token(t testing.TB, claims map[string]any, changes ...map[string]any) string {
	t.Helper()
	claims = maps.Clone(claims)
	for _, change := range changes {
		for name, value := range change {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		}
	}
	return sign(t, f.key, jose.ES256, map[jose.HeaderKey]any{"kid": "k1"}, claims)
}

// A reply is what the token endpoint said.
type reply struct {
	status int
	header http.Header

	Token       string `json:"access_token"`
	Issued      string `json:"issued_token_type"`
	Type        string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func asking(subject string, more ...string) url.Values {
	form := url.Values{"grant_type": {tokenExchange}, "subject_token": {subject}, "subject_token_type": {jwtType}}
	for i := 0; i < len(more); i += 2 {
		form.Add(more[i], more[i+1])
	}
	return form
}

// ask posts a form to the token endpoint.
func (e *env) ask(form url.Values, changes ...func(*http.Request)) reply {
	e.t.Helper()
	return e.post(strings.NewReader(form.Encode()), changes...)
}

func (e *env) post(body io.Reader, changes ...func(*http.Request)) reply {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, e.endpoint(), body)
	if err != nil {
		e.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, change := range changes {
		change(r)
	}
	response, err := e.client(nil).Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	got := reply{status: response.StatusCode, header: response.Header}
	if bytes.HasPrefix(text, []byte("{")) {
		if err := json.Unmarshal(text, &got); err != nil {
			e.t.Fatal(err)
		}
	}
	return got
}

// said decodes the claims of a token.
func said(t testing.TB, token string) (claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(text, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// svid is an X509-SVID of uid 33, with its key.
func (n *node) svid(t testing.TB) *tls.Certificate {
	t.Helper()
	result, key, err := n.issue(t.Context(), t, "33")
	if err != nil || len(result.GetSvids()) != 1 {
		t.Fatalf("%v, %v", result, err)
	}
	return &tls.Certificate{Certificate: result.GetSvids()[0].GetChain(), PrivateKey: key}
}

// mtls exchanges the X509-SVID of a connection.
func (e *env) mtls(cert *tls.Certificate, r *api.ExchangeTokenRequest) (*api.ExchangeTokenResponse, error) {
	return api.NewExchangeClient(e.dial(cert)).Exchange(context.Background(), r)
}

func (f *foreign) svid(t testing.TB, path string) *tls.Certificate {
	cert := f.ca.SVID(t, spiffeid.RequireFromPath(partner, path))
	return &cert
}

// ours is what a peer's CA says of our trust domain.
func (f *foreign) ours(t testing.TB) *tls.Certificate {
	cert := f.ca.SVID(t, spiffeid.RequireFromPath(td, "/web"))
	return &cert
}

// unrecorded is an X509-SVID that our issuing CA signed without a record, as
// whoever has its key could.
func unrecorded(t testing.TB, e *env) *tls.Certificate {
	t.Helper()
	set, err := identity.NewSet(identity.Config{TrustDomain: td}, identity.Resources{Identities: []identity.Identity{{
		Name: "web", SPIFFEID: "/web", Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	facts, err := identity.NewFacts("node", map[string][]string{"node.name": {"n1"}})
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	digest, err := identity.DigestKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := set.Decide(identity.Request{Node: facts, Keys: []identity.KeyDigest{digest}, Time: e.now()})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := e.authority.SignX509(t.Context(), decisions[0].Grant, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

func certOf(c any) *tls.Certificate {
	cert, _ := c.(*tls.Certificate)
	return cert
}

func b64(text []byte) string { return base64.RawURLEncoding.EncodeToString(text) }
