package server_test

import (
	"crypto"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"google.golang.org/grpc/codes"
)

// kind are the records of a kind.
func (e *env) kind(kind string) (all []audit.Record) {
	e.t.Helper()
	for _, r := range e.records() {
		if r.Kind == kind {
			all = append(all, r)
		}
	}
	return all
}

func TestTokenExchange(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	n := e.join("n1")

	t.Run("of our own", func(t *testing.T) {
		subject := n.evidence(t, e.endpoint())
		got := e.ask(asking(subject, "audience", "orders", "audience", "ledger"))
		if got.status != 200 || got.Issued != jwtType || got.Type != "Bearer" || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%+v", got)
		}
		before, after := said(t, subject), said(t, got.Token)
		if after["sub"] != "spiffe://example.org/web" || after["act"] != nil || after["jti"] == before["jti"] || after["exp"].(float64) > before["exp"].(float64) {
			t.Errorf("from %v to %v", before, after)
		}
		if d := cmp.Diff([]any{"orders", "ledger"}, after["aud"]); d != "" {
			t.Error(d)
		}
		if left := int64(after["exp"].(float64)) - e.now().Unix(); got.ExpiresIn > left || got.ExpiresIn < left-2 {
			t.Errorf("expires in %d, that is %d", got.ExpiresIn, left)
		}
		all := e.kind("issue.jwt")
		r := all[len(all)-1]
		if r.SPIFFEID != "spiffe://example.org/web" || r.Node != n.id || r.Identity != "web" || r.Serial != after["jti"] ||
			r.Detail["evidence"] != "spiffe://example.org/web" || r.Detail["evidence_serial"] != before["jti"] || r.Detail["evidence_kind"] != "jwt" {
			t.Errorf("recorded %+v", r)
		}
	})
	t.Run("of a peer", func(t *testing.T) {
		subject := f.token(t, e.claims("/billing/x"))
		got := e.ask(asking(subject, "audience", "anything"))
		if got.status != 200 {
			t.Fatalf("%+v", got)
		}
		after := said(t, got.Token)
		if after["sub"] != "spiffe://example.org/partner/billing" || after["exp"].(float64) > said(t, subject)["exp"].(float64) {
			t.Errorf("to %v", after)
		}
		if d := cmp.Diff(map[string]any{"sub": "spiffe://partner.example/billing/x"}, after["act"]); d != "" {
			t.Error(d)
		}
		all := e.kind("issue.jwt")
		r := all[len(all)-1]
		if r.SPIFFEID != "spiffe://example.org/partner/billing" || r.Detail["evidence"] != "spiffe://partner.example/billing/x" || r.Facts["peer.path"][0] != "/billing/x" {
			t.Errorf("recorded %+v", r)
		}
	})
	t.Run("by TLS", func(t *testing.T) {
		for name, row := range map[string]struct{ from, sub, act string }{
			"ours":   {"ours", "spiffe://example.org/web", ""},
			"a peer": {"peer", "spiffe://example.org/partner/billing", "spiffe://partner.example/billing/x"},
		} {
			cert := f.svid(t, "/billing/x")
			if row.from == "ours" {
				cert = n.svid(t)
			}
			for range 2 { // it is no bearer's: it proves itself each time
				got, err := e.mtls(cert, &api.ExchangeTokenRequest{Audiences: []string{"orders"}})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				claims := said(t, got.GetAccessToken())
				act, _ := claims["act"].(map[string]any)
				if claims["sub"] != row.sub || row.act != "" && act["sub"] != row.act || row.act == "" && act != nil || got.GetTokenType() != "Bearer" || got.GetIssuedTokenType() != jwtType {
					t.Errorf("%s: %v, %v", name, claims, got)
				}
			}
		}
	})
	t.Run("a key that the bundle has not yet", func(t *testing.T) {
		e.peers.set(partnerURL, f.bundle(t, map[string]crypto.Signer{"k1": f.key, "k2": f.next}))
		subject := sign(t, f.next, jose.ES256, map[jose.HeaderKey]any{"kid": "k2"}, e.claims("/billing/x"))
		if got := e.ask(asking(subject, "audience", "a")); got.status != 200 {
			t.Errorf("%+v", got)
		}
	})
}

