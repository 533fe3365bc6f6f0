package bearer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const audience = "credence://example.org/join"

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// get is a client that knows the issuer's certificate.
func get(i *issuertest.Issuer) bearer.Get {
	client := i.Server.Client()
	client.Transport.(*http.Transport).DialContext = i.DialContext
	return func(ctx context.Context, url string) ([]byte, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return nil, err
		}
		answer, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("status %d", answer.StatusCode)
		}
		return io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	}
}

// A clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func verifier(t testing.TB, i *issuertest.Issuer, change ...func(*bearer.Config)) (*bearer.Verifier, *clock) {
	t.Helper()
	c := &clock{t: start}
	cfg := bearer.Config{Issuer: i.URL, Audience: audience, Keys: bearer.NewRemote(i.URL, get(i), c.now), Now: c.now}
	for _, f := range change {
		f(&cfg)
	}
	v, err := bearer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v, c
}

func claims(changes map[string]any) map[string]any {
	return issuertest.With(map[string]any{
		"iss": issuertest.URL, "sub": "repo:acme/checkout:ref:refs/heads/main", "aud": audience,
		"iat": start.Unix(), "nbf": start.Unix(), "exp": start.Add(5 * time.Minute).Unix(), "jti": "1", "repository": "acme/checkout",
	}, changes)
}

func rs256(t testing.TB, header, changes map[string]any) string {
	return issuertest.Sign(t, issuertest.RSA(), "RS256", header, claims(changes))
}

