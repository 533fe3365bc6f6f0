package endpoint_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/federation/endpoint"
)

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

func (l *lines) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func (l *lines) log() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// pairFiles are where a certificate and its key lie.
type pairFiles struct{ cert, key string }

func newPairFiles(t *testing.T) pairFiles {
	dir := t.TempDir()
	return pairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

func (f pairFiles) writeCert(t *testing.T, c tls.Certificate) {
	t.Helper()
	var text []byte
	for _, der := range c.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	write(t, f.cert, text)
}

func (f pairFiles) writeKey(t *testing.T, c tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (f pairFiles) write(t *testing.T, c tls.Certificate) { f.writeCert(t, c); f.writeKey(t, c) }

// write puts a file in the place of another, as those do who renew.
func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// A clock that tests set.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }

func (c *clock) pass(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

type filesEnv struct {
	pairFiles
	log   lines
	clock clock
	files *endpoint.Files
	at    string // URL of an open listener that shows them
}

func newFilesEnv(t *testing.T, root *ca, first tls.Certificate) *filesEnv {
	e := &filesEnv{pairFiles: newPairFiles(t), clock: clock{at: time.Now()}}
	e.write(t, first)
	var err error
	e.files, err = endpoint.OpenFiles(endpoint.FilesConfig{Cert: e.cert, Key: e.key, Host: "id.example", Roots: root.Pool(), Log: e.log.log(), Now: e.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	var p published
	p.publish(t, bundleOf(1, root))
	e.at = p.serve(t, endpoint.WebServerTLS(e.files.Certificate))
	return e
}

// shown is the certificate that a client sees a moment later.
func (e *filesEnv) shown(t *testing.T) []byte {
	t.Helper()
	e.clock.pass(2 * time.Second)
	state, err := dial(t, e.at, &tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].Raw
}

func (e *filesEnv) wantShown(t *testing.T, when string, want tls.Certificate) {
	t.Helper()
	if !bytes.Equal(e.shown(t), want.Certificate[0]) {
		t.Errorf("%s: another certificate is shown", when)
	}
	holdsTLSRules(t, when, e.at)
}

// holdsTLSRules holds a listener against what must not change with its certificate.
func holdsTLSRules(t *testing.T, when, at string) {
	t.Helper()
	for name, bad := range map[string]*tls.Config{
		"TLS 1.1":  {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC only": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		if _, err := dial(t, at, bad); err == nil {
			t.Errorf("%s: %s is taken", when, name)
		}
	}
	asked := false
	if _, err := dial(t, at, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return &tls.Certificate{}, nil
	}}); err != nil || asked {
		t.Errorf("%s: a client certificate is asked for: %v, %v", when, asked, err)
	}
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache}}}
		r, err := client.Get(at)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if r.TLS.DidResume {
			t.Errorf("%s: a session was resumed", when)
		}
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	root := newCA(t)
	first, second, third := root.Web(t, "id.example"), root.Web(t, "id.example"), root.Web(t, "id.example")
	e := newFilesEnv(t, root, first)
	e.wantShown(t, "at first", first)
	e.write(t, second)
	e.wantShown(t, "after a reload", second)

	e.writeCert(t, third) // the key is not there yet
	e.wantShown(t, "between certificate and key", second)
	e.wantShown(t, "a moment later", second)
	if n := e.log.count("level=ERROR"); n != 1 {
		t.Errorf("%d lines of a pair that does not fit", n)
	}
	e.writeKey(t, third)
	e.wantShown(t, "when both are there", third)
	if n := e.log.count("replaced"); n != 3 { // two that were, one that was not
		t.Errorf("%d lines of replacements", n)
	}
	if n := e.log.count("level=WARN"); n > 0 {
		t.Errorf("%d warnings of good certificates: %s", n, e.log.b.String())
	}
}

func TestBadFilesLeaveTheOldInUse(t *testing.T) {
	root := newCA(t)
	first := root.Web(t, "id.example")
	dated := func(from, to time.Duration) func(*testing.T, *filesEnv) {
		return func(t *testing.T, e *filesEnv) {
			e.write(t, root.Issue(t, func(c *x509.Certificate) {
				c.DNSNames, c.NotBefore, c.NotAfter = []string{"id.example"}, time.Now().Add(from), time.Now().Add(to)
			}))
		}
	}
	for name, spoil := range map[string]func(*testing.T, *filesEnv){
		"another's key": func(t *testing.T, e *filesEnv) { e.writeKey(t, root.Web(t, "id.example")) },
		"no PEM":        func(t *testing.T, e *filesEnv) { write(t, e.cert, []byte("<html>")) },
		"empty":         func(t *testing.T, e *filesEnv) { write(t, e.cert, nil) },
		"cut short":     func(t *testing.T, e *filesEnv) { write(t, e.key, []byte("-----BEGIN PRIVATE KEY-----\nMIG")) },
		"gone":          func(t *testing.T, e *filesEnv) { os.Remove(e.cert) },
		"expired":       dated(-2*time.Hour, -time.Hour),
		"not yet valid": dated(time.Hour, 2*time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			e := newFilesEnv(t, root, first)
			spoil(t, e)
			e.wantShown(t, name, first)
			e.wantShown(t, "a moment later", first)
			if n := e.log.count("level=ERROR"); n != 1 {
				t.Errorf("%d lines: %s", n, e.log.b.String())
			}
			second := root.Web(t, "id.example")
			e.write(t, second)
			e.wantShown(t, "mended", second)
		})
	}
}

func TestOpenFilesWarns(t *testing.T) { // FED-17, FED-18
	root, other := newCA(t), newCA(t)
	for name, tt := range map[string]struct {
		cert tls.Certificate
		want string
	}{
		"good":         {root.Web(t, "id.example"), ""},
		"another host": {root.Web(t, "other.example"), "not id.example"},
		"a private CA": {other.Web(t, "id.example"), "no public CA"},
		"expired": {root.Issue(t, func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"id.example"}, time.Now().Add(-time.Minute)
		}), "not now"},
	} {
		t.Run(name, func(t *testing.T) {
			f, log := newPairFiles(t), &lines{}
			f.write(t, tt.cert)
			if _, err := endpoint.OpenFiles(endpoint.FilesConfig{Cert: f.cert, Key: f.key, Host: "id.example", Roots: root.Pool(), Log: log.log()}); err != nil {
				t.Fatal(err)
			}
			if n := log.count("level="); (n == 0) != (tt.want == "") || tt.want != "" && log.count(tt.want) == 0 {
				t.Errorf("%d lines: %s", n, log.b.String())
			}
		})
	}
	f := newPairFiles(t)
	if _, err := endpoint.OpenFiles(endpoint.FilesConfig{Cert: f.cert, Key: f.key}); err == nil {
		t.Error("opened without files")
	}
}
