package aws

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
)

// webIdentity calls AssumeRoleWithWebIdentity of STS.
type webIdentity struct {
	cfg Config
	s   WebIdentity
}

// stsClient reads no environment and no file: a Target says all.
func stsClient(cfg Config, endpoint, region string, credentials sdk.CredentialsProvider) *sts.Client {
	o := sts.Options{
		Region:      region,
		HTTPClient:  cfg.Client,
		Credentials: credentials,
		Retryer:     sdk.NopRetryer{}, // exchangers.Source retries
		Logger:      logging.Nop{},
	}
	if endpoint != "" {
		o.BaseEndpoint = &endpoint
	}
	return sts.New(o)
}

// Exchange presents a JWT-SVID.
func (w *webIdentity) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	jwt, err := svids.JWT(ctx)
	if err == nil && jwt == "" {
		err = errNoToken
	}
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("getting the JWT-SVID for %s: %w", w.s.Role, err)
	}
	in := &sts.AssumeRoleWithWebIdentityInput{
		RoleArn:          &w.s.Role,
		RoleSessionName:  sdk.String(w.s.sessionName(svids.ID())),
		WebIdentityToken: &jwt,
	}
	if w.s.Duration != 0 {
		in.DurationSeconds = sdk.Int32(int32(time.Duration(w.s.Duration) / time.Second))
	}
	in.Policy, in.PolicyArns = policies(w.s.SessionPolicy, w.s.SessionPolicyARNs)
	out, err := stsClient(w.cfg, w.cfg.Endpoint, w.s.region(), sdk.AnonymousCredentials{}).AssumeRoleWithWebIdentity(ctx, in)
	if err != nil {
		return exchangers.Credential{}, stsRefusal(err, webIdentityHints, exchangers.NewSecret(jwt))
	}
	return stsCredential(w.cfg.Now(), w.s.region(), out.Credentials, out.AssumedRoleUser, out.ResultMetadata)
}

// stsCredential reads an answer of STS.
func stsCredential(now time.Time, region string, c *types.Credentials, user *types.AssumedRoleUser, metadata middleware.Metadata) (exchangers.Credential, error) {
	id := ""
	if v, ok := awsmiddleware.GetRequestIDMetadata(metadata); ok {
		id = exchangers.Clean(v)
	}
	if c == nil || c.Expiration == nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, http.StatusOK, id, "it holds no credentials")
	}
	keys := &exchangers.AWS{
		AccessKeyID:     sdk.ToString(c.AccessKeyId),
		SecretAccessKey: exchangers.NewSecret(sdk.ToString(c.SecretAccessKey)),
		SessionToken:    exchangers.NewSecret(sdk.ToString(c.SessionToken)),
		Region:          region,
	}
	if user != nil {
		keys.AssumedRole = sdk.ToString(user.Arn)
	}
	return usable(now, http.StatusOK, exchangers.Credential{Expires: *c.Expiration, RequestID: id, AWS: keys})
}

// stsRefusal reads what the SDK made of the answer.
func stsRefusal(err error, hints []hint, secrets ...exchangers.Secret) *exchangers.Error {
	var resp *awshttp.ResponseError
	if !errors.As(err, &resp) || resp.HTTPStatusCode() == 0 || resp.Response.Response == nil {
		return exchangers.Unreached(provider, err)
	}
	status, id := resp.HTTPStatusCode(), exchangers.Clean(resp.ServiceRequestID())
	if status == http.StatusOK {
		return exchangers.Unusable(provider, status, id, "it is not the XML of a session")
	}
	code, message := "", fmt.Sprintf("HTTP status %d, and no reason that can be read", status)
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), exchangers.Clean(api.ErrorMessage(), secrets...)
	}
	return refusal(status, code, message, id, retryAfter(resp.Response.Header), hints)
}

// defaultSessionName is the end of the ID's path and a digest of the whole ID.
func defaultSessionName(id spiffeid.ID) string {
	name := strings.ReplaceAll(strings.Trim(id.Path(), "/"), "/", ".")
	if name == "" {
		name = id.TrustDomain().Name()
	}
	digest := sha256.Sum256([]byte(id.String()))
	return fmt.Sprintf("%s-%x", name[max(0, len(name)-55):], digest[:4])
}
