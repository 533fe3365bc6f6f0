package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation/fetch"
)

const (
	slowIssuer = time.Second // clouds give up at five
	// A JWT-SVID's iat is a minute back: clouds take no more into the future.
	issuerSkew = time.Minute
)

// An issuerLook fetches what a cloud fetches, as a stranger.
type issuerLook struct {
	*exchangers.Walk
	public *fetch.Client
	own    *fetch.Client // with the Target's ca_file; nil: it has none
	now    func() time.Time

	privateCA, private bool // warned of
}

// lookAtIssuer fetches the discovery document and the keys that it leads to.
func lookAtIssuer(ctx context.Context, w *exchangers.Walk, cfg fetch.Config) bool {
	l := &issuerLook{Walk: w, public: fetch.New(cfg), now: cfg.Now}
	if u, err := url.Parse(w.Issuer); err == nil {
		l.private = exchangers.Loopback(u.Hostname()) // that is said already
	}
	if w.Target.CAFile != "" {
		if roots, err := readRoots(w.Target.CAFile); err == nil { // it may be on the nodes alone
			cfg.Roots = roots
			l.own = fetch.New(cfg)
		}
	}
	document, ok := l.get(ctx, "discovery as served", "issuer", w.Issuer+"/.well-known/openid-configuration", "application/json")
	if !ok || !l.discovery(document) {
		return false
	}
	var d struct {
		URI string `json:"jwks_uri"`
	}
	_ = json.Unmarshal(document, &d) // it was, just now
	keys, ok := l.get(ctx, "keys as served", "jwks", d.URI, "application/json", "application/jwk-set+json")
	return ok && l.keys(keys)
}

func readRoots(file string) (*x509.CertPool, error) {
	text, err := cli.ReadSmall(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %w", file, os.ErrInvalid)
	}
	return roots, nil
}

func (l *issuerLook) discovery(document []byte) bool {
	const step, field = "discovery as served", "broker.issuer"
	if bytes.Equal(document, l.Discovery) {
		return l.Done(step, "the broker's own, byte for byte")
	}
	return l.CheckDiscovery(step, field, document) &&
		l.Warn(step, "discovery_differs", field, "it is not the broker's own, though clouds can read it", "have the broker's own document served there, and look for a cache or proxy that changes it")
}

func (l *issuerLook) keys(document []byte) bool {
	const step, field = "keys as served", "broker.issuer"
	if bytes.Equal(document, l.JWKS) {
		return l.Done(step, "the broker's own, byte for byte")
	}
	_, ok := l.CheckKeySet(step, field, document)
	return ok && l.Warn(step, "jwks_differs", field, "they are not the broker's own, though the key that signs is among them", "wait for caches before the broker, or publish anew: credence bundle publish")
}

// get fetches one document, in the bounds that clouds have.
func (l *issuerLook) get(ctx context.Context, step, prefix, where string, types ...string) ([]byte, bool) {
	d, ok := l.follow(ctx, step, prefix, where)
	if !ok {
		return nil, false
	}
	if d.Private && !l.private {
		l.private = true
		l.Warn(step, "issuer_private", "broker.issuer", "from here the issuer is at the private address "+d.Addr.String(), "see that it answers from the internet too: run this there")
	}
	if d.Took > slowIssuer {
		l.Warn(step, prefix+"_late", "broker.issuer", fmt.Sprintf("it took %s, and clouds give up at 5s", d.Took.Round(time.Millisecond)), "serve it from nearer to the internet: credence bundle publish")
	}
	if kind, _, err := mime.ParseMediaType(d.ContentType); err != nil || !slices.Contains(types, kind) {
		l.Warn(step, prefix+"_content_type", "broker.issuer", fmt.Sprintf("its Content-Type is %q", exchangers.Clean(d.ContentType)), "have it served as "+types[0])
	}
	if off := d.Date.Sub(l.now()).Round(time.Second); !d.Date.IsZero() && off.Abs() > issuerSkew {
		return nil, l.Fail(step, "clock", "clock", fmt.Sprintf("the issuer's clock is %s off this machine's", off), "set both by NTP: a cloud takes no JWT-SVID of another time")
	}
	return d.Body, true
}

