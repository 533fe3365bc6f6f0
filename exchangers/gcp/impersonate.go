package gcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxIDToken = 16 << 10
	maxUnix    = 253402300799 // the year 9999 ends
)

// bearer authorizes with the federated token, and says who is charged: a client
// of our own has no authentication of the library's.
type bearer struct {
	next    http.RoundTripper
	token   exchangers.Secret
	project string // empty: the account's
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token.Reveal())
	if b.project != "" {
		r.Header.Set("X-Goog-User-Project", b.project)
	}
	return b.next.RoundTrip(r)
}

// serviceAccount calls generateAccessToken or generateIdToken.
func (x *exchanger) serviceAccount(ctx context.Context, federated exchangers.Secret) (exchangers.Secret, time.Time, error) {
	fail := func(err error) (exchangers.Secret, time.Time, error) { return exchangers.Secret{}, time.Time{}, err }
	answers, client := judged(x.cfg.Client, func(status int, h http.Header, body []byte) *exchangers.Error {
		return refusal(status, body, federated)
	})
	client.Transport = bearer{answers, federated, x.cfg.Settings.QuotaProject}
	iam, err := credentials.NewIamCredentialsRESTClient(ctx, option.WithEndpoint(x.iam), option.WithHTTPClient(client),
		option.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fail(exchangers.Unreached(provider, err))
	}
	defer iam.Close()
	var token exchangers.Secret
	var expires time.Time
	if x.cfg.Settings.IDTokenAudience != "" {
		token, expires, err = x.idToken(ctx, iam)
	} else {
		token, expires, err = x.accessToken(ctx, iam)
	}
	var known *exchangers.Error
	if err != nil && !errors.As(err, &known) {
		err = answers.Failure(provider, err)
	}
	if err != nil {
		return fail(err)
	}
	return token, expires, nil
}

func accountName(id string) string { return "projects/-/serviceAccounts/" + id }

func (x *exchanger) delegates() []string {
	var out []string
	for _, d := range x.cfg.Settings.Delegates {
		out = append(out, accountName(d))
	}
	return out
}

func (x *exchanger) accessToken(ctx context.Context, iam *credentials.IamCredentialsClient) (exchangers.Secret, time.Time, error) {
	request := &credentialspb.GenerateAccessTokenRequest{
		Name:      accountName(x.cfg.Settings.ServiceAccount),
		Delegates: x.delegates(),
		Scope:     x.cfg.Settings.scopes(),
	}
	if d := x.cfg.Settings.Lifetime; d != 0 {
		request.Lifetime = durationpb.New(time.Duration(d))
	}
	answer, err := iam.GenerateAccessToken(ctx, request)
	if err != nil {
		return exchangers.Secret{}, time.Time{}, err
	}
	if !answer.GetExpireTime().IsValid() {
		return exchangers.Secret{}, time.Time{}, exchangers.Unusable(provider, http.StatusOK, "", "it has no expireTime")
	}
	return exchangers.NewSecret(answer.GetAccessToken()), answer.GetExpireTime().AsTime(), nil
}

func (x *exchanger) idToken(ctx context.Context, iam *credentials.IamCredentialsClient) (exchangers.Secret, time.Time, error) {
	answer, err := iam.GenerateIdToken(ctx, &credentialspb.GenerateIdTokenRequest{
		Name:         accountName(x.cfg.Settings.ServiceAccount),
		Delegates:    x.delegates(),
		Audience:     x.cfg.Settings.IDTokenAudience,
		IncludeEmail: true,
	})
	if err != nil {
		return exchangers.Secret{}, time.Time{}, err
	}
	expires, err := idTokenExpiry(answer.GetToken(), x.cfg.Settings.IDTokenAudience)
	if err != nil {
		return exchangers.Secret{}, time.Time{}, exchangers.Unusable(provider, http.StatusOK, "", err.Error())
	}
	return exchangers.NewSecret(answer.GetToken()), expires, nil
}

// idTokenExpiry reads an ID token that Google has just given over TLS; who
// takes it verifies it. A token for another audience is none.
func idTokenExpiry(token, audience string) (time.Time, error) {
	part := strings.Split(token, ".")
	if len(token) > maxIDToken || len(part) != 3 {
		return time.Time{}, errors.New("the ID token is not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		return time.Time{}, errors.New("the ID token is not a JWT")
	}
	var claims struct {
		Audience string `json:"aud"`
		Expires  int64  `json:"exp"`
	}
	switch err := json.Unmarshal(payload, &claims); {
	case err != nil || claims.Expires <= 0 || claims.Expires > maxUnix:
		return time.Time{}, errors.New("the ID token has no aud or exp that can be read")
	case claims.Audience != audience:
		return time.Time{}, errors.New("the ID token is for another audience")
	}
	return time.Unix(claims.Expires, 0), nil
}
