package authority

import "context"

// Reload takes over what another broker wrote.
func (a *Authority) Reload(ctx context.Context) error {
	return a.withKeys(ctx, func() error {
		a.stale = true
		return a.syncLocked(ctx)
	})
}
