package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
	credence "github.com/credence-id/credence/federation"
)

// client is a relying party's; it follows no redirect and shows a certificate
// if it is asked for one.
func (e *env) client(asked *bool) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // the listener's certificates have tests of their own
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if asked != nil {
				*asked = true
			}
			return &tls.Certificate{}, nil
		},
	}}
	e.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func do(t *testing.T, c *http.Client, method, url string, header http.Header) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

// SPIFFE Federation §4, §5.2.1.3, §5.2.2.3; rows FED-01, FED-19 to FED-22.
func TestTheBundleIsServedByBothProfiles(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	for name, address := range map[string]string{"https_spiffe": e.listeners.SPIFFE.Addr().String(), "https_web": e.listeners.Web.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			asked := false
			c := e.client(&asked)
			url := "https://" + address + server.BundlePath
			response, body := do(t, c, "GET", url, nil)
			own, _ := e.authority.Document()
			if response.StatusCode != 200 || !bytes.Equal(body, own) || response.Header.Get("Content-Type") != "application/json" || response.Header.Get("Cache-Control") != "max-age=300" {
				t.Errorf("%d %v %s", response.StatusCode, response.Header, body)
			}
			if asked {
				t.Error("a client certificate was asked for")
			}
			tag := response.Header.Get("ETag")
			if r, body := do(t, c, "GET", url, http.Header{"If-None-Match": {tag}}); r.StatusCode != 304 || len(body) > 0 {
				t.Errorf("with its tag: %d %s", r.StatusCode, body)
			}
			if r, body := do(t, c, "HEAD", url, nil); r.StatusCode != 200 || len(body) > 0 || r.ContentLength != int64(len(own)) {
				t.Errorf("HEAD: %d, %d bytes", r.StatusCode, r.ContentLength)
			}
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
				if r, _ := do(t, c, method, url, nil); r.StatusCode != 405 {
					t.Errorf("%s: %d", method, r.StatusCode)
				}
			}
			for _, path := range []string{"/", "/bundle/", "//bundle", "/./bundle", "/Bundle", "/bundle.json", "/td/", "/.well-known/openid-configuration", "/credence.broker.v1.Admin/Get"} {
				if r, _ := do(t, c, "GET", "https://"+address+path, nil); r.StatusCode != 404 {
					t.Errorf("%s: %d %v", path, r.StatusCode, r.Header)
				}
			}
			for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
				conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
				if (err == nil) != want {
					t.Errorf("version %x: %v", version, err)
				}
				if err == nil {
					conn.Close()
				}
			}
		})
	}
	if r, _ := do(t, e.client(nil), "GET", "https://"+e.listeners.SPIFFE.Addr().String()+"/td/.well-known/openid-configuration", nil); r.StatusCode != 404 {
		t.Errorf("discovery on the https_spiffe listener: %d", r.StatusCode)
	}
}

