package sandbox_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// An oidcIssuer is a TLS server whose two documents tests change at will.
type oidcIssuer struct {
	*httptest.Server
	mu        sync.Mutex // guards the rest
	discovery http.HandlerFunc
	jwks      http.HandlerFunc
	fetches   int
}

func serve(t *testing.T, v any) http.HandlerFunc {
	b := mustJSON(t, v)
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(b) }
}

func newIssuer(t *testing.T) *oidcIssuer {
	i := &oidcIssuer{}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		h := i.jwks
		if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
			h = i.discovery
			i.fetches++
		}
		i.mu.Unlock()
		h(w, r)
	}))
	i.Config.ErrorLog = quiet()
	t.Cleanup(i.Close)
	i.set(serve(t, map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"}),
		serve(t, map[string]any{"keys": []any{rsaJWK("k1", &sharedRSA().PublicKey)}}))
	return i
}

func (i *oidcIssuer) set(discovery, jwks http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if discovery != nil {
		i.discovery = discovery
	}
	if jwks != nil {
		i.jwks = jwks
	}
}

func (i *oidcIssuer) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(i.Certificate())
	return p
}

func (i *oidcIssuer) config() sandbox.IssuersConfig {
	return sandbox.IssuersConfig{Roots: i.roots(), LenientLoopbackIssuer: true}
}

func TestKeyRefuses(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
	}
	body := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(s)) }
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, tc := range map[string]struct {
		discovery, jwks func(*oidcIssuer) http.HandlerFunc
		kid             string
		want            error
	}{
		"discovery 500":     {discovery: func(*oidcIssuer) http.HandlerFunc { return status(500) }, want: sandbox.ErrDiscovery},
		"discovery no JSON": {discovery: func(*oidcIssuer) http.HandlerFunc { return body("<html>") }, want: sandbox.ErrDiscovery},
		"discovery to http": {discovery: func(*oidcIssuer) http.HandlerFunc { return redirect(plain.URL) }, want: sandbox.ErrDiscovery},
		"discovery hangs":   {discovery: func(*oidcIssuer) http.HandlerFunc { return hang }, want: sandbox.ErrDiscovery},
		"discovery too large": {discovery: func(*oidcIssuer) http.HandlerFunc {
			return body(`{"a":"` + strings.Repeat("x", sandbox.MaxBody) + `"}`)
		}, want: sandbox.ErrDiscovery},
		"jwks_uri http": {discovery: func(i *oidcIssuer) http.HandlerFunc {
			return serve(t, map[string]any{"issuer": i.URL, "jwks_uri": plain.URL})
		}, want: sandbox.ErrDiscovery},
		"jwks_uri relative": {discovery: func(i *oidcIssuer) http.HandlerFunc {
			return serve(t, map[string]any{"issuer": i.URL, "jwks_uri": "/jwks"})
		}, want: sandbox.ErrDiscovery},
		"issuer with slash": {discovery: func(i *oidcIssuer) http.HandlerFunc {
			return serve(t, map[string]any{"issuer": i.URL + "/", "jwks_uri": i.URL + "/jwks"})
		}, want: sandbox.ErrIssuerMismatch},
		"key set 404":       {jwks: func(*oidcIssuer) http.HandlerFunc { return status(404) }, want: sandbox.ErrKeySet},
		"key set empty":     {jwks: func(*oidcIssuer) http.HandlerFunc { return body(`{"keys":[]}`) }, want: sandbox.ErrKeySet},
		"key set private":   {jwks: func(*oidcIssuer) http.HandlerFunc { return body(`{"keys":[{"kty":"RSA","d":"x"}]}`) }, want: sandbox.ErrKeySet},
		"kid twice":         {jwks: func(*oidcIssuer) http.HandlerFunc { return body(`{"keys":[{"kid":"a"},{"kid":"a"}]}`) }, want: sandbox.ErrKeySet},
		"unknown kid":       {kid: "k2", want: sandbox.ErrUnknownKey},
		"no kid in request": {kid: "-", want: sandbox.ErrUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			cfg := i.config()
			cfg.Timeout = 300 * time.Millisecond
			if tc.discovery != nil {
				i.set(tc.discovery(i), nil)
			}
			if tc.jwks != nil {
				i.set(nil, tc.jwks(i))
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
	i := newIssuer(t)
	s := sandbox.NewIssuers(sandbox.IssuersConfig{LenientLoopbackIssuer: true})
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
	i := newIssuer(t)
	cfg := i.config()
	now := time.Unix(1700000000, 0)
	cfg.Now = func() time.Time { return now }
	s := sandbox.NewIssuers(cfg)
	get := func(kid string, want error, fetches int) {
		t.Helper()
		if _, err := s.Key(t.Context(), i.URL, kid); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", kid, err, want)
		}
		if i.fetches != fetches {
			t.Errorf("%s: %d fetches, want %d", kid, i.fetches, fetches)
		}
	}
	get("k1", nil, 1)
	get("k1", nil, 1)
	get("k2", sandbox.ErrUnknownKey, 1) // fetched just now
	now = now.Add(time.Minute)
	get("k2", sandbox.ErrUnknownKey, 2)
	get("k3", sandbox.ErrUnknownKey, 2) // a flood of kids is one fetch a minute
	i.set(nil, serve(t, map[string]any{"keys": []any{rsaJWK("k2", &sharedRSA().PublicKey)}}))
	now = now.Add(time.Minute)
	get("k2", nil, 3)
	get("k1", sandbox.ErrUnknownKey, 3)
	now = now.Add(59 * time.Minute)
	i.set(http.NotFound, nil)
	get("k2", nil, 3)
	get("k9", sandbox.ErrUnknownKey, 4) // the failing fetch leaves the cache
	get("k2", nil, 4)
	now = now.Add(time.Minute)
	get("k2", sandbox.ErrDiscovery, 5) // an hour old: not believed any more
}

func TestCheckIsNotCached(t *testing.T) {
	i := newIssuer(t)
	cfg := i.config()
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
	i := newIssuer(t)
	k := &sharedRSA().PublicKey
	i.set(nil, serve(t, map[string]any{"keys": []any{rsaJWK("a", k), rsaJWK("b", k), rsaJWK("c", k)}}))
	cfg := i.config()
	cfg.MaxKeys = 2
	s := sandbox.NewIssuers(cfg)
	if _, err := s.Key(t.Context(), i.URL, "b"); err != nil {
		t.Error(err)
	}
	if _, err := s.Key(t.Context(), i.URL, "c"); !errors.Is(err, sandbox.ErrUnknownKey) {
		t.Errorf("got %v", err)
	}
}
