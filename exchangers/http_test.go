package exchangers_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
)

func serve(t *testing.T, h http.HandlerFunc) (*httptest.Server, exchangers.HTTPConfig) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s, exchangers.HTTPConfig{Roots: roots}
}

func client(t *testing.T, cfg exchangers.HTTPConfig) *http.Client {
	t.Helper()
	c, err := exchangers.HTTPClient(cfg)
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func TestClientBoundsAnswers(t *testing.T) {
	zeros := bytes.Repeat([]byte{' '}, 1<<20+1)
	s, cfg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/fits":
			_, _ = w.Write(zeros[1:])
		case "/large":
			_, _ = w.Write(zeros)
		case "/bomb":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 64 {
				_, _ = z.Write(zeros)
			}
			_ = z.Close()
		}
	})
	c := client(t, cfg)
	for path, fits := range map[string]bool{"/fits": true, "/large": false, "/bomb": false} {
		resp, err := c.Get(s.URL + path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if (err == nil) != fits || len(b) > 1<<20 {
			t.Errorf("%s: %d bytes, %v", path, len(b), err)
		}
	}
}

// Regression: CVE-2026-49478
func TestClientFollowsNoRedirectAndNoPlainHTTP(t *testing.T) {
	var followed bool
	s, cfg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		followed = followed || r.URL.Path != "/"
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	c := client(t, cfg)
	resp, err := c.Post(s.URL+"/", "text/plain", strings.NewReader("secret"))
	if err != nil {
		t.Fatalf("redirect: %v", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect || followed {
		t.Errorf("status %d, followed %v", resp.StatusCode, followed)
	}
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	defer plain.Close()
	if resp, err := c.Get(plain.URL); err == nil || followed {
		t.Errorf("plain HTTP was called: %v", resp)
	}
}

func TestClientTrusts(t *testing.T) {
	s, cfg := serve(t, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	get := func(cfg exchangers.HTTPConfig) error {
		resp, err := client(t, cfg).Get(s.URL)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(exchangers.HTTPConfig{CAFile: good}); err != nil {
		t.Errorf("with ca_file: %v", err)
	}
	for name, cfg := range map[string]exchangers.HTTPConfig{"the system's roots": {}, "an empty pool": {Roots: x509.NewCertPool()}} {
		err := get(cfg)
		var bad *tls.CertificateVerificationError
		if !errors.As(err, &bad) {
			t.Errorf("with %s: %v", name, err)
		}
		if e := exchangers.Unreached("aws", err); e.Class != exchangers.Outage || e.Status != 0 || !strings.Contains(e.Error(), "ca_file") {
			t.Errorf("with %s: %+v", name, e)
		}
	}
	for name, file := range map[string]string{"missing": dir + "/none", "not PEM": write("junk", []byte("junk")), "huge": write("huge", bytes.Repeat([]byte("#"), 1<<20+1))} {
		if _, err := exchangers.HTTPClient(exchangers.HTTPConfig{CAFile: file}); err == nil || !strings.Contains(err.Error(), "ca_file") {
			t.Errorf("%s ca_file: %v", name, err)
		}
	}
	if err := get(cfg); err != nil {
		t.Errorf("with roots: %v", err)
	}
}

func TestClientRefusesOldTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	s.Config.ErrorLog = quiet
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	if resp, err := client(t, exchangers.HTTPConfig{Roots: roots}).Get(s.URL); err == nil {
		t.Errorf("TLS 1.1 was spoken: %v", resp.TLS.Version)
	}
}

func TestAnswers(t *testing.T) {
	s, cfg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			_, _ = io.WriteString(w, `{}`)
		case "/slow":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		case "/asked":
			w.Header().Set("Retry-After", "99999")
			w.WriteHeader(503)
		default:
			w.WriteHeader(300)
			_, _ = io.WriteString(w, "no")
		}
	})
	get := func(path string) (*http.Response, *exchangers.Error) {
		a := &exchangers.Answers{Next: client(t, cfg).Transport, Refusal: func(status int, _ http.Header, body []byte) *exchangers.Error {
			return &exchangers.Error{Provider: "gcp", Status: status, Message: string(body), Class: exchangers.ClassOf(status)}
		}}
		resp, err := (&http.Client{Transport: a, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Get(s.URL + path)
		if err == nil {
			_ = resp.Body.Close()
			return resp, a.Failure("gcp", errors.New("library: token was eyJhbGciOiJSUzI1NiJ9"))
		}
		return resp, a.Failure("gcp", errors.New("library dropped the cause"))
	}
	rows := map[string]struct {
		status int
		class  exchangers.Class
		after  time.Duration
	}{
		"/good":     {200, exchangers.Outage, 0}, // a success that the library could not read
		"/slow":     {429, exchangers.Throttled, 7 * time.Second},
		"/asked":    {503, exchangers.Outage, 5 * time.Minute},
		"/redirect": {300, exchangers.Config, 0},
	}
	for path, row := range rows {
		_, e := get(path)
		if e.Status != row.status || e.Class != row.class || e.RetryAfter != row.after || strings.Contains(e.Error(), "eyJ") {
			t.Errorf("%s: %+v", path, e)
		}
	}
	s.Close()
	if _, e := get("/gone"); e.Status != 0 || e.Class != exchangers.Outage || strings.Contains(e.Message, "https://") {
		t.Errorf("gone: %+v", e)
	}
	if e := exchangers.Unreached("gcp", context.DeadlineExceeded); e.Code != "timeout" || !errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("timeout: %+v", e)
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 0, "2": 2 * time.Second, "-1": 0, "1.5": 0, "301": 5 * time.Minute,
		"Fri, 21 Nov 2026 00:00:00 GMT": 0, "99999999999999999999": 0} {
		if got := exchangers.RetryAfter(http.Header{"Retry-After": {value}}); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	for status, want := range map[int]exchangers.Class{302: exchangers.Config, 400: exchangers.Config, 403: exchangers.Config, 404: exchangers.Config,
		408: exchangers.Outage, 429: exchangers.Throttled, 500: exchangers.Outage, 503: exchangers.Outage} {
		if got := exchangers.ClassOf(status); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
}

// A client's certificate is shown to whoever asks, whatever CAs it names: the
// server says then what is wrong with it. Without one there is none.
func TestClientShowsItsCertificate(t *testing.T) {
	var seen int
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = len(r.TLS.PeerCertificates) }))
	s.Config.ErrorLog = quiet
	other, _ := serve(t, nil)
	names := x509.NewCertPool()
	names.AddCert(&x509.Certificate{Raw: []byte{0}, RawSubject: []byte{0x30, 0}})
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, ClientCAs: names}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for want, certificate := range map[int]*tls.Certificate{0: nil, 1: &other.TLS.Certificates[0]} {
		resp, err := client(t, exchangers.HTTPConfig{Roots: roots, Certificate: certificate}).Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if seen != want {
			t.Errorf("%d certificates seen, want %d", seen, want)
		}
	}
}
