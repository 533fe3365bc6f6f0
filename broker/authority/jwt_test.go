package authority_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/credence-id/credence/broker/identity"
)

// parts decodes a token's header and claims without judging them.
func parts(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	p := strings.Split(token, ".")
	if len(p) != 3 {
		t.Fatalf("token of %d parts", len(p))
	}
	for i, m := range []*map[string]any{&header, &claims} {
		data, err := base64.RawURLEncoding.DecodeString(p[i])
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.UseNumber()
		if err := d.Decode(m); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func TestSignJWT(t *testing.T) {
	e := newEnv(t)
	e.clock.set(time.Now().Truncate(time.Second)) // go-spiffe reads the real clock
	now := e.clock.now()
	a := e.openReady()
	bundle, err := spiffebundle.Parse(td, a.Bundle().Document)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, alg string
		audiences []string
		aud       any
	}{
		{"one audience is a string", "RS256", []string{"https://sts.example.com/a&b"}, "https://sts.example.com/a&b"},
		{"more are a list", "ES256", []string{"orders", "ledger"}, []any{"orders", "ledger"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token, err := a.SignJWT(t.Context(), jwtGrant(t, tt.alg, now, tt.audiences...))
			if err != nil {
				t.Fatal(err)
			}
			header, claims := parts(t, token)
			if got := slices.Sorted(maps.Keys(header)); !slices.Equal(got, []string{"alg", "kid", "typ"}) {
				t.Errorf("header has %v", got)
			}
			if header["alg"] != tt.alg || header["typ"] != "JWT" {
				t.Errorf("header %v", header)
			}
			if jti, _ := claims["jti"].(string); len(jti) != 22 {
				t.Errorf("jti %q is not of 128 bits", jti)
			}
			delete(claims, "jti")
			want := map[string]any{
				"iss": issuer, "sub": "spiffe://example.org/shop/checkout", "aud": tt.aud, "team": "payments",
				"iat": number(now.Add(-time.Minute)), "exp": number(now.Add(4 * time.Minute)),
			}
			if diff := cmp.Diff(want, claims); diff != "" {
				t.Error(diff)
			}
			if _, err := jwtsvid.ParseAndValidate(token, bundle, tt.audiences[:1]); err != nil {
				t.Error(err)
			}
		})
	}
}

func number(t time.Time) json.Number {
	data, _ := json.Marshal(t.Unix())
	return json.Number(data)
}

func TestSignJWTLife(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	for _, tt := range []struct {
		name     string
		ttl      time.Duration
		iat, exp time.Duration // from now
	}{
		{"an hour counts from iat", time.Hour, -time.Minute, 59 * time.Minute},
		{"a minute is not over at once", time.Minute, -30 * time.Second, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256", TTL: tt.ttl}}
			token, err := a.SignJWT(t.Context(), grant(t, i, identity.Request{Audiences: []string{"a"}, Time: start}))
			if err != nil {
				t.Fatal(err)
			}
			_, claims := parts(t, token)
			if claims["iat"] != number(start.Add(tt.iat)) || claims["exp"] != number(start.Add(tt.exp)) {
				t.Errorf("iat %v, exp %v at %d", claims["iat"], claims["exp"], start.Unix())
			}
		})
	}
	e.lives.MaxJWT = 10 * time.Minute
	i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256", TTL: time.Hour}}
	token, err := e.open().SignJWT(t.Context(), grant(t, i, identity.Request{Audiences: []string{"a"}, Time: start}))
	if err != nil {
		t.Fatal(err)
	}
	if _, claims := parts(t, token); claims["exp"] != number(start.Add(9*time.Minute)) {
		t.Errorf("exp %v is past the longest life", claims["exp"])
	}
}

func TestSignJWTRefuses(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	e.issuer = ""
	silent := e.open()
	key := newKey(t)
	for _, tt := range []struct {
		name  string
		grant identity.Grant
		want  string
	}{
		{"the zero grant", identity.Grant{}, "nothing is granted"},
		{"an old grant", jwtGrant(t, "ES256", start.Add(-31*time.Second), "a"), "ago"},
		{"a grant from the future", jwtGrant(t, "ES256", start.Add(2*time.Minute), "a"), "future"},
		{"a grant for an X509-SVID", nodeGrant(t, key.Public(), start, time.Hour), "for an X509-SVID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := a.SignJWT(t.Context(), tt.grant); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := silent.SignJWT(t.Context(), jwtGrant(t, "ES256", start, "a")); err == nil || !strings.Contains(err.Error(), "no issuer") {
		t.Errorf("without an issuer: %v", err)
	}
}

func TestSignJWTWaitsForRSA(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	g := jwtGrant(t, "RS256", start, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.SignJWT(ctx, g); !errors.Is(err, context.Canceled) {
		t.Fatalf("before there is a key: %v", err)
	}
	if len(a.OIDCKeys()) != 0 {
		t.Fatal("Open made RSA keys")
	}
	signed := make(chan error)
	go func() {
		_, err := a.SignJWT(t.Context(), g)
		signed <- err
	}()
	e.tick(a)
	if err := <-signed; err != nil {
		t.Error(err)
	}
	if len(a.OIDCKeys()) != 2 {
		t.Errorf("%d RS256 keys are published", len(a.OIDCKeys()))
	}
	if err := a.Ready(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
