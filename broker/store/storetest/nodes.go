package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// node is one that joins by a token.
func (e *env) node(name string) broker.Node {
	e.Helper()
	facts, err := identity.NewFacts("node", map[string][]string{
		"node.name": {name}, "node.token.site": {"a", "b\x00\"\\ü"}, "node.token.app.kubernetes.io/name": {""},
	})
	e.must(err)
	return broker.Node{
		ID: "spiffe://example.org/credence/node/" + name, Name: name, Method: "token", DurableKey: "token:" + name,
		Facts: facts, JoinedAt: e.time, Serial: []byte{0, 1, 255}, ExpiresAt: e.time.Add(4 * time.Hour),
		IssuedAt: e.time, Authority: "a1", Key: []byte{0, 7}, PreviousKey: []byte{},
	}
}

func nodes(e *env) {
	n := e.node("n2")
	saved, err := e.SaveNode(e.Context(), n)
	e.must(err)
	n.Revision = 1
	e.equal(saved, n)
	first, err := e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)

	n.PreviousSerial, n.Serial, n.ExpiresAt = n.Serial, []byte{2}, n.ExpiresAt.Add(time.Hour)
	n.PreviousIssuedAt, n.PreviousAuthority, n.IssuedAt, n.Authority = n.IssuedAt, n.Authority, n.IssuedAt.Add(time.Hour), "a2"
	renewed, err := e.SaveNode(e.Context(), n)
	e.must(err)
	n.Revision = 3
	e.equal(renewed, n)
	got, err := e.Nodes(e.Context())
	e.must(err)
	e.equal(got, []broker.Node{first, n}) // by ID
}

// stepped holds that each join by a key follows from the one before, through an
// eviction too, and that what an operator allows is allowed once.
func stepped(e *env) {
	join1 := func(from, to join.State) (broker.Node, error) {
		n := e.node("n1")
		n.Method, n.DurableKey, n.Step = "bound", "bound:k1", &join.Step{From: from, To: to}
		return e.SaveNode(e.Context(), n)
	}
	known := func(want join.State) {
		e.Helper()
		state, err := e.JoinState(e.Context(), "bound:k1")
		e.must(err)
		e.equal(state, want)
		nodes, err := e.Nodes(e.Context())
		e.must(err)
		for _, n := range nodes {
			e.equal(n.Joins, want)
		}
	}
	none, one := join.State{}, join.State{Joins: 1, Digest: [32]byte{1}}
	known(none)
	n, err := join1(none, one)
	e.must(err)
	e.equal(n.Joins, one)
	e.equal(n.Step, (*join.Step)(nil))
	known(one)
	two := join.State{Joins: 2, Digest: [32]byte{2}, Recoveries: 1}
	for _, from := range []join.State{none, {Joins: 1, Digest: [32]byte{9}}, {Joins: 2, Digest: [32]byte{1}}, {Joins: 1, Digest: [32]byte{1}, Recoveries: 1}} {
		if _, err := join1(from, two); err == nil || errors.Is(err, broker.ErrConflict) { // which would end the agent
			e.Fatalf("from %v: %v", from, err)
		}
	}
	known(one)
	_, err = join1(one, two)
	e.must(err)
	n, err = e.ForgetRecoveries(e.Context(), n.ID)
	e.must(err)
	two.Recoveries = 0 // and what it has to show it has still
	e.equal(n.Joins, two)
	n, err = e.RefuseJoin(e.Context(), n.ID, e.time)
	e.must(err)
	two.RefusedAt = e.time
	e.equal(n.Joins, two)
	known(two)
	_, err = e.RefuseJoin(e.Context(), n.ID, e.time.Add(time.Hour))
	e.refused(err, broker.ErrNotFound)
	known(two)
	n, err = e.ForgetRecoveries(e.Context(), n.ID)
	e.must(err)
	two = join.State{Joins: 2}
	e.equal(n.Joins, two)
	known(two)
	_, err = e.ForgetRecoveries(e.Context(), n.ID)
	e.refused(err, broker.ErrNotFound)
	out, err := e.EvictNode(e.Context(), n.ID, e.time)
	e.must(err)
	e.equal(out.Joins, two)
	_, err = join1(two, join.State{Joins: 3, Digest: [32]byte{3}})
	e.conflict(err)
	known(two)
	e.must(e.AllowNode(e.Context(), n.ID))
	known(join.State{Joins: 2})
	_, err = join1(join.State{Joins: 2}, join.State{Joins: 3, Digest: [32]byte{3}})
	e.must(err)

	// Of any number that follow from one join at once, one counts.
	var all sync.WaitGroup
	var counted atomic.Int32
	for i := range 20 {
		all.Go(func() {
			if _, err := join1(join.State{Joins: 3, Digest: [32]byte{3}}, join.State{Joins: 4, Digest: [32]byte{4, byte(i)}}); err == nil {
				counted.Add(1)
			}
		})
	}
	all.Wait()
	e.equal(counted.Load(), int32(1))

	_, err = e.SaveNode(e.Context(), e.node("n2")) // which has no such state
	e.must(err)
	_, err = e.ForgetRecoveries(e.Context(), e.node("n2").ID)
	e.refused(err, broker.ErrNotFound)
	_, err = e.RefuseJoin(e.Context(), e.node("n2").ID, e.time)
	e.refused(err, broker.ErrNotFound)
}

