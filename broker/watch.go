package broker

import (
	"crypto/sha256"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// Bounds of what is remembered for one session. Past them the agent is told to
// ask for everything again at a change: more work, never a missed denial.
const (
	maxSets      = 4096
	maxSetsBytes = 8 << 20
)

// A Session is one agent's Watch stream. The broker remembers for it, in
// memory only, what it decided, and tells it what a change of policy did to
// that (decision 1).
type Session struct {
	broker *Broker
	node   string
	shown  Node          // as it was opened, with the SVID that was shown
	wake   chan struct{} // of capacity 1

	// Guarded by broker.mu.
	sets         map[[sha256.Size]byte]decided
	bytes        int  // of sets
	overflow     bool // more was decided than is kept
	acknowledged uint64
	bundle       sentBundle
	holds        uint64                        // sequence number of our bundle that the agent serves
	pending      map[[sha256.Size]byte]pending // by set; zero: all
	evicted      bool
	stale        bool  // the SVID under which it was opened is revoked
	told         *cuts // those that the agent was told last
}

type decided struct {
	workload Workload
	digest   [sha256.Size]byte
	bytes    int
}

func (d decided) request(node Node, now time.Time) identity.Request {
	return identity.Request{NodeID: node.ID, Node: node.Facts, Workload: d.workload.Facts, Unknown: d.workload.Unknown, Time: now}
}

// pending is what an agent is yet to be told about a set: to erase, and then
// perhaps to ask again. There is one for a set, so that an agent which doesn't
// listen costs no more than what is remembered for it.
type pending struct{ erase, ask bool }

// A Change tells an agent what to do with the SVIDs that it got for one set of
// facts: ask again, or erase them at once.
type Change struct {
	Set   [sha256.Size]byte // digest of the workload; zero: all
	Erase bool
}

// Watch opens a session for a node, as Node returned it. Close it.
func (b *Broker) Watch(as Node) *Session {
	node := as.ID
	s := &Session{broker: b, node: node, shown: as, wake: make(chan struct{}, 1)}
	s.forget()
	s.pending = make(map[[sha256.Size]byte]pending)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[node] = append(b.sessions[node], s)
	if n, ok := b.nodes[node]; !ok || !n.EvictedAt.IsZero() {
		s.evict()
	}
	_, s.stale = b.cuts.Load().hitNode(s.shown)
	return s
}

// Connected says whether a node has a session open.
func (b *Broker) Connected(node string) bool { return b.Sessions(node) > 0 }

// Sessions says how many a node has open.
func (b *Broker) Sessions(node string) int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.sessions[node])
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
	for set, p := range s.pending {
		if p.erase {
			changes = append(changes, Change{Set: set, Erase: true})
		}
	}
	for set, p := range s.pending {
		if p.ask {
			changes = append(changes, Change{Set: set})
		}
	}
	clear(s.pending)
	return changes, s.evicted
}

// Stale says whether the SVID under which the session was opened is revoked:
// then the stream must end, once what Take returned is said, and may be opened
// anew under a newer SVID.
func (s *Session) Stale() bool {
	s.broker.mu.RLock()
	defer s.broker.mu.RUnlock()
	return s.stale
}

// Cutoffs returns those that validators of JWT-SVIDs judge by, all of them,
// and whether they changed since the last call.
func (s *Session) Cutoffs() (all []Cutoff, changed bool) {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	now := s.broker.cuts.Load()
	changed = s.told == nil || !slices.Equal(s.told.tokens, now.tokens)
	s.told = now
	return now.tokens, changed
}

// cut has the agent erase what falls under a new cut-off, and ask again. An
// authority's is about all of it, for which authority signed what is not
// remembered, and nothing is erased: what we granted is not in doubt, and is
// served until it is signed anew. The caller holds broker.mu.
func (s *Session) cut(c Cutoff, p ground, node Node, now time.Time) {
	if _, s.stale = p.cuts.hitNode(s.shown); s.stale || c.Kind == CutID || c.Kind == CutAuthority {
		s.signal()
	}
	for set, d := range s.sets {
		decisions, err := p.Set.Decide(d.request(node, now))
		if err != nil { // nothing is granted any more
			s.tell(set, true)
			s.drop(set)
			continue
		}
		covered := func(i identity.Decision) bool { return c.covers(i.ID.String(), i.Identity, s.node) }
		if !slices.ContainsFunc(decisions, covered) {
			continue
		}
		d.digest = decisionsDigest(decisions, digestsOf(p, decisions))
		s.sets[set] = d
		if c.Kind != CutAuthority {
			s.tell(set, true)
		}
		s.tell(set, false)
	}
	if s.overflow { // it may be about those that were not kept
		if c.Kind != CutAuthority {
			s.tell([sha256.Size]byte{}, true)
		}
		s.tell([sha256.Size]byte{}, false)
		s.forget()
	}
}

// tell notes a change. To erase undoes what was to be asked before; what is to
// be asked after it stays. The caller holds broker.mu.
func (s *Session) tell(set [sha256.Size]byte, erase bool) {
	if s.evicted {
		return // it has been told to erase all, and nothing is asked any more
	}
	p := s.pending[set]
	p.erase, p.ask = p.erase || erase, !erase
	s.pending[set] = p
	s.signal()
}

