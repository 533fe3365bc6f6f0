package broker

import (
	"context"
	"fmt"

	"github.com/credence-id/credence/broker/audit"
)

// Allow lets an evicted node join again, by new evidence: what it held before
// stays without effect. It is recorded before it is done.
func (b *Broker) Allow(ctx context.Context, id, actor, reason string) error {
	if n, ok := b.node(id); !ok || n.EvictedAt.IsZero() {
		return fmt.Errorf("allowing %s: %w: no such node is evicted", id, ErrNotFound)
	}
	_, err := b.cfg.Audit.Append(ctx, audit.Event{Kind: "allow", OK: true, Node: id, Actor: actor, Reason: reason})
	if err != nil {
		return fmt.Errorf("recording that %s is allowed: %w", id, err)
	}
	if err := b.cfg.Store.AllowNode(ctx, id); err != nil {
		return err
	}
	b.mu.Lock()
	delete(b.nodes, id)
	b.mu.Unlock()
	return nil
}
