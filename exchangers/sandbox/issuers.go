package sandbox

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxBody is the largest document, and the largest request, that is read.
const MaxBody = 1 << 20

// Errors of issuers. Clouds map each to a code of their own.
var (
	ErrIssuerURL      = errors.New("issuer URL is not acceptable")
	ErrDiscovery      = errors.New("discovery document is unreachable or unusable")
	ErrIssuerMismatch = errors.New("discovery document names another issuer")
	ErrKeySet         = errors.New("key set is unreachable or unusable")
	ErrUnknownKey     = errors.New("key set has no such key")
	ErrThumbprint     = errors.New("web certificate is of no known CA, and has none of the thumbprints")
)

// IssuersConfig is the wiring of [Issuers].
type IssuersConfig struct {
	// Roots verify the issuers' web certificates. Nil trusts none.
	Roots *x509.CertPool
	// LenientLoopbackIssuer (lenient_loopback_issuer) accepts a port in the URL
	// of an issuer on a loopback address or localhost. No real cloud does.
	LenientLoopbackIssuer bool
	// DialContext reaches issuers whose names do not resolve offline; nil dials.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Thumbprints are the SHA-1 digests, in lower-case hex, of certificates that
	// one issuer's web server may chain to where Roots do not verify it. Nil: none.
	Thumbprints func(issuerURL string) []string
	// Check is what one cloud asks besides of a document and its keys. What it
	// refuses is not cached. Nil asks nothing.
	Check func(*Metadata) error
	// MaxKeys is how many keys at the head of the set are looked at; 0 is all.
	MaxKeys int
	// Timeout of one document, 5 s if zero.
	Timeout time.Duration
	// MaxAge is how long an issuer's keys are believed, 1 h if zero.
	MaxAge time.Duration
	// Refetch is the least time between two fetches because of an unknown kid,
	// 60 s if zero.
	Refetch time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Metadata is what an issuer publishes. It is shared: do not change it.
type Metadata struct {
	Issuer   string
	Document map[string]any // the discovery document
	Keys     []Key
}

// Key returns the key with that kid, or ErrUnknownKey. There is no default key:
// every cloud here wants a kid.
func (m *Metadata) Key(kid string) (Key, error) {
	for _, k := range m.Keys {
		if kid != "" && k.ID == kid {
			return k, nil
		}
	}
	return Key{}, fmt.Errorf("%w: %q", ErrUnknownKey, kid)
}

// Issuers fetches and caches what configured issuers publish, over TLS, as each
// cloud does from its side of the internet. It is safe for concurrent use.
type Issuers struct {
	cfg IssuersConfig

	mu    sync.Mutex // guards the rest
	known map[string]*issuer
	queue []FetchFault
}

type issuer struct {
	mu      sync.Mutex // guards the rest, and held while fetching: one fetch at a time
	meta    *Metadata
	fetched time.Time
	tried   time.Time
}

// NewIssuers returns an empty cache. Nothing is fetched before it is asked for.
func NewIssuers(cfg IssuersConfig) *Issuers {
	if cfg.Roots == nil {
		cfg.Roots = x509.NewCertPool()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Timeout = orDefault(cfg.Timeout, 5*time.Second)
	cfg.MaxAge = orDefault(cfg.MaxAge, time.Hour)
	cfg.Refetch = orDefault(cfg.Refetch, time.Minute)
	return &Issuers{cfg: cfg, known: map[string]*issuer{}}
}

// client reads what one issuer publishes.
func (i *Issuers) client(issuerURL string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: i.cfg.Roots, MinVersion: tls.VersionTLS12},
		DialContext:            i.cfg.DialContext,
		DisableKeepAlives:      true, // fetches are rare: no idle connection to own
		MaxResponseHeaderBytes: 64 << 10,
	}
	if i.cfg.Thumbprints != nil {
		if known := i.cfg.Thumbprints(issuerURL); len(known) > 0 {
			tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				return i.dialKnown(ctx, network, addr, known)
			}
		}
	}
	return &http.Client{CheckRedirect: onlyHTTPS, Transport: tr}
}

