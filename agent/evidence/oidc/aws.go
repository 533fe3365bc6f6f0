package oidc

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// awsLife is how long a token of AWS is to be good, in seconds: it is used at
// once.
const awsLife = 60

// awsRole asks STS for a token of the role that this machine has, as AWS' SDK
// finds it.
func awsRole(ctx context.Context, c Config) (string, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", err
	}
	if cfg.Region == "" {
		return "", errors.New("AWS_REGION is not set: AWS makes tokens by regional endpoints only")
	}
	out, err := sts.NewFromConfig(cfg).GetWebIdentityToken(ctx, &sts.GetWebIdentityTokenInput{
		Audience: []string{c.Audience}, SigningAlgorithm: aws.String("RS256"), DurationSeconds: aws.Int32(awsLife),
	})
	var refused smithy.APIError
	switch {
	case errors.As(err, &refused):
		return "", fmt.Errorf("%s: %s: the role needs sts:GetWebIdentityToken, and the account outbound web identity federation", refused.ErrorCode(), refused.ErrorMessage())
	case err != nil:
		return "", err
	}
	return aws.ToString(out.WebIdentityToken), nil
}
