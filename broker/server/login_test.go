package server_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/login"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	"github.com/credence-id/credence/federation"
)

const people = `kind: Identity
name: ana
spiffe_id: /people/ana
match: [{user.email: ana@acme.example}]
x509: {ttl: 10m}
---
kind: Identity
name: sre
spiffe_id: /teams/sre
match: [{user.groups: sre}]
---
kind: Identity
name: everybody
spiffe_id: /everybody
match: [{node.name: n1}]
`

// withLogin lets people of issuertest's issuer log in.
func withLogin(e *env) {
	t := e.t
	text, err := json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bearer.NewStatic(text)
	if err != nil {
		t.Fatal(err)
	}
	s := login.Settings{Issuer: issuertest.URL, ClientID: "credence"}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	v, err := login.New(login.Config{Settings: s, Keys: keys, Now: e.now})
	if err != nil {
		t.Fatal(err)
	}
	e.login = &server.Login{
		Issuer: s.Issuer, ClientID: s.ClientID, RedirectURI: s.RedirectURI, Scopes: s.Scopes, CA: "ca",
		Verify: func(ctx context.Context, token []byte, nonce string) (broker.Login, error) {
			p, err := v.Verify(ctx, token, nonce)
			return broker.Login{User: p.Facts, Unknown: p.Unknown, Once: p.Digest, Expires: p.Expires}, err
		},
	}
}

// idToken is a person's, for a key.
func (e *env) idToken(key crypto.PublicKey, changes map[string]any) string {
	e.t.Helper()
	now := e.now()
	return issuertest.Sign(e.t, issuertest.RSA(), "RS256", nil, issuertest.With(map[string]any{
		"iss": issuertest.URL, "aud": "credence", "sub": "1", "nonce": api.LoginNonce("example.org", spki(e.t, key)), "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"email": "ana@acme.example", "email_verified": true, "groups": []string{"sre"}, "jti": rand.Text(),
	}, changes))
}

func (e *env) people() api.ExchangeClient { return api.NewExchangeClient(e.dial(nil)) }

func TestLogin(t *testing.T) {
	e := newEnv(t, withLogin)
	e.apply(people)
	c := e.people()
	info, err := c.LoginInfo(t.Context(), &api.LoginInfoRequest{})
	if err != nil || info.GetIssuer() != issuertest.URL || info.GetClientId() != "credence" || info.GetRedirectUri() != "http://127.0.0.1/callback" || info.GetCa() != "ca" || len(info.GetScopes()) != 2 {
		t.Fatalf("%v, %v", info, err)
	}
	key := newKey(t)
	got, err := c.Login(t.Context(), &api.LoginRequest{IdToken: e.idToken(key.Public(), nil), PublicKey: spki(t, key.Public()), Ttl: 300})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := federation.ParseBundle(td, got.GetBundle()); err != nil || len(got.GetSvids()) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	for i, want := range []string{"ana spiffe://example.org/people/ana", "sre spiffe://example.org/teams/sre"} {
		one := got.GetSvids()[i]
		chain := parse(t, one.GetChain())
		id, _, err := federation.VerifyX509(chain, e.authority, e.now())
		if err != nil || one.GetIdentity()+" "+id.String() != want || one.GetSpiffeId() != id.String() || !key.PublicKey.Equal(chain[0].PublicKey) {
			t.Errorf("%v: %s, %v", one, id, err)
		}
		if life := chain[0].NotAfter.Sub(e.now()); life > 5*time.Minute {
			t.Errorf("%s lives for %s", id, life)
		}
	}
	for _, r := range e.records() {
		if r.Kind == "login" && r.OK && r.Facts["user.email"][0] == "ana@acme.example" {
			return
		}
	}
	t.Error("no login is recorded")
}