// dialKnown connects to a web server whose thumbprints are known.
func (i *Issuers) dialKnown(ctx context.Context, network, addr string, known []string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	dial := i.cfg.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	raw, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // VerifyConnection verifies
		VerifyConnection: func(s tls.ConnectionState) error { return i.verify(s, host, known) },
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// verify takes a web server that Roots verify, or that chains to a certificate
// which it sends itself and whose thumbprint is known.
func (i *Issuers) verify(s tls.ConnectionState, host string, known []string) error {
	o := x509.VerifyOptions{Roots: i.cfg.Roots, Intermediates: x509.NewCertPool(), DNSName: host}
	pinned := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	for _, c := range s.PeerCertificates {
		if sum := sha1.Sum(c.Raw); slices.Contains(known, hex.EncodeToString(sum[:])) {
			pinned.AddCert(c)
		}
	}
	_, err := s.PeerCertificates[0].Verify(o)
	if err == nil {
		return nil
	}
	o.Roots = pinned
	if _, second := s.PeerCertificates[0].Verify(o); second != nil {
		return fmt.Errorf("%w: %w", ErrThumbprint, err)
	}
	return nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func onlyHTTPS(r *http.Request, via []*http.Request) error {
	if r.URL.Scheme != "https" || len(via) > 3 {
		return fmt.Errorf("redirected to %s", r.URL.Redacted())
	}
	return nil
}

// CheckURL says whether a cloud would register this issuer: an absolute https
// URL without query, fragment or user, and without a port (but see
// LenientLoopbackIssuer). The error wraps ErrIssuerURL.
func (i *Issuers) CheckURL(issuerURL string) error {
	u, err := url.Parse(issuerURL)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%w: %q is not an absolute https URL", ErrIssuerURL, issuerURL)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(issuerURL, "#"):
		return fmt.Errorf("%w: %q has a user, query or fragment", ErrIssuerURL, issuerURL)
	case strings.TrimSpace(issuerURL) != issuerURL || len(issuerURL) > 600:
		return fmt.Errorf("%w: %q has spaces or is too long", ErrIssuerURL, issuerURL)
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !(i.cfg.LenientLoopbackIssuer && loopback(u.Hostname())):
		return fmt.Errorf("%w: %q has a port", ErrIssuerURL, issuerURL)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// Key returns the issuer's key with that kid. A kid that the cache does not
// hold causes one fetch, unless there was one within the last Refetch. The
// error wraps ErrUnknownKey, one of [Issuers.Metadata]'s, or Check's.
func (i *Issuers) Key(ctx context.Context, issuerURL, kid string) (Key, error) {
	m, err := i.Metadata(ctx, issuerURL)
	if err != nil {
		return Key{}, err
	}
	k, err := m.Key(kid)
	if err == nil || kid == "" {
		return k, err
	}
	if m, err = i.metadata(ctx, issuerURL, kid); err != nil {
		return Key{}, err
	}
	return m.Key(kid)
}

// Metadata returns what the issuer publishes, from the cache if it is younger
// than MaxAge; an older one is not used, also when a new one cannot be had. The
// error wraps ErrIssuerURL, ErrDiscovery, ErrIssuerMismatch or ErrKeySet, or is
// Check's.
func (i *Issuers) Metadata(ctx context.Context, issuerURL string) (*Metadata, error) {
	return i.metadata(ctx, issuerURL, "")
}

func (i *Issuers) metadata(ctx context.Context, issuerURL, unknown string) (*Metadata, error) {
	if err := i.CheckURL(issuerURL); err != nil {
		return nil, err
	}
	i.mu.Lock()
	e := i.known[issuerURL]
	if e == nil {
		e = &issuer{}
		i.known[issuerURL] = e
	}
	i.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	now := i.cfg.Now()
	fresh := e.meta != nil && now.Sub(e.fetched) < i.cfg.MaxAge
	if fresh && (unknown == "" || now.Sub(e.tried) < i.cfg.Refetch) {
		return e.meta, nil
	}
	e.tried = now
	m, err := i.fetch(ctx, issuerURL)
	if err == nil {
		e.meta, e.fetched = m, now
	} else if fresh { // the kid stays unknown; the other keys go on
		return e.meta, nil
	}
	return m, err
}

func (i *Issuers) fetch(ctx context.Context, issuerURL string) (*Metadata, error) {
	m := &Metadata{Issuer: issuerURL}
	client := i.client(issuerURL)
	b, err := i.get(ctx, client, strings.TrimSuffix(issuerURL, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDiscovery, err)
	}
	if m.Document, err = ParseObject(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDiscovery, err)
	}
	if m.Document["issuer"] != issuerURL {
		return nil, fmt.Errorf("%w: %v, not %s", ErrIssuerMismatch, m.Document["issuer"], issuerURL)
	}
	uri, _ := m.Document["jwks_uri"].(string)
	if u, err := url.Parse(uri); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%w: jwks_uri %q is not an absolute https URL", ErrDiscovery, uri)
	}
	if b, err = i.keySet(ctx, client, uri); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeySet, err)
	}
	if m.Keys, err = ParseKeySet(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeySet, err)
	}
	if i.cfg.MaxKeys > 0 && len(m.Keys) > i.cfg.MaxKeys {
		m.Keys = m.Keys[:i.cfg.MaxKeys]
	}
	if i.cfg.Check != nil {
		return m, i.cfg.Check(m)
	}
	return m, nil
}

func (i *Issuers) get(ctx context.Context, client *http.Client, uri string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("getting %s: status %d", uri, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", uri, err)
	}
	if len(b) > MaxBody {
		return nil, fmt.Errorf("getting %s: larger than %d", uri, MaxBody)
	}
	return b, nil
}
