package awskms

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

// A call is one request, repeated until its context ends. It remembers why it
// was repeated last: the SDK only tells that time was up.
type call struct {
	act, permission string
	throttledOnly   bool // not repeated where it may have been done
	fresh           bool // the key was made just now: not found may mean not yet
	last            error
}

func (c *call) options(o *kms.Options) {
	o.Retryer = &remembering{
		RetryerV2: retry.NewStandard(func(s *retry.StandardOptions) {
			s.MaxAttempts = 1000 // the context decides
			s.RateLimiter = ratelimit.None
			s.Backoff = retry.BackoffDelayerFunc(backoff)
		}),
		call: c,
	}
}

// backoff is 50 ms doubled each time, to 2 s, and jittered.
func backoff(attempt int, _ error) (time.Duration, error) {
	most := min(50*time.Millisecond<<min(attempt, 10), 2*time.Second)
	return most/2 + rand.N(most/2), nil
}

type remembering struct {
	aws.RetryerV2
	call *call
}

// IsErrorRetryable says whether a request is repeated.
func (r *remembering) IsErrorRetryable(err error) bool {
	var missing *types.NotFoundException
	again := r.RetryerV2.IsErrorRetryable(err)
	switch {
	case r.call.fresh && errors.As(err, &missing):
		again = true
	case r.call.throttledOnly:
		again = retry.IsErrorThrottles(retry.DefaultThrottles).IsErrorThrottle(err) == aws.TrueTernary
	}
	var limit *types.LimitExceededException // of keys, not of requests: it will not pass
	if again = again && !errors.As(err, &limit); again {
		r.call.last = err
	}
	return again
}

// failure says what went wrong, and the way out.
func (c *call) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil {
		if c.last != nil {
			return fmt.Errorf("%s: %w; the last answer: %v", c.act, ended, c.last)
		}
		return fmt.Errorf("%s: %w", c.act, ended)
	}
	var missing *types.NotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("%s: %w: %w", c.act, os.ErrNotExist, err)
	}
	if hint := c.hint(err); hint != "" {
		return fmt.Errorf("%s: %s: %w", c.act, hint, err)
	}
	return fmt.Errorf("%s: %w", c.act, err)
}

func (c *call) hint(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	switch api.ErrorCode() {
	case "AccessDeniedException":
		return "we lack " + c.permission + ": allow it to the broker's role, and in the key's policy"
	case "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "InvalidSignatureException", "IncompleteSignatureException":
		return "our AWS credentials are not accepted: renew them, and check the clock"
	case "DisabledException":
		return "the key is disabled: aws kms enable-key enables it"
	case "KMSInvalidStateException":
		return "the key's state does not permit it: aws kms describe-key shows it"
	case "LimitExceededException":
		return "the account has as many keys as it may: remove some, or ask AWS for more"
	}
	return ""
}
