package broker_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// stepping is a join method that tells joins apart, and says what it is told to.
type stepping struct {
	step *join.Step
	err  error
}

func (s stepping) Join(context.Context, []byte, join.Challenge) (join.Proof, error) {
	facts, err := identity.NewFacts("node", map[string][]string{"node.fake.owner": {"acme"}})
	p := join.Proof{Name: "n1", DurableKey: "k1", Facts: facts, Step: s.step}
	return p, errors.Join(err, s.err)
}

// at is the state after so many joins.
func at(joins byte) join.State { return join.State{Joins: uint64(joins), Digest: [32]byte{joins}} }

func (e *env) stepped(s stepping) (broker.Joined, error) {
	e.method = s
	return e.Join(e.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte("x"), PublicKey: keys(e, 1)[0]})
}

func steppedEnv(t *testing.T) (*env, broker.Joined) {
	t.Helper()
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("r", owner("acme"))}
	joined, err := e.stepped(stepping{step: &join.Step{To: at(1)}})
	e.must(err)
	e.equal(joined.Node.Joins, at(1))
	e.equal(e.record.of("join")[0].Detail, map[string]string{"method": "fake", "rule": "r", "agent": "", "join": "1"})
	return e, joined
}

// TestAStepCountsOnce holds that of two joins that follow from one the second gets
// nothing, and is not told that it is out.
func TestAStepCountsOnce(t *testing.T) {
	e, _ := steppedEnv(t)
	second := stepping{step: &join.Step{From: at(1), To: at(2)}}
	_, err := e.stepped(second)
	e.must(err)
	joined, err := e.stepped(second)
	if err == nil || joined.Chain != nil || errors.Is(err, broker.ErrConflict) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("%v, the error is %v", joined, err)
	}
	recovered := at(3)
	recovered.Recoveries = 1
	joined, err = e.stepped(stepping{step: &join.Step{From: at(2), To: recovered}})
	e.must(err)
	e.equal(joined.Node.Joins, recovered)
	records := e.record.of("join")
	e.equal(records[len(records)-1].Detail, map[string]string{"method": "fake", "rule": "r", "agent": "", "join": "3", "recovery": "1"})
	e.start()
	e.equal(e.Nodes()[0].Joins, recovered)
}

// TestACloneShutsTheNodeOut holds that it does at once, whoever hears of it, that it
// is said why, and that an operator alone lets it in again.
func TestACloneShutsTheNodeOut(t *testing.T) {
	e, joined := steppedEnv(t)
	n, err := e.as(joined)
	e.must(err)
	session := e.Watch(n)
	defer session.Close()
	cloned := stepping{err: fmt.Errorf("node n1: %w: it shows join 1", join.ErrCloned)}
	gone, cancel := context.WithCancel(t.Context())
	e.method = leaving{cloned, cancel} // who asked doesn't wait for the answer
	_, err = e.Join(gone, broker.JoinRequest{Method: "fake", Evidence: []byte("x"), PublicKey: keys(e, 1)[0]})
	e.refused(err, join.ErrCloned)
	_, err = e.as(joined)
	e.refused(err, broker.ErrEvicted)
	if _, evicted := session.Take(); !evicted {
		t.Error("its session goes on")
	}
	why := cloned.err.Error()
	e.equal(e.record.of("evict"), []audit.Event{{Kind: "evict", OK: true, Node: joined.Node.ID, Actor: "spiffe://example.org/credence/broker", Reason: why}})
	e.equal(e.EvictReason(e.Nodes()[0]), why)

	_, err = e.stepped(cloned) // again and again: it is recorded once
	e.refused(err, join.ErrCloned)
	e.equal(len(e.record.of("evict")), 1)
	_, err = e.stepped(stepping{step: &join.Step{From: at(1), To: at(2)}}) // the other one
	e.refused(err, broker.ErrConflict)

	e.must(e.Allow(t.Context(), joined.Node.ID, "uid:0", "a new disk"))
	_, err = e.stepped(stepping{step: &join.Step{From: join.State{Joins: 1}, To: at(2)}})
	e.must(err)
	e.equal(e.EvictReason(e.Nodes()[0]), "")
}

// leaving is a method whose asker goes away.
type leaving struct {
	stepping
	cancel func()
}

func (l leaving) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	l.cancel()
	return l.stepping.Join(ctx, evidence, ask)
}

// refusals are the recorded ones of nodes; the rest counts strangers.
func (e *env) refusals() (found []audit.Event) {
	for _, r := range e.record.of("join.refused") {
		if r.Node != "" {
			found = append(found, r)
		}
	}
	return found
}

// TestARefusedRecovery is recorded once, and known of the node until it joins or
// may again; the node itself stays as it is.
func TestARefusedRecovery(t *testing.T) {
	e, joined := steppedEnv(t)
	refused := stepping{err: fmt.Errorf("node n1: %w", join.ErrRecovery)}
	for range 3 {
		_, err := e.stepped(refused)
		e.refused(err, join.ErrRecovery)
		e.pass(time.Second)
	}
	_, err := e.as(joined)
	e.must(err)
	e.equal(e.refusals(), []audit.Event{{Kind: "join.refused", Node: joined.Node.ID, Reason: refused.err.Error(), Facts: joined.Node.Facts.Map()}})
	refusedAt := at(1)
	refusedAt.RefusedAt = start
	e.equal(e.Nodes()[0].Joins, refusedAt)
	e.start()
	e.equal(e.Nodes()[0].Joins, refusedAt)

	e.must(e.Allow(t.Context(), joined.Node.ID, "uid:0", "a new disk"))
	e.equal(e.record.of("allow"), []audit.Event{{Kind: "allow", OK: true, Node: joined.Node.ID, Actor: "uid:0", Reason: "a new disk"}})
	e.equal(e.Nodes()[0].Joins, join.State{Joins: 1})
	_, err = e.as(joined)
	e.must(err)
	e.refused(e.Allow(t.Context(), joined.Node.ID, "uid:0", ""), broker.ErrNotFound)

	_, err = e.stepped(refused) // it is said again
	e.refused(err, join.ErrRecovery)
	e.equal(len(e.refusals()), 2)
	_, err = e.stepped(stepping{step: &join.Step{From: join.State{Joins: 1}, To: at(2)}})
	e.must(err)
	e.equal(e.Nodes()[0].Joins, at(2))
}

// TestAStrangersSuspicion holds that a method which suspects one that never joined
// changes nothing.
func TestAStrangersSuspicion(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("r", owner("acme"))}
	for _, kind := range []error{join.ErrCloned, join.ErrRecovery} {
		_, err := e.stepped(stepping{err: kind})
		e.refused(err, kind)
	}
	e.equal(len(e.Nodes()), 0)
	e.equal(len(e.record.of("evict"))+len(e.refusals()), 0)
	_, err := e.Join(e.Context(), broker.JoinRequest{Method: "made up", Evidence: []byte("x"), PublicKey: keys(e, 1)[0]})
	e.refused(err, identity.ErrDenied)
	e.must(e.Close()) // which writes what was counted, by methods that there are
	counted := map[string]string{}
	for _, r := range e.record.of("join.refused") {
		maps.Copy(counted, r.Detail)
	}
	e.equal(counted, map[string]string{"fake: cloned": "1", "fake: no recovery left": "1", "unknown method: not allowed": "1"})
}
