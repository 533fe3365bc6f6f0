package endpoint_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	gofederation "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/endpoint"
	"github.com/credence-id/credence/federation/fetch"
)

// published is what a broker would serve: certificate and document, each
// replaced under the open listener.
type published struct {
	cert atomic.Pointer[tls.Certificate]
	doc  atomic.Pointer[[]byte]
}

func (p *published) show(cert tls.Certificate) { p.cert.Store(&cert) }

func (p *published) getCert() (*tls.Certificate, error) { return p.cert.Load(), nil }

func (p *published) publish(t *testing.T, b *spiffebundle.Bundle) {
	t.Helper()
	doc, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	p.doc.Store(&doc)
}

func (p *published) document() ([]byte, time.Duration, bool) {
	doc := p.doc.Load()
	if doc == nil {
		return nil, 0, false
	}
	return *doc, time.Minute, true
}

// serve runs a whole endpoint and returns its URL.
func (p *published) serve(t *testing.T, config *tls.Config) string {
	t.Helper()
	h, err := endpoint.New(endpoint.Config{Document: p.document})
	if err != nil {
		t.Fatal(err)
	}
	s := endpoint.Server(h, config)
	s.ErrorLog = log.New(io.Discard, "", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "https://" + l.Addr().String()
}

func bundleOf(sequence uint64, cas ...*ca) *spiffebundle.Bundle {
	b := spiffebundle.New(partner)
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(time.Minute)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	return b
}

func TestGoSPIFFEFetchesByEitherProfile(t *testing.T) {
	root := newCA(t)
	var p published
	want := bundleOf(1, root)
	p.publish(t, want)
	p.show(root.SVID(t, brokerID))
	byWeb := func() (*tls.Certificate, error) { cert := root.Web(t, "127.0.0.1"); return &cert, nil }
	for name, get := range map[string]func() (*spiffebundle.Bundle, error){
		"https_spiffe": func() (*spiffebundle.Bundle, error) {
			return gofederation.FetchBundle(t.Context(), partner, p.serve(t, endpoint.SPIFFEServerTLS(p.getCert)),
				gofederation.WithSPIFFEAuth(root.Bundle(partner), brokerID))
		},
		"https_web": func() (*spiffebundle.Bundle, error) {
			return gofederation.FetchBundle(t.Context(), partner, p.serve(t, endpoint.WebServerTLS(byWeb)),
				gofederation.WithWebPKIRoots(root.Pool()))
		},
	} {
		if got, err := get(); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// watcher polls as fast as it is let and hands out what it sees.
type watcher struct{ updates chan *spiffebundle.Bundle }

func (w watcher) NextRefresh(time.Duration) time.Duration { return time.Millisecond }
func (w watcher) OnUpdate(b *spiffebundle.Bundle)         { w.updates <- b }
func (w watcher) OnError(error)                           {}

func TestGoSPIFFEWatchesOverARotation(t *testing.T) {
	first, second := newCA(t), newCA(t)
	trusted := spiffebundle.New(partner)
	trusted.AddX509Authority(first.Cert)
	var p published
	p.publish(t, bundleOf(1, first))
	p.show(first.SVID(t, brokerID))
	at := p.serve(t, endpoint.SPIFFEServerTLS(p.getCert))
	ctx, cancel := context.WithCancel(t.Context())
	w := watcher{make(chan *spiffebundle.Bundle)}
	done := make(chan error, 1)
	go func() {
		done <- gofederation.WatchBundle(ctx, partner, at, w, gofederation.WithSPIFFEAuth(trusted, brokerID))
	}()
	next := func(want uint64) {
		t.Helper()
		select {
		case b := <-w.updates:
			if got, _ := b.SequenceNumber(); got != want {
				t.Fatalf("sequence %d, want %d", got, want)
			}
			trusted.SetX509Authorities(b.X509Authorities())
		case <-time.After(10 * time.Second):
			t.Fatalf("no update to sequence %d", want)
		}
	}
	next(1)
	p.publish(t, bundleOf(2, first, second)) // published before its first use
	next(2)
	p.show(second.SVID(t, brokerID))
	p.publish(t, bundleOf(3, second))
	next(3)
	p.publish(t, bundleOf(4)) // FS-07: keys is an array also now
	next(4)
	cancel()
	<-done
}

func TestOurClientFollowsARotation(t *testing.T) {
	first, second := newCA(t), newCA(t)
	var p published
	p.publish(t, bundleOf(1, first, second))
	p.show(first.SVID(t, brokerID))
	at := p.serve(t, endpoint.SPIFFEServerTLS(p.getCert))
	get := func(auth federation.Authentication, tag string) federation.Response {
		t.Helper()
		auth.EndpointID = brokerID
		resp, err := fetch.New(fetch.Config{}).Fetch(t.Context(),
			federation.Request{URL: at, HTTPSSPIFFE: &auth, IfNoneMatch: tag, AllowPrivate: true})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	met := get(federation.Authentication{Fingerprint: federation.Fingerprint(first.Cert)}, "")
	b, err := federation.ParseBundle(partner, met.Document)
	if err != nil {
		t.Fatal(err)
	}
	p.show(second.SVID(t, brokerID))
	if again := get(federation.Authentication{Bundle: b.X509Bundle()}, met.ETag); !again.NotModified {
		t.Error("the same document was sent again")
	}
	p.publish(t, bundleOf(2, second))
	if again := get(federation.Authentication{Bundle: b.X509Bundle()}, met.ETag); again.NotModified {
		t.Error("a new document was kept back")
	}
}

func dial(t *testing.T, at string, config *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	config.InsecureSkipVerify = true
	conn, err := tls.Dial("tcp", u.Host, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), nil
}

// Regression: CVE-2024-23656
func TestTLSIsMozillaIntermediate(t *testing.T) { // FED-12, FS-10
	root := newCA(t)
	var p published
	p.show(root.SVID(t, brokerID))
	for name, config := range map[string]*tls.Config{
		"spiffe": endpoint.SPIFFEServerTLS(p.getCert), "web": endpoint.WebServerTLS(p.getCert),
	} {
		t.Run(name, func(t *testing.T) {
			at := p.serve(t, config)
			tests := []struct {
				name   string
				client *tls.Config
				ok     bool
			}{
				{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}, true},
				{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, true},
				{"TLS 1.2 with ChaCha", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}}, true},
				{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
				{"CBC only", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
				{"P-521 only", &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP521}}, false},
			}
			for _, tt := range tests {
				if _, err := dial(t, at, tt.client); (err == nil) != tt.ok {
					t.Errorf("%s: %v", tt.name, err)
				}
			}
		})
	}
}

func TestNoClientCertificateIsAskedFor(t *testing.T) { // FED-19, FS-02
	root := newCA(t)
	var p published
	p.show(root.SVID(t, brokerID))
	at := p.serve(t, endpoint.SPIFFEServerTLS(p.getCert))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		asked := false
		_, err := dial(t, at, &tls.Config{MinVersion: version, MaxVersion: version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			}})
		if err != nil || asked {
			t.Errorf("asked: %v, %v", asked, err)
		}
	}
}

