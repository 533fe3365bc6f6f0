package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/oidc"
)

const issuer = "https://id.example.org/td"

func rsaKey(id string) authority.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), 2047)
	return authority.PublicKey{ID: id, Alg: "RS256", Key: &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}}
}

func newHandler(t *testing.T, keys ...authority.PublicKey) *oidc.Handler {
	t.Helper()
	h, err := oidc.New(oidc.Config{Issuer: issuer, Keys: func() []authority.PublicKey { return keys }, MaxAge: 2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func get(h http.Handler, method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func decode(t *testing.T, r *http.Response) (v any) {
	t.Helper()
	if r.StatusCode != http.StatusOK {
		t.Fatalf("status %s", r.Status)
	}
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDocuments(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, rsaKey("one"), authority.PublicKey{ID: "ec", Alg: "ES256", Key: ec.Public()}, rsaKey("two"))
	want := any(map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              issuer + "/keys",
		"response_types_supported":              []any{"id_token"},
		"subject_types_supported":               []any{"public"},
		"id_token_signing_alg_values_supported": []any{"RS256"},
	})
	if diff := cmp.Diff(want, decode(t, get(h, "GET", "/td/.well-known/openid-configuration"))); diff != "" {
		t.Error(diff)
	}
	n := "g" + strings.Repeat("A", 340) + "Q" // 2^2047 + 1
	key := func(kid string) any {
		return map[string]any{"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": n, "e": "AQAB"}
	}
	response := get(h, "GET", "/td/keys")
	if diff := cmp.Diff(any(map[string]any{"keys": []any{key("one"), key("two")}}), decode(t, response)); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "public, max-age=120",
		"Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff",
	} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// No SPIFFE relying party may take the OIDC keys for a bundle's (OIDC-01).
func TestKeySetIsNoBundle(t *testing.T) {
	body, err := io.ReadAll(get(newHandler(t, rsaKey("one")), "GET", "/td/keys").Body)
	if err != nil {
		t.Fatal(err)
	}
	b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("example.org"), body)
	if err == nil && !b.Empty() {
		t.Error("go-spiffe trusts the OIDC keys")
	}
}

func TestRequests(t *testing.T) {
	h := newHandler(t, rsaKey("one"))
	etag := get(h, "GET", "/td/keys").Header.Get("ETag")
	if !strings.HasPrefix(etag, `"`) || len(etag) < 20 {
		t.Fatalf("ETag %s", etag)
	}
	for _, tt := range []struct {
		name, method, path string
		header             []string
		want               int
	}{
		{"head", "HEAD", "/td/keys", nil, 200},
		{"post", "POST", "/td/keys", nil, 405},
		{"options", "OPTIONS", "/td/keys", nil, 405},
		{"another path", "GET", "/keys", nil, 404},
		{"a slash more", "GET", "/td/keys/", nil, 404},
		{"the root", "GET", "/", nil, 404},
		{"known", "GET", "/td/keys", []string{"If-None-Match", etag}, 304},
		{"known, weakly", "GET", "/td/keys", []string{"If-None-Match", "W/" + etag}, 304},
		{"known among others", "HEAD", "/td/keys", []string{"If-None-Match", `"x", ` + etag}, 304},
		{"any known", "GET", "/td/keys", []string{"If-None-Match", "*"}, 304},
		{"another known", "GET", "/td/keys", []string{"If-None-Match", `"x"`}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := get(h, tt.method, tt.path, tt.header...)
			if r.StatusCode != tt.want {
				t.Errorf("status %d, want %d", r.StatusCode, tt.want)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			if len(body) > 0 && (tt.want == 304 || tt.method == "HEAD") {
				t.Errorf("a body of %d bytes", len(body))
			}
			if tt.want == 405 && r.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow %q", r.Header.Get("Allow"))
			}
		})
	}
	if other := get(newHandler(t, rsaKey("two")), "GET", "/td/keys").Header.Get("ETag"); other == etag {
		t.Error("other keys have the same ETag")
	}
}

func TestNotReady(t *testing.T) {
	ec := authority.PublicKey{ID: "ec", Alg: "ES256"}
	wrong := authority.PublicKey{ID: "wrong", Alg: "RS256"}
	for name, keys := range map[string][]authority.PublicKey{"no key": nil, "none of RS256": {ec}, "one of another type": {rsaKey("one"), wrong}} {
		t.Run(name, func(t *testing.T) {
			h := newHandler(t, keys...)
			for _, path := range h.Paths() {
				r := get(h, "GET", path)
				if r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || r.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %s, %v", path, r.Status, r.Header)
				}
			}
		})
	}
}

