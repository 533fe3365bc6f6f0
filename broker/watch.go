package broker

import (
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// maxSets bounds what is remembered for one node. Past it the agent is told to
// ask for everything again at a change: more work, never a missed denial.
const maxSets = 4096

// A Session is one agent's Watch stream. The broker remembers for it, in
// memory only, what it decided, and tells it what a change of policy did to
// that (decision 1).
type Session struct {
	broker *Broker
	node   string
	wake   chan struct{} // of capacity 1

	// Guarded by broker.mu.
	sets         map[[sha256.Size]byte]decided
	overflow     bool // more sets were decided than are kept
	acknowledged uint64
	changes      []Change
	evicted      bool
}

type decided struct {
	workload Workload
	digest   [sha256.Size]byte
}

// A Change tells an agent what to do with the SVIDs that it got for one set of
// facts: ask again, or erase them at once.
type Change struct {
	Set   [sha256.Size]byte // digest of the workload; zero: all
	Erase bool
}

// Watch opens a session for a node. Close it.
func (b *Broker) Watch(node string) *Session {
	s := &Session{broker: b, node: node, wake: make(chan struct{}, 1), sets: make(map[[sha256.Size]byte]decided)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[node] = append(b.sessions[node], s)
	if n, ok := b.nodes[node]; !ok || !n.EvictedAt.IsZero() {
		s.evict()
	}
	return s
}

// Connected says whether a node has a session open.
func (b *Broker) Connected(node string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.sessions[node]) > 0
}

// Close forgets what was decided for the session.
func (s *Session) Close() {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	var left []*Session
	for _, o := range s.broker.sessions[s.node] {
		if o != s {
			left = append(left, o)
		}
	}
	if len(left) == 0 {
		delete(s.broker.sessions, s.node)
		return
	}
	s.broker.sessions[s.node] = left
}

// Wake is signalled when Take has something to say.
func (s *Session) Wake() <-chan struct{} { return s.wake }

// Take returns what changed since the last Take, denials first, and whether
// the node has been evicted: then the stream must end.
func (s *Session) Take() (changes []Change, evicted bool) {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	changes, s.changes = s.changes, nil
	slices.SortStableFunc(changes, func(x, y Change) int {
		switch {
		case x.Erase == y.Erase:
			return 0
		case x.Erase:
			return -1
		}
		return 1
	})
	return changes, s.evicted
}

// signal must be called with broker.mu held.
func (s *Session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) evict() {
	s.evicted = true
	s.changes = []Change{{Erase: true}}
	s.signal()
}

// remember keeps what was decided under p on a set of facts for the node's
// sessions. If the policy has moved on meanwhile, the agent is told to ask
// again: SetPolicy did not know of this set.
func (b *Broker) remember(node string, p *Policy, set [sha256.Size]byte, w Workload, digest [sha256.Size]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	moved := b.policy.Load() != p
	for _, s := range b.sessions[node] {
		if moved {
			s.changes = append(s.changes, Change{Set: set})
			s.signal()
		}
		if _, known := s.sets[set]; !known && len(s.sets) >= maxSets {
			s.overflow = true
			continue
		}
		s.sets[set] = decided{w, digest}
	}
}

// SetPolicy makes p the policy that decisions are made on, and tells every
// session what it changes for the sets of facts that its node serves. It
// returns when all sessions know; the streams send it on.
func (b *Broker) SetPolicy(p *Policy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policy.Store(p)
	now := b.cfg.Now()
	for node, sessions := range b.sessions {
		for _, s := range sessions {
			s.reconsider(p, b.nodes[node], now)
		}
	}
}

// reconsider decides again on every set of facts of a session. Denials go
// first.
func (s *Session) reconsider(p *Policy, node Node, now time.Time) {
	var again []Change
	for set, d := range s.sets {
		decisions, err := p.Set.Decide(identity.Request{
			NodeID: node.ID, Node: node.Facts, Workload: d.workload.Facts, Unknown: d.workload.Unknown, Time: now,
		})
		switch {
		case errors.Is(err, identity.ErrDenied):
			s.changes = append(s.changes, Change{Set: set, Erase: true})
			delete(s.sets, set)
		case err != nil:
			again = append(again, Change{Set: set})
		default:
			if digest := decisionsDigest(p, decisions); digest != d.digest {
				s.sets[set] = decided{d.workload, digest}
				again = append(again, Change{Set: set})
			}
		}
	}
	if s.overflow {
		again = append(again, Change{})
	}
	s.changes = append(s.changes, again...)
	if len(s.changes) > 0 {
		s.signal()
	}
}

// Acknowledge notes that the agent holds and serves everything up to a
// revision.
func (s *Session) Acknowledge(revision uint64) {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	s.acknowledged = max(s.acknowledged, revision)
}

// Acknowledged returns the revision up to which a connected node serves
// everything; 0 if it is not connected or has not said.
func (b *Broker) Acknowledged(node string) uint64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var least uint64
	for i, s := range b.sessions[node] {
		if i == 0 || s.acknowledged < least {
			least = s.acknowledged
		}
	}
	return least
}