func TestVerify(t *testing.T) {
	i := issuertest.New(t)
	v, _ := verifier(t, i)
	token, err := v.Verify(t.Context(), []byte(rs256(t, nil, map[string]any{"n": 1 << 60})))
	if err != nil {
		t.Fatal(err)
	}
	if token.Subject != "repo:acme/checkout:ref:refs/heads/main" || !token.Issued.Equal(start) || !token.Expires.Equal(start.Add(5*time.Minute)) {
		t.Errorf("%+v", token)
	}
	if token.Claims["repository"] != "acme/checkout" || token.Claims["n"] != json.Number("1152921504606846976") {
		t.Errorf("claims %v", token.Claims)
	}
	for name, text := range map[string]string{
		"a list of one":    rs256(t, nil, map[string]any{"aud": []string{audience}}),
		"an EC key":        issuertest.Sign(t, issuertest.EC(), "ES256", map[string]any{"kid": "ec1"}, claims(nil)),
		"PSS":              issuertest.Sign(t, issuertest.RSA(), "PS384", nil, claims(nil)),
		"no typ, no nbf":   rs256(t, map[string]any{"typ": nil}, map[string]any{"nbf": nil, "jti": nil}),
		"skew of theirs":   rs256(t, nil, map[string]any{"iat": start.Add(59 * time.Second).Unix(), "nbf": start.Add(59 * time.Second).Unix()}),
		"skew of ours":     rs256(t, nil, map[string]any{"iat": start.Add(-2 * time.Minute).Unix(), "exp": start.Add(-59 * time.Second).Unix()}),
		"fractions":        rs256(t, nil, map[string]any{"iat": 1777890030.25, "nbf": nil}),
		"an hour's old":    rs256(t, nil, map[string]any{"iat": start.Add(-time.Hour).Unix(), "nbf": nil}),
		"thumbprint":       rs256(t, map[string]any{"x5t": "AAAA"}, nil),
		"claims in claims": rs256(t, nil, map[string]any{"kubernetes.io": map[string]any{"pod": map[string]any{"name": "a"}}}),
	} {
		if _, err := v.Verify(t.Context(), []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// raw is a token whose header and claims are texts of the test's own.
func raw(t testing.TB, header, payload string) string {
	t.Helper()
	signed := b64(header) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, issuertest.RSA(), crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + b64(string(signature))
}

func TestHostile(t *testing.T) {
	i := issuertest.New(t)
	v, _ := verifier(t, i)
	other := issuertest.NewRSA(2048)
	good := rs256(t, nil, nil)
	parts := strings.Split(good, ".")
	text, err := json.Marshal(claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	payload := string(text)
	const header = `{"alg":"RS256","kid":"k1"}`
	aud := func(v any) string { return rs256(t, nil, map[string]any{"aud": v}) }
	iss := func(v any) string { return rs256(t, nil, map[string]any{"iss": v}) }
	at := func(name string, v any) string { return rs256(t, nil, map[string]any{name: v}) }
	for name, token := range map[string]string{
		"expired":                       at("exp", start.Add(-time.Minute-time.Second).Unix()),
		"no end":                        at("exp", nil),
		"an end in words":               at("exp", "2030-01-01"),
		"an end of another type":        at("exp", "1999999999"),
		"an end beyond numbers":         raw(t, header, strings.Replace(payload, `"exp":`, `"exp":1e400,"x":`, 1)),
		"an end before its begin":       rs256(t, nil, map[string]any{"iat": start.Unix(), "exp": start.Add(-time.Second).Unix()}),
		"issued in the future":          at("iat", start.Add(61*time.Second).Unix()),
		"valid in the future":           at("nbf", start.Add(61*time.Second).Unix()),
		"without age":                   at("iat", nil),
		"too old":                       rs256(t, nil, map[string]any{"iat": start.Add(-time.Hour - 61*time.Second).Unix(), "nbf": nil}),
		"another audience":              aud("credence://example.com/join"),
		"no audience":                   aud(nil),
		"an empty audience":             aud(""),
		"an empty list":                 aud([]string{}),
		"audience: a list with another": aud([]string{audience, "sts.amazonaws.com"}),
		"audience: ours twice":          aud([]string{audience, audience}),
		"audience: a list in a list":    aud([]any{[]any{audience}}),
		"audience: an object":           aud(map[string]any{audience: true}),
		"audience: a prefix":            aud("credence://example.org/joi"),
		"audience: a suffix":            aud(audience + "/"),
		"audience: another case":        aud("credence://Example.org/join"),
		"audience: a space":             aud(audience + " "),
		"issuer: another":               iss("https://example.org/credence"),
		"issuer: none":                  iss(nil),
		"issuer: a list":                iss([]string{issuertest.URL}),
		"issuer: a slash more":          iss(issuertest.URL + "/"),
		"issuer: a prefix":              iss("https://example.com"),
		"issuer: a suffix":              iss(issuertest.URL + ".evil.example"),
		"issuer: another case":          iss("https://Example.com/credence"),
		"issuer: dots":                  iss("https://example.com/x/../credence"),
		"issuer: a dot":                 iss("https://example.com./credence"),
		"issuer: a homograph":           iss("https://exаmple.com/credence"),
		"issuer: a port":                iss("https://example.com:443/credence"),
		"issuer: a user":                iss("https://example.com@evil.example/credence"),
		"no subject":                    at("sub", nil),
		"an empty subject":              at("sub", ""),
		"a subject that is a list":      at("sub", []string{"a"}),
		"a subject of 2 KiB":            at("sub", strings.Repeat("a", 2048)),
		"alg none":                      issuertest.Sign(t, issuertest.RSA(), "none", nil, claims(nil)),
		"alg none, no signature":        strings.Join([]string{b64(`{"alg":"none","kid":"k1"}`), parts[1], ""}, "."),
		"alg None":                      issuertest.Sign(t, issuertest.RSA(), "None", nil, claims(nil)),
		"alg empty":                     issuertest.Sign(t, issuertest.RSA(), "", nil, claims(nil)),
		"HS256 by the public key":       hs256(t, claims(nil)),
		"ES256 by an RSA key's name":    issuertest.Sign(t, issuertest.EC(), "ES256", nil, claims(nil)),
		"RS256 by an EC key's name":     rs256(t, map[string]any{"kid": "ec1"}, nil),
		"ES384 by a P-256 key":          issuertest.Sign(t, issuertest.NewEC(elliptic.P384()), "ES384", map[string]any{"kid": "ec1"}, claims(nil)),
		"another key":                   issuertest.Sign(t, other, "RS256", nil, claims(nil)),
		"its own key in the header":     issuertest.Sign(t, other, "RS256", map[string]any{"jwk": issuertest.JWK("k1", other.Public())}, claims(nil)),
		"ours in the header":            rs256(t, map[string]any{"jwk": issuertest.JWK("k1", issuertest.RSA().Public())}, nil),
		"jku":                           rs256(t, map[string]any{"jku": "https://evil.example/keys"}, nil),
		"x5u":                           rs256(t, map[string]any{"x5u": "https://evil.example/keys"}, nil),
		"x5c":                           rs256(t, map[string]any{"x5c": []string{"AAAA"}}, nil),
		"crit":                          rs256(t, map[string]any{"crit": []string{"exp"}}, nil),
		"b64":                           rs256(t, map[string]any{"b64": true}, nil),
		"zip":                           rs256(t, map[string]any{"zip": "DEF"}, nil),
		"no key ID":                     rs256(t, map[string]any{"kid": nil}, nil),
		"a key ID that is none":         rs256(t, map[string]any{"kid": "k2"}, nil),
		"a key ID that is a number":     rs256(t, map[string]any{"kid": 1}, nil),
		"a key ID of 2 KiB":             rs256(t, map[string]any{"kid": strings.Repeat("k", 2048)}, nil),
		"truncated":                     good[:len(good)-8],
		"truncated claims":              parts[0] + "." + parts[1][:len(parts[1])-4] + "." + parts[2],
		"two parts":                     parts[0] + "." + parts[1],
		"four parts":                    good + ".AAAA",
		"five parts":                    good + ".AAAA.AAAA",
		"no claims":                     parts[0] + ".." + parts[2],
		"a space before":                " " + good,
		"a line after":                  good + "\n",
		"padding":                       parts[0] + "=." + parts[1] + "." + parts[2],
		"oversized":                     at("x", strings.Repeat("a", bearer.MaxToken)),
		"empty":                         "",
		"dots":                          "..",
		"JSON serialization":            fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, parts[1], parts[0], parts[2]),
		"claims that are a list":        raw(t, header, "["+payload+"]"),
		"claims and more":               raw(t, header, payload+"{}"),
		"an audience twice":             raw(t, header, strings.Replace(payload, `"aud":`, `"aud":"x","aud":`, 1)),
		"a claim twice":                 raw(t, header, strings.Replace(payload, `"repository":`, `"repository":"evil/x","repository":`, 1)),
		"an inner claim twice":          raw(t, header, strings.Replace(payload, `"jti":`, `"a":{"b":1,"b":2},"jti":`, 1)),
		"a claim in another case":       raw(t, header, strings.Replace(payload, `"jti":`, `"AUD":"x","jti":`, 1)),
		"a subject in another case":     raw(t, header, strings.Replace(payload, `"jti":`, `"Sub":"x","jti":`, 1)),
		"alg twice":                     raw(t, `{"alg":"RS256","alg":"none","kid":"k1"}`, payload),
		"claims too deep":               raw(t, header, strings.Replace(payload, `"jti":`, `"d":`+strings.Repeat("[", 12)+strings.Repeat("]", 12)+`,"jti":`, 1)),
		"too many claims":               raw(t, header, strings.Replace(payload, `"jti":`, `"d":[`+strings.Repeat("1,", 600)+`1],"jti":`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), []byte(token))
			if !errors.Is(err, join.ErrEvidence) {
				t.Errorf("it is taken as %+v, or refused for another reason: %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), parts[2]) {
				t.Errorf("the refusal quotes the token: %v", err)
			}
		})
	}
	if _, err := v.Verify(t.Context(), []byte(good)); err != nil {
		t.Errorf("the honest one: %v", err)
	}
}

func TestAlgorithmsOfARule(t *testing.T) {
	i := issuertest.New(t)
	v, _ := verifier(t, i, func(c *bearer.Config) { c.Algorithms = []string{"ES256"} })
	if _, err := v.Verify(t.Context(), []byte(rs256(t, nil, nil))); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("RS256: %v", err)
	}
	for _, alg := range []string{"none", "HS256", "", "rs256"} {
		if _, err := bearer.New(bearer.Config{Issuer: "i", Audience: "a", Keys: bearer.NewRemote("i", nil, nil), Algorithms: []string{alg}}); err == nil {
			t.Errorf("algorithm %q is taken", alg)
		}
	}
}

// Google's tokens say either of two issuers, and go-oidc takes one for the
// other; a rule names one.
func TestIssuerIsOneString(t *testing.T) {
	i := issuertest.New(t)
	keys := bearer.NewRemote(i.URL, get(i), func() time.Time { return start })
	v, _ := verifier(t, i, func(c *bearer.Config) { c.Issuer, c.Keys = "https://accounts.google.com", keys })
	if _, err := v.Verify(t.Context(), []byte(rs256(t, nil, map[string]any{"iss": "accounts.google.com"}))); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("the other spelling: %v", err)
	}
}

