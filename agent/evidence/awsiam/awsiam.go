// Package awsiam proves that a node has credentials of AWS, to the join method
// aws_iam: it signs a request for STS, GetCallerIdentity, over the broker's challenge
// and the trust domain, and hands it to the broker.
//
// It trusts the environment that the agent was started with: credentials, region
// and endpoint are what AWS' SDK finds there (instance metadata at last). What is
// signed is written here alone: nothing but the challenge's 32 bytes, encoded, is the
// broker's to choose. The signature is good for that one question to STS, for a
// quarter of an hour, and the secret key never leaves.
package awsiam

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const (
	version       = 1
	challengeSize = 32
	body          = "Action=GetCallerIdentity&Version=2011-06-15"
)

// Config says for whom to sign.
type Config struct {
	TrustDomain string           // of the broker; required
	Now         func() time.Time // nil means time.Now
}

// Evidence is the form of the request that Answer makes.
func (Config) Evidence(context.Context) ([]byte, error) { return []byte{version}, nil }

// signed is a request as the broker reads it.
type signed struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

// Answer signs a request over a challenge, with the credentials that there are
// now. Errors hold no part of them.
func (c Config) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	answer, err := c.answer(ctx, challenge)
	if err != nil {
		return nil, fmt.Errorf("signing for join method aws_iam: %w", err)
	}
	return answer, nil
}

func (c Config) answer(ctx context.Context, challenge []byte) ([]byte, error) {
	if len(challenge) != challengeSize {
		return nil, fmt.Errorf("a challenge of %d bytes came, and is %d", len(challenge), challengeSize)
	}
	if c.TrustDomain == "" {
		return nil, errors.New("no trust domain to sign for is set")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	cfg, err := load(ctx)
	if err != nil {
		return nil, err
	}
	at, err := endpoint(ctx, cfg)
	if err != nil {
		return nil, err
	}
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, at, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("X-Credence-Challenge", base64.RawURLEncoding.EncodeToString(challenge))
	request.Header.Set("X-Credence-Trust-Domain", c.TrustDomain)
	digest := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(digest[:]), "sts", cfg.Region, c.Now().UTC()); err != nil {
		return nil, err
	}
	out := signed{Method: request.Method, URL: at, Headers: map[string]string{"host": request.URL.Host}, Body: body}
	for name := range request.Header {
		out.Headers[strings.ToLower(name)] = request.Header.Get(name)
	}
	return json.Marshal(out)
}

// load finds credentials and region anew; on an instance of EC2 that says nothing
// of a region, it is the instance's.
func load(ctx context.Context) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err == nil && cfg.Region == "" {
		cfg, err = config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
	}
	if err != nil {
		return cfg, fmt.Errorf("%w (is AWS_REGION set?)", err)
	}
	return cfg, nil
}

// endpoint is that of STS which the environment asks for, or the region's.
func endpoint(ctx context.Context, cfg aws.Config) (string, error) {
	options := sts.NewFromConfig(cfg).Options()
	found, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{
		Region: aws.String(cfg.Region), Endpoint: options.BaseEndpoint, UseGlobalEndpoint: aws.Bool(false), UseDualStack: aws.Bool(false),
		UseFIPS: aws.Bool(options.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
	})
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(found.URI.String(), "/") + "/", nil
}