// Nothing that a person or a stranger may show gives more than their own token
// does, for their own key, once.
func TestLoginRefuses(t *testing.T) {
	e := newEnv(t, withLogin)
	e.apply(people)
	c := e.people()
	key, other := newKey(t), newKey(t)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	used := e.idToken(key.Public(), nil)
	if _, err := c.Login(t.Context(), &api.LoginRequest{IdToken: used, PublicKey: spki(t, key.Public())}); err != nil {
		t.Fatal(err)
	}
	ask := func(changes map[string]any) *api.LoginRequest {
		return &api.LoginRequest{IdToken: e.idToken(key.Public(), changes), PublicKey: spki(t, key.Public())}
	}
	with := func(r *api.LoginRequest, change func(*api.LoginRequest)) *api.LoginRequest { change(r); return r }
	for _, row := range []struct {
		name string
		ask  *api.LoginRequest
		code codes.Code
		says string
	}{
		{"for another key", with(ask(nil), func(r *api.LoginRequest) { r.PublicKey = spki(t, other.Public()) }), codes.Unauthenticated, "another key"},
		{"of another trust domain's nonce", ask(map[string]any{"nonce": api.LoginNonce("example.com", spki(t, key.Public()))}), codes.Unauthenticated, "another key"},
		{"of another client", ask(map[string]any{"aud": "another"}), codes.Unauthenticated, "credence"},
		{"that has ended", ask(map[string]any{"exp": e.now().Add(-2 * time.Minute).Unix()}), codes.Unauthenticated, "expired"},
		{"from the future", ask(map[string]any{"iat": e.now().Add(2 * time.Minute).Unix()}), codes.Unauthenticated, "not yet valid"},
		{"that was used", &api.LoginRequest{IdToken: used, PublicKey: spki(t, key.Public())}, codes.Unauthenticated, "used before"},
		{"of a stranger", ask(map[string]any{"email": "mallory@evil.example", "groups": nil}), codes.PermissionDenied, "no identity for you"},
		{"of an address that is not verified", ask(map[string]any{"email_verified": false, "groups": nil}), codes.PermissionDenied, "no identity for you"},
		{"for a longer life", with(ask(nil), func(r *api.LoginRequest) { r.Ttl = 3600 }), codes.PermissionDenied, "10m"},
		{"for a life of no time", with(ask(nil), func(r *api.LoginRequest) { r.Ttl = -1 }), codes.InvalidArgument, ""},
		{"for no key", with(ask(nil), func(r *api.LoginRequest) { r.PublicKey = nil }), codes.InvalidArgument, ""},
		{"for a key of another kind", with(ask(nil), func(r *api.LoginRequest) { r.PublicKey = spki(t, p521.Public()) }), codes.InvalidArgument, ""},
		{"nothing", &api.LoginRequest{PublicKey: spki(t, key.Public())}, codes.Unauthenticated, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := c.Login(t.Context(), row.ask)
			text := wantCode(t, err, row.code)
			if got != nil || !strings.Contains(text, row.says) {
				t.Errorf("%v, %q", got, text)
			}
			wantSilence(t, text, "sre", "everybody", row.ask.GetIdToken()+"!", e.dir)
		})
	}
	kinds := map[string]int{}
	e.close()
	for _, r := range e.records() {
		if !r.OK {
			kinds[r.Kind+" "+r.Code]++
		}
	}
	if kinds["login denied"] == 0 || kinds["login spent"] != 1 || kinds["login ttl_refused"] != 1 || kinds["login.refused strangers"] == 0 {
		t.Errorf("recorded: %v", kinds)
	}
}

// The key of an authority is nobody's.
func TestLoginForAnAuthoritysKey(t *testing.T) {
	e := newEnv(t, withLogin)
	e.apply(people)
	root := e.authority.Bundle().X509Authorities[0].PublicKey
	got, err := e.people().Login(t.Context(), &api.LoginRequest{IdToken: e.idToken(root, nil), PublicKey: spki(t, root)})
	if err == nil {
		t.Errorf("it is certified: %v", got)
	}
}

// Where broker.yaml has no login there is none.
func TestNobodyLogsIn(t *testing.T) {
	e := newEnv(t)
	key := newKey(t)
	_, err := e.people().LoginInfo(t.Context(), &api.LoginInfoRequest{})
	wantCode(t, err, codes.Unimplemented)
	_, err = e.people().Login(t.Context(), &api.LoginRequest{IdToken: e.idToken(key.Public(), nil), PublicKey: spki(t, key.Public())})
	wantCode(t, err, codes.Unimplemented)
}

// How often somebody asks is bounded, by address and by person.
func TestLoginsAreBounded(t *testing.T) {
	e := newEnv(t, withLogin)
	e.apply(people)
	c := e.people()
	for range 300 {
		_, err := c.Login(t.Context(), &api.LoginRequest{IdToken: "a.b.c", PublicKey: spki(t, newKey(t).Public())})
		if strings.Contains(err.Error(), "too many") {
			wantCode(t, err, codes.ResourceExhausted)
			return
		}
	}
	t.Error("300 of one address are judged")
}

// A stranger has no more logins under way at once than it may have calls.
func TestAStrangersLoginsAtOnce(t *testing.T) {
	entered, release := make(chan struct{}, 9), make(chan struct{})
	e := newEnv(t, withLogin, func(e *env) {
		e.login.Verify = func(context.Context, []byte, string) (broker.Login, error) {
			entered <- struct{}{}
			<-release
			return broker.Login{}, join.ErrEvidence
		}
	})
	c := e.people()
	ask := &api.LoginRequest{IdToken: "a.b.c", PublicKey: spki(t, newKey(t).Public())}
	var asking sync.WaitGroup
	defer asking.Wait()
	defer close(release)
	for range 8 {
		asking.Go(func() { _, _ = c.Login(t.Context(), ask) })
	}
	late := time.After(time.Minute)
	for n := range 8 {
		select {
		case <-entered:
		case <-late:
			t.Fatalf("%d of 8 are judged", n)
		}
	}
	_, err := c.LoginInfo(t.Context(), &api.LoginInfoRequest{})
	wantCode(t, err, codes.ResourceExhausted)
}
