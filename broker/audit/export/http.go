package export

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	logs "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/credence-id/credence/broker/audit"
)

// HTTPConfig says where to and as whom records are posted.
type HTTPConfig struct {
	// URL of the collector: https, or http on loopback. Required.
	URL string
	// OTLP posts OpenTelemetry logs (OTLP/HTTP, protobuf) instead of JSON
	// lines; a URL without a path then gets /v1/logs.
	OTLP bool
	// HeadersFile has a "Name: value" on each line, such as an Authorization.
	// It is read for each request, so it may be replaced.
	HeadersFile string
	// CAFile verifies the collector instead of the system's roots.
	CAFile string
	// SVIDDir holds svid.pem and svid_key.pem, shown to the collector and read
	// for each connection.
	SVIDDir string
	// Resource are the attributes of the OpenTelemetry resource.
	Resource map[string]string
	// Timeout of one request; 0 means 30 s.
	Timeout time.Duration
}

const (
	maxAnswer  = 1 << 20
	maxHeaders = 16 << 10
	userAgent  = "credence-audit-export"
)

// An HTTP is a Sink that posts.
type HTTP struct {
	cfg    HTTPConfig
	url    string
	client *http.Client
}

// NewHTTP returns a Sink that posts to c.URL.
func NewHTTP(c HTTPConfig) (*HTTP, error) {
	u, err := CheckURL(c.URL)
	if err != nil {
		return nil, err
	}
	if c.OTLP && (u.Path == "" || u.Path == "/") {
		u.Path = "/v1/logs"
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate", c.CAFile)
		}
	}
	h := &HTTP{cfg: c, url: u.String()}
	if c.SVIDDir != "" {
		settings.GetClientCertificate = h.svid
		if _, err := h.svid(nil); err != nil {
			return nil, err
		}
	}
	if _, err := h.headers(); err != nil {
		return nil, err
	}
	h.client = &http.Client{
		Timeout: c.Timeout,
		// A redirect would carry the record and the headers to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: settings, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return h, nil
}

// CheckURL refuses what would carry the record in the clear.
func CheckURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Fragment != "":
		return nil, errors.New("a URL such as https://collector.example:4318 is wanted")
	case u.User != nil:
		return nil, errors.New("a URL without user and password is wanted: a headers file holds what is secret")
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return u, nil
	}
	return nil, fmt.Errorf("%s://%s: https is wanted, but for loopback", u.Scheme, u.Host)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Close lets idle connections go.
func (h *HTTP) Close() error {
	h.client.CloseIdleConnections()
	return nil
}

func (h *HTTP) svid(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(h.cfg.SVIDDir, "svid.pem"), filepath.Join(h.cfg.SVIDDir, "svid_key.pem"))
	if err != nil {
		return nil, fmt.Errorf("svid_dir: %w", err)
	}
	return &c, nil
}

// headers reads the headers file. Its values are secret, so no error has one.
func (h *HTTP) headers() (http.Header, error) {
	all := make(http.Header)
	if h.cfg.HeadersFile == "" {
		return all, nil
	}
	f, err := os.Open(h.cfg.HeadersFile)
	if err != nil {
		return nil, fmt.Errorf("headers_file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHeaders+1))
	if err != nil {
		return nil, fmt.Errorf("headers_file: %w", err)
	}
	if len(text) > maxHeaders {
		return nil, fmt.Errorf("headers_file: %s has more than %d bytes", h.cfg.HeadersFile, maxHeaders)
	}
	return parseHeaders(text)
}

func parseHeaders(text []byte) (http.Header, error) {
	all := make(http.Header)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || name == "" || strings.ContainsFunc(name, notInName) || strings.ContainsFunc(value, unicode.IsControl) {
			return nil, fmt.Errorf("headers_file: line %d: Name: value is wanted", n)
		}
		switch name = textproto.CanonicalMIMEHeaderKey(name); name {
		case "Host", "Content-Length", "Content-Type", "Transfer-Encoding", "Connection":
			return nil, fmt.Errorf("headers_file: line %d: %s is not its to say", n, name)
		}
		all.Add(name, value)
	}
	return all, nil
}

// notInName is what no header's name has (RFC 9110 §5.1, and less).
func notInName(r rune) bool {
	return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

// Send posts a batch.
func (h *HTTP) Send(ctx context.Context, batch []audit.Record) error {
	if h.cfg.OTLP {
		return postLogs(ctx, h, batch, logOf)
	}
	body, err := lines(batch)
	if err != nil {
		return err
	}
	_, err = h.post(ctx, "application/x-ndjson", body)
	return err
}

// SendHead posts a head.
func (h *HTTP) SendHead(ctx context.Context, head audit.Head) error {
	if h.cfg.OTLP {
		return postLogs(ctx, h, []audit.Head{head}, logOfHead)
	}
	body, err := headLine(head)
	if err != nil {
		return err
	}
	_, err = h.post(ctx, "application/x-ndjson", body)
	return err
}

func postLogs[T any](ctx context.Context, h *HTTP, all []T, logOf func(T) (*logs.LogRecord, error)) error {
	body, err := logsOf(h.cfg.Resource, all, logOf)
	if err != nil {
		return err
	}
	answer, err := h.post(ctx, "application/x-protobuf", body)
	if err != nil {
		return err
	}
	return partialSuccess(answer)
}

// post returns the answer of a receiver that took the body.
func (h *HTTP) post(ctx context.Context, kind string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if request.Header, err = h.headers(); err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", kind)
	request.Header.Set("User-Agent", userAgent)
	response, err := h.client.Do(request)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL, whose query may be secret
		}
		return nil, fmt.Errorf("posting to %s: %w", request.URL.Host, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if response.StatusCode/100 == 2 {
		if err == nil && len(answer) > maxAnswer {
			err = fmt.Errorf("its answer has more than %d bytes", maxAnswer)
		}
		if err != nil {
			return nil, fmt.Errorf("posting to %s: %w", request.URL.Host, err)
		}
		return answer, nil
	}
	return nil, &Refusal{
		Err:        fmt.Errorf("posting to %s: %s", request.URL.Host, response.Status[:min(len(response.Status), 80)]),
		RetryAfter: retryAfter(response.Header.Get("Retry-After"), time.Now()),
		Split:      isTooMuch(response.StatusCode),
	}
}

// isTooMuch says whether a status may be the fault of what was sent.
func isTooMuch(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusUnprocessableEntity
}

// retryAfter reads a Retry-After (RFC 9110 §10.2.3); zero: it says nothing.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
