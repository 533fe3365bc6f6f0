package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	credence "github.com/credence-id/credence/cmd/credence"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/exchangertest"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/federation/fetch"
)

// served is an issuer that works, for one fault to be put in.
type served struct {
	t      *testing.T
	q      exchangers.Question
	cfg    fetch.Config
	server *httptest.Server

	discovery, keys http.HandlerFunc // nil: the broker's own
	types           [2]string
	date            string
}

func (s *served) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	own, spoiled, kind := s.q.Discovery, s.discovery, s.types[0]
	if r.URL.Path == "/keys" {
		own, spoiled, kind = s.q.JWKS, s.keys, s.types[1]
	}
	w.Header().Set("Content-Type", kind)
	if s.date != "" {
		w.Header().Set("Date", s.date)
	}
	if spoiled != nil {
		spoiled(w, r)
		return
	}
	w.Write(own)
}

func newServed(t *testing.T) *served {
	t.Helper()
	s := &served{t: t, types: [2]string{"application/json", "application/jwk-set+json"}}
	s.server = httptest.NewUnstartedServer(s)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	s.q = exchangertest.Question(t, &oauth.Settings{})
	s.cfg = fetch.Config{Now: time.Now}
	s.q.Target.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(s.q.Target.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s.issuer(s.server.URL)
	return s
}

func (s *served) issuer(issuer string) {
	s.q.Issuer, s.q.Discovery = issuer, exchangertest.Discovery(s.t, issuer, nil)
}

// public makes the server's certificate one of a public CA.
func (s *served) public() {
	s.cfg.Roots = x509.NewCertPool()
	s.cfg.Roots.AddCert(s.server.Certificate())
}

func bytesOf(text []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(text) }
}

func redirectTo(where string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, where, http.StatusFound) }
}

