package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/federation"
)

// provider is a target's: it looks at what it is shown, and gives what it is told.
type provider struct {
	mu     sync.Mutex // guards what follows
	give   exchangers.Credential
	err    error
	during func() // called while it is asked

	target string
	life   time.Duration
	scopes []string
	token  map[string]any
	leaf   string
	asked  int
}

func (p *provider) build(t broker.Target, life time.Duration, scopes []string) (exchangers.Exchanger, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target, p.life, p.scopes = t.Name, life, scopes
	if len(scopes) > 0 && scopes[0] != "read" {
		return nil, fmt.Errorf("target %s: %w", t.Name, exchangers.ErrScope)
	}
	return p, nil
}

func (p *provider) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.target == "pki" {
		svid, err := svids.X509(ctx)
		if err != nil {
			return exchangers.Credential{}, err
		}
		if svid.PrivateKey == nil || svid.ID != svids.ID() {
			return exchangers.Credential{}, errors.New("an SVID without its key")
		}
		p.leaf = svid.Certificates[0].URIs[0].String() + " " + svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339)
	} else {
		token, err := svids.JWT(ctx)
		if err != nil {
			return exchangers.Credential{}, err
		}
		p.token = said(&testing.T{}, token)
	}
	if p.during != nil {
		p.during()
	}
	return p.give, p.err
}

const targets = `---
kind: Target
name: cloud
cloud: {aud: "https://cloud.example"}
---
kind: Target
name: pki
mtls: {role: r}
---
kind: Target
name: other
cloud: {aud: "https://other.example"}
`

