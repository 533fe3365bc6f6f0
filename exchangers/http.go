package exchangers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

const (
	maxBody       = 1 << 20
	maxCAFile     = 1 << 20
	maxRetryAfter = 5 * time.Minute
)

// HTTPConfig says whom a provider's client believes.
type HTTPConfig struct {
	CAFile  string         // PEM; it replaces the system's roots
	Roots   *x509.CertPool // instead of CAFile; nil: CAFile, or the system's
	Timeout time.Duration  // of a whole request; 0 is 20 s
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
	return &http.Client{
		Timeout:       cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: bounded{&http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
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

// bounded holds every request to https and every answer to 1 MiB.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		closeBody(r)
		return nil, fmt.Errorf("%s: only https is called", r.URL.Redacted())
	}
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
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

// Answers is a transport that makes an error of every answer but the good
// one, before a library can guess at it, and remembers that error for when
// the library drops it. One Answers serves one exchange, one call at a time.
type Answers struct {
	Next    http.RoundTripper
	Refusal func(status int, header http.Header, body []byte) *Error

	last error
	good int // status of the last good answer
}

// RoundTrip passes on an answer of 200 and returns an *Error for any other.
func (a *Answers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.Next.RoundTrip(r)
	if err != nil {
		a.last = err
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		a.last, a.good = nil, resp.StatusCode
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		body = nil // the status still says enough
	}
	refusal := a.Refusal(resp.StatusCode, resp.Header, body)
	if refusal.RetryAfter == 0 {
		refusal.RetryAfter = RetryAfter(resp.Header)
	}
	a.last = refusal
	return nil, refusal
}

// Failure turns what a library returned into an *Error of provider. The
// library's own text is left out: some quote the body, tokens included.
func (a *Answers) Failure(provider string, err error) *Error {
	var known *Error
	switch {
	case errors.As(a.last, &known), errors.As(err, &known):
		return known
	case a.last != nil:
		return Unreached(provider, a.last)
	case a.good != 0 && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return Unusable(provider, a.good, "", "it could not be read")
	}
	return Unreached(provider, err)
}

// Unreached is the Error for a call that had no answer.
func Unreached(provider string, err error) *Error {
	e := &Error{Provider: provider, Class: Outage, Code: "unreached", Err: cause(err)}
	e.Message = Clean(e.Err.Error())
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) {
		e.Code, e.Hint = "untrusted_certificate", "check the Target's endpoint, and ca_file if it has a private certificate"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code = "timeout"
	}
	return e
}

// cause strips the URL: it is long, and the same each time.
func cause(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// Unusable is the Error for a success whose body is not one.
func Unusable(provider string, status int, requestID, why string) *Error {
	return &Error{Provider: provider, Status: status, Code: "unusable_answer", Class: Outage,
		Message: Clean("the answer cannot be used: " + why), RequestID: requestID,
		Hint: "check that the Target's endpoint is the provider's, and that no proxy answers in its place"}
}

// ClassOf is what an HTTP status says where no code says more.
func ClassOf(status int) Class {
	switch {
	case status == http.StatusTooManyRequests:
		return Throttled
	case status == http.StatusRequestTimeout, status >= 500:
		return Outage
	}
	return Config
}

// RetryAfter reads a pause in seconds (RFC 9110 §10.2.3), at most 5 min. A
// date, and what cannot be read, is zero.
func RetryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}
