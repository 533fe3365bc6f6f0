package bearer

import (
	"context"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker/join"
)

// Once takes each token for one join. All fields are required.
type Once struct {
	Verifier *Verifier
	// Spend spends a token's digest until it ends, and Spent says of its error
	// that it had been spent.
	Spend func(ctx context.Context, digest [32]byte, ends, now time.Time) error
	Spent func(error) bool
	Now   func() time.Time
	Hint  string // what a node does whose token was used before
}

// Join verifies a token, and spends it if it proves something: until nobody's
// clock takes it any more.
func (o Once) Join(ctx context.Context, token []byte, prove func(Token) (join.Proof, error)) (join.Proof, error) {
	t, err := o.Verifier.Verify(ctx, token)
	if err != nil {
		return join.Proof{}, err
	}
	proof, err := prove(t)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	if err := o.Spend(ctx, t.Digest, t.Expires.Add(Skew), o.Now()); err != nil {
		if o.Spent(err) {
			err = fmt.Errorf("%w: the token was used before: %s", join.ErrEvidence, o.Hint)
		}
		return join.Proof{}, err
	}
	return proof, nil
}
