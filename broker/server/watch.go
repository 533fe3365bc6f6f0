package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
)

// A bell wakes everybody who waits for a change. The zero bell is ready.
type bell struct {
	mu sync.Mutex // guards c
	c  chan struct{}
}

// wait returns a channel that is closed at the next ring.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// maxWatches bounds the streams of one node, each of which is remembered what
// was decided for. An agent has one, and two while it changes connections.
const maxWatches = 8

// A change that touches many sets is paced, so that its renewals don't come
// all at once; erasures never are.
const (
	paceFrom = 256
	paceStep = time.Second
	paceOver = time.Minute
)

// Watch tells an agent, for as long as the stream is open, what to ask for
// again and what to erase, all bundles, and which costly facts are wanted. The
// first message is whole, later ones say what changed.
func (n nodeService) Watch(stream grpc.BidiStreamingServer[api.WatchRequest, api.WatchResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetSince() == nil {
		return n.fail(ctx, fmt.Errorf("%w: a watch begins with since", broker.ErrRequest))
	}
	node := callerNode(ctx)
	session := n.s.cfg.Broker.Watch(node)
	defer session.Close()
	if n.s.cfg.Broker.Sessions(node.ID) > maxWatches { // counted with this one: never more, however many come at once
		return status.Errorf(codes.ResourceExhausted, "this node watches %d times already", maxWatches)
	}
	ended := make(chan error, 1)
	witness := n.s.heads.enter(node.ID)
	defer n.s.heads.leave(witness)
	go func() { ended <- n.acknowledgements(stream, session, witness) }()
	w := watcher{s: n.s, session: session, witness: witness, send: stream.Send, sent: map[string]string{}}
	err = w.run(ctx, ended)
	if status.Code(err) == codes.Unknown {
		return n.fail(ctx, err)
	}
	return err
}

// acknowledgements reads what the agent holds, until the stream ends.
func (n nodeService) acknowledgements(stream grpc.BidiStreamingServer[api.WatchRequest, api.WatchResponse], session *broker.Session, witness *witness) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the node has said its last: the stream ends in order
		}
		if err != nil {
			return err
		}
		if h := m.GetHeads(); h != nil {
			witness.give(h.GetAsked(), takeHeads(h))
			continue
		}
		session.Acknowledge(m.GetAcknowledged())
	}
}

type watcher struct {
	s        *Server
	session  *broker.Session
	witness  *witness
	send     func(*api.WatchResponse) error
	sent     map[string]string // trust domain to the bundle document last sent
	lists    string            // the CRLs last sent with our own bundle
	wanted   []string
	head     []byte        // of the record, as last sent
	revision uint64        // of the store, as last read
	whole    bool          // a first message has been sent
	paced    []*api.Change // to go out step by step
	step     int
}

// errEvicted ends the stream of a node that was evicted.
var errEvicted = status.Error(codes.PermissionDenied, "this node has been evicted")

func (w *watcher) run(ctx context.Context, ended <-chan error) error {
	for {
		ring, heads := w.s.changed.wait(), w.s.heads.bell.wait() // before looking: nothing is missed
		evicted, err := w.tell(ctx)
		if err != nil {
			return err
		}
		if evicted {
			return errEvicted
		}
		if w.session.Stale() {
			return status.Error(codes.Unavailable, "the SVID under which this stream was opened is revoked; show a newer one")
		}
		var next <-chan time.Time
		if len(w.paced) > 0 {
			next = time.After(paceStep)
		}
		if err := w.witnessed(ctx, ended, heads, ring, next); err != nil {
			return err
		}
	}
}

// witnessed tells heads and asks for them, which needs no look at the store,
// until there is more to do.
func (w *watcher) witnessed(ctx context.Context, ended <-chan error, heads, ring <-chan struct{}, next <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.s.closing:
			return status.Error(codes.Unavailable, "the broker is stopping")
		case err := <-ended:
			return err
		case <-ring:
			return nil
		case <-w.session.Wake():
			return nil
		case <-next:
			return nil
		case <-heads:
			heads = w.s.heads.bell.wait()
		case <-w.witness.wake:
		}
		m := &api.WatchResponse{Revision: w.revision, PolicyRevision: w.s.policyRevision(), HeadsWanted: w.witness.wanted()}
		if w.addHead(m); m.SignedHead == nil && m.HeadsWanted == 0 {
			continue
		}
		if err := w.send(m); err != nil {
			return err
		}
	}
}