func TestRotation(t *testing.T) {
	i := issuertest.New(t)
	v, c := verifier(t, i)
	verify := func(kid string, key *ecdsa.PrivateKey) error {
		_, err := v.Verify(t.Context(), []byte(issuertest.Sign(t, key, "ES256", map[string]any{"kid": kid}, claims(map[string]any{
			"iat": c.now().Unix(), "nbf": nil, "exp": c.now().Add(time.Minute).Unix(),
		}))))
		return err
	}
	if err := verify("ec1", issuertest.EC()); err != nil {
		t.Fatal(err)
	}
	next := issuertest.NewEC(elliptic.P256())
	i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("ec1", issuertest.EC().Public()), issuertest.JWK("ec2", next.Public()))))
	if err := verify("ec2", next); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("within 10 s of a question another is asked: %v", err)
	}
	c.add(10 * time.Second)
	if err := verify("ec2", next); err != nil {
		t.Errorf("a key that came: %v", err)
	}
	i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("ec2", next.Public()))))
	if err := verify("ec1", issuertest.EC()); err != nil {
		t.Errorf("a key that left just now: %v", err)
	}
	c.add(5 * time.Minute)
	if err := verify("ec1", issuertest.EC()); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a key that left 5 minutes ago: %v", err)
	}
	i.SetKeys(issuertest.Status(500))
	c.add(59 * time.Minute)
	if err := verify("ec2", next); err != nil {
		t.Errorf("an issuer that is away: %v", err)
	}
	c.add(time.Minute)
	if err := verify("ec2", next); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("an issuer that has been away for an hour: %v", err)
	}
	i.Reset(t)
	c.add(10 * time.Second)
	if err := verify("ec1", issuertest.EC()); err != nil {
		t.Errorf("an issuer that is back: %v", err)
	}
}

