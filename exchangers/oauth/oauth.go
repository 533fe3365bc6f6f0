// Package oauth exchanges SVIDs for tokens of servers that are no cloud's: at
// any OAuth 2.0 token endpoint by token exchange (RFC 8693), as client
// assertion or as authorization grant (RFC 7523 §2.2, §2.1), and at OpenBao or
// Vault by the logins jwt and cert.
//
// It trusts a server as far as its TLS certificate goes, and the SVIDs to be
// the caller's. It asks once: caching, refreshing and retrying are left to
// exchangers.Source; clients, roles and mounts to the server's operator. Tokens
// are not looked into, and refresh tokens not kept: an SVID is at hand for the
// next time.
package oauth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const provider = "oauth"

// Config is the wiring of an Exchanger.
type Config struct {
	Settings *Settings
	Endpoint string           // https URL, instead of the settings' token_url or url; empty: theirs
	CAFile   string           // PEM; empty: the system's roots
	Roots    *x509.CertPool   // instead of CAFile; nil: CAFile
	Timeout  time.Duration    // of a whole request; 0 is exchangers.HTTPClient's
	Now      func() time.Time // nil means time.Now
}

type exchanger struct {
	cfg    Config
	mode   mode
	client *http.Client // without a certificate
}

// New returns an Exchanger for settings that validate.
func New(cfg Config) (exchangers.Exchanger, error) {
	if cfg.Settings == nil {
		return nil, errors.New("oauth: no settings")
	}
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if err := exchangers.CheckEndpoint("endpoint", cfg.Endpoint); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{CAFile: cfg.CAFile, Roots: cfg.Roots, Timeout: cfg.Timeout})
	if err != nil {
		return nil, err
	}
	return &exchanger{cfg: cfg, mode: cfg.Settings.set()[0], client: client}, nil
}

// Exchange presents what the mode wants: a JWT-SVID, two of them, or the
// X509-SVID.
func (x *exchanger) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	switch m := x.mode.(type) {
	case *TokenExchange:
		return x.grant(ctx, svids, m.request())
	case *ClientAssertion:
		return x.grant(ctx, svids, m.request())
	case *JWTBearer:
		return x.grant(ctx, svids, m.request())
	case *VaultJWT:
		return x.vaultJWT(ctx, svids, *m)
	case *VaultCert:
		return x.vaultCert(ctx, svids, *m)
	}
	return exchangers.Credential{}, fmt.Errorf("%s is a mode without an exchange", x.mode.name())
}

// where is the Target's endpoint, or the settings' URL where it has none.
func (x *exchanger) where(settings string) string {
	if x.cfg.Endpoint != "" {
		return x.cfg.Endpoint
	}
	return settings
}

// present asks for a fresh JWT-SVID.
func (x *exchanger) present(ctx context.Context, svids exchangers.SVIDs) (exchangers.Secret, error) {
	jwt, err := svids.JWT(ctx)
	if err == nil && jwt == "" {
		err = errors.New("the JWT-SVID is empty")
	}
	if err != nil {
		return exchangers.Secret{}, fmt.Errorf("getting the JWT-SVID for %s: %w", x.mode.audience(), err)
	}
	return exchangers.NewSecret(jwt), nil
}

// An answer is what a server said, whole.
type answer struct {
	status int
	header http.Header
	body   []byte
	asked  time.Time // before the request: a life counted from then never ends too late
	now    time.Time
}

// post sends one request, and reads its answer whatever the status.
func (x *exchanger) post(ctx context.Context, client *http.Client, url, contentType, body string, header http.Header) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("making the request: %w", err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", "application/json")
	for name, values := range header {
		r.Header[name] = values
	}
	a := answer{asked: x.cfg.Now()}
	resp, err := client.Do(r)
	if err != nil {
		return answer{}, unreached(err)
	}
	defer resp.Body.Close()
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return answer{}, unreached(err)
	}
	a.status, a.header, a.now = resp.StatusCode, resp.Header, x.cfg.Now()
	return a, nil
}

// unreached tells a server that takes no certificate of ours from one that is
// not there, where its alert arrives: by TLS 1.3 a reset connection may be all
// that does. crypto/tls tells an alert by its text alone.
func unreached(err error) *exchangers.Error {
	e := exchangers.Unreached(provider, err)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate") {
		e.Class, e.Code = exchangers.Config, "certificate_refused"
		e.Hint = "the server asks for a client certificate in TLS and takes no X509-SVID, or wants one where a JWT-SVID is presented: the CAs that it takes must hold our bundle"
	}
	return e
}