// The result of an exchange is no evidence, whichever way it is shown.
func TestHostileTokens(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	n, other := e.join("n1"), newForeign(t)
	good := func() map[string]any { return e.claims("/billing/x") }
	es := func(header map[jose.HeaderKey]any, claims map[string]any) string {
		return sign(t, f.key, jose.ES256, header, claims)
	}
	k1 := map[jose.HeaderKey]any{"kid": "k1"}
	spki := spki(t, f.key.Public())
	public, err := json.Marshal(jose.JSONWebKey{Key: f.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	for name, subject := range map[string]string{
		"nothing":                         "x",
		"two dots":                        "..",
		"alg none":                        unsigned(good(), "none"),
		"alg None":                        unsigned(good(), "None"),
		"HS256 by the public key":         sign(t, spki, jose.HS256, k1, good()),
		"HS256 by the public key as JSON": sign(t, public, jose.HS256, k1, good()),
		"an embedded jwk":                 es(map[jose.HeaderKey]any{"kid": "k1", "jwk": jose.JSONWebKey{Key: f.key.Public()}}, good()),
		"an embedded jwk of another's":    sign(t, other.key, jose.ES256, map[jose.HeaderKey]any{"kid": "k1", "jwk": jose.JSONWebKey{Key: other.key.Public()}}, good()),
		"a jku":                           es(map[jose.HeaderKey]any{"kid": "k1", "jku": "https://evil.example/keys"}, good()),
		"a crit":                          es(map[jose.HeaderKey]any{"kid": "k1", "crit": []string{"x"}, "x": 1}, good()),
		"a typ of another kind":           es(map[jose.HeaderKey]any{"kid": "k1", "typ": "at+jwt"}, good()),
		"another's key by our kid":        sign(t, other.key, jose.ES256, k1, good()),
		"two audiences":                   f.token(t, good(), map[string]any{"aud": []string{e.endpoint(), "orders"}}),
		"the audience twice":              f.token(t, good(), map[string]any{"aud": []string{e.endpoint(), e.endpoint()}}),
		"an audience with a slash":        f.token(t, good(), map[string]any{"aud": e.endpoint() + "/"}),
		"an audience in capitals":         f.token(t, good(), map[string]any{"aud": "HTTPS" + e.endpoint()[5:]}),
		"the issuer as audience":          f.token(t, good(), map[string]any{"aud": e.issuer}),
		"no audience":                     f.token(t, good(), map[string]any{"aud": []string{}}),
		"an iat in the future":            f.token(t, good(), map[string]any{"iat": e.now().Add(2 * time.Minute).Unix(), "exp": e.now().Add(5 * time.Minute).Unix()}),
		"no iat":                          f.token(t, good(), map[string]any{"iat": nil}),
		"an iat that is text":             f.token(t, good(), map[string]any{"iat": "1"}),
		"more than five minutes":          f.token(t, good(), map[string]any{"exp": e.now().Add(5*time.Minute + time.Second).Unix()}),
		"expired":                         f.token(t, good(), map[string]any{"iat": e.now().Add(-2 * time.Minute).Unix(), "exp": e.now().Add(-time.Second).Unix()}),
		"an end before its beginning":     f.token(t, good(), map[string]any{"iat": e.now().Add(50 * time.Second).Unix(), "exp": e.now().Add(40 * time.Second).Unix()}),
		"not yet":                         f.token(t, good(), map[string]any{"nbf": e.now().Add(2 * time.Minute).Unix()}),
		"no exp":                          f.token(t, good(), map[string]any{"exp": nil}),
		"no sub":                          f.token(t, good(), map[string]any{"sub": nil}),
		"a sub that is a trust domain":    f.token(t, good(), map[string]any{"sub": "spiffe://partner.example"}),
		"a sub of ours":                   f.token(t, good(), map[string]any{"sub": "spiffe://example.org/web", "iss": e.issuer}),
		"a sub of nobody's":               f.token(t, good(), map[string]any{"sub": "spiffe://nobody.example/a"}),
		"an empty jti":                    f.token(t, good(), map[string]any{"jti": ""}),
		"a jti that is a number":          f.token(t, good(), map[string]any{"jti": 1}),
		"an act":                          f.token(t, good(), map[string]any{"act": map[string]any{"sub": "spiffe://c.example/a"}}),
		"a path that is not accepted":     f.token(t, e.claims("/billing/x/y")),
		"accepted, but nobody's here":     "", // below: that is the target's fault
		"made for another audience":       n.evidence(t, "orders"),
		"made by an exchange":             e.ask(asking(n.evidence(t, e.endpoint()), "audience", "orders")).Token,
		"made by an exchange of a peer's": e.ask(asking(f.token(t, good()), "audience", "orders")).Token,
	} {
		if subject == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			got := e.ask(asking(subject, "audience", "orders"))
			if got.status != 400 || got.Error != "invalid_request" || got.Token != "" || got.Description == "" {
				t.Errorf("%+v", got)
			}
			wantSilence(t, got.Description, "accept", "Peer", "index", "k1 ")
		})
	}
	t.Run("accepted, but nobody's here", func(t *testing.T) {
		if got := e.ask(asking(f.token(t, e.claims("/shipping/x")), "audience", "orders")); got.status != 400 || got.Error != "invalid_target" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a stale peer", func(t *testing.T) {
		e.ahead.Store(int64(25 * time.Hour))
		defer e.ahead.Store(0)
		if got := e.ask(asking(f.token(t, good()), "audience", "orders")); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a peer that was removed", func(t *testing.T) {
		if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Peer", Name: "partner.example"}); err != nil {
			t.Fatal(err)
		}
		if got := e.ask(asking(f.token(t, good()), "audience", "orders")); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
	})
	if len(e.kind("exchange.refused")) == 0 {
		t.Error("what strangers showed is not counted")
	}
	found := false
	for _, r := range e.kind("deny") {
		found = found || r.Code == "peer" && r.SPIFFEID == "spiffe://partner.example/billing/x/y"
	}
	if !found {
		t.Error("no record of a path that is not accepted")
	}
}