// Strangers decide what key a token names, and so not how often we ask.
func TestStrangersAskNothing(t *testing.T) {
	i := issuertest.New(t)
	v, c := verifier(t, i)
	var all sync.WaitGroup
	for n := range 200 {
		all.Go(func() {
			_, err := v.Verify(t.Context(), []byte(rs256(t, map[string]any{"kid": fmt.Sprint("x", n)}, nil)))
			if !errors.Is(err, join.ErrEvidence) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := i.Fetches(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	c.add(10 * time.Second)
	for range 10 {
		_, _ = v.Verify(t.Context(), []byte(rs256(t, map[string]any{"kid": "y"}, nil)))
	}
	if n := i.Fetches(); n != 2 {
		t.Errorf("asked %d times, want 2", n)
	}
}

// What cannot be judged is not bad evidence: the same may do later.
func TestIssuerAway(t *testing.T) {
	for name, spoil := range map[string]func(*issuertest.Issuer){
		"discovery fails": func(i *issuertest.Issuer) { i.SetDiscovery(issuertest.Status(503)) },
		"of another issuer": func(i *issuertest.Issuer) {
			i.SetDiscovery(issuertest.JSON(t, i.Document(map[string]any{"issuer": i.URL + "/"})))
		},
		"of no issuer": func(i *issuertest.Issuer) {
			i.SetDiscovery(issuertest.JSON(t, i.Document(map[string]any{"issuer": nil})))
		},
		"keys in plain text": func(i *issuertest.Issuer) {
			i.SetDiscovery(issuertest.JSON(t, i.Document(map[string]any{"jwks_uri": "http://example.com/jwks"})))
		},
		"keys nowhere": func(i *issuertest.Issuer) {
			i.SetDiscovery(issuertest.JSON(t, i.Document(map[string]any{"jwks_uri": nil})))
		},
		"keys fail": func(i *issuertest.Issuer) { i.SetKeys(issuertest.Status(404)) },
		"no keys":   func(i *issuertest.Issuer) { i.SetKeys(issuertest.JSON(t, issuertest.KeySet())) },
		"a key ID twice": func(i *issuertest.Issuer) {
			i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public()), issuertest.JWK("k1", issuertest.EC().Public()))))
		},
		"a weak key": func(i *issuertest.Issuer) {
			i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("k1", issuertest.NewRSA(1024).Public()))))
		},
		"keys for encryption": func(i *issuertest.Issuer) {
			i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.With(issuertest.JWK("k1", issuertest.RSA().Public()), map[string]any{"use": "enc"}))))
		},
		"a symmetric key": func(i *issuertest.Issuer) {
			i.SetKeys(issuertest.JSON(t, issuertest.KeySet(map[string]any{"kty": "oct", "kid": "k1", "k": "AAAA"})))
		},
		"a key of another's alg": func(i *issuertest.Issuer) {
			i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.With(issuertest.JWK("k1", issuertest.RSA().Public()), map[string]any{"alg": "PS256"}))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := issuertest.New(t)
			spoil(i)
			v, _ := verifier(t, i)
			_, err := v.Verify(t.Context(), []byte(rs256(t, nil, nil)))
			if err == nil || errors.Is(err, join.ErrEvidence) != (name == "a key of another's alg") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestStatic(t *testing.T) {
	text, err := json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bearer.NewStatic(text)
	if err != nil {
		t.Fatal(err)
	}
	i := issuertest.New(t)
	v, _ := verifier(t, i, func(c *bearer.Config) { c.Keys = keys })
	if _, err := v.Verify(t.Context(), []byte(rs256(t, nil, nil))); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), []byte(rs256(t, map[string]any{"kid": "k2"}, nil))); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("another key: %v", err)
	}
	if n := i.Fetches(); n != 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
	for _, text := range []string{"", "{}", `{"keys":[]}`, `{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}`} {
		if _, err := bearer.NewStatic([]byte(text)); err == nil {
			t.Errorf("%q is a set of keys", text)
		}
	}
}

