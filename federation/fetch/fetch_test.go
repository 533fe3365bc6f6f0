package fetch_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gofederation "github.com/spiffe/go-spiffe/v2/federation"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
	"github.com/credence-id/credence/federation/fetch"
)

var _ federation.Fetcher = (*fetch.Client)(nil)

const document = `{"spiffe_sequence":1,"keys":[]}`

// serve starts a TLS server on loopback.
func serve(t *testing.T, cert tls.Certificate, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // most handshakes here are meant to fail
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func reply(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

func spiffeRequest(c *ca, url string) federation.Request {
	return federation.Request{URL: url, AllowPrivate: true,
		HTTPSSPIFFE: &federation.Authentication{EndpointID: endpoint, Bundle: c.Bundle(partner)}}
}

// refused wants an error that says why.
func refused(t *testing.T, err error, why string) {
	t.Helper()
	if err == nil {
		t.Fatal("fetched")
	}
	if !strings.Contains(err.Error(), why) {
		t.Errorf("error %q does not tell of %q", err, why)
	}
}

func TestSPIFFEAuthentication(t *testing.T) {
	root, other := newCA(t), newCA(t)
	otherID := spiffeid.RequireFromPath(partner, "/other")
	withRaw := func(u string) tls.Certificate {
		return root.Issue(t, func(c *x509.Certificate) {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{parsed}
		})
	}
	print := federation.Fingerprint(root.Cert)
	tests := []struct {
		name string
		cert tls.Certificate
		auth federation.Authentication
		why  string
	}{
		{"FC-15 right ID, host name plays no part", root.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}, ""},
		{"pinned anchor", root.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Fingerprint: print}, ""},
		{"FED-31 other ID of the trust domain", root.SVID(t, otherID), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}, "not spiffe://partner.example/credence/broker"},
		{"other ID under the pinned anchor", root.SVID(t, otherID), federation.Authentication{EndpointID: endpoint, Fingerprint: print}, "not spiffe://partner.example/credence/broker"},
		{"other CA", other.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}, "unknown authority"},
		{"other CA than the pinned", other.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Fingerprint: print}, "fingerprint"},
		{"FC-17 web certificate", root.Web(t, "127.0.0.1"), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}, "0 URI SANs"},
		{"ID without path", withRaw("spiffe://partner.example"), federation.Authentication{EndpointID: partner.ID(), Bundle: root.Bundle(partner)}, "no path"},
		{"empty bundle", root.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Bundle: x509bundle.New(partner)}, "unknown authority"},
		{"expired", root.Issue(t, func(c *x509.Certificate) {
			c.URIs, c.NotAfter = []*url.URL{endpoint.URL()}, time.Now().Add(-time.Second)
		}), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}, "expired"},
		{"no way to verify", root.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint}, "bundle or a fingerprint"},
		{"two ways to verify", root.SVID(t, endpoint), federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner), Fingerprint: print}, "bundle or a fingerprint"},
		{"no endpoint ID", root.SVID(t, endpoint), federation.Authentication{Bundle: root.Bundle(partner)}, "endpoint ID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.cert, reply(document))
			resp, err := fetch.New(fetch.Config{}).Fetch(t.Context(), federation.Request{URL: s.URL, AllowPrivate: true, HTTPSSPIFFE: &tt.auth})
			if tt.why != "" {
				refused(t, err, tt.why)
				return
			}
			if err != nil || string(resp.Document) != document || resp.PeerID != endpoint {
				t.Errorf("got %+v, %v", resp, err)
			}
		})
	}
}

// TestCertificateVectorsAtEndpoints are the vectors of section B, shown by a
// server of https_spiffe.
func TestCertificateVectorsAtEndpoints(t *testing.T) {
	var shown atomic.Pointer[tls.Certificate]
	s := httptest.NewUnstartedServer(reply(document))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	// Here, since httptest parses what stands in Certificates.
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}}, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	for _, v := range federationtest.X509Vectors(t, time.Now(), "/credence/broker") {
		t.Run(v.Name, func(t *testing.T) {
			id, err := federation.ParseID(v.ID)
			if err != nil {
				id = spiffeid.RequireFromPath(v.Bundle.TrustDomain(), "/credence/broker")
			}
			shown.Store(&tls.Certificate{Certificate: v.Shown, PrivateKey: v.Key})
			got, err := fetch.New(fetch.Config{}).Fetch(t.Context(), federation.Request{URL: s.URL, AllowPrivate: true,
				HTTPSSPIFFE: &federation.Authentication{EndpointID: id, Bundle: v.Bundle}})
			if (err == nil) != v.Peer || (err == nil && got.PeerID != id) {
				t.Errorf("got %+v, %v, want accepted = %v", got, err, v.Peer)
			}
		})
	}
}

