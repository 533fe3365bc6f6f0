package exchangers

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	maxBody   = 1 << 20
	maxCAFile = 1 << 20
)

// HTTPConfig says whom a provider's client believes.
type HTTPConfig struct {
	CAFile  string         // PEM; it replaces the system's roots
	Roots   *x509.CertPool // instead of CAFile; nil: CAFile, or the system's
	Timeout time.Duration  // of a whole request; 0 is 20 s

	Certificate *tls.Certificate // for a server that asks, whatever CAs it names; nil: none
}

// HTTPClient returns a client for providers' endpoints: https alone, TLS 1.2
// or later, no redirect followed (a 3xx is the answer), an answer of at most
// 1 MiB. It honours the proxy that the environment names.
func HTTPClient(cfg HTTPConfig) (*http.Client, error) {
	if cfg.Roots == nil && cfg.CAFile != "" {
		pool, err := loadRoots(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading ca_file %s: %w", cfg.CAFile, err)
		}
		cfg.Roots = pool
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 20 * time.Second
	}
	believe := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots}
	if cfg.Certificate != nil {
		believe.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.Certificate, nil }
	}
	return &http.Client{
		Timeout:       cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: bounded{&http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        believe,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           4,
			IdleConnTimeout:        30 * time.Second,
		}},
	}, nil
}

func loadRoots(file string) (*x509.CertPool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxCAFile+1))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if len(pem) > maxCAFile || !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("it must hold PEM certificates, at most 1 MiB")
	}
	return pool, nil
}

// WithCertificate is a client from HTTPClient that shows a certificate to any
// server that asks for one, with connections of its own: no two callers share
// one, and CloseIdleConnections ends them.
func WithCertificate(client *http.Client, certificate tls.Certificate) (*http.Client, error) {
	b, ok := client.Transport.(bounded)
	if !ok {
		return nil, errors.New("only a client from HTTPClient can show a certificate")
	}
	t, ok := b.next.(*http.Transport)
	if !ok {
		return nil, errors.New("only a client from HTTPClient can show a certificate")
	}
	t = t.Clone()
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	out := *client
	out.Transport = bounded{t}
	return &out, nil
}

// bounded holds every request to https and every answer to 1 MiB.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		closeBody(r)
		return nil, fmt.Errorf("%s: only https is called", r.URL.Redacted())
	}
	clock := clockOf(r.Context())
	asked := clock.asked()
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	clock.answered(asked, resp.Header)
	resp.Body = &limited{resp.Body, maxBody}
	return resp, nil
}

// CloseIdleConnections lets [http.Client.CloseIdleConnections] through.
func (b bounded) CloseIdleConnections() {
	if c, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

var errTooLarge = errors.New("the answer is larger than 1 MiB")

// limited fails where io.LimitReader would pretend that the body had ended.
type limited struct {
	io.ReadCloser
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.ReadCloser.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// closeBody keeps a RoundTripper's promise to close what it doesn't send.
func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}