func staleRenewal(e *env) {
	read, err := e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
	rejoined, err := e.SaveNode(e.Context(), e.node("n1")) // a join knows no revision
	e.must(err)
	_, err = e.SaveNode(e.Context(), read)
	e.conflict(err)
	_, err = e.SaveNode(e.Context(), rejoined)
	e.must(err)
	unknown := e.node("n3")
	unknown.Revision = 2
	_, err = e.SaveNode(e.Context(), unknown)
	e.conflict(err)
}

func evicted(e *env) {
	n, err := e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
	out, err := e.EvictNode(e.Context(), n.ID, e.time)
	e.must(err)
	n.Revision, n.EvictedAt = 2, e.time
	e.equal(out, n)
	got, err := e.Nodes(e.Context())
	e.must(err)
	e.equal(got, []broker.Node{n})
	_, err = e.SaveNode(e.Context(), e.node("n1")) // joins anew
	e.conflict(err)
	_, err = e.SaveNode(e.Context(), out) // renews, knowing the newest
	e.conflict(err)
	elsewhere := e.node("n2")
	elsewhere.DurableKey = n.DurableKey // under another name
	_, err = e.SaveNode(e.Context(), elsewhere)
	e.conflict(err)
	again, err := e.EvictNode(e.Context(), n.ID, e.time.Add(time.Hour))
	e.must(err)
	if !again.EvictedAt.Equal(e.time) {
		e.Errorf("it is now evicted since %s, it was since %s", again.EvictedAt, e.time)
	}

	one, other := e.node("n3"), e.node("n4") // of one machine
	other.DurableKey = one.DurableKey
	_, err = e.SaveNode(e.Context(), one)
	e.must(err)
	_, err = e.SaveNode(e.Context(), other)
	e.must(err)
	_, err = e.EvictNode(e.Context(), one.ID, e.time)
	e.must(err)
	other, err = e.Node(e.Context(), other.ID)
	e.must(err)
	e.equal(other.EvictedAt, e.time)
	_, err = e.EvictNode(e.Context(), e.node("nobody").ID, e.time)
	e.refused(err, broker.ErrNotFound)
}

func allowed(e *env) {
	n, err := e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
	e.refused(e.AllowNode(e.Context(), n.ID), broker.ErrNotFound) // it is welcome already
	_, err = e.EvictNode(e.Context(), n.ID, e.time)
	e.must(err)
	e.must(e.AllowNode(e.Context(), n.ID))
	e.refused(e.AllowNode(e.Context(), n.ID), broker.ErrNotFound)
	all, err := e.Nodes(e.Context())
	e.must(err)
	e.equal(len(all), 0)
	_, err = e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
}

