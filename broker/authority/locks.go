package authority

import (
	"context"
	"errors"
	"fmt"
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
		if err != nil {
			return err
		}
		a.keep(closed.ID, key)
	}
}
