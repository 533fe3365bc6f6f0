// Package azure exchanges a JWT-SVID for an access token of Microsoft Entra
// ID: workload identity federation, the JWT-SVID being the client assertion of
// an app or of a user-assigned managed identity.
//
// It trusts the authority as far as its TLS certificate goes, and with it the
// token endpoint that its metadata names; and the SVID to be the caller's. It
// asks once: caching, refreshing and retrying are left to exchangers.Source,
// the federated identity credential to the operator.
package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/credence-id/credence/exchangers"
)

const provider = "azure"

// Config is the wiring of an Exchanger.
type Config struct {
	Settings *Settings
	Endpoint string           // https URL of the authority; empty: the settings', or the public cloud's
	CAFile   string           // PEM; empty: the system's roots
	Client   *http.Client     // instead of CAFile; nil: exchangers.HTTPClient
	Now      func() time.Time // nil means time.Now
}

type exchanger struct {
	cfg       Config
	authority string
}

// New returns an Exchanger for settings that validate.
func New(cfg Config) (exchangers.Exchanger, error) {
	if cfg.Settings == nil {
		return nil, errors.New("azure: no settings")
	}
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if err := checkAuthority("endpoint", cfg.Endpoint); err != nil {
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
	if err := cfg.Settings.checkPlace("endpoint", cfg.Endpoint); err != nil {
		return nil, err
	}
	x := &exchanger{cfg: cfg}
	x.authority, _ = cfg.Settings.Host(cfg.Endpoint)
	return x, nil
}

// checkAuthority refuses a path: the tenant's is put after the host.
func checkAuthority(field, authority string) error {
	if err := exchangers.CheckEndpoint(field, authority); err != nil {
		return err
	}
	if u, err := url.Parse(authority); err != nil || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("%s %q: an authority has no path", field, authority)
	}
	return nil
}

// Exchange presents a JWT-SVID.
func (x *exchanger) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	return x.exchange(ctx, svids, "")
}

// Answer implements exchangers.Challenged.
func (x *exchanger) Answer(ctx context.Context, svids exchangers.SVIDs, claims string) (exchangers.Credential, error) {
	err := checkClaims(claims)
	if err == nil && !x.cfg.Settings.ContinuousAccess {
		err = errors.New("claims challenge: continuous_access is not set for this Target")
	}
	if err != nil {
		return exchangers.Credential{}, &exchangers.Error{Provider: provider, Code: "claims", Message: err.Error(), Class: exchangers.Config, Err: err}
	}
	return x.exchange(ctx, svids, claims)
}

func (x *exchanger) exchange(ctx context.Context, svids exchangers.SVIDs, claims string) (exchangers.Credential, error) {
	jwt, err := svids.JWT(ctx)
	if err == nil && jwt == "" {
		err = errors.New("the JWT-SVID is empty")
	}
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("getting the JWT-SVID for %s: %w", x.cfg.Settings.ClientID, err)
	}
	answers, client := x.client(exchangers.NewSecret(jwt))
	entra, err := x.entra(client, jwt)
	if err != nil {
		return exchangers.Credential{}, err
	}
	asked := x.cfg.Now()
	token, err := entra.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{x.cfg.Settings.Scope},
		EnableCAE: x.cfg.Settings.ContinuousAccess, Claims: claims})
	if err != nil {
		return exchangers.Credential{}, answers.Failure(provider, err)
	}
	cred := exchangers.Credential{
		// By our clock, and so that it never ends after the token does.
		Expires:   asked.Add(time.Until(token.ExpiresOn)),
		RequestID: answers.requestID(),
		Bearer:    &exchangers.Bearer{Token: exchangers.NewSecret(token.Token), Scopes: []string{x.cfg.Settings.Scope}},
	}
	if err := cred.Check(x.cfg.Now()); err != nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, http.StatusOK, cred.RequestID, err.Error())
	}
	return cred, nil
}

// entra returns a fresh client: the library caches tokens in each, and a
// dropped credential must not come back from there. The library's own retries
// are off, and so is its request to Microsoft's public cloud for a list of
// authorities: the Target says which one to trust.
func (x *exchanger) entra(client *http.Client, jwt string) (*azidentity.ClientAssertionCredential, error) {
	s := x.cfg.Settings
	entra, err := azidentity.NewClientAssertionCredential(s.Tenant, s.ClientID,
		func(context.Context) (string, error) { return jwt, nil },
		&azidentity.ClientAssertionCredentialOptions{
			ClientOptions: azcore.ClientOptions{
				Cloud:     cloud.Configuration{ActiveDirectoryAuthorityHost: x.authority},
				Transport: client,
				Retry:     policy.RetryOptions{MaxRetries: -1},
				Telemetry: policy.TelemetryOptions{Disabled: true},
			},
			DisableInstanceDiscovery: true,
		})
	if err != nil {
		return nil, fmt.Errorf("setting up the exchange at %s: %w", x.authority, err)
	}
	return entra, nil
}

// noting is Answers that keeps the request ID of the last good one.
type noting struct {
	*exchangers.Answers
	id string
}

func (n *noting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := n.Answers.RoundTrip(r)
	if err == nil {
		n.id = requestID(resp.Header)
	}
	return resp, err
}

func (n *noting) requestID() string { return n.id }

func requestID(h http.Header) string { return exchangers.Clean(h.Get("X-Ms-Request-Id")) }

// client makes errors of refusals, for one call.
func (x *exchanger) client(jwt exchangers.Secret) (*noting, *http.Client) {
	next := x.cfg.Client.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	answers := &noting{Answers: &exchangers.Answers{Next: next, Refusal: func(status int, h http.Header, body []byte) *exchangers.Error {
		return refusal(status, h, body, jwt)
	}}}
	client := *x.cfg.Client
	client.Transport = answers
	return answers, &client
}