// A target's credential for callers without an agent: what the provider is shown
// names the identity, and is recorded before; what it gives ends with the
// evidence, or goes to nobody.
func TestTokenForATarget(t *testing.T) {
	p := &provider{}
	e := newEnv(t, withIssuer, func(e *env) { e.exchanger = p.build })
	e.ready()
	f := newForeign(t)
	text := strings.Replace(e.exchanging(), "x509: {ttl: 1h}", "targets: [cloud, pki]", 1)
	e.apply(strings.Replace(text, `jwt: {audiences: ["**"]}`, "targets: [cloud]", 1) + targets)
	e.believe(f)
	n := e.join("n1")
	bearer := func(in time.Duration) exchangers.Credential {
		return exchangers.Credential{Expires: e.now().Add(in), RequestID: "req-1", Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("at-1"), Scopes: []string{"read"}}}
	}
	session := func(in time.Duration) exchangers.Credential {
		return exchangers.Credential{Expires: e.now().Add(in), AWS: &exchangers.AWS{
			AccessKeyID: "AKIA", SecretAccessKey: exchangers.NewSecret("secret"), SessionToken: exchangers.NewSecret("session"), Region: "eu-west-1",
		}}
	}
	last := func(kind string) map[string]string {
		all := e.kind(kind)
		r := all[len(all)-1]
		m := map[string]string{
			"ok": fmt.Sprint(r.OK), "id": r.SPIFFEID, "identity": r.Identity, "target": r.Target, "code": r.Code,
			"evidence": r.Detail["evidence"], "request_id": r.Detail["request_id"],
		}
		return m
	}
	t.Run("by our token", func(t *testing.T) {
		p.give = bearer(time.Minute)
		subject := n.evidence(t, e.endpoint())
		got := e.ask(asking(subject, "resource", "urn:credence:target:cloud", "scope", "read"))
		if got.status != 200 || got.Token != "at-1" || got.Type != "Bearer" || got.Issued != "urn:ietf:params:oauth:token-type:access_token" || got.Scope != "read" || got.ExpiresIn > 60 || got.ExpiresIn < 58 {
			t.Fatalf("%+v", got)
		}
		if p.token["sub"] != "spiffe://example.org/web" || p.token["aud"] != "https://cloud.example" || p.token["exp"].(float64) > said(t, subject)["exp"].(float64) || p.life > 5*time.Minute {
			t.Errorf("it was shown %v, for %s", p.token, p.life)
		}
		if d := cmp.Diff([]string{"read"}, p.scopes); d != "" {
			t.Error(d)
		}
		want := map[string]string{"ok": "true", "id": "spiffe://example.org/web", "identity": "web", "target": "cloud", "code": "", "evidence": "spiffe://example.org/web", "request_id": "req-1"}
		if d := cmp.Diff(want, last("exchange")); d != "" {
			t.Error(d)
		}
		if shown := last("issue.jwt"); shown["target"] != "cloud" || shown["evidence"] != "spiffe://example.org/web" {
			t.Errorf("recorded %v", shown)
		}
	})
	t.Run("by a peer's", func(t *testing.T) {
		p.give = bearer(time.Minute)
		got := e.ask(asking(f.token(t, e.claims("/billing/x")), "resource", "urn:credence:target:cloud"))
		act, _ := p.token["act"].(map[string]any)
		if got.status != 200 || p.token["sub"] != "spiffe://example.org/partner/billing" || act["sub"] != "spiffe://partner.example/billing/x" {
			t.Errorf("%+v, shown %v", got, p.token)
		}
		if r := last("exchange"); r["id"] != "spiffe://example.org/partner/billing" || r["evidence"] != "spiffe://partner.example/billing/x" {
			t.Errorf("recorded %v", r)
		}
	})
	t.Run("by TLS, to one that takes X509-SVIDs", func(t *testing.T) {
		p.give = session(20 * time.Minute)
		cert := n.svid(t)
		got, err := e.mtls(cert, &api.ExchangeTokenRequest{Resource: "urn:credence:target:pki"})
		if err != nil {
			t.Fatal(err)
		}
		want := `{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"secret","SessionToken":"session","Expiration":"` + p.give.Expires.UTC().Format(time.RFC3339) + `"}`
		if got.GetAccessToken() != want || got.GetTokenType() != "N_A" || got.GetIssuedTokenType() != "urn:credence:token-type:aws-session" {
			t.Errorf("got %v", got)
		}
		if end := parse(t, cert.Certificate)[0].NotAfter.UTC().Format(time.RFC3339); p.leaf > "spiffe://example.org/web "+end || !strings.HasPrefix(p.leaf, "spiffe://example.org/web ") {
			t.Errorf("it was shown %s, for what ends %s", p.leaf, end)
		}
	})
	for name, row := range map[string]struct {
		give   exchangers.Credential
		err    error
		ask    []string
		status int
		code   string
		asked  int
		record string
	}{
		"a credential that outlives it": {bearer(6 * time.Minute), nil, []string{"resource", "urn:credence:target:cloud"}, 400, "invalid_target", 1, "outlives"},
		"a scope that there is not":     {bearer(time.Minute), nil, []string{"resource", "urn:credence:target:cloud", "scope", "write"}, 400, "invalid_scope", 0, "local"},
		"refused": {exchangers.Credential{}, &exchangers.Error{Provider: "gcp", Status: 403, Code: "PERMISSION", Message: "inside", Class: exchangers.Config, RequestID: "req-2"},
			[]string{"resource", "urn:credence:target:cloud"}, 400, "invalid_target", 1, "PERMISSION"},
		"slowed down": {exchangers.Credential{}, &exchangers.Error{Provider: "gcp", Status: 429, Code: "SLOW", Class: exchangers.Throttled, RetryAfter: 7 * time.Second},
			[]string{"resource", "urn:credence:target:cloud"}, 503, "temporarily_unavailable", 1, "SLOW"},
		"of another type than asked for": {bearer(time.Minute), nil, []string{"resource", "urn:credence:target:cloud", "requested_token_type", "urn:credence:token-type:aws-session"}, 400, "invalid_request", 1, ""},
		"not its identity's":             {bearer(time.Minute), nil, []string{"resource", "urn:credence:target:other"}, 400, "invalid_target", 0, "-"},
		"nobody's":                       {bearer(time.Minute), nil, []string{"resource", "urn:credence:target:nobody"}, 400, "invalid_target", 0, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			p.give, p.err, p.asked = row.give, row.err, 0
			defer func() { p.err = nil }()
			before := len(e.kind("exchange"))
			got := e.ask(asking(n.evidence(t, e.endpoint()), row.ask...))
			if got.status != row.status || got.Error != row.code || got.Token != "" || p.asked != row.asked {
				t.Errorf("%+v, asked %d", got, p.asked)
			}
			if row.status == 503 && got.header.Get("Retry-After") != "7" {
				t.Errorf("%v", got.header)
			}
			wantSilence(t, got.Description, "inside")
			if row.record == "-" {
				if len(e.kind("exchange")) != before {
					t.Error("something was exchanged")
				}
				return
			}
			if r := last("exchange"); r["code"] != row.record || r["ok"] != fmt.Sprint(row.record == "") {
				t.Errorf("recorded %v", r)
			}
		})
	}
	t.Run("revoked meanwhile", func(t *testing.T) {
		p.give = bearer(time.Minute)
		p.during = func() {
			if _, err := api.NewAuthoritiesClient(e.adminConn()).Revoke(context.Background(), &api.RevokeRequest{Kind: "identity", Value: "web"}); err != nil {
				t.Error(err)
			}
		}
		defer func() { p.during = nil }()
		if got := e.ask(asking(n.evidence(t, e.endpoint()), "resource", "urn:credence:target:cloud")); got.status == 200 || got.Token != "" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a peer's X509-SVID to a target that is not its", func(t *testing.T) {
		_, err := e.mtls(f.svid(t, "/billing/x"), &api.ExchangeTokenRequest{Resource: "urn:credence:target:pki"})
		wantCode(t, err, codes.PermissionDenied)
	})
}

