package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// kindEvict is an eviction's in the deny file.
const kindEvict = "evict"

// maxOut bounds what is evicted here at one time.
const maxOut = MaxCutoffs / 4

// An eviction shuts out a node, and whoever joins by its durable key, on this
// broker, until the store has it.
type eviction struct {
	ID, DurableKey string
	At             time.Time
}

func (e eviction) denied() denied {
	return denied{Kind: kindEvict, Value: e.ID, Before: e.At, DurableKey: e.DurableKey}
}

// EvictHere is Evict that needs no store: the eviction is durable on this broker,
// and goes to the store, and with it to the other brokers, when that is back. It
// says what of that is still to come; empty: nothing is.
func (b *Broker) EvictHere(ctx context.Context, id, actor, reason string) (n Node, problem string, err error) {
	n, ok := b.node(id)
	if !ok {
		return Node{}, "", fmt.Errorf("evicting %s: %w", id, ErrNotFound)
	}
	b.mu.RLock()
	most := len(b.out)
	b.mu.RUnlock()
	if most >= maxOut {
		return Node{}, "", fmt.Errorf("evicting %s: %w", id, requestError("%d nodes are out already that the database does not know of: delete the JoinRule, or bring the database back", most))
	}
	n, err = b.evictAll(ctx, n, actor, reason, b.evictHere)
	if err == nil {
		err = b.storeEvictions(ctx)
		if err != nil {
			return n, fmt.Sprintf("it is out on this broker alone, over a restart too, and goes to the database when that is back: %v", err), nil
		}
		n, _ = b.node(id)
	}
	return n, "", err
}

// storeEvictions is saveEvictions for an operator who waits.
func (b *Broker) storeEvictions(ctx context.Context) error {
	if err := b.cfg.Away(); err != nil {
		return err
	}
	return errors.Join(b.saveCutoffs(ctx), b.saveEvictions(ctx))
}

func (b *Broker) evictHere(ctx context.Context, id, actor, reason string) (Node, error) {
	defer b.leave(id)()
	now := b.cfg.Now()
	c := Cutoff{Kind: CutNode, Value: id, Reason: clip(reason, maxCutReason), Actor: clip(actor, maxCutActor), MadeAt: now}
	_, kept := b.cut(c, false) // its sessions are told of the eviction, which says more
	b.mu.Lock()
	n, ok := b.nodes[id]
	if ok && n.EvictedAt.IsZero() {
		out := eviction{ID: id, DurableKey: n.DurableKey, At: now}
		b.out[id] = out
		n = b.marked(n)
		b.nodes[id] = n
		for _, s := range b.sessions[id] {
			s.evict()
		}
	}
	out, fresh := b.out[id]
	b.mu.Unlock()
	if fresh {
		kept = errors.Join(kept, b.keepEviction(out))
	}
	recorded := b.recordEvicted(ctx, id, actor, reason, map[string]string{"here": "true"})
	if kept != nil {
		return n, errors.Join(fmt.Errorf("evicting %s: it is out until this broker stops: %w", id, kept), recorded)
	}
	return n, recorded
}

// keepEviction makes an eviction durable in the deny file.
func (b *Broker) keepEviction(out eviction) error {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	if _, there := b.file.out[out.ID]; there {
		return nil
	}
	b.file.out[out.ID] = out
	err := b.file.append(b.cuts.Load().all, out.denied())
	if err != nil {
		delete(b.file.out, out.ID)
	}
	return err
}

// marked is a node as it stands here: out, if it was evicted here. The caller holds
// mu.
func (b *Broker) marked(n Node) Node {
	for _, out := range b.out {
		if out.DurableKey == n.DurableKey && n.EvictedAt.IsZero() {
			n.EvictedAt = out.At
		}
	}
	return n
}

// outHere says since when nobody joins here by a durable key, if that is so.
func (b *Broker) outHere(durableKey string) (at time.Time, out bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, o := range b.out {
		if o.DurableKey == durableKey {
			return o.At, true
		}
	}
	return time.Time{}, false
}

// saveEvictions takes to the store what was evicted here. What the store does not
// know stays out here.
func (b *Broker) saveEvictions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	b.mu.RLock()
	var all []eviction
	for _, out := range b.out {
		all = append(all, out)
	}
	b.mu.RUnlock()
	slices.SortFunc(all, func(x, y eviction) int { return x.At.Compare(y.At) })
	for _, out := range all {
		n, err := b.cfg.Store.EvictNode(ctx, out.ID, out.At)
		if errors.Is(err, ErrNotFound) {
			b.revoking.Lock()
			if !b.unsure[out.ID] {
				b.cfg.Log.WarnContext(ctx, "a node that was evicted here is not in the store: it stays out on this broker, until it is allowed", "node", out.ID)
			}
			b.unsure[out.ID] = true
			b.revoking.Unlock()
			continue
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.keep(n)
		for _, s := range b.sessions[out.ID] {
			s.evict()
		}
		b.mu.Unlock()
		if err := b.forgetEviction(out.ID); err != nil {
			return err
		}
	}
	return nil
}

// forgetEviction takes an eviction out of the deny file: what made it hold besides
// is the caller's.
func (b *Broker) forgetEviction(id string) error {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	if kept, there := b.file.out[id]; there {
		delete(b.file.out, id)
		if err := b.file.rewrite(b.cuts.Load().all); err != nil {
			b.file.out[id] = kept
			return err
		}
	}
	delete(b.unsure, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.out, id)
	return nil
}

// welcomeHere undoes what EvictHere did here, and says whether it did anything.
func (b *Broker) welcomeHere(n Node) (here bool, err error) {
	b.mu.RLock()
	var ids []string
	for id, out := range b.out {
		if out.DurableKey == n.DurableKey {
			ids = append(ids, id)
		}
	}
	b.mu.RUnlock()
	if len(ids) == 0 {
		return false, nil
	}
	if err := b.cfg.Away(); err != nil {
		return false, err
	}
	for _, id := range ids {
		if err := b.forgetEviction(id); err != nil {
			return false, err
		}
	}
	return true, nil
}