func TestWebAuthentication(t *testing.T) {
	root, other := newCA(t), newCA(t)
	tests := []struct {
		name string
		cert tls.Certificate
		why  string
	}{
		{"right host", root.Web(t, "127.0.0.1"), ""},
		{"FC-13 wrong host", root.Web(t, "partner.example"), "doesn't contain any IP SANs"},
		{"FC-14 unknown CA", other.Web(t, "127.0.0.1"), "unknown authority"},
		{"an X509-SVID", root.SVID(t, endpoint), "doesn't contain any IP SANs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.cert, reply(document))
			resp, err := fetch.New(fetch.Config{Roots: root.Pool()}).Fetch(t.Context(),
				federation.Request{URL: s.URL, HTTPSWeb: &federation.HTTPSWeb{}, AllowPrivate: true})
			if tt.why != "" {
				refused(t, err, tt.why)
				return
			}
			if err != nil || string(resp.Document) != document || !resp.PeerID.IsZero() {
				t.Errorf("got %+v, %v", resp, err)
			}
		})
	}
	t.Run("system roots by default", func(t *testing.T) {
		s := serve(t, root.Web(t, "127.0.0.1"), reply(document))
		_, err := fetch.New(fetch.Config{}).Fetch(t.Context(),
			federation.Request{URL: s.URL, HTTPSWeb: &federation.HTTPSWeb{}, AllowPrivate: true})
		refused(t, err, "certificate")
	})
}

// Regression: GHSA-fgw5-hp8f-xfhc
func TestRequestIsChecked(t *testing.T) {
	web := &federation.HTTPSWeb{}
	auth := &federation.Authentication{EndpointID: endpoint, Bundle: newCA(t).Bundle(partner)}
	for name, req := range map[string]federation.Request{
		"FC-03 http":             {URL: "http://127.0.0.1/b", HTTPSWeb: web, AllowPrivate: true},
		"FC-04 user information": {URL: "https://u:secret@127.0.0.1/b", HTTPSWeb: web, AllowPrivate: true},
		"no host":                {URL: "https:///b", HTTPSWeb: web},
		"not a URL":              {URL: "https://secret\x7f/", HTTPSWeb: web},
		"no profile":             {URL: "https://127.0.0.1/b"},
		"both profiles":          {URL: "https://127.0.0.1/b", HTTPSWeb: web, HTTPSSPIFFE: auth},
	} {
		_, err := fetch.New(fetch.Config{}).Fetch(t.Context(), req)
		if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Regression: CVE-2025-59043
func TestAnswers(t *testing.T) {
	big := strings.Repeat(" ", fetch.MaxBody-len(document))
	status := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, text) }
	}
	tests := []struct {
		name   string
		answer http.HandlerFunc
		why    string
	}{
		{"FC-02 Content-Type is only a SHOULD", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, document)
		}, ""},
		{"1 MiB", reply(document + big), ""},
		{"1 MiB and a byte", reply(document + big + " "), "larger"},
		{"FC-29 64 MiB, length unknown", func(w http.ResponseWriter, _ *http.Request) {
			for range 64 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, "larger"},
		{"64 MiB announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(64<<20))
			w.WriteHeader(http.StatusOK)
		}, "larger"},
		{"FC-06 500 with a body", status(500, document), "status is 500"},
		{"404 with a body", status(404, document), "status is 404"},
		{"203", status(203, document), "status is 203"},
		{"FC-07 204", status(204, ""), "status is 204"},
		{"304 not asked for", status(304, ""), "status is 304"},
		{"302 to nowhere", status(302, document), "302"},
		{"empty body", reply(""), "not JSON"},
		{"HTML with 200", reply("<html>"), "not JSON"},
		{"JSON and more", reply(document + "x"), "not JSON"},
		{"gzip bomb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb(t))
		}, "larger"},
		{"gzip", encoded("gzip", packed(t, document)), ""},
		{"gzip, 1 MiB and a byte", encoded("gzip", packed(t, document+big+" ")), "larger"},
		{"gzip cut", encoded("gzip", packed(t, document)[:20]), "unexpected EOF"},
		{"not gzip, and says so", encoded("gzip", []byte(document)), "gzip"},
		{"gzip in gzip", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Add("Content-Encoding", "gzip")
			w.Header().Add("Content-Encoding", "gzip")
			w.Write(packed(t, document))
		}, "alone was asked for"},
		{"another encoding", encoded("br", []byte(document)), "alone was asked for"},
		{"cut mid-body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, document)
		}, "unexpected EOF"},
		{"1 MiB of headers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			io.WriteString(w, document)
		}, "header"},
	}
	root := newCA(t)
	cert := root.SVID(t, endpoint)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, cert, tt.answer)
			resp, err := fetch.New(fetch.Config{}).Fetch(t.Context(), spiffeRequest(root, s.URL))
			if tt.why != "" {
				refused(t, err, tt.why)
				return
			}
			if err != nil || !strings.HasPrefix(string(resp.Document), document) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What a bomb unpacks to never lies in memory.
