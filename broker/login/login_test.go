package login_test

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/login"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	client = "credence"
	nonce  = "jTZ3WcCt1ZLrcQKDMHD5T3oxpuMPPN8cYcCbvQv5Z2Q"
)

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

func verifier(t testing.TB, changes ...func(*login.Settings)) *login.Verifier {
	t.Helper()
	s := login.Settings{Issuer: issuertest.URL, ClientID: client}
	for _, change := range changes {
		change(&s)
	}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public()), issuertest.JWK("ec1", issuertest.EC().Public())))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bearer.NewStatic(text)
	if err != nil {
		t.Fatal(err)
	}
	v, err := login.New(login.Config{Settings: s, Keys: keys, Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func claims(changes map[string]any) map[string]any {
	return issuertest.With(map[string]any{
		"iss": issuertest.URL, "aud": client, "sub": "ana", "nonce": nonce, "iat": start.Unix(), "exp": start.Add(time.Hour).Unix(),
	}, changes)
}

func token(t testing.TB, changes map[string]any) string {
	return issuertest.Sign(t, issuertest.RSA(), "RS256", nil, claims(changes))
}

func TestHostileTokens(t *testing.T) {
	v := verifier(t)
	for name, text := range map[string]string{
		"no nonce":                          token(t, map[string]any{"nonce": nil}),
		"an empty nonce":                    token(t, map[string]any{"nonce": ""}),
		"the nonce of another key":          token(t, map[string]any{"nonce": nonce[:42] + "A"}),
		"a nonce that is longer":            token(t, map[string]any{"nonce": nonce + "A"}),
		"a nonce that is a list":            token(t, map[string]any{"nonce": []string{nonce}}),
		"the nonce in another case":         token(t, map[string]any{"nonce": strings.ToLower(nonce)}),
		"of another client":                 token(t, map[string]any{"aud": "another"}),
		"of another client, made by us":     token(t, map[string]any{"aud": "another", "azp": client}),
		"made by another client":            token(t, map[string]any{"azp": "another"}),
		"made by a list of clients":         token(t, map[string]any{"azp": []string{client}}),
		"made by nobody":                    token(t, map[string]any{"azp": nil, "aud": []string{client, "another"}}),
		"for several, made by another":      token(t, map[string]any{"azp": "another", "aud": []string{client, "another"}}),
		"for several others, made by us":    token(t, map[string]any{"azp": client, "aud": []string{"one", "another"}}),
		"of no audience":                    token(t, map[string]any{"aud": nil}),
		"of another issuer":                 token(t, map[string]any{"iss": "https://evil.example"}),
		"of an issuer with a slash more":    token(t, map[string]any{"iss": issuertest.URL + "/"}),
		"of nobody":                         token(t, map[string]any{"sub": nil}),
		"that has ended":                    token(t, map[string]any{"exp": start.Add(-61 * time.Second).Unix(), "iat": start.Add(-4 * time.Minute).Unix()}),
		"from the future":                   token(t, map[string]any{"iat": start.Add(61 * time.Second).Unix()}),
		"not valid yet":                     token(t, map[string]any{"nbf": start.Add(61 * time.Second).Unix()}),
		"older than it may be":              token(t, map[string]any{"iat": start.Add(-login.MaxAge - 61*time.Second).Unix()}),
		"of no age":                         token(t, map[string]any{"iat": nil}),
		"without an end":                    token(t, map[string]any{"exp": nil}),
		"alg none":                          issuertest.Sign(t, issuertest.RSA(), "none", nil, claims(nil)),
		"HS256":                             issuertest.Sign(t, issuertest.RSA(), "HS256", nil, claims(nil)),
		"ES256 by the RSA key's name":       issuertest.Sign(t, issuertest.EC(), "ES256", nil, claims(nil)),
		"signed by another key":             issuertest.Sign(t, issuertest.NewEC(elliptic.P256()), "ES256", map[string]any{"kid": "ec1"}, claims(nil)),
		"with a key of its own":             issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"jwk": issuertest.JWK("k1", issuertest.RSA().Public())}, claims(nil)),
		"an audience in another case":       token(t, map[string]any{"AUD": "another"}),
		"oversized":                         token(t, map[string]any{"x": strings.Repeat("a", bearer.MaxToken)}),
		"more groups than a token may hold": token(t, map[string]any{"groups": make([]int, 600)}),
		"nothing":                           "",
	} {
		t.Run(name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), []byte(text), nonce)
			if !errors.Is(err, join.ErrEvidence) {
				t.Errorf("it is taken as %+v, or refused for another reason: %v", p, err)
			}
		})
	}
	if _, err := v.Verify(t.Context(), []byte(token(t, nil)), ""); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("no nonce is wanted, and any will do: %v", err)
	}
	only := verifier(t, func(s *login.Settings) { s.Algorithms = []string{"ES256"} })
	if _, err := only.Verify(t.Context(), []byte(token(t, nil)), nonce); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("an algorithm that is not permitted: %v", err)
	}
}