// follow follows redirects to https, which not every cloud does.
func (l *issuerLook) follow(ctx context.Context, step, prefix, where string) (fetch.Document, bool) {
	for hop := 0; ; hop++ {
		d, err := l.fetch(ctx, step, where)
		if err != nil {
			return d, l.unfetched(step, prefix, where, err)
		}
		switch to, err := url.Parse(d.Redirect); {
		case d.Redirect == "":
			return d, true
		case err != nil || to.Scheme != "https":
			return d, l.Fail(step, prefix+"_redirect_http", "broker.issuer", "it redirects to "+exchangers.Clean(d.Redirect)+", which is no https URL", "have it answered with 200, without a redirect")
		case hop == fetch.MaxRedirects:
			return d, l.Fail(step, prefix+"_redirects", "broker.issuer", fmt.Sprintf("it redirects more than %d times", hop), "have it answered with 200, without a redirect")
		}
		l.Warn(step, prefix+"_redirect", "broker.issuer", "it redirects to "+exchangers.Clean(d.Redirect)+": not every cloud follows", "have it answered with 200, without a redirect")
		where = d.Redirect
	}
}

// fetch asks with public roots and, where they do not do, with the Target's.
func (l *issuerLook) fetch(ctx context.Context, step, where string) (fetch.Document, error) {
	d, err := l.public.Document(ctx, where)
	var why *fetch.DocumentError
	if l.own == nil || !errors.As(err, &why) || why.Reason != fetch.Untrusted {
		return d, err
	}
	if d, err = l.own.Document(ctx, where); err == nil && !l.privateCA {
		l.privateCA = true
		l.Warn(step, "issuer_private_ca", "broker.web_tls", "its certificate is of the Target's ca_file, and of no public CA", "get a certificate of a public CA: clouds trust no other")
	}
	return d, err
}

func (l *issuerLook) unfetched(step, prefix, where string, err error) bool {
	var why *fetch.DocumentError
	if !errors.As(err, &why) {
		return l.Fail(step, prefix+"_unread", "broker.issuer", err.Error(), "see that "+where+" answers")
	}
	host := where
	if u, err := url.Parse(where); err == nil {
		host = u.Host
	}
	change := map[fetch.Reason]string{
		fetch.Unresolved:   "publish an A or AAAA record for " + host,
		fetch.Special:      "have " + host + " lead to a public address",
		fetch.Refused:      "serve the broker's web listener at " + host + ": listen.web and web_tls in broker.yaml",
		fetch.Slow:         "let packets through to " + host + ", or serve it from nearer: clouds give up at 5s",
		fetch.NoTLS:        "serve it by https, with TLS 1.2 and 1.3",
		fetch.Untrusted:    "get a certificate of a public CA for " + host + ", and have its intermediates served: web_tls in broker.yaml",
		fetch.OtherName:    "get a certificate for " + host + ": web_tls in broker.yaml",
		fetch.Expired:      "renew the certificate: web_tls in broker.yaml; or set this machine's clock",
		fetch.ClientsOnly:  "ask for no client certificate at " + host + ": clouds have none",
		fetch.Status:       "have " + where + " answered with status 200, to everybody",
		fetch.TooLarge:     "have the broker's own document served there",
		fetch.Encoding:     "have it served as it is, or by gzip",
		fetch.Disconnected: "look into the log of what serves " + host + ": it ends the connection",
		fetch.NoURL:        "give the broker an issuer that is an https URL",
	}[why.Reason]
	if strings.HasPrefix(prefix, "jwks") && why.Reason == fetch.Status {
		change = "have jwks_uri, " + where + ", answered with status 200, to everybody"
	}
	return l.Fail(step, prefix+"_"+string(why.Reason), "broker.issuer", where+": "+exchangers.Clean(why.Error()), change)
}
