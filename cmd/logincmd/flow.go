package logincmd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/credence-id/credence/broker/api"
)

const (
	signInTime  = 5 * time.Minute // that a person has
	requestTime = 15 * time.Second
	maxAnswer   = 1 << 20 // bytes of one answer of the provider
)

// signIn has a person sign in with the provider (authorization code with PKCE,
// RFC 7636; on loopback, RFC 8252 §7.3), and returns the ID token, whose nonce is
// as asked. show is given the URL that the person has to open.
func signIn(ctx context.Context, info *api.LoginInfoResponse, nonce string, show func(url string)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, signInTime)
	defer cancel()
	client, err := providerClient(info.GetCa())
	if err != nil {
		return "", err
	}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, info.GetIssuer())
	if err != nil {
		return "", fmt.Errorf("asking your provider where to sign in: %w", err)
	}
	says, err := readProvider(provider)
	if err != nil {
		return "", err
	}
	back, err := listen(info.GetRedirectUri())
	if err != nil {
		return "", err
	}
	defer back.close()
	config := oauth2.Config{ClientID: info.GetClientId(), Endpoint: provider.Endpoint(), RedirectURL: back.url, Scopes: info.GetScopes()}
	config.Endpoint.AuthStyle = oauth2.AuthStyleInParams // a public client has nothing to put in a header
	state, verifier := rand.Text(), oauth2.GenerateVerifier()
	back.expect(state, info.GetIssuer(), says.NamesItself)
	show(config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	code, err := back.code(ctx)
	if err != nil {
		return "", err
	}
	return redeem(ctx, config, provider, code, verifier, nonce)
}

// redeem exchanges a code for an ID token.
func redeem(ctx context.Context, config oauth2.Config, provider *oidc.Provider, code, verifier, nonce string) (string, error) {
	tokens, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if refused := (*oauth2.RetrieveError)(nil); errors.As(err, &refused) {
		return "", fmt.Errorf("your provider gives no ID token for the sign-in: %s", clean(refused.ErrorCode+" "+refused.ErrorDescription))
	}
	if err != nil {
		return "", fmt.Errorf("asking your provider for the ID token: %w", err)
	}
	token, _ := tokens.Extra("id_token").(string)
	if token == "" {
		return "", errors.New("your provider gave no ID token: is openid among the scopes of the broker's login?")
	}
	// The broker judges it. What is no answer to us is not worth its time: a code
	// that somebody slipped in, say.
	checked, err := provider.Verifier(&oidc.Config{ClientID: config.ClientID}).Verify(ctx, token)
	if err != nil {
		return "", fmt.Errorf("your provider's ID token: %w", err)
	}
	if checked.Nonce != nonce {
		return "", errors.New("your provider's ID token is of another sign-in (nonce)")
	}
	return token, nil
}

// providerSays is what else matters of a provider's discovery document.
type providerSays struct {
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	NamesItself   bool     `json:"authorization_response_iss_parameter_supported"`
}

func readProvider(p *oidc.Provider) (says providerSays, err error) {
	if err := p.Claims(&says); err != nil {
		return says, fmt.Errorf("reading your provider's discovery document: %w", err)
	}
	for name, at := range map[string]string{"authorization_endpoint": says.Authorization, "token_endpoint": says.Token} {
		if u, err := url.Parse(at); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			return says, fmt.Errorf("your provider's %s is %.200q: an https URL is wanted", name, at)
		}
	}
	if len(says.Challenges) > 0 && !slices.Contains(says.Challenges, "S256") {
		return says, fmt.Errorf("your provider takes no code challenge of S256, but %.100q: without one a code could be redeemed by whoever sees it", says.Challenges)
	}
	return says, nil
}

// providerClient asks the provider alone, over TLS, follows nothing and reads no
// more than is bounded. ca are CA certificates, in PEM; none: the system's.
func providerClient(ca string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	transport.DisableKeepAlives = true // a few questions, and nothing left over
	if ca != "" {
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, errors.New("the broker says a CA of your provider that is no certificate: see ca_file of its login")
		}
	}
	return &http.Client{
		Transport: bounded{transport}, Timeout: requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%s is not https", r.URL.Redacted())
	}
	answer, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(answer.Body, maxAnswer), answer.Body}
	return answer, nil
}

// clean is a text from outside, fit for a terminal.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimSpace(text))
	return text[:min(len(text), 300)]
}
