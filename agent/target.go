package agent

import (
	"context"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// Exchange is Credential, with the target that gave it as the broker told it
// to this node.
func (a *Agent) Exchange(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, Target, error) {
	credential, err := a.Credential(ctx, p, target)
	if err != nil {
		return exchangers.Credential{}, Target{}, err
	}
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return exchangers.Credential{}, Target{}, err
	}
	defer a.sets.release(st, a.cfg.Now())
	_, t, ok := findTarget(u.SVIDs, target)
	if !ok {
		return exchangers.Credential{}, Target{}, &Denied{Reason: "the target is no longer listed"}
	}
	return credential, t, nil
}