// go-oidc, which many relying parties use, accepts what the authority signs.
func TestRelyingParty(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	var h http.Handler
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	defer server.Close()
	keys, err := disk.New(disk.Config{Dir: t.TempDir() + "/keys"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Open(t.Context(), authority.Config{
		TrustDomain: td, Issuer: server.URL + "/td", Broker: "b1", Records: &forgetful{}, Keys: keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h, err = oidc.New(oidc.Config{Issuer: server.URL + "/td", Keys: a.OIDCKeys}); err != nil {
		t.Fatal(err)
	}
	token, err := a.SignJWT(t.Context(), jwtGrant(t, td))
	if err != nil {
		t.Fatal(err)
	}
	ctx := gooidc.ClientContext(t.Context(), server.Client())
	provider, err := gooidc.NewProvider(ctx, server.URL+"/td")
	if err != nil {
		t.Fatal(err)
	}
	got, err := provider.Verifier(&gooidc.Config{ClientID: "sts.amazonaws.com"}).Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	if got.Subject != "spiffe://example.org/shop/checkout" {
		t.Errorf("subject %s", got.Subject)
	}
	if _, err := provider.Verifier(&gooidc.Config{ClientID: "another"}).Verify(ctx, token); err == nil {
		t.Error("accepted for another audience")
	}
}

// forgetful keeps records in memory.
type forgetful struct {
	rows map[string]authority.Record
	p    authority.Publication
}

func (f *forgetful) Authorities(context.Context) (all []authority.Record, _ authority.Publication, _ error) {
	for _, r := range f.rows {
		all = append(all, r)
	}
	return all, f.p, nil
}

func (f *forgetful) SaveAuthorities(_ context.Context, c authority.Change) (authority.Saved, error) {
	if f.rows == nil {
		f.rows = map[string]authority.Record{}
	}
	for _, r := range c.Records {
		f.rows[r.ID] = r
	}
	if c.Publication.Sequence > 0 {
		f.p = c.Publication
	}
	return authority.Saved{}, nil
}

func (f *forgetful) Revocations(context.Context) ([]authority.Revocation, []authority.CRL, error) {
	return nil, nil, nil
}

func (f *forgetful) SaveRevocations(context.Context, []authority.Revocation, []authority.CRL) error {
	return nil
}

func jwtGrant(t *testing.T, td spiffeid.TrustDomain) identity.Grant {
	t.Helper()
	set, err := identity.NewSet(identity.Config{TrustDomain: td, JWT: true}, identity.Resources{Identities: []identity.Identity{{
		Name: "checkout", SPIFFEID: "/shop/checkout",
		Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}},
		JWT:   &identity.JWT{Audiences: identity.Plain("sts.amazonaws.com")},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	node, err := identity.NewFacts("node", map[string][]string{"node.name": {"n1"}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := set.Decide(identity.Request{Node: node, Audiences: []string{"sts.amazonaws.com"}, Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return d[0].Grant
}

// The keys that are served are always those published now, in their order.
func TestNewKeysAreServedAtOnce(t *testing.T) {
	var keys []authority.PublicKey
	h, err := oidc.New(oidc.Config{Issuer: issuer, Keys: func() []authority.PublicKey { return keys }})
	if err != nil {
		t.Fatal(err)
	}
	one, two := rsaKey("one"), rsaKey("two")
	renamed := authority.PublicKey{ID: "three", Alg: one.Alg, Key: one.Key}
	replaced := rsaKey("one")
	replaced.Key = &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Set(one.Key.(*rsa.PublicKey).N), 5, 1), E: 65537}
	tags := map[string]bool{}
	for _, next := range [][]authority.PublicKey{{one}, {one, two}, {two, one}, {renamed}, {replaced}} {
		keys = next
		for range 2 {
			tags[get(h, "GET", "/td/keys").Header.Get("ETag")] = true
		}
	}
	if len(tags) != 5 {
		t.Errorf("%d tags of five key sets", len(tags))
	}
	keys = nil
	if r := get(h, "GET", "/td/keys"); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s without a key", r.Status)
	}
}

// Who serves the documents in a Handler's place serves the same bytes.
func TestDocumentsAreThoseServed(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := []authority.PublicKey{rsaKey("one"), {ID: "ec", Alg: "ES256", Key: ec.Public()}, rsaKey("two")}
	discovery, jwks, err := oidc.Documents(issuer, keys)
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, keys...)
	for path, want := range map[string][]byte{"/td/.well-known/openid-configuration": discovery, "/td/keys": jwks} {
		r := get(h, "GET", path)
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		tag := r.Header.Get("ETag")
		packed := get(h, "GET", path, "Accept-Encoding", "gzip")
		if r := get(h, "GET", path, "If-None-Match", tag); r.StatusCode != 304 || r.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %s %v", path, r.Status, r.Header)
		}
		if packed.Header.Get("Content-Encoding") != "gzip" || packed.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: %v", path, packed.Header)
		}
	}
	for name, try := range map[string]func() error{
		"no key":    func() error { _, _, err := oidc.Documents(issuer, nil); return err },
		"none ours": func() error { _, _, err := oidc.Documents(issuer, keys[1:2]); return err },
		"no issuer": func() error { _, _, err := oidc.Documents("", keys); return err },
		"http":      func() error { _, _, err := oidc.Documents("http://id.example.org", keys); return err },
	} {
		if try() == nil {
			t.Errorf("%s: documents of it", name)
		}
	}
}
