// Package gcp exchanges an SVID for a token of Google Cloud: a JWT-SVID at the
// Security Token Service, or an X509-SVID at its mutual-TLS host, for a
// federated access token; and, where the settings name a service account, that
// one at the IAM Service Account Credentials API for an access token or ID
// token of the account.
//
// It trusts the endpoints as far as their TLS certificates go, and the SVID to
// be the caller's. It asks once: caching, refreshing and retrying are left to
// exchangers.Source, pool, provider and bindings to the operator.
package gcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credence-id/credence/exchangers"
)

const (
	provider      = "gcp"
	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
	jwtType       = "urn:ietf:params:oauth:token-type:jwt"
	mtlsType      = "urn:ietf:params:oauth:token-type:mtls"
)

// Config is the wiring of an Exchanger.
type Config struct {
	Settings *Settings
	Endpoint string           // https URL; empty: sts.googleapis.com, or sts.mtls.googleapis.com
	CAFile   string           // PEM; empty: the system's roots
	Client   *http.Client     // instead of CAFile; nil: exchangers.HTTPClient
	Now      func() time.Time // nil means time.Now
}

type exchanger struct {
	cfg         Config
	sts, iam    string // URLs
	impersonate bool
}

// New returns an Exchanger for settings that validate.
func New(cfg Config) (exchangers.Exchanger, error) {
	if cfg.Settings == nil {
		return nil, errors.New("gcp: no settings")
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
	if cfg.Client == nil {
		client, err := exchangers.HTTPClient(exchangers.HTTPConfig{CAFile: cfg.CAFile})
		if err != nil {
			return nil, err
		}
		cfg.Client = client
	}
	x := &exchanger{cfg: cfg, impersonate: cfg.Settings.ServiceAccount != ""}
	host := "https://sts.googleapis.com"
	if cfg.Settings.x509() {
		host = "https://sts.mtls.googleapis.com"
		if _, err := exchangers.WithCertificate(cfg.Client, tls.Certificate{}); err != nil {
			return nil, err
		}
	}
	x.sts = base(host, cfg.Endpoint) + "/v1/token"
	// Who sends tokens elsewhere does not mean half of them to go to Google.
	x.iam = base("https://iamcredentials.googleapis.com", cfg.Endpoint, cfg.Settings.ImpersonationEndpoint)
	return x, nil
}

// base returns the last URL that is set, without a slash at its end.
func base(urls ...string) string {
	for i := len(urls) - 1; i > 0; i-- {
		if urls[i] != "" {
			return strings.TrimSuffix(urls[i], "/")
		}
	}
	return urls[0]
}

// Exchange presents an SVID. The credential ends with the shorter of the two
// tokens: revoking the SVID then stops both.
func (x *exchanger) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	token, expires, err := x.present(ctx, svids)
	if err != nil {
		return exchangers.Credential{}, err
	}
	if x.impersonate {
		federatedExpires := expires
		if token, expires, err = x.serviceAccount(ctx, token); err != nil {
			return exchangers.Credential{}, err
		}
		if federatedExpires.Before(expires) {
			expires = federatedExpires
		}
	}
	cred := exchangers.Credential{Expires: expires, Bearer: &exchangers.Bearer{Token: token, Scopes: x.cfg.Settings.scopes()}}
	if err := cred.Check(x.cfg.Now()); err != nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, http.StatusOK, "", err.Error())
	}
	return cred, nil
}

// present exchanges the SVID for the federated token.
func (x *exchanger) present(ctx context.Context, svids exchangers.SVIDs) (exchangers.Secret, time.Time, error) {
	if x.cfg.Settings.x509() {
		return x.presentX509(ctx, svids)
	}
	jwt, err := svids.JWT(ctx)
	if err == nil && jwt == "" {
		err = errors.New("the JWT-SVID is empty")
	}
	if err != nil {
		return exchangers.Secret{}, time.Time{}, fmt.Errorf("getting the JWT-SVID for %s: %w", x.cfg.Settings.Audience(), err)
	}
	return x.federated(ctx, x.cfg.Client, jwtType, exchangers.NewSecret(jwt))
}

// once gives the library a token that was fetched before.
type once struct{ token exchangers.Secret }

func (o once) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return o.token.Reveal(), nil
}

// federated asks the Security Token Service. The library takes a status of 300
// for success, tells errors as text and, if the environment says so, logs
// tokens: Answers and the logger see to that.
func (x *exchanger) federated(ctx context.Context, with *http.Client, kind string, subject exchangers.Secret) (exchangers.Secret, time.Time, error) {
	answers, client := judged(with, func(status int, h http.Header, body []byte) *exchangers.Error {
		return refusal(status, body, subject)
	})
	creds, err := externalaccount.NewCredentials(&externalaccount.Options{
		Audience:             x.cfg.Settings.resource(),
		SubjectTokenType:     kind,
		TokenURL:             x.sts,
		Scopes:               x.stsScopes(),
		SubjectTokenProvider: once{subject},
		Client:               client,
		Logger:               slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return exchangers.Secret{}, time.Time{}, fmt.Errorf("setting up the exchange at %s: %w", x.sts, err)
	}
	asked := x.cfg.Now()
	token, err := creds.Token(ctx)
	if err != nil {
		return exchangers.Secret{}, time.Time{}, answers.Failure(provider, err)
	}
	if token.Value == "" || !strings.EqualFold(token.Type, "Bearer") {
		return exchangers.Secret{}, time.Time{}, exchangers.Unusable(provider, http.StatusOK, "", "it holds no bearer token")
	}
	return exchangers.NewSecret(token.Value), expiry(asked, token), nil
}

// expiry counts expires_in from when it was asked for, by our clock, and so
// never ends after the token does.
func expiry(asked time.Time, t *auth.Token) time.Time {
	if t.Expiry.IsZero() {
		return time.Time{}
	}
	return asked.Add(time.Until(t.Expiry))
}

// stsScopes are the user's, or what impersonation needs.
func (x *exchanger) stsScopes() []string {
	if x.impersonate {
		return []string{cloudPlatform}
	}
	return x.cfg.Settings.scopes()
}

// judged is the client with errors in place of refusals, for one call.
func judged(with *http.Client, refuse func(int, http.Header, []byte) *exchangers.Error) (*exchangers.Answers, *http.Client) {
	next := with.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	answers := &exchangers.Answers{Next: next, Refusal: refuse}
	client := *with
	client.Transport = answers
	return answers, &client
}
