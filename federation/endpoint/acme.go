package endpoint

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// How often Run looks at its certificates: autocert tries again a minute after
// it failed.
const (
	acmeRetry = 61 * time.Second
	acmeLook  = 10 * time.Minute
)

// ACMEConfig is the wiring of ACME. Fields are required unless noted.
type ACMEConfig struct {
	Hosts     []string       // DNS names; each gets a certificate
	Dir       string         // keeps the account, keys and certificates
	Email     string         // whom the CA writes to; may be empty
	Directory string         // of the CA; empty: Let's Encrypt
	Roots     *x509.CertPool // verify Directory; nil: the system's
	Log       *slog.Logger   // nil discards
}

// ACME gets certificates of the web PKI from a CA (RFC 8555), to which it proves
// by TLS-ALPN-01 (RFC 8737) that the listener is the one that each host's port
// 443 leads to: there the CA connects. Configuring it is agreeing to the CA's
// terms.
type ACME struct {
	cfg     ACMEConfig
	manager *autocert.Manager

	mu    sync.Mutex
	certs map[string]*tls.Certificate
}

// CheckHost refuses what no CA certifies by TLS-ALPN-01.
func CheckHost(host string) error {
	plain := strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
	labels := strings.Split(host, ".")
	for _, label := range labels {
		plain = plain && label != "" && len(label) <= 63 && strings.Trim(label, "-") == label
	}
	if !plain || len(labels) < 2 || len(host) > 253 || strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return fmt.Errorf("host %.300q: a DNS name in lower case with a dot is wanted; a CA certifies no wildcard and no address this way", host)
	}
	return nil
}

// NewACME asks nobody yet: Run does.
func NewACME(cfg ACMEConfig) (*ACME, error) {
	if len(cfg.Hosts) == 0 || cfg.Dir == "" {
		return nil, errors.New("making an ACME client: Hosts and Dir are required")
	}
	for _, host := range cfg.Hosts {
		if err := CheckHost(host); err != nil {
			return nil, fmt.Errorf("making an ACME client: %w", err)
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Directory == "" {
		cfg.Directory = autocert.DefaultACMEDirectory
	}
	if !strings.HasPrefix(cfg.Directory, "https://") { // RFC 8555 §6.1
		return nil, fmt.Errorf("making an ACME client: directory %q: https is wanted", cfg.Directory)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots}
	return &ACME{
		cfg:   cfg,
		certs: map[string]*tls.Certificate{},
		manager: &autocert.Manager{
			Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(cfg.Dir), HostPolicy: autocert.HostWhitelist(cfg.Hosts...), Email: cfg.Email,
			Client: &acme.Client{DirectoryURL: cfg.Directory, HTTPClient: &http.Client{Transport: transport, Timeout: 30 * time.Second}, UserAgent: "credence"},
		},
	}, nil
}

// TLS is the server's side of https_web, as WebServerTLS has it, and answers
// the CA's challenges on the same listener. No handshake waits for the CA: until
// Run has a certificate, and for other hosts, it fails.
func (a *ACME) TLS() *tls.Config {
	config := WebServerTLS(nil)
	config.NextProtos = []string{"h2", "http/1.1", acme.ALPNProto}
	config.GetCertificate = a.certificate
	return config
}

func (a *ACME) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if !slices.Contains(a.cfg.Hosts, host) {
		return nil, fmt.Errorf("no certificate for %.300q", host)
	}
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return a.manager.GetCertificate(hello)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.certs[host] == nil {
		return nil, fmt.Errorf("no certificate for %s yet", host)
	}
	return a.certs[host], nil
}

// Run gets the certificates and keeps them fresh until ctx ends; the listener
// must be open. What the CA refuses is logged and asked for again.
func (a *ACME) Run(ctx context.Context) error {
	for {
		wait := acmeLook
		for _, host := range a.cfg.Hosts {
			if !a.look(ctx, host) {
				wait = acmeRetry
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// look takes over the certificate that the manager holds, got or renewed.
func (a *ACME) look(ctx context.Context, host string) bool {
	cert, err := a.get(ctx, host)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		a.cfg.Log.ErrorContext(ctx, "no web certificate from the CA: it must reach this listener at port 443 of the host", "host", host, "directory", a.cfg.Directory, "error", err)
		return false
	}
	a.mu.Lock()
	old := a.certs[host]
	a.certs[host] = cert
	a.mu.Unlock()
	if old == nil || !old.Leaf.Equal(cert.Leaf) {
		a.cfg.Log.InfoContext(ctx, "web certificate from the CA", "host", host, "ends", cert.Leaf.NotAfter)
	}
	// The manager renews when a third of the life is left, and tells nobody
	// that it could not.
	life, left := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore), time.Until(cert.Leaf.NotAfter)
	if left < life/6 {
		a.cfg.Log.ErrorContext(ctx, "web certificate not renewed by the CA", "host", host, "directory", a.cfg.Directory, "ends", cert.Leaf.NotAfter)
	}
	return true
}

// get asks as a client with ECDSA would: one certificate for each host, of a
// P-256 key. The manager waits up to five minutes for the CA and cannot be
// called off: it is left behind when ctx ends, with the process.
func (a *ACME) get(ctx context.Context, host string) (*tls.Certificate, error) {
	type result struct {
		cert *tls.Certificate
		err  error
	}
	got := make(chan result, 1)
	go func() {
		cert, err := a.manager.GetCertificate(&tls.ClientHelloInfo{ServerName: host, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
		got <- result{cert, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-got:
		if r.err == nil && (r.cert == nil || r.cert.Leaf == nil) {
			r.err = errors.New("it is empty")
		}
		return r.cert, r.err
	}
}
