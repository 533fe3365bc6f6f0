package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/audit"
)

// Allow lets an evicted node join again, by new evidence: what it held before
// stays without effect. A node that is not evicted may recover again. It is recorded
// before it is done.
func (b *Broker) Allow(ctx context.Context, id, actor, reason string) error {
	n, ok := b.node(id)
	evicted := ok && !n.EvictedAt.IsZero()
	if !evicted && n.Joins.Recoveries == 0 && n.Joins.RefusedAt.IsZero() {
		return fmt.Errorf("allowing %s: %w: no such node is evicted, or has recovered", id, ErrNotFound)
	}
	_, err := b.cfg.Audit.Append(ctx, audit.Event{Kind: "allow", OK: true, Node: id, Actor: actor, Reason: reason})
	if err != nil {
		return fmt.Errorf("recording that %s is allowed: %w", id, err)
	}
	if !evicted {
		return b.recoverable(ctx, id)
	}
	here, err := b.welcomeHere(n)
	if err != nil {
		return err
	}
	if err := b.cfg.Store.AllowNode(ctx, id); err != nil && !(here && errors.Is(err, ErrNotFound)) {
		return err
	}
	b.mu.Lock()
	delete(b.nodes, id)
	b.mu.Unlock()
	return nil
}

// recoverable lets a node recover as if it never had.
func (b *Broker) recoverable(ctx context.Context, id string) error {
	n, err := b.cfg.Store.ForgetRecoveries(ctx, id)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(n)
	return nil
}