// partnerSVIDs are the partner's, as its agent would present them.
type partnerSVIDs struct{ jwt func() string }

func (partnerSVIDs) ID() spiffeid.ID                              { return spiffeid.RequireFromPath(partner, "/billing/x") }
func (partnerSVIDs) X509(context.Context) (*x509svid.SVID, error) { return nil, errors.New("none") }
func (s partnerSVIDs) JWT(context.Context) (string, error)        { return s.jwt(), nil }

// Another Credence's Target of flow oauth is a client of ours, and go-spiffe takes
// what it gets.
func TestAnotherCredenceIsAClient(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	settings := oauth.Settings{TokenExchange: &oauth.TokenExchange{
		TokenURL: e.endpoint(), TokenAudience: e.endpoint(), RequestedAudiences: []string{"orders", "ledger"}, RequestedTokenType: jwtType,
	}}
	x, err := oauth.New(oauth.Config{Settings: &settings, Roots: e.webCA})
	if err != nil {
		t.Fatal(err)
	}
	if settings.TokenLife() > 5*time.Minute {
		t.Error("what it presents lives too long for us")
	}
	got, err := x.Exchange(t.Context(), partnerSVIDs{func() string { return f.token(t, e.claims("/billing/x")) }})
	if err != nil {
		t.Fatal(err)
	}
	j, err := federation.ParseJWT(got.Bearer.Token.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if j.ID.String() != "spiffe://example.org/partner/billing" || !got.Expires.Before(e.now().Add(5*time.Minute)) {
		t.Errorf("%s until %s", j.ID, got.Expires)
	}
	stolen := f.token(t, e.claims("/billing/x"))
	if _, err := x.Exchange(t.Context(), partnerSVIDs{func() string { return stolen }}); err != nil {
		t.Fatal(err)
	}
	var refusal *exchangers.Error
	if _, err := x.Exchange(t.Context(), partnerSVIDs{func() string { return stolen }}); !errors.As(err, &refusal) || refusal.Code != "invalid_request" {
		t.Errorf("shown twice: %v", err)
	}
}