func renewalAgainstEviction(e *env) {
	for i := range 20 {
		n, err := e.SaveNode(e.Context(), e.node(fmt.Sprintf("n%d", i)))
		e.must(err)
		var both sync.WaitGroup
		var evicting error
		both.Go(func() { _, evicting = e.EvictNode(e.Context(), n.ID, e.time) })
		both.Go(func() { _, _ = e.SaveNode(e.Context(), n) }) // before the eviction, or not at all
		both.Wait()
		e.must(evicting)
	}
	all, err := e.Nodes(e.Context())
	e.must(err)
	e.equal(len(all), 20)
	for _, n := range all {
		if n.EvictedAt.IsZero() {
			e.Errorf("%s is back", n.ID)
		}
	}
}

func otherMachine(e *env) {
	_, err := e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
	before := e.state()
	other := e.node("n1")
	other.DurableKey = "other:n1"
	_, err = e.SaveNode(e.Context(), other)
	e.conflict(err)
	e.unchanged(before)
}

func oversizedFacts(e *env) {
	n := e.node("n1")
	large, err := identity.NewFacts("node", map[string][]string{"node.fake.large": {strings.Repeat("x", identity.MaxFactsBytes-100)}})
	e.must(err)
	larger, err := identity.NewFacts("node", map[string][]string{"node.fake.more": {strings.Repeat("x", 200)}})
	e.must(err)
	n.Facts, err = large.Join(larger)
	e.must(err)
	if _, err := e.SaveNode(e.Context(), n); err == nil {
		e.Error("it is saved")
	}
	e.reopen()
	e.equal(e.revision(), uint64(0))
	e.unchanged(state{})
}

func endedNodes(e *env) {
	save := func(name, rule, key string, ended time.Duration) string {
		n := e.node(name)
		n.JoinRule, n.DurableKey, n.ExpiresAt = rule, key, e.time.Add(-ended)
		n, err := e.SaveNode(e.Context(), n)
		e.must(err)
		return n.ID
	}
	const day = 24 * time.Hour
	first, second := save("job1", "ci", "github:a", 3*day), save("job2", "ci", "github:a", 2*day)
	save("job3", "ci", "github:a", day/2)  // ended, not long ago
	save("job4", "ci", "github:a", -day)   // lives
	save("only", "ci", "github:b", 20*day) // the last of its key
	save("token", "", "token:x", 90*day)   // by no rule
	save("former", "", "token:x", 91*day)  // as little
	old := save("old", "tpm", "tpm:y", 31*day)
	banned := save("banned", "tpm", "tpm:z", 31*day)
	bound := e.node("bound") // whose joins are told apart
	bound.JoinRule, bound.DurableKey, bound.ExpiresAt = "bound", "bound:k", e.time.Add(-90*day)
	bound.Step = &join.Step{To: join.State{Joins: 1}}
	_, err := e.SaveNode(e.Context(), bound)
	e.must(err)
	_, err = e.EvictNode(e.Context(), banned, e.time)
	e.must(err)
	e.must(e.SaveMarks(e.Context(), []broker.Mark{{Node: first, Spool: "s", Number: 7}, {Node: banned, Spool: "s", Number: 7}}))

	ended := broker.Ended{Before: e.time.Add(-30 * day), FormerBefore: e.time.Add(-day), Most: 2}
	ids, err := e.ForgetNodes(e.Context(), ended)
	e.must(err)
	e.equal(ids, []string{old, first}) // the oldest first, no more than asked for
	before, err := e.Revision(e.Context())
	e.must(err)
	ids, err = e.ForgetNodes(e.Context(), ended)
	e.must(err)
	e.equal(ids, []string{second})
	after, err := e.Revision(e.Context())
	e.must(err)
	ids, err = e.ForgetNodes(e.Context(), ended)
	e.must(err)
	e.equal(len(ids), 0)
	last, err := e.Revision(e.Context())
	e.must(err)
	e.equal(last, after) // without anything to forget nothing is written
	if before == after {
		e.Error("the revision stands where it was: others keep the node")
	}
	all, err := e.Nodes(e.Context())
	e.must(err)
	e.equal(len(all), 7)
	for node, want := range map[string]uint64{first: 0, banned: 7} {
		mark, err := e.Mark(e.Context(), node)
		e.must(err)
		e.equal(mark.Number, want)
	}
}