// Regression: SPIRE #6715
func TestSessionsAreNotResumed(t *testing.T) {
	root := newCA(t)
	var p published
	p.show(root.SVID(t, brokerID))
	p.publish(t, bundleOf(1, root))
	at := p.serve(t, endpoint.SPIFFEServerTLS(p.getCert))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4)}}}
	for range 3 {
		resp, err := client.Get(at)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.TLS.DidResume {
			t.Error("a session was resumed")
		}
	}
}

func TestOnlyAValidSVIDIsShown(t *testing.T) { // FED-30
	root := newCA(t)
	edited := func(edit func(*x509.Certificate)) *tls.Certificate {
		cert := root.Issue(t, func(c *x509.Certificate) {
			c.URIs = []*url.URL{brokerID.URL()}
			edit(c)
		})
		return &cert
	}
	tests := []struct {
		name string
		cert *tls.Certificate
		err  error
		ok   bool
	}{
		{"valid", edited(func(*x509.Certificate) {}), nil, true},
		{"expired", edited(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), nil, false},
		{"not yet valid", edited(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), nil, false},
		{"no path", edited(func(c *x509.Certificate) { c.URIs = []*url.URL{partner.ID().URL()} }), nil, false},
		{"web certificate", edited(func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"a.example"} }), nil, false},
		{"two IDs", edited(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, spiffeid.RequireFromPath(partner, "/x").URL())
		}), nil, false},
		{"a CA", edited(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), nil, false},
		{"none yet", nil, nil, false},
		{"empty", &tls.Certificate{}, nil, false},
		{"an error", edited(func(*x509.Certificate) {}), errors.New("no key"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p published
			at := p.serve(t, endpoint.SPIFFEServerTLS(func() (*tls.Certificate, error) { return tt.cert, tt.err }))
			if _, err := dial(t, at, &tls.Config{}); (err == nil) != tt.ok {
				t.Errorf("handshake: %v, want ok = %v", err, tt.ok)
			}
		})
	}
}

func TestWebWithoutCertificateRefuses(t *testing.T) {
	var p published
	at := p.serve(t, endpoint.WebServerTLS(p.getCert))
	if _, err := dial(t, at, &tls.Config{}); err == nil {
		t.Error("shook hands without a certificate")
	}
}

// Who begins a handshake, a header or a body and goes no further, or asks nothing
// more, is hung up on.
func TestSlowCallersAreHungUpOn(t *testing.T) {
	root := newCA(t)
	var p published
	p.show(root.SVID(t, brokerID))
	s := endpoint.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), endpoint.SPIFFEServerTLS(p.getCert))
	for _, d := range []*time.Duration{&s.ReadHeaderTimeout, &s.ReadTimeout, &s.WriteTimeout, &s.IdleTimeout} {
		if *d > time.Minute {
			t.Errorf("%s is long", *d)
		}
		*d /= 20 // nobody here is patient
	}
	s.ErrorLog = log.New(io.Discard, "", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	go s.ServeTLS(l, "", "")
	for name, first := range map[string]string{
		"nothing": "", "half a hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
		"half a header": "GET / HTTP/1.1\r\nHost: a\r\n", "half a body": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na", "one request": "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if len(first) > 10 {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			}
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(conn, first); err != nil {
				return // we were slow ourselves
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is kept")
			}
		})
	}
}

// Regression: CVE-2021-44716
func TestServerIsBounded(t *testing.T) {
	s := endpoint.Server(http.NotFoundHandler(), &tls.Config{})
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("something is unbounded: %+v", s)
	}
	root := newCA(t)
	var p published
	p.show(root.SVID(t, brokerID))
	p.publish(t, bundleOf(1, root))
	at := p.serve(t, endpoint.SPIFFEServerTLS(p.getCert))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequest(http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("x", 64<<10))
	resp, err := client.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("64 KiB of headers: %s", resp.Status)
		}
	}
}
