package agent

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// An Exchanged is a credential, and what gave it.
type Exchanged struct {
	exchangers.Credential
	Target Target // as the broker told it to this node
	ID     spiffeid.ID
}

// Exchange is Credential, with the target that gave it and for whom. With
// claims, a challenge of a resource that refused the credential, the one that
// is held is replaced by one that answers it (exchangers.Challenged).
func (a *Agent) Exchange(ctx context.Context, p *caller.Process, target, claims string) (Exchanged, error) {
	got, err := a.credential(ctx, p, target, claims)
	if errors.Is(err, exchangers.ErrDropped) || errors.Is(err, exchangers.ErrClosed) {
		// Something changed while it was made: what holds now decides.
		got, err = a.credential(ctx, p, target, claims)
	}
	return got, err
}
