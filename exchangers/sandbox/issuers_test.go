package sandbox_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func config(i *issuertest.Issuer) sandbox.IssuersConfig {
	return sandbox.IssuersConfig{Roots: i.Roots(), DialContext: i.DialContext}
}

func TestKeyRefuses(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	body := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(s)) }
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, tc := range map[string]struct {
		discovery, jwks func(*issuertest.Issuer) http.HandlerFunc
		kid             string
		want            error
	}{
		"discovery 500":     {discovery: func(*issuertest.Issuer) http.HandlerFunc { return issuertest.Status(500) }, want: sandbox.ErrDiscovery},
		"discovery no JSON": {discovery: func(*issuertest.Issuer) http.HandlerFunc { return body("<html>") }, want: sandbox.ErrDiscovery},
		"discovery to http": {discovery: func(*issuertest.Issuer) http.HandlerFunc { return redirect(plain.URL) }, want: sandbox.ErrDiscovery},
		"discovery hangs":   {discovery: func(*issuertest.Issuer) http.HandlerFunc { return hang }, want: sandbox.ErrDiscovery},
		"discovery too large": {discovery: func(*issuertest.Issuer) http.HandlerFunc {
			return body(`{"a":"` + strings.Repeat("x", sandbox.MaxBody) + `"}`)
		}, want: sandbox.ErrDiscovery},
		"jwks_uri http": {discovery: func(i *issuertest.Issuer) http.HandlerFunc {
			return issuertest.JSON(t, map[string]any{"issuer": i.URL, "jwks_uri": plain.URL})
		}, want: sandbox.ErrDiscovery},
		"jwks_uri relative": {discovery: func(i *issuertest.Issuer) http.HandlerFunc {
			return issuertest.JSON(t, map[string]any{"issuer": i.URL, "jwks_uri": "/jwks"})
		}, want: sandbox.ErrDiscovery},
		"issuer with slash": {discovery: func(i *issuertest.Issuer) http.HandlerFunc {
			return issuertest.JSON(t, map[string]any{"issuer": i.URL + "/", "jwks_uri": i.URL + "/jwks"})
		}, want: sandbox.ErrIssuerMismatch},
		"key set 404":       {jwks: func(*issuertest.Issuer) http.HandlerFunc { return issuertest.Status(404) }, want: sandbox.ErrKeySet},
		"key set empty":     {jwks: func(*issuertest.Issuer) http.HandlerFunc { return body(`{"keys":[]}`) }, want: sandbox.ErrKeySet},
		"key set private":   {jwks: func(*issuertest.Issuer) http.HandlerFunc { return body(`{"keys":[{"kty":"RSA","d":"x"}]}`) }, want: sandbox.ErrKeySet},
		"kid twice":         {jwks: func(*issuertest.Issuer) http.HandlerFunc { return body(`{"keys":[{"kid":"a"},{"kid":"a"}]}`) }, want: sandbox.ErrKeySet},
		"unknown kid":       {kid: "k2", want: sandbox.ErrUnknownKey},
		"no kid in request": {kid: "-", want: sandbox.ErrUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			i := issuertest.New(t)
			cfg := config(i)
			if strings.HasSuffix(name, "hangs") {
				cfg.Timeout = 300 * time.Millisecond
			}
			if tc.discovery != nil {
				i.SetDiscovery(tc.discovery(i))
			}
			if tc.jwks != nil {
				i.SetKeys(tc.jwks(i))
			}
			kid := map[string]string{"": "k1", "-": ""}[tc.kid]
			if tc.kid == "k2" {
				kid = "k2"
			}
			if _, err := sandbox.NewIssuers(cfg).Key(t.Context(), i.URL, kid); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestUntrustedCertificate(t *testing.T) {
	i := issuertest.New(t)
	s := sandbox.NewIssuers(sandbox.IssuersConfig{DialContext: i.DialContext})
	if _, err := s.Key(t.Context(), i.URL, "k1"); !errors.Is(err, sandbox.ErrDiscovery) {
		t.Errorf("got %v", err)
	}
}

func TestCheckURL(t *testing.T) {
	strict := sandbox.NewIssuers(sandbox.IssuersConfig{})
	lenient := sandbox.NewIssuers(sandbox.IssuersConfig{LenientLoopbackIssuer: true})
	for u, want := range map[string]struct{ strict, lenient bool }{
		"https://id.example.org":         {true, true},
		"https://id.example.org/path":    {true, true},
		"https://127.0.0.1:8445":         {false, true},
		"https://localhost:8445/x":       {false, true},
		"https://id.example.org:8445":    {},
		"https://id.example.org:":        {},
		"http://id.example.org":          {},
		"https://id.example.org?x=1":     {},
		"https://id.example.org?":        {},
		"https://id.example.org#":        {},
		"https://user@id.example.org":    {},
		"https://id.example.org ":        {},
		"https:///path":                  {},
		"":                               {},
		"https://" + "a" + "\x00" + ".b": {},
	} {
		for s, ok := range map[*sandbox.Issuers]bool{strict: want.strict, lenient: want.lenient} {
			if err := s.CheckURL(u); (err == nil) != ok {
				t.Errorf("%q (lenient %v): %v", u, s == lenient, err)
			}
		}
	}
}

func TestCache(t *testing.T) {
	i := issuertest.New(t)
	cfg := config(i)
	now := time.Unix(1700000000, 0)
	cfg.Now = func() time.Time { return now }
	s := sandbox.NewIssuers(cfg)
	get := func(kid string, want error, fetches int) {
		t.Helper()
		if _, err := s.Key(t.Context(), i.URL, kid); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", kid, err, want)
		}
		if i.Fetches() != fetches {
			t.Errorf("%s: %d fetches, want %d", kid, i.Fetches(), fetches)
		}
	}
	get("k1", nil, 1)
	get("k1", nil, 1)
	get("k2", sandbox.ErrUnknownKey, 1) // fetched just now
	now = now.Add(time.Minute)
	get("k2", sandbox.ErrUnknownKey, 2)
	get("k3", sandbox.ErrUnknownKey, 2) // a flood of kids is one fetch a minute
	i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("k2", issuertest.RSA().Public()))))
	now = now.Add(time.Minute)
	get("k2", nil, 3)
	get("k1", sandbox.ErrUnknownKey, 3)
	now = now.Add(59 * time.Minute)
	i.SetDiscovery(http.NotFound)
	get("k2", nil, 3)
	get("k9", sandbox.ErrUnknownKey, 4) // the failing fetch leaves the cache
	get("k2", nil, 4)
	now = now.Add(time.Minute)
	get("k2", sandbox.ErrDiscovery, 5) // an hour old: not believed any more
}

func TestCheckIsNotCached(t *testing.T) {
	i := issuertest.New(t)
	cfg := config(i)
	refuse := errors.New("no")
	cfg.Check = func(m *sandbox.Metadata) error { return refuse }
	s := sandbox.NewIssuers(cfg)
	if _, err := s.Key(t.Context(), i.URL, "k1"); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	refuse = nil
	if _, err := s.Key(context.Background(), i.URL, "k1"); err != nil {
		t.Error(err)
	}
}

func TestMaxKeys(t *testing.T) {
	i, k := issuertest.New(t), issuertest.RSA().Public()
	i.SetKeys(issuertest.JSON(t, issuertest.KeySet(issuertest.JWK("a", k), issuertest.JWK("b", k), issuertest.JWK("c", k))))
	cfg := config(i)
	cfg.MaxKeys = 2
	s := sandbox.NewIssuers(cfg)
	if _, err := s.Key(t.Context(), i.URL, "b"); err != nil {
		t.Error(err)
	}
	if _, err := s.Key(t.Context(), i.URL, "c"); !errors.Is(err, sandbox.ErrUnknownKey) {
		t.Errorf("got %v", err)
	}
}
