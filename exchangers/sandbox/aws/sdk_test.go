package aws_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// client is the vendor's client of an STS at a TLS server of its own.
func client(t *testing.T, h http.Handler, creds sdk.CredentialsProvider) *sts.Client {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	return sts.New(sts.Options{
		Region: region, BaseEndpoint: sdk.String(srv.URL), HTTPClient: srv.Client(), Credentials: creds,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		}),
	})
}

func input(k token) *sts.AssumeRoleWithWebIdentityInput {
	return &sts.AssumeRoleWithWebIdentityInput{RoleArn: sdk.String(roleARN), RoleSessionName: sdk.String("sess"),
		WebIdentityToken: sdk.String(k.String()), DurationSeconds: sdk.Int32(900)}
}

// The SDK signs with the real time, so the cloud has it too.
func realTime(cfg *aws.Config) { cfg.Now = time.Now }

func realToken(e *web) token {
	now := time.Now().Unix()
	return e.token().with("iat", now-60).with("exp", now+900)
}

func TestSDKAssumesRoleAndIsSomebody(t *testing.T) {
	e := newWeb(t, realTime)
	out, err := client(t, e.cloud.STS(), sdk.AnonymousCredentials{}).AssumeRoleWithWebIdentity(t.Context(), input(realToken(e)))
	must(t, err)
	if sdk.ToString(out.SubjectFromWebIdentityToken) != spiffeID || sdk.ToString(out.Audience) != audience ||
		sdk.ToString(out.Provider) != e.cloud.ProviderARN(issuerURL) {
		t.Errorf("%+v", out)
	}
	c := out.Credentials
	me := client(t, e.cloud.STS(), credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken))
	id, err := me.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	must(t, err)
	if sdk.ToString(id.Arn) != "arn:aws:sts::123456789012:assumed-role/orders/sess" || sdk.ToString(id.Account) != account ||
		sdk.ToString(id.UserId) != *out.AssumedRoleUser.AssumedRoleId {
		t.Errorf("%+v", id)
	}
}

type retriever func() string

func (r retriever) GetIdentityToken() ([]byte, error) { return []byte(r()), nil }

func TestSDKWebIdentityProvider(t *testing.T) {
	e := newWeb(t, realTime)
	p := stscreds.NewWebIdentityRoleProvider(client(t, e.cloud.STS(), nil), roleARN,
		retriever(func() string { return realToken(e).String() }),
		func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = "sess" })
	id, err := client(t, e.cloud.STS(), sdk.NewCredentialsCache(p)).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	must(t, err)
	if sdk.ToString(id.Arn) != "arn:aws:sts::123456789012:assumed-role/orders/sess" {
		t.Errorf("%+v", id)
	}
}

func TestSDKReadsErrors(t *testing.T) {
	e := newWeb(t, realTime)
	c := client(t, e.cloud.STS(), sdk.AnonymousCredentials{})
	code := func(k token) string {
		_, err := c.AssumeRoleWithWebIdentity(t.Context(), input(k))
		var api smithy.APIError
		if !errors.As(err, &api) {
			t.Fatal(err)
		}
		return api.ErrorCode()
	}
	var invalid *types.InvalidIdentityTokenException
	if _, err := c.AssumeRoleWithWebIdentity(t.Context(), input(realToken(e).with("aud", "x"))); !errors.As(err, &invalid) {
		t.Error(err)
	}
	var expired *types.ExpiredTokenException
	if _, err := c.AssumeRoleWithWebIdentity(t.Context(), input(realToken(e).with("exp", 1))); !errors.As(err, &expired) {
		t.Error(err)
	}
	if got := code(realToken(e).with("sub", spiffeID+"2")); got != "AccessDenied" {
		t.Error(got)
	}
}

// S27: the SDK tries three times.
func TestSDKRetriesThrottling(t *testing.T) {
	e := newWeb(t, realTime)
	faults := &e.cloud.STSFaults
	c := client(t, e.cloud.STS(), sdk.AnonymousCredentials{})
	faults.Queue(2, sandbox.Fault{Kind: sandbox.FaultThrottled})
	_, err := c.AssumeRoleWithWebIdentity(t.Context(), input(realToken(e)))
	must(t, err)
	faults.Queue(3, sandbox.Fault{Kind: sandbox.FaultThrottled})
	_, err = c.AssumeRoleWithWebIdentity(t.Context(), input(realToken(e)))
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != "Throttling" {
		t.Errorf("after three: %v", err)
	}
	faults.Queue(3, sandbox.Fault{Kind: sandbox.FaultUnavailable})
	_, err = c.AssumeRoleWithWebIdentity(t.Context(), input(realToken(e)))
	if !errors.As(err, &api) || api.ErrorCode() != "ServiceUnavailable" {
		t.Errorf("after three: %v", err)
	}
}

