package azurekv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// transport is client, with answers bounded and redirects not followed.
func transport(client *http.Client) *http.Client {
	var own http.Client
	if client != nil {
		own = *client
	}
	next := own.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	own.Transport = bounded{next}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}

type bounded struct{ next http.RoundTripper }

var authorityPattern = regexp.MustCompile(`authorization="https://[^/" ]+/[^/" ]+/?"`)

// RoundTrip refuses challenges that the SDK would stumble over.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if c := resp.Header.Get("WWW-Authenticate"); resp.StatusCode == http.StatusUnauthorized && c != "" && !authorityPattern.MatchString(c) {
		resp.Body.Close()
		return nil, fmt.Errorf("%s asks for a token without naming who issues it: %.200q", r.URL.Host, c)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&limited{resp.Body, maxAnswer}, resp.Body}
	return resp, nil
}

// limited fails where io.LimitReader would cut.
type limited struct {
	from io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.from.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, errors.New("the answer is too long")
	}
	return n, err
}

// credentials tell the errors of whoever issues tokens from the vault's.
type credentials struct{ from azcore.TokenCredential }

type tokenError struct{ err error }

func (e *tokenError) Error() string { return e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// GetToken gets a token.
func (c credentials) GetToken(ctx context.Context, opts policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c.from.GetToken(ctx, opts)
	if err != nil {
		return azcore.AccessToken{}, &tokenError{err}
	}
	return token, nil
}
