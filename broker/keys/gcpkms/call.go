package gcpkms

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/googleapis/gax-go/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A call is one request, repeated until its context ends. It remembers why it
// was repeated last: the library only tells that time was up.
type call struct {
	act, permission, role string
	last                  error
}

func (c *call) options() gax.CallOption {
	return gax.WithRetry(func() gax.Retryer {
		return &remembering{call: c, backoff: gax.Backoff{Initial: 50 * time.Millisecond, Max: 2 * time.Second, Multiplier: 2}}
	})
}

type remembering struct {
	call    *call
	backoff gax.Backoff
}

// Retry says whether a request is repeated, and when. That is harmless with
// all that we ask for: a key is made under a name that was never used.
func (r *remembering) Retry(err error) (time.Duration, bool) {
	if !slices.Contains([]codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Aborted}, codeOf(err)) {
		return 0, false
	}
	r.call.last = err
	return r.backoff.Pause(), true
}

func codeOf(err error) codes.Code { return status.Code(err) }

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
	switch codeOf(err) {
	case codes.NotFound:
		return fmt.Errorf("%s: %w: %w", c.act, os.ErrNotExist, err)
	case codes.PermissionDenied:
		return fmt.Errorf("%s: we lack %s: grant it to the broker's account on the key ring, by %s or a role of your own: %w", c.act, c.permission, c.role, err)
	case codes.Unauthenticated:
		return fmt.Errorf("%s: our Google credentials are not accepted: renew them, and check the clock: %w", c.act, err)
	case codes.FailedPrecondition:
		return fmt.Errorf("%s: the key's state does not permit it: gcloud kms keys versions describe shows it: %w", c.act, err)
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w: %w", c.act, context.DeadlineExceeded, err)
	}
	return fmt.Errorf("%s: %w", c.act, err)
}