func TestRolesAnywhereFaults(t *testing.T) {
	e := newAnywhere(t)
	for kind, want := range map[sandbox.FaultKind]string{sandbox.FaultThrottled: "ThrottlingException", sandbox.FaultError: "InternalServerException"} {
		e.cloud.AnywhereFaults.Queue(1, sandbox.Fault{Kind: kind})
		if w := e.send(t, e.call()); fmt.Sprint(w.Code) != string(kind) || w.Header().Get("X-Amzn-Errortype") != want {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		e.wantCredential(t)
	}
}

// What is queued is told, and a clock that is off refuses both services' calls.
func TestClockOffset(t *testing.T) {
	e := newAnywhere(t)
	e.cloud.STSFaults.SetClockOffset(-6 * time.Minute)
	if w := e.send(t, e.call()); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "not yet current") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	e.cloud.STSFaults.SetClockOffset(0)
	e.wantCredential(t)
}

// Over a real connection and with each kind of key, what Roles Anywhere issues
// is good for GetCallerIdentity of the vendor's client.
func TestRolesAnywhereOverTheWire(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey(), "P-256": newKey(t, elliptic.P256()), "P-384": newKey(t, elliptic.P384())} {
		t.Run(name, func(t *testing.T) {
			e := newAnywhere(t, realTime)
			srv := httptest.NewTLSServer(e.cloud.RolesAnywhere())
			defer srv.Close()
			c := e.call()
			c.date = time.Now().UTC().Format("20060102T150405Z")
			outer := newAuthority(t, "outer", time.Now(), e.root, always)
			inner := newAuthority(t, "inner", time.Now(), outer, always)
			c.key, c.leaf, c.chain = key, inner.leaf(t, key.Public()), []*x509.Certificate{inner.cert, outer.cert}
			if name == "RSA" {
				c.algorithm = "AWS4-X509-RSA-SHA256"
			}
			identity(t, e, wire(t, srv, c.request(t)))
		})
	}
}

// wire sends a recorded request to a server, Host and all.
func wire(t *testing.T, srv *httptest.Server, r *http.Request) sdk.Credentials {
	t.Helper()
	r.RequestURI, r.URL.Host = "", strings.TrimPrefix(srv.URL, "https://")
	resp, err := srv.Client().Do(r.WithContext(context.Background()))
	must(t, err)
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s %v", resp.Status, &b, err)
	}
	var out struct {
		CredentialSet []struct {
			Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }
		}
	}
	must(t, json.Unmarshal(b.Bytes(), &out))
	c := out.CredentialSet[0].Credentials
	return sdk.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
}

func identity(t *testing.T, e *anywhere, c sdk.Credentials) {
	t.Helper()
	me := client(t, e.cloud.STS(), credentials.StaticCredentialsProvider{Value: c})
	id, err := me.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	must(t, err)
	if sdk.ToString(id.Arn) != "arn:aws:sts::123456789012:assumed-role/orders/0abcdef01234" {
		t.Errorf("%+v", id)
	}
}

// A provider on a loopback address has a port, which IAM does not want.
func TestLenientLoopbackIssuer(t *testing.T) {
	e := newWeb(t)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var out any = map[string]any{"issuer": "https://" + r.Host, "jwks_uri": "https://" + r.Host + "/keys"}
		if r.URL.Path == "/keys" {
			out = map[string]any{"keys": []any{jwk("rs", rsaKey().Public())}}
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	if err := e.cloud.PutOIDCProvider(aws.OIDCProvider{URL: srv.URL, ClientIDs: []string{audience}}); !errors.Is(err, sandbox.ErrIssuerURL) {
		t.Errorf("strict: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	host := strings.TrimPrefix(srv.URL, "https://")
	lenient, err := aws.New(aws.Config{
		Now: e.Now, Account: account, Region: region, Roots: roots, LenientLoopbackIssuer: true,
		Roles:         []aws.Role{{ARN: roleARN, TrustPolicy: strings.ReplaceAll(webPolicy, "id.example.org/main", host)}},
		OIDCProviders: []aws.OIDCProvider{{URL: srv.URL, ClientIDs: []string{audience}}},
	})
	must(t, err)
	e.cloud = lenient
	if w := e.post(e.form(e.token().with("iss", srv.URL))); w.Code != http.StatusOK {
		t.Error(w.Body)
	}
}