// addHead adds how far the record has got, if the agent has not been told.
func (w *watcher) addHead(m *api.WatchResponse) {
	head := w.s.cfg.Audit.Head()
	m.AuditHead, m.AuditSequence = head.Hash[:], head.Sequence
	if line := w.s.signedHead(); !bytes.Equal(line, w.head) {
		m.SignedHead, w.head = line, line
	}
}

// tell sends what the agent does not know yet, if anything.
func (w *watcher) tell(ctx context.Context) (evicted bool, err error) {
	// Read first: what follows is at least as new. Each message has a revision of its
	// own, for the agent acknowledges it by that.
	w.revision = max(w.revision+1, w.s.taken.Load())
	m := &api.WatchResponse{Revision: w.revision, PolicyRevision: w.s.policyRevision()}
	changes, evicted := w.session.Take()
	m.Changes = w.pace(changes)
	w.bundles(m)
	if wanted := w.s.wantedFacts(); !w.whole || !slices.Equal(wanted, w.wanted) {
		m.WantedFacts, m.WantedSet, w.wanted = wanted, true, wanted
	}
	w.cutoffs(m)
	if w.whole && len(m.Changes) == 0 && len(m.Bundles) == 0 && len(m.Removed) == 0 && !m.WantedSet && !m.CutoffsSet {
		return evicted, nil
	}
	w.addHead(m)
	w.whole = true
	return evicted, w.send(m)
}

// cutoffs adds what agents hold tokens against, if it changed.
func (w *watcher) cutoffs(m *api.WatchResponse) {
	all, changed := w.session.Cutoffs()
	if !changed {
		return
	}
	m.CutoffsSet = true
	for _, c := range all {
		m.Cutoffs = append(m.Cutoffs, &api.Cutoff{Kind: c.Kind, Value: c.Value, Before: c.Before.UnixMilli()})
	}
}

// pace returns what goes out now.
func (w *watcher) pace(changes []broker.Change) []*api.Change {
	var now []*api.Change
	for _, c := range changes {
		out := &api.Change{Erase: c.Erase}
		if c.Set != ([32]byte{}) {
			out.Set = c.Set[:]
		}
		if c.Erase {
			now = append(now, out)
			continue
		}
		w.paced = append(w.paced, out)
	}
	if len(w.paced) <= paceFrom {
		now, w.paced, w.step = append(now, w.paced...), nil, 0
		return now
	}
	if w.step == 0 {
		w.step = len(w.paced)/int(paceOver/paceStep) + 1
	}
	now, w.paced = append(now, w.paced[:w.step]...), w.paced[w.step:]
	return now
}

// bundles adds the bundles that changed since they were last sent, and the
// trust domains that went. Our own comes with our CRLs, and anew if they change.
func (w *watcher) bundles(m *api.WatchResponse) {
	lists, mark := w.s.crls() // before the bundle, which verifies their issuers
	have, own := w.s.bundles()
	for _, td := range slices.Sorted(maps.Keys(have)) {
		ours := td == w.s.cfg.TrustDomain.Name()
		if document, ok := w.sent[td]; ok && document == have[td] && (!ours || mark == w.lists) {
			continue
		}
		b := &api.Bundle{TrustDomain: td, Document: []byte(have[td])}
		w.sent[td] = have[td]
		if ours {
			b.Crls, w.lists = lists, mark
			w.session.SendingBundle(own, m.Revision)
		}
		m.Bundles = append(m.Bundles, b)
	}
	for td := range w.sent {
		if _, ok := have[td]; !ok {
			m.Removed = append(m.Removed, td)
			delete(w.sent, td)
		}
	}
}