// at127 resolves every name to loopback.
func at127(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12 + bytes.IndexByte(buf[12:n], 0) + 5 // name, type, class
			msg := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, buf[12:end]...)
			if binary.BigEndian.Uint16(buf[end-4:]) == 1 { // A
				msg[7] = 1
				msg = append(msg, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
			}
			_, _ = conn.WriteTo(msg, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// TestTargetCheckFetchesAsACloud: what a cloud stumbles over in what is served, it names.
func TestTargetCheckFetchesAsACloud(t *testing.T) {
	const ca, b = "issuer_private_ca", "broker.issuer"
	discovery := func(name string, v any) func(*served) {
		return func(s *served) {
			s.discovery = bytesOf(exchangertest.Discovery(t, s.q.Issuer, map[string]any{name: v}))
		}
	}
	keys := func(all ...map[string]any) func(*served) {
		return func(s *served) { s.keys = bytesOf(exchangertest.KeySet(t, all...)) }
	}
	spoiled := exchangertest.Key(exchangertest.KeyID, 2048)
	spoiled["x5c"] = []string{"AA"}
	tests := []struct {
		fault exchangertest.Fault
		put   func(*served)
	}{
		{exchangertest.Fault{Name: "nothing", Warns: ca}, func(*served) {}},
		{exchangertest.Fault{Name: "a public CA"}, (*served).public},
		{exchangertest.Fault{Name: "a public CA, and no ca_file"}, func(s *served) { s.public(); s.q.Target.CAFile = "" }},
		{exchangertest.Fault{Name: "nobody's CA", Code: "issuer_untrusted", Field: b}, func(s *served) { s.q.Target.CAFile = "" }},
		{exchangertest.Fault{Name: "a ca_file that is not here", Code: "issuer_untrusted", Field: b}, func(s *served) { s.q.Target.CAFile += "x" }},
		{exchangertest.Fault{Name: "nothing listens", Code: "issuer_refused", Field: b}, func(s *served) { s.server.Close() }},
		{exchangertest.Fault{Name: "a private address", Warns: "issuer_private"}, func(s *served) {
			s.public()
			s.cfg.Resolver = at127(t)
			s.issuer(strings.Replace(s.server.URL, "127.0.0.1", "example.com", 1))
		}},
		{exchangertest.Fault{Name: "another name", Code: "issuer_other_name", Field: b}, func(s *served) {
			s.public()
			s.cfg.Resolver = at127(t)
			s.issuer(strings.Replace(s.server.URL, "127.0.0.1", "id.example.org", 1))
		}},
		{exchangertest.Fault{Name: "old TLS alone", Code: "issuer_no_tls", Field: b}, func(s *served) {
			server := httptest.NewUnstartedServer(s)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
			server.StartTLS()
			t.Cleanup(server.Close)
			s.issuer(server.URL)
		}},
		{exchangertest.Fault{Name: "discovery is not found", Code: "issuer_status", Field: b, Warns: ""}, func(s *served) { s.public(); s.discovery = http.NotFound }},
		{exchangertest.Fault{Name: "discovery is a page", Code: "discovery_not_json", Field: b, Warns: "issuer_content_type"}, func(s *served) {
			s.public()
			s.types[0], s.discovery = "text/html; charset=utf-8", bytesOf([]byte("<html>"))
		}},
		{exchangertest.Fault{Name: "discovery is text", Warns: ca + " issuer_content_type"}, func(s *served) { s.types[0] = "text/plain" }},
		{exchangertest.Fault{Name: "it redirects", Warns: "issuer_redirect"}, func(s *served) {
			s.public()
			s.discovery = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/there" {
					w.Write(s.q.Discovery)
					return
				}
				http.Redirect(w, r, "/there", http.StatusFound)
			}
		}},
		{exchangertest.Fault{Name: "it redirects to http", Code: "issuer_redirect_http", Field: b}, func(s *served) { s.public(); s.discovery = redirectTo("http://127.0.0.1/") }},
		{exchangertest.Fault{Name: "it redirects for ever", Code: "issuer_redirects", Field: b, Warns: "issuer_redirect issuer_redirect issuer_redirect"}, func(s *served) {
			s.public()
			s.discovery = redirectTo("/.well-known/openid-configuration")
		}},
		{exchangertest.Fault{Name: "an empty endpoint", Code: "discovery_empty", Field: b, Warns: ca}, discovery("authorization_endpoint", "")},
		{exchangertest.Fault{Name: "another issuer", Code: "discovery_issuer_slash", Field: b, Warns: ca}, func(s *served) {
			s.discovery = bytesOf(exchangertest.Discovery(t, s.q.Issuer, map[string]any{"issuer": s.q.Issuer + "/"}))
		}},
		{exchangertest.Fault{Name: "keys by http", Code: "jwks_uri_not_https", Field: b, Warns: ca}, discovery("jwks_uri", "http://127.0.0.1/keys")},
		{exchangertest.Fault{Name: "something added", Warns: ca + " discovery_differs"}, discovery("claims_supported", []string{"sub"})},
		{exchangertest.Fault{Name: "keys are not found", Code: "jwks_status", Field: b}, func(s *served) { s.public(); s.keys = http.NotFound }},
		{exchangertest.Fault{Name: "keys are text", Warns: ca + " jwks_content_type"}, func(s *served) { s.types[1] = "text/plain" }},
		{exchangertest.Fault{Name: "old keys", Code: "jwks_lacks_key", Field: b, Warns: ca}, keys(exchangertest.Key("k0", 2048))},
		{exchangertest.Fault{Name: "the key that signs alone", Warns: ca + " jwks_differs"}, keys(exchangertest.Key(exchangertest.KeyID, 2048))},
		{exchangertest.Fault{Name: "a certificate added", Code: "jwks_x5c", Field: b, Warns: ca}, keys(spoiled)},
		{exchangertest.Fault{Name: "too large", Code: "jwks_too_large", Field: b}, func(s *served) {
			s.public()
			s.keys = bytesOf(bytes.Repeat([]byte(" "), fetch.MaxBody+1))
		}},
		{exchangertest.Fault{Name: "its clock is behind", Code: "clock", Field: "clock"}, func(s *served) {
			s.public()
			s.date = time.Now().Add(-2 * time.Minute).UTC().Format(http.TimeFormat)
		}},
		{exchangertest.Fault{Name: "its clock is ahead", Code: "clock", Field: "clock"}, func(s *served) {
			s.public()
			s.date = time.Now().Add(2 * time.Minute).UTC().Format(http.TimeFormat)
		}},
		{exchangertest.Fault{Name: "it takes long", Warns: "issuer_late jwks_late"}, func(s *served) {
			s.public()
			first := time.Now()
			s.cfg.Now = func() time.Time { first = first.Add(1500 * time.Millisecond); return first }
		}},
	}
	for _, tt := range tests {
		t.Run(tt.fault.Name, func(t *testing.T) {
			t.Parallel()
			s := newServed(t)
			tt.put(s)
			exchangertest.Ends(t, credence.LookAtIssuer(t.Context(), s.q, s.cfg), tt.fault)
		})
	}
}