func TestHonestTokens(t *testing.T) {
	v := verifier(t)
	for name, changes := range map[string]map[string]any{
		"plain":                         nil,
		"made by us":                    {"azp": client},
		"a list of us":                  {"aud": []string{client}},
		"for others too, made by us":    {"aud": []string{"project", client}, "azp": client},
		"an hour that has nearly ended": {"iat": start.Add(-4 * time.Minute).Unix(), "exp": start.Add(time.Second).Unix()},
		"a clock that is off":           {"iat": start.Add(59 * time.Second).Unix()},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), []byte(token(t, changes)), nonce)
			if err != nil || p.Subject != "ana" || p.Digest == [32]byte{} || p.Expires.IsZero() {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	many := make([]string, 257)
	for i := range many {
		many[i] = fmt.Sprint("g", i)
	}
	own := func(s *login.Settings) {
		s.Claims = map[string]string{"groups": "groups", "roles": "realm_access.roles", "team": "https://acme.example/team", "level": "level"}
	}
	for _, row := range []struct {
		name    string
		changes map[string]any
		facts   map[string][]string
		unknown []string
	}{
		{"nothing but a subject", nil, map[string][]string{}, nil},
		{"a verified address", map[string]any{"email": "ana@acme.example", "email_verified": true}, map[string][]string{"user.email": {"ana@acme.example"}}, nil},
		{"an address that is not verified", map[string]any{"email": "ana@acme.example", "email_verified": false}, map[string][]string{}, []string{"user.email"}},
		{"an address of which nothing is said", map[string]any{"email": "ana@acme.example"}, map[string][]string{}, []string{"user.email"}},
		{"verified in words", map[string]any{"email": "ana@acme.example", "email_verified": "true"}, map[string][]string{}, []string{"user.email"}},
		{"an address that is a list", map[string]any{"email": []string{"ana@acme.example"}, "email_verified": true}, map[string][]string{}, []string{"user.email"}},
		{"an empty address", map[string]any{"email": "", "email_verified": true}, map[string][]string{}, []string{"user.email"}},
		{"groups", map[string]any{"groups": []string{"sre", "dev"}}, map[string][]string{"user.groups": {"sre", "dev"}}, nil},
		{"no groups", map[string]any{"groups": []string{}}, map[string][]string{}, nil},
		{"one group in a string", map[string]any{"groups": "sre"}, map[string][]string{"user.groups": {"sre"}}, nil},
		{"more groups than fit", map[string]any{"groups": many}, map[string][]string{}, []string{"user.groups"}},
		{"groups that are kept elsewhere", map[string]any{"_claim_names": map[string]any{"groups": "src1"}, "_claim_sources": map[string]any{"src1": map[string]any{"endpoint": "https://graph.example/groups"}}}, map[string][]string{}, []string{"user.groups"}},
		{"groups that are no texts", map[string]any{"groups": []any{"sre", map[string]any{"a": "b"}}}, map[string][]string{}, []string{"user.groups"}},
		{"an object", map[string]any{"groups": map[string]any{"sre": true}}, map[string][]string{}, []string{"user.groups"}},
		{"an empty group", map[string]any{"groups": []string{"sre", ""}}, map[string][]string{}, []string{"user.groups"}},
		{"claims of the owner's", map[string]any{"realm_access": map[string]any{"roles": []string{"a"}}, "https://acme.example/team": "pay", "level": 3}, map[string][]string{"user.roles": {"a"}, "user.team": {"pay"}, "user.level": {"3"}}, nil},
		{"claims that nobody asked for", map[string]any{"name": "Ana", "user.groups": "sre", "issuer": "x"}, map[string][]string{}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := verifier(t, own).Verify(t.Context(), []byte(token(t, row.changes)), nonce)
			if err != nil {
				t.Fatal(err)
			}
			row.facts["user.sub"], row.facts["user.issuer"] = []string{"ana"}, []string{issuertest.URL}
			if d := cmp.Diff(row.facts, p.Facts.Map()); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(row.unknown, p.Unknown); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	for name, change := range map[string]func(*login.Settings){
		"no issuer":                func(s *login.Settings) { s.Issuer = "" },
		"plain http":               func(s *login.Settings) { s.Issuer = "http://id.example" },
		"no client":                func(s *login.Settings) { s.ClientID = "" },
		"a fact of ours":           func(s *login.Settings) { s.Claims = map[string]string{"email": "upn"} },
		"a fact in upper case":     func(s *login.Settings) { s.Claims = map[string]string{"Team": "team"} },
		"a fact of no claim":       func(s *login.Settings) { s.Claims = map[string]string{"team": ""} },
		"scopes without openid":    func(s *login.Settings) { s.Scopes = []string{"email"} },
		"two scopes in one":        func(s *login.Settings) { s.Scopes = []string{"openid", "a b"} },
		"an algorithm of a secret": func(s *login.Settings) { s.Algorithms = []string{"HS256"} },
		"alg none":                 func(s *login.Settings) { s.Algorithms = []string{"none"} },
		"back to another machine":  func(s *login.Settings) { s.RedirectURI = "http://example.com/callback" },
		"back to https":            func(s *login.Settings) { s.RedirectURI = "https://127.0.0.1/callback" },
		"back to a name like it":   func(s *login.Settings) { s.RedirectURI = "http://127.0.0.1.evil.example/callback" },
		"back to a user":           func(s *login.Settings) { s.RedirectURI = "http://127.0.0.1@evil.example/callback" },
		"back to no path":          func(s *login.Settings) { s.RedirectURI = "http://127.0.0.1" },
		"back with a query":        func(s *login.Settings) { s.RedirectURI = "http://127.0.0.1/callback?x=y" },
		"back to port 0":           func(s *login.Settings) { s.RedirectURI = "http://127.0.0.1:0/callback" },
	} {
		s := login.Settings{Issuer: issuertest.URL, ClientID: client}
		change(&s)
		if err := s.Complete(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for _, uri := range []string{"http://127.0.0.1/callback", "http://[::1]:8250/cb", "http://localhost:8250/"} {
		s := login.Settings{Issuer: issuertest.URL, ClientID: client, RedirectURI: uri}
		if err := s.Complete(); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	v := verifier(f)
	for _, seed := range []string{token(f, nil), "a.b.c", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := v.Verify(t.Context(), text, nonce); err == nil && p.Facts.Get("user.sub") == nil {
			t.Errorf("%q is taken as nobody's", text)
		}
	})
}
