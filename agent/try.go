package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// Try makes one exchange for a caller, attested afresh, whatever is held, and
// reports it as any. The error is Credential's.
func (a *Agent) Try(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, spiffeid.ID, error) {
	credential, id, err := a.try(ctx, p, target)
	if errors.Is(err, exchangers.ErrDropped) || errors.Is(err, exchangers.ErrClosed) {
		credential, id, err = a.try(ctx, p, target)
	}
	return credential, id, err
}

func (a *Agent) try(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, spiffeid.ID, error) {
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return exchangers.Credential{}, spiffeid.ID{}, err
	}
	defer func() { a.sets.release(st, a.cfg.Now()) }()
	v, t, err := a.listed(st, u, target)
	if err != nil {
		return exchangers.Credential{}, spiffeid.ID{}, err
	}
	src, err := a.sources.get(st, v, t)
	if err != nil {
		return exchangers.Credential{}, v.ID, err
	}
	ctx, end := a.span(ctx, t)
	credential, err := src.Try(ctx)
	if end(credential, err); err != nil {
		return exchangers.Credential{}, v.ID, fmt.Errorf("exchanging at %s as %s: %w", target, v.ID, err)
	}
	if err := p.Check(); err != nil {
		return exchangers.Credential{}, v.ID, errChanged()
	}
	return credential, v.ID, nil
}
