package gcp

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credence-id/credence/exchangers"
)

// bearer authorizes with the federated token: a client of our own has no
// authentication of the library's.
type bearer struct {
	next  http.RoundTripper
	token exchangers.Secret
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token.Reveal())
	return b.next.RoundTrip(r)
}

// serviceAccount calls generateAccessToken.
func (x *exchanger) serviceAccount(ctx context.Context, federated exchangers.Secret) (exchangers.Secret, time.Time, error) {
	fail := func(err error) (exchangers.Secret, time.Time, error) { return exchangers.Secret{}, time.Time{}, err }
	answers, client := x.client(func(status int, h http.Header, body []byte) *exchangers.Error {
		return refusal(status, body, federated)
	})
	client.Transport = bearer{answers, federated}
	iam, err := credentials.NewIamCredentialsRESTClient(ctx, option.WithEndpoint(x.iam), option.WithHTTPClient(client),
		option.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fail(exchangers.Unreached(provider, err))
	}
	defer iam.Close()
	request := &credentialspb.GenerateAccessTokenRequest{
		Name:  "projects/-/serviceAccounts/" + x.cfg.Settings.ServiceAccount,
		Scope: x.cfg.Settings.scopes(),
	}
	if d := x.cfg.Settings.Lifetime; d != 0 {
		request.Lifetime = durationpb.New(time.Duration(d))
	}
	answer, err := iam.GenerateAccessToken(ctx, request)
	if err != nil {
		return fail(answers.Failure(provider, err))
	}
	if !answer.GetExpireTime().IsValid() {
		return fail(exchangers.Unusable(provider, http.StatusOK, "", "it has no expireTime"))
	}
	return exchangers.NewSecret(answer.GetAccessToken()), answer.GetExpireTime().AsTime(), nil
}
