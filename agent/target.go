package agent

import (
	"context"

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
	credential, err := a.current(ctx, p, target, claims)
	if err != nil {
		return Exchanged{}, err
	}
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return Exchanged{}, err
	}
	defer a.sets.release(st, a.cfg.Now())
	v, t, ok := findTarget(u.SVIDs, target)
	if !ok {
		return Exchanged{}, &Denied{Reason: "the target is no longer listed"}
	}
	return Exchanged{credential, t, v.ID}, nil
}