// unsigned is a token that nobody signed.
func unsigned(claims map[string]any, alg string) string {
	text, _ := json.Marshal(claims)
	return b64([]byte(`{"alg":"`+alg+`","typ":"JWT"}`)) + "." + b64(text) + "."
}

// By TLS none but workloads are served, and a node's SVID is not a workload's.
func TestHostileCertificates(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	n, other := e.join("n1"), newForeign(t)
	ask := &api.ExchangeTokenRequest{Audiences: []string{"orders"}}
	own := e.server.SVID()
	for name, row := range map[string]struct {
		cert any
		code codes.Code
	}{
		"no certificate":            {nil, codes.Unauthenticated},
		"a node":                    {n.cert, codes.Unauthenticated},
		"the broker":                {own, codes.Unauthenticated},
		"not accepted":              {f.svid(t, "/other/x"), codes.Unauthenticated},
		"a peer's reserved path":    {f.svid(t, "/credence/broker"), codes.Unauthenticated},
		"accepted, but nobody's":    {f.svid(t, "/shipping/x"), codes.PermissionDenied},
		"of another's CA":           {other.svid(t, "/billing/x"), codes.Unavailable}, // TLS ends it
		"of ours, by a peer's CA":   {f.ours(t), codes.Unavailable},
		"that nobody knows we made": {unrecorded(t, e), codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.mtls(certOf(row.cert), ask)
			wantCode(t, err, row.code)
		})
	}
	// And what is good here is nothing at the nodes' service.
	for _, cert := range []any{n.svid(t), f.svid(t, "/billing/x")} {
		_, err := api.NewNodeClient(e.dial(certOf(cert))).IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}})
		wantCode(t, err, codes.Unauthenticated)
	}
	t.Run("a stale peer", func(t *testing.T) {
		cert := f.svid(t, "/billing/x")
		conn := e.dial(cert)
		c := api.NewExchangeClient(conn)
		if _, err := c.Exchange(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
		if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Peer", Name: "partner.example"}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Exchange(t.Context(), ask) // on the same connection
		wantCode(t, err, codes.Unauthenticated)
	})
}
