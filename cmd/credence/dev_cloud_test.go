package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"cloud.google.com/go/auth/credentials/externalaccount"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// vendor is a cloud as its own SDK reaches it, from dev.json alone: whoami
// exchanges a JWT-SVID and makes the protected call.
type vendor struct {
	audience string
	whoami   func(ctx context.Context, token string) (string, error)
	want     string // beginning of what whoami answers
}

func (d *devRun) clouds(t *testing.T) map[string]vendor {
	web, s := d.web(t), d.json.Sandbox
	return map[string]vendor{
		"aws": {s.AWS.WebIdentityAudience, func(ctx context.Context, token string) (string, error) {
			return d.awsWhoami(ctx, web, token)
		}, "arn:aws:sts::123456789012:assumed-role/demo-web-identity/"},
		"gcp": {"https:" + s.GCP.Audience, func(ctx context.Context, token string) (string, error) {
			return d.gcpWhoami(ctx, web, token)
		}, s.GCP.ServiceAccount},
		"azure": {"api://AzureADTokenExchange", func(ctx context.Context, token string) (string, error) {
			return d.azureWhoami(ctx, web, token)
		}, s.Azure.ClientID},
	}
}

func (d *devRun) vendors(t *testing.T) {
	for name, v := range d.clouds(t) {
		who, err := v.whoami(soon(t), d.token(t, v.audience))
		if err != nil || !strings.HasPrefix(who, v.want) {
			t.Errorf("%s: %q, %v; want %q", name, who, err, v.want)
		}
	}
}

// confusedDeputy presents each cloud's token to the others. Each refuses it
// for its audience: it would be taken otherwise.
func (d *devRun) confusedDeputy(t *testing.T) {
	refusals := map[string]string{"aws": "audience", "gcp": "audience", "azure": "AADSTS700212"}
	all := d.clouds(t)
	for made, from := range all {
		token := d.token(t, from.audience)
		for shown, to := range all {
			if made == shown {
				continue
			}
			who, err := to.whoami(soon(t), token)
			if err == nil || who != "" || !strings.Contains(err.Error(), refusals[shown]) {
				t.Errorf("a token made for %s, at %s: %q, %v; want a refusal that says %q", made, shown, who, err, refusals[shown])
			}
		}
	}
}

// identityToken is a token as the AWS SDK reads it.
type identityToken string

func (t identityToken) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

func (d *devRun) awsWhoami(ctx context.Context, web *http.Client, token string) (string, error) {
	s := d.json.Sandbox.AWS
	options := sts.Options{Region: s.Region, BaseEndpoint: aws.String(s.STSURL), HTTPClient: web, Retryer: aws.NopRetryer{}}
	provider := stscreds.NewWebIdentityRoleProvider(sts.New(options), s.WebIdentityRoleARN, identityToken(token))
	options.Credentials = aws.NewCredentialsCache(provider)
	out, err := sts.New(options).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Arn), nil
}

// subjectToken is a token as Google's library reads it.
type subjectToken string

func (t subjectToken) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return string(t), nil
}

func (d *devRun) gcpWhoami(ctx context.Context, web *http.Client, token string) (string, error) {
	s := d.json.Sandbox.GCP
	credentials, err := externalaccount.NewCredentials(&externalaccount.Options{
		Audience: s.Audience, SubjectTokenType: "urn:ietf:params:oauth:token-type:jwt", TokenURL: s.STSURL + "/v1/token",
		ServiceAccountImpersonationURL: s.IAMCredentialsURL + "/v1/projects/-/serviceAccounts/" + s.ServiceAccount + ":generateAccessToken",
		Scopes:                         []string{s.Scope}, SubjectTokenProvider: subjectToken(token), Client: web,
	})
	if err != nil {
		return "", err
	}
	access, err := credentials.Token(ctx)
	if err != nil {
		return "", err
	}
	return bearerWhoami(ctx, web, s.WhoamiURL, access.Value, "principal")
}

func (d *devRun) azureWhoami(ctx context.Context, web *http.Client, token string) (string, error) {
	s := d.json.Sandbox.Azure
	credential, err := azidentity.NewClientAssertionCredential(s.TenantID, s.ClientID, func(context.Context) (string, error) { return token, nil },
		&azidentity.ClientAssertionCredentialOptions{
			ClientOptions: azcore.ClientOptions{
				Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: s.AuthorityURL}, Transport: web, Retry: policy.RetryOptions{MaxRetries: -1},
			},
			DisableInstanceDiscovery: true,
		})
	if err != nil {
		return "", err
	}
	access, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{s.Scope}})
	if err != nil {
		return "", err
	}
	return bearerWhoami(ctx, web, s.WhoamiURL, access.Token, "appid")
}

func bearerWhoami(ctx context.Context, web *http.Client, url, token, member string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := web.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil || response.StatusCode != http.StatusOK {
		return "", errors.Join(fmt.Errorf("%s: %s", response.Status, body), err)
	}
	who, _ := answer[member].(string)
	return who, nil
}
