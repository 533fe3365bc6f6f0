package authority

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// A turn is a lock that is waited for no longer than a context lives.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) leave() { <-t }

// A closedKey is one that must be open before a record can be used.
type closedKey struct{ Record }

func (k *closedKey) Error() string { return fmt.Sprintf("the key of authority %s is not open", k.ID) }

// problemKey and an ID name why a key cannot be opened.
const problemKey = "key "

// dispensable says whether a broker that is one of several goes on without a key
// that cannot be opened: the others have the JWT keys, and another issuing CA
// takes the place of one whose key is gone.
func (a *Authority) dispensable(r Record, err error) bool {
	return a.cfg.Leases != nil && (r.Use == JWTKey || r.Use == Issuing && errors.Is(err, fs.ErrNotExist))
}

func (a *Authority) doWithout(ctx context.Context, r Record, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unopened[r.ID] = err
	a.cfg.Log.ErrorContext(ctx, "going on without a key", "authority", r.ID, "use", string(r.Use), "alg", r.Alg, "error", err)
}

// withKeys does something under a.mu, again until the keys that it needs are
// open. They are opened without a.mu: a key source may take its time, and
// nobody is to wait for it who needs none.
func (a *Authority) withKeys(ctx context.Context, do func() error) error {
	for {
		err := func() error {
			a.mu.Lock()
			defer a.mu.Unlock()
			return do()
		}()
		var closed *closedKey
		if !errors.As(err, &closed) {
			return err
		}
		key, err := openKey(ctx, a.keysOf(closed.Record), closed.Record)
		switch {
		case err == nil:
			a.keep(closed.Record, key)
		case a.dispensable(closed.Record, err):
			a.doWithout(ctx, closed.Record, err)
		default:
			return err
		}
		if a.cfg.Leases != nil {
			a.problems.set(problemKey+closed.ID, err)
		}
	}
}