func TestFacts(t *testing.T) {
	f, err := bearer.Facts("node.x", map[string]any{
		"s": "a", "b": true, "n": json.Number("12"), "f": json.Number("1.5"), "null": nil, "list": []any{"a", json.Number("2")}, "mixed": []any{"a", nil},
		"empty": []any{}, "o": map[string]any{"p": "q", "r.s": "t"}, "o.p": "clash", "a space": "x", "": "y", "d..d": "z", "nil.": "v",
		"3.x": "1", "three": map[string]any{"a.b": "1", "a": map[string]any{"b": "2"}}, "three.a": map[string]any{"b": "3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string][]string{
		"node.x.s": {"a"}, "node.x.b": {"true"}, "node.x.n": {"12"}, "node.x.list": {"a", "2"}, "node.x.o.r.s": {"t"}, "node.x.3.x": {"1"},
	}, f.Map()); d != "" {
		t.Error(d)
	}
}

func FuzzVerify(f *testing.F) {
	i := issuertest.New(f)
	v, _ := verifier(f, i)
	for _, seed := range []string{rs256(f, nil, nil), "a.b.c", "..", `{"payload":""}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		if got, err := v.Verify(t.Context(), token); err == nil && got.Subject == "" {
			t.Errorf("%q is taken as nobody's", token)
		}
	})
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// hs256 is what an attacker makes who has the public key: a library that took
// any algorithm would take the key for a secret (RFC 8725 §2.1).
func hs256(t testing.TB, claims map[string]any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(issuertest.RSA().Public())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := b64(`{"alg":"HS256","kid":"k1"}`) + "." + b64(string(text))
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