// Rows TDB-04 to TDB-12, TDB-18, TDB-19.
func TestTheBundleHasItsForm(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	_, body := do(t, e.client(nil), "GET", "https://"+e.listeners.Web.Addr().String()+server.BundlePath, nil)
	var b struct {
		Keys     []map[string]any `json:"keys"`
		Sequence json.Number      `json:"spiffe_sequence"`
		Hint     json.Number      `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Sequence.Int64(); err != nil || n < 1 {
		t.Errorf("sequence %s", b.Sequence)
	}
	if b.Hint.String() != "300" {
		t.Errorf("hint %s", b.Hint)
	}
	uses := map[any]int{}
	for _, k := range b.Keys {
		uses[k["use"]]++
		for name := range k {
			if !strings.Contains(" kty use kid x5c crv x y n e ", " "+name+" ") {
				t.Errorf("a key with %s", name)
			}
		}
	}
	if uses["x509-svid"] != 1 || uses["jwt-svid"] < 2 || len(uses) != 2 {
		t.Errorf("uses %v", uses)
	}
}

func TestGoSPIFFEFetchesTheBundle(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	own, _ := e.authority.Document()
	web := "https://" + e.listeners.Web.Addr().String() + server.BundlePath
	spiffe := "https://" + e.listeners.SPIFFE.Addr().String() + server.BundlePath
	broker := spiffeid.RequireFromPath(td, "/credence/broker")
	for name, c := range map[string]struct {
		url    string
		option federation.FetchOption
		ok     bool
	}{
		"https_web":                      {web, federation.WithWebPKIRoots(e.webCA), true},
		"https_web, by other roots":      {web, federation.WithWebPKIRoots(x509.NewCertPool()), false},
		"https_spiffe":                   {spiffe, federation.WithSPIFFEAuth(e.authority, broker), true},
		"https_spiffe, by another's ID":  {spiffe, federation.WithSPIFFEAuth(e.authority, spiffeid.RequireFromPath(td, "/other")), false},
		"https_web, as if it were an ID": {web, federation.WithSPIFFEAuth(e.authority, broker), false},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := federation.FetchBundle(t.Context(), td, c.url, c.option)
			if (err == nil) != c.ok {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			want, err := credence.ParseBundle(td, own)
			if err != nil {
				t.Fatal(err)
			}
			if !b.Equal(want.Bundle) {
				t.Error("it is another bundle")
			}
		})
	}
}

// The https_spiffe listener too ends its chain with the anchor: a peer may
// begin with a fingerprint.
func TestTheSPIFFEListenerShowsTheAnchor(t *testing.T) {
	e := newEnv(t)
	conn, err := tls.Dial("tcp", e.listeners.SPIFFE.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	chain := conn.ConnectionState().PeerCertificates
	pinned, err := credence.PinnedBundle(td, chain, e.authority.Pin())
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := credence.VerifyX509(chain, pinned, e.now())
	if err != nil || id.String() != "spiffe://example.org/credence/broker" {
		t.Errorf("it shows %s, %v", id, err)
	}
}

// Rows OIDC-01 to OIDC-06.
func TestARelyingPartyBelievesATokenOfOurs(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	e.apply(strings.Replace(web, "[orders]", "[orders, billing]", 1))
	n := e.join("n1")
	issued, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}})
	if err != nil || len(issued.GetSvids()) != 1 {
		t.Fatal(issued, err)
	}
	ctx := oidc.ClientContext(t.Context(), &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.webCA}}})
	provider, err := oidc.NewProvider(ctx, e.issuer)
	if err != nil {
		t.Fatal(err)
	}
	text := issued.GetSvids()[0].GetToken()
	got, err := provider.Verifier(&oidc.Config{ClientID: "orders"}).Verify(ctx, text)
	if err != nil {
		t.Fatal(err)
	}
	if got.Issuer != e.issuer || got.Subject != "spiffe://example.org/web" || !cmp.Equal(got.Audience, []string{"orders"}) {
		t.Errorf("%s for %s to %v", got.Issuer, got.Subject, got.Audience)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "billing"}).Verify(ctx, text); err == nil {
		t.Error("it is good for another audience")
	}
	parts := strings.Split(text, ".")
	if _, err := provider.Verifier(&oidc.Config{ClientID: "orders"}).Verify(ctx, parts[0]+"."+parts[1]+"."+strings.Repeat("A", len(parts[2]))); err == nil {
		t.Error("it is good with another signature")
	}
	var claims struct {
		JWKS string   `json:"jwks_uri"`
		Algs []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&claims); err != nil || !cmp.Equal(claims.Algs, []string{"RS256"}) {
		t.Errorf("discovery: %v, %v", claims, err)
	}
	for _, url := range []string{e.issuer + "/.well-known/openid-configuration", claims.JWKS} {
		c := e.client(nil)
		r, body := do(t, c, "GET", url, nil)
		tag := r.Header.Get("ETag")
		if r.StatusCode != 200 || tag == "" || r.Header.Get("Cache-Control") == "" || !json.Valid(body) || bytes.Contains(body, []byte("-svid")) {
			t.Errorf("%s: %d %v %s", url, r.StatusCode, r.Header, body)
		}
		if r, _ := do(t, c, "GET", url, http.Header{"If-None-Match": {tag}}); r.StatusCode != 304 {
			t.Errorf("%s with its tag: %d", url, r.StatusCode)
		}
		if r, body := do(t, c, "HEAD", url, nil); r.StatusCode != 200 || len(body) > 0 {
			t.Errorf("HEAD %s: %d", url, r.StatusCode)
		}
		if r, _ := do(t, c, "POST", url, nil); r.StatusCode != 405 {
			t.Errorf("POST %s: %d", url, r.StatusCode)
		}
	}
}

// newListeners are what another server on the same broker serves on.
func newListeners(t *testing.T, web string) server.Listeners {
	t.Helper()
	var l server.Listeners
	for into, at := range map[*net.Listener][2]string{
		&l.Agents: {"tcp", "127.0.0.1:0"}, &l.Web: {"tcp", web}, &l.Admin: {"unix", filepath.Join(t.TempDir(), "admin.sock")},
	} {
		var err error
		if *into, err = net.Listen(at[0], at[1]); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestTheWebListenerBehindAProxySpeaksPlainHTTP(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	config := e.config
	config.WebCertificate, config.WebProxied = nil, true
	config.Limits = server.Limits{SourceConnections: 1} // who connects is the proxy, for everybody
	s, err := server.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, done := newListeners(t, "127.0.0.1:0"), make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	own, _ := e.authority.Document()
	kept, reused := e.client(nil), false
	get := func() {
		t.Helper()
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
		r, err := http.NewRequestWithContext(trace, http.MethodGet, "http://"+l.Web.Addr().String()+server.BundlePath, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := kept.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
	}
	get()
	r, body := do(t, e.client(nil), "GET", "http://"+l.Web.Addr().String()+server.BundlePath, nil)
	if r.StatusCode != 200 || !bytes.Equal(body, own) || r.TLS != nil {
		t.Errorf("%s %s", r.Status, body)
	}
	if r, _ := do(t, e.client(nil), "GET", "http://"+l.Web.Addr().String()+"/td/keys", nil); r.StatusCode != 200 {
		t.Errorf("keys: %s", r.Status)
	}
	if get(); !reused {
		t.Error("the proxy's first connection made room for its others")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheWebListenerServesInOneWay(t *testing.T) {
	e := newEnv(t)
	for name, c := range map[string]struct {
		web  string
		edit func(*server.Config)
	}{
		"none":                            {"127.0.0.1:0", func(c *server.Config) { c.WebCertificate = nil }},
		"a certificate and a proxy":       {"127.0.0.1:0", func(c *server.Config) { c.WebProxied = true }},
		"two certificates":                {"127.0.0.1:0", func(c *server.Config) { c.WebTLS = &tls.Config{} }},
		"plain HTTP, not to this machine": {"0.0.0.0:0", func(c *server.Config) { c.WebCertificate, c.WebProxied = nil, true }},
	} {
		config := e.config
		c.edit(&config)
		s, err := server.New(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // one that is served ends at once
		if err := s.Run(ctx, newListeners(t, c.web)); err == nil {
			t.Errorf("%s: served", name)
		}
	}
}

// The https_spiffe listener stays open over a change of root: what it shows is
// always verified by the bundle that it serves.
func TestTheSPIFFEListenerFollowsItsRoots(t *testing.T) {
	e := newEnv(t)
	broker := spiffeid.RequireFromPath(td, "/credence/broker")
	url := "https://" + e.listeners.SPIFFE.Addr().String() + server.BundlePath
	fetch := func() error {
		_, err := federation.FetchBundle(t.Context(), td, url, federation.WithSPIFFEAuth(e.authority, broker))
		return err
	}
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	old := e.authority.Pin()
	e.ahead.Store(int64(-time.Hour))
	next, err := e.authority.PublishRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.ahead.Store(0) // the lead has passed
	if _, err := e.authority.ActivateRoot(t.Context(), next.ID); err != nil {
		t.Fatal(err)
	}
	for _, st := range e.authority.List() {
		if st.Use == authority.Root && st.ID != next.ID {
			if _, err := e.authority.DropRoot(t.Context(), st.ID, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if e.authority.Pin() == old {
		t.Fatal("the root is the old one")
	}
	tick, end := time.NewTicker(10*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for fetch() != nil {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal(fetch())
		}
	}
}
