package broker

import (
	"context"
	"errors"
	"math/big"
	"sync"
	"time"
)

// Changes are what other brokers wrote of what a Broker keeps, as of one
// revision.
type Changes struct {
	Revision  uint64
	Nodes     []Node   // that joined, renewed or were evicted
	Forgotten []string // IDs of nodes that are gone
	Cutoffs   []Cutoff
}

// Take makes hold here what another broker wrote. What is known here that is
// newer stays: changes may come twice, and in any order. An error is of the deny
// file: all of it holds then too.
func (b *Broker) Take(c Changes) error {
	b.takeNodes(c) // first: who is evicted is told that, and not that its SVID is revoked
	return b.takeCutoffs(c.Cutoffs)
}

func (b *Broker) takeNodes(c Changes) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range c.Nodes {
		b.take(n)
	}
	for _, id := range c.Forgotten {
		if n, ok := b.nodes[id]; ok && n.Revision <= c.Revision {
			delete(b.nodes, id)
		}
	}
}

// take takes a node over, and tells its sessions what changed. The caller holds
// mu.
func (b *Broker) take(n Node) {
	known := b.nodes[n.ID]
	if n.Revision <= known.Revision {
		return
	}
	n = b.marked(n)
	b.nodes[n.ID] = n
	if !n.EvictedAt.IsZero() {
		for _, s := range b.sessions[n.ID] {
			s.evict()
		}
		return
	}
	if known.ID != "" && !known.JoinedAt.Equal(n.JoinedAt) { // it may have proved other facts
		for _, s := range b.sessions[n.ID] {
			s.reconsider(b.ground(n.ID), nil, n, b.cfg.Now())
		}
	}
}

// learn asks the store for a node that showed an SVID which is not known here:
// it may have it from another broker, a moment ago. What the store did not know
// when it was shown it will never know: nobody makes us ask twice.
func (b *Broker) learn(ctx context.Context, id string, serial *big.Int) error {
	shown := strange{id, serial.Text(62)}
	if b.strange.has(shown) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, briefly)
	defer cancel()
	n, err := b.cfg.Store.Node(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	b.strange.add(shown)
	if err != nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take(n)
	return nil
}

// briefly is how long a joined node's request waits for the store, where that can
// do without.
const briefly = time.Second

// strange is an SVID that was asked for.
type strange struct{ node, serial string }

// strangeMost is how many are remembered.
const strangeMost = 4096

// strangers' SVIDs that the store was asked for.
type strangeSVIDs struct {
	mu  sync.Mutex
	all map[strange]struct{} // guarded by mu
}

func (s *strangeSVIDs) has(one strange) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.all[one]
	return ok
}

func (s *strangeSVIDs) add(one strange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil || len(s.all) >= strangeMost {
		s.all = make(map[strange]struct{})
	}
	s.all[one] = struct{}{}
}
