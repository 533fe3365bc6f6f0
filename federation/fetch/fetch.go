// Package fetch is the one HTTP client for URLs that came from outside. It
// takes nothing from its environment: no proxy, no cookies, no cache, no
// connection kept for the next request.
//
// It trusts the TLS identity that the request names, the IP address that is
// really dialled, and no other thing a server says. Every answer is bounded in
// size and time before anybody parses it; what it means, and whether it is
// newer than what is known, is left to package federation.
package fetch

import (
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/credence-id/credence/federation"
)

// Bounds of one fetch, redirects included.
const (
	Timeout      = 5 * time.Second
	MaxRedirects = 3
	MaxBody      = federation.MaxDocument
	maxHeader    = 16 << 10
)

// Config is the wiring of a Client. Its zero value is one for the internet.
type Config struct {
	AllowNetworks []netip.Prefix // may be dialled by any request, whatever they are
	// AllowedNow gives what may be dialled besides at this moment; nil: nothing.
	AllowedNow func() []netip.Prefix
	Roots      *x509.CertPool   // verify https_web; nil means the system's
	Resolver   *net.Resolver    // nil means the system's
	Now        func() time.Time // nil means time.Now
	Log        *slog.Logger     // nil discards
}

// A Client fetches. It keeps nothing between two fetches.
type Client struct {
	networks []netip.Prefix
	allowed  func() []netip.Prefix
	roots    *x509.CertPool
	resolver *net.Resolver
	now      func() time.Time
	log      *slog.Logger
	timeout  time.Duration // Timeout
}

// New makes a Client.
func New(cfg Config) *Client {
	c := &Client{networks: cfg.AllowNetworks, allowed: cfg.AllowedNow, roots: cfg.Roots, resolver: cfg.Resolver, now: cfg.Now, log: cfg.Log, timeout: Timeout}
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Fetch implements federation.Fetcher. It takes status 200 with JSON, and 304
// where the request said which document it has. Redirects are followed under
// the same rules of URL, address and TLS, and are forgotten afterwards (SPIFFE
// Federation §5.2.1.4, §5.2.2.4). Errors do not hold what may be secret in a URL.
func (c *Client) Fetch(ctx context.Context, req federation.Request) (federation.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.fetch(ctx, req, new(seen))
	if err != nil {
		return federation.Response{}, fmt.Errorf("GET %s: %w", federation.RedactURL(req.URL), withoutURL(err))
	}
	return resp, nil
}

func (c *Client) fetch(ctx context.Context, req federation.Request, server *seen) (federation.Response, error) {
	tlsConfig, err := c.tlsConfig(req, server)
	if err != nil {
		return federation.Response{}, err
	}
	get, err := newGet(ctx, req)
	if err != nil {
		return federation.Response{}, err
	}
	transport := c.transport(tlsConfig, req.AllowPrivate)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if server.chain != nil {
			return &redirectError{errors.New("redirected by a server that only its bundle can prove")}
		}
		return c.checkRedirect(to, via)
	}}
	answer, err := client.Do(get)
	if err != nil {
		return federation.Response{}, err
	}
	defer answer.Body.Close()
	server.date = answer.Header.Get("Date")
	resp, err := read(answer, req.IfNoneMatch != "")
	if late := ctx.Err(); late != nil { // a server that sees us hang up may still end its answer well
		err = late
	}
	if err == nil && server.chain != nil {
		server.id, err = c.verifyByDocument(server.chain, *req.HTTPSSPIFFE, resp)
	}
	if err != nil {
		return federation.Response{}, err
	}
	resp.PeerID = server.id
	return resp, nil
}

func newGet(ctx context.Context, req federation.Request) (*http.Request, error) {
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, req.URL, http.NoBody)
	if err != nil {
		return nil, errors.New("the url does not parse")
	}
	if err := federation.CheckURL(get.URL); err != nil {
		return nil, err
	}
	get.Header.Set("Accept", "application/json")
	get.Header.Set("Accept-Encoding", "gzip")
	get.Header.Set("User-Agent", "credence")
	if req.IfNoneMatch != "" {
		get.Header.Set("If-None-Match", req.IfNoneMatch)
	}
	return get, nil
}

// checkRedirect lets a redirect through to a valid endpoint URL only.
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > MaxRedirects {
		return &redirectError{fmt.Errorf("more than %d redirects", MaxRedirects)}
	}
	if err := federation.CheckURL(req.URL); err != nil {
		return &redirectError{fmt.Errorf("redirect: %w", err)}
	}
	req.Header.Del("Referer") // the URL before may hold a secret
	c.log.InfoContext(req.Context(), "bundle endpoint redirects",
		"url", federation.RedactURL(via[len(via)-1].URL.String()), "to", federation.RedactURL(req.URL.String()))
	return nil
}

// read takes the whole of an answer, or nothing of it.
func read(answer *http.Response, conditional bool) (federation.Response, error) {
	resp := federation.Response{ETag: etag(answer.Header)}
	if conditional && answer.StatusCode == http.StatusNotModified {
		resp.NotModified = true
		return resp, nil
	}
	if answer.StatusCode != http.StatusOK {
		return federation.Response{}, statusError(answer.StatusCode)
	}
	body, err := readBody(answer)
	switch {
	case err != nil:
		return federation.Response{}, fmt.Errorf("reading the answer: %w", err)
	case len(body) > MaxBody:
		return federation.Response{}, errTooLarge
	case !json.Valid(body): // whatever Content-Type says, which is only a SHOULD
		return federation.Response{}, errNotJSON
	}
	resp.Document = body
	return resp, nil
}

// readBody reads a little more than may be, both of what came and of what it
// unpacks to.
func readBody(answer *http.Response) ([]byte, error) {
	if answer.ContentLength > MaxBody {
		return make([]byte, MaxBody+1), nil
	}
	var body io.Reader = io.LimitReader(answer.Body, MaxBody+1)
	switch encoding := answer.Header.Values("Content-Encoding"); {
	case len(encoding) == 0:
	case len(encoding) == 1 && strings.EqualFold(encoding[0], "gzip"):
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		body = io.LimitReader(z, MaxBody+1)
	default:
		return nil, errEncoding
	}
	return io.ReadAll(body)
}

// etag is what may be sent back in If-None-Match; an odd one is done without.
func etag(h http.Header) string {
	tag := h.Get("ETag")
	if len(tag) > 256 || !strings.HasSuffix(tag, `"`) {
		return ""
	}
	return tag
}

// withoutURL strips what net/http adds: the whole URL, its query included.
func withoutURL(err error) error {
	var with *url.Error
	if errors.As(err, &with) {
		return with.Err
	}
	return err
}