// forget drops what was decided. The caller holds broker.mu.
func (s *Session) forget() {
	s.sets, s.bytes, s.overflow = make(map[[sha256.Size]byte]decided), 0, false
}

// signal must be called with broker.mu held.
func (s *Session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) evict() {
	clear(s.pending)
	s.tell([sha256.Size]byte{}, true)
	s.evicted = true
	s.forget()
	s.signal()
}

// remember keeps what was decided under p on a set of facts for the node's
// sessions. If the policy has moved on meanwhile, the agent is told to ask
// again: SetPolicy and Revoke did not know of this set. It is, too, if SetPolicy is
// yet to come to a session, and would find of the set only what stands now: what
// the agent has of it may be of the policy before, of a token that it asked for now.
func (b *Broker) remember(node string, p ground, set [sha256.Size]byte, w Workload, digest [sha256.Size]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.ground(node)
	for _, s := range b.sessions[node] {
		if now.cuts != p.cuts {
			s.tell(set, true) // what is on its way may be revoked
		}
		if old, known := s.sets[set]; now != p || known && old.digest != digest {
			s.tell(set, false)
		}
		s.remember(set, decided{w, digest, w.bytes()})
	}
}

func (s *Session) remember(set [sha256.Size]byte, d decided) {
	old, known := s.sets[set]
	bytes := s.bytes - old.bytes + d.bytes
	if s.evicted || !known && len(s.sets) >= maxSets || bytes > maxSetsBytes {
		s.overflow = true
		s.drop(set)
		return
	}
	s.sets[set], s.bytes = d, bytes
}

func (s *Session) drop(set [sha256.Size]byte) {
	s.bytes -= s.sets[set].bytes
	delete(s.sets, set)
}

// bytes is about what a workload takes in memory.
func (w Workload) bytes() (n int) {
	for name, values := range w.Facts.All() {
		n += len(name)
		for _, v := range values {
			n += 16 + len(v)
		}
	}
	for _, name := range w.Unknown {
		n += 16 + len(name)
	}
	return n
}

// SetPolicy makes p the policy that decisions are made on, and tells every
// session what it changes for the sets of facts that its node serves. It
// returns when all sessions know; the streams send it on.
//
// It is not called twice at a time.
func (b *Broker) SetPolicy(p *Policy) {
	b.mu.Lock()
	b.policy.Store(p)
	now := b.cfg.Now()
	all := make([]*Session, 0, len(b.sessions))
	for _, sessions := range b.sessions {
		all = append(all, sessions...)
	}
	b.mu.Unlock()
	for _, s := range all { // one by one: others decide meanwhile, and remember knows of it
		b.mu.Lock()
		s.reconsider(b.ground(s.node), p.Difference, b.nodes[s.node], now)
		b.mu.Unlock()
	}
}

// reconsider decides again on every set of facts of a session that a change of
// policy may touch; the nil one touches all.
func (s *Session) reconsider(p ground, change *identity.Difference, node Node, now time.Time) {
	if !change.OnNode(node.Facts) {
		return
	}
	for set, d := range s.sets {
		request := d.request(node, now)
		if !change.On(request) {
			continue
		}
		decisions, err := p.Set.Decide(request)
		if err != nil { // nothing is granted any more
			s.tell(set, true)
			s.drop(set)
			continue
		}
		if digest := decisionsDigest(decisions, digestsOf(p, decisions)); digest != d.digest {
			d.digest = digest
			s.sets[set] = d
			s.tell(set, false)
		}
	}
	if s.overflow {
		// What it asks for again is remembered anew: sets of processes that
		// are long gone make room.
		s.tell([sha256.Size]byte{}, false)
		s.forget()
	}
}

// sentBundle is our bundle as it was last sent, and the revision whose
// acknowledgement means that it arrived.
type sentBundle struct{ sequence, revision uint64 }

// SendingBundle notes that our own bundle of that sequence number goes out in
// a message of that revision. Call it before the message is sent.
func (s *Session) SendingBundle(sequence, revision uint64) {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	s.bundle = sentBundle{sequence, revision}
}

// Acknowledge notes that the agent holds and serves everything up to a
// revision.
func (s *Session) Acknowledge(revision uint64) {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	s.acknowledged = max(s.acknowledged, revision)
	if s.bundle.sequence != 0 && revision >= s.bundle.revision {
		s.holds = s.bundle.sequence
	}
}

// Holds says how many nodes are connected, and up to which sequence number of our
// bundle each of them is known to have come; without any, of itself.
func (b *Broker) Holds(own uint64) (connected int, holds uint64) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	holds = own
	for _, sessions := range b.sessions {
		connected++
		for _, s := range sessions {
			holds = min(holds, s.holds)
		}
	}
	return connected, holds
}

// Holding says how many nodes are connected, and how many of these serve our
// bundle of that sequence number or a newer one.
func (b *Broker) Holding(sequence uint64) (connected, holding int) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, sessions := range b.sessions {
		connected++
		if !slices.ContainsFunc(sessions, func(s *Session) bool { return s.holds < sequence }) {
			holding++
		}
	}
	return connected, holding
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