func TestABombIsNotUnpacked(t *testing.T) {
	root := newCA(t)
	s := serve(t, root.SVID(t, endpoint), encoded("gzip", bomb(t)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := fetch.New(fetch.Config{}).Fetch(t.Context(), spiffeRequest(root, s.URL))
	runtime.ReadMemStats(&after)
	refused(t, err, "larger")
	if got := after.TotalAlloc - before.TotalAlloc; got > 32<<20 {
		t.Errorf("%d MiB were allocated for 64 MiB in gzip", got>>20)
	}
}

func encoded(how string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			return
		}
		w.Header().Set("Content-Encoding", how)
		w.Write(body)
	}
}

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestETag(t *testing.T) {
	root := newCA(t)
	s := serve(t, root.SVID(t, endpoint), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		if r.Header.Get("If-None-Match") == `"v1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, document)
	}))
	c := fetch.New(fetch.Config{})
	first, err := c.Fetch(t.Context(), spiffeRequest(root, s.URL))
	if err != nil || first.NotModified || first.ETag != `"v1"` {
		t.Fatalf("got %+v, %v", first, err)
	}
	req := spiffeRequest(root, s.URL)
	req.IfNoneMatch = first.ETag
	second, err := c.Fetch(t.Context(), req)
	if err != nil || !second.NotModified || second.Document != nil {
		t.Errorf("got %+v, %v", second, err)
	}
}

// Regression: CVE-2026-49478
func TestRedirects(t *testing.T) {
	root := newCA(t)
	cert := root.SVID(t, endpoint)
	target := serve(t, cert, reply(document))
	impostor := serve(t, root.SVID(t, spiffeid.RequireFromPath(partner, "/other")), reply(document))
	plain := httptest.NewServer(reply(document))
	t.Cleanup(plain.Close)
	s := serve(t, cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := map[string]string{
			"/once": target.URL + "?token=secret2", "/other": impostor.URL, "/http": plain.URL, "/loop": "/loop",
			"/user": strings.Replace(target.URL, "https://", "https://u:secret@", 1),
			"/3":    "/2", "/2": "/once", "/4": "/3",
			"/metadata": "https://169.254.169.254/latest", "/file": "file:///etc/passwd",
		}[r.URL.Path]
		code := http.StatusFound
		if r.URL.Query().Has("permanent") {
			code = http.StatusMovedPermanently
		}
		http.Redirect(w, r, to, code)
	}))
	tests := []struct{ name, path, why string }{
		{"FC-08 once", "/once", ""},
		{"three times", "/3", ""},
		{"four times", "/4", "more than 3 redirects"},
		{"FC-12 loop", "/loop", "more than 3 redirects"},
		{"FC-10 to http", "/http", "scheme"},
		{"to user information", "/user", "user information"},
		{"FC-18 to another ID", "/other", "not spiffe://partner.example/credence/broker"},
		{"to instance metadata", "/metadata", "169.254.169.254"},
		{"to a file", "/file", "scheme"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var logged bytes.Buffer
			c := fetch.New(fetch.Config{Log: slog.New(slog.NewTextHandler(&logged, nil))})
			resp, err := c.Fetch(t.Context(), spiffeRequest(root, s.URL+tt.path+"?token=secret"))
			if strings.Contains(fmt.Sprint(err, &logged), "secret") {
				t.Errorf("a secret is told: %v, %s", err, &logged)
			}
			if tt.why != "" {
				refused(t, err, tt.why)
				return
			}
			if err != nil || string(resp.Document) != document {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Regression: CVE-2026-49478
func TestRedirectsAreForgotten(t *testing.T) { // FED-26, FC-09
	root := newCA(t)
	var asked, referred int
	target := serve(t, root.SVID(t, endpoint), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" {
			referred++
		}
		io.WriteString(w, document)
	}))
	s := serve(t, root.SVID(t, endpoint), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, target.URL, http.StatusMovedPermanently)
	}))
	c := fetch.New(fetch.Config{})
	for range 2 {
		if _, err := c.Fetch(t.Context(), spiffeRequest(root, s.URL)); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 2 || referred != 0 {
		t.Errorf("the configured URL was asked %d times of 2, the target told of it %d times", asked, referred)
	}
}

func TestSlowServersAreLeft(t *testing.T) {
	root := newCA(t)
	release := make(chan struct{})
	dribble := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"keys":[`)
		http.NewResponseController(w).Flush()
		<-release
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := serve(t, root.SVID(t, endpoint), http.HandlerFunc(dribble))
	t.Cleanup(func() { close(release) })
	for name, url := range map[string]string{"mid-body": s.URL, "before TLS": "https://" + silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			c := fetch.New(fetch.Config{})
			fetch.SetTimeout(c, 100*time.Millisecond)
			_, err := c.Fetch(t.Context(), spiffeRequest(root, url))
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Who shows a web certificate that would do for https_web, and no SVID, is no
// https_spiffe endpoint; nor does a redirect change the profile.
//
// Regression: SPIFFE Federation §5.2
func TestSPIFFENeverFallsBackToWeb(t *testing.T) {
	root := newCA(t)
	web := serve(t, root.Web(t, "127.0.0.1"), reply(document))
	from := serve(t, root.SVID(t, endpoint), http.RedirectHandler(web.URL, http.StatusFound))
	c := fetch.New(fetch.Config{Roots: root.Pool()})
	if _, err := c.Fetch(t.Context(), federation.Request{URL: web.URL, HTTPSWeb: &federation.HTTPSWeb{}, AllowPrivate: true}); err != nil {
		t.Fatalf("it would not do for https_web either: %v", err)
	}
	for name, url := range map[string]string{"at once": web.URL, "by a redirect": from.URL} {
		for how, auth := range map[string]*federation.Authentication{
			"bundle":      {EndpointID: endpoint, Bundle: root.Bundle(partner)},
			"fingerprint": {EndpointID: endpoint, Fingerprint: federation.Fingerprint(root.Cert)},
		} {
			if _, err := c.Fetch(t.Context(), federation.Request{URL: url, HTTPSSPIFFE: auth, AllowPrivate: true}); err == nil {
				t.Errorf("%s, by %s: fetched", name, how)
			}
		}
	}
}

// TestMain names a proxy, as the environment of a broker may: net/http reads it
// once. With it, every test by name would end there.
func TestMain(m *testing.M) {
	os.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	os.Exit(m.Run())
}

func TestAgainstGoSPIFFEsHandler(t *testing.T) {
	root := newCA(t)
	theirs := spiffebundle.FromX509Authorities(partner, []*x509.Certificate{root.Cert})
	theirs.SetSequenceNumber(7)
	h, err := gofederation.NewHandler(partner, theirs)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, root.SVID(t, endpoint), h)
	resp, err := fetch.New(fetch.Config{}).Fetch(t.Context(), spiffeRequest(root, s.URL))
	if err != nil {
		t.Fatal(err)
	}
	b, err := federation.ParseBundle(partner, resp.Document)
	if err != nil || !b.Equal(theirs) {
		t.Errorf("got %v, %v", b, err)
	}
	// FS-07: an empty one it serves as keys null, which is no bundle.
	theirs.RemoveX509Authority(root.Cert)
	if resp, err = fetch.New(fetch.Config{}).Fetch(t.Context(), spiffeRequest(root, s.URL)); err != nil {
		t.Fatal(err)
	}
	if _, err := federation.ParseBundle(partner, resp.Document); err == nil {
		t.Error("keys null was taken for an empty bundle")
	}
}
