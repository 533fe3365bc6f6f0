package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/store"
)

// changes holds that what was written after a revision is told as it stands, and
// that a database that stands before it tells nothing.
func changes(e *env) {
	since := func(after uint64) store.Changes {
		e.Helper()
		c, err := e.Changes(e.Context(), after)
		e.must(err)
		return c
	}
	rows := func(c store.Changes) (all []string) {
		for _, r := range c.Resources {
			all = append(all, fmt.Sprintf("%d %s %s %d", r.Revision, r.Kind, r.Name, len(r.Body)))
		}
		return all
	}
	ids := func(c store.Changes) (all []string) {
		for _, n := range c.Nodes {
			all = append(all, n.Name)
		}
		return all
	}
	_, err := e.Apply(e.Context(), 0, by("a"), []store.Change{text("Identity", "x"), text("Identity", "y")}) // 1
	e.must(err)
	_, err = e.Apply(e.Context(), 1, by("a"), []store.Change{{Kind: "Identity", Name: "x", Owner: "team"}, text("Deny", "d")}) // 2
	e.must(err)
	e.equal(rows(since(0)), []string{"1 Identity y 23", "2 Deny d 19", "2 Identity x 0"})
	e.equal(rows(since(1)), []string{"2 Deny d 19", "2 Identity x 0"})
	c := since(2)
	e.equal(c, store.Changes{Changes: broker.Changes{Revision: 2}, Oldest: 1})
	only, oldest, err := e.ResourcesSince(e.Context(), 1)
	e.must(err)
	e.equal(len(only), 2)
	e.equal(oldest, uint64(1))
	if _, err := e.Changes(e.Context(), 3); !errors.Is(err, store.ErrOlder) {
		e.Errorf("a database that stands at 2 tells what came after 3: %v", err)
	}
	if _, _, err := e.ResourcesSince(e.Context(), 3); !errors.Is(err, store.ErrOlder) {
		e.Errorf("a database that stands at 2 tells what came after 3: %v", err)
	}

	n1, err := e.SaveNode(e.Context(), e.node("n1")) // 3
	e.must(err)
	n2 := e.node("n2")
	n2.JoinRule, n2.ExpiresAt = "rule", e.time.Add(-time.Hour)
	_, err = e.SaveNode(e.Context(), n2) // 4
	e.must(err)
	_, err = e.EvictNode(e.Context(), n1.ID, e.time) // 5
	e.must(err)
	c = since(3)
	e.equal(ids(c), []string{"n1", "n2"})
	e.equal(c.Nodes[0].EvictedAt, e.time)
	e.must(e.AllowNode(e.Context(), n1.ID)) // 6
	_, err = e.ForgetNodes(e.Context(), broker.Ended{Before: e.time, FormerBefore: e.time, Most: 10})
	e.must(err) // 7
	c = since(5)
	e.equal(ids(c), []string(nil))
	e.equal(c.Forgotten, []string{n1.ID, n2.ID})
	_, err = e.SaveNode(e.Context(), e.node("n1")) // 8
	e.must(err)
	c = since(5)
	e.equal(ids(c), []string{"n1"})
	e.equal(c.Forgotten, []string{n2.ID})
	one, err := e.Node(e.Context(), n1.ID)
	e.must(err)
	e.equal(one.Revision, uint64(8))
	_, err = e.Node(e.Context(), n2.ID)
	e.refused(err, broker.ErrNotFound)

	e.must(e.SaveCutoff(e.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "x", Before: e.time})) // 9
	c = since(8)
	e.equal(len(c.Cutoffs), 1)
	e.equal([]bool{c.Authorities, c.Bundles}, []bool{false, false})
	e.must(e.SaveBundle(e.Context(), e.bundle("a.example", 1)))
	e.equal(since(9).Bundles, true)
	last := since(9).Revision
	e.must(e.saveAuthorities([]authority.Record{e.authority("r1", authority.JWTKey, authority.Published)}, publication(1)))
	c = since(last)
	e.equal([]bool{c.Authorities, c.Bundles}, []bool{true, false})
}

// claims holds that a name is one directory's, as long as its broker is there.
func claims(e *env) {
	r := store.Replica{Name: "b1", Instance: "i1", Version: "1", StartedAt: e.time}
	e.must(e.Claim(e.Context(), r))
	other := r
	other.Instance = "i2"
	if err := e.Claim(e.Context(), other); !errors.Is(err, store.ErrNamed) {
		e.Errorf("two have the name: %v", err)
	}
	e.must(e.Claim(e.Context(), r)) // a restart
	e.must(e.SaveCutoff(e.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "x", Before: e.time}))
	e.time = e.time.Add(store.GoneAfter - time.Second)
	r.Applied, r.Connected, r.Holds, r.Head = 7, 3, 9, store.Head{Sequence: 5, Hash: [32]byte{1}}
	revision, err := e.Beat(e.Context(), r)
	e.must(err)
	e.equal(revision, uint64(1))
	all, err := e.Replicas(e.Context(), store.GoneAfter)
	e.must(err)
	r.SeenAt = e.time
	e.equal(all, []store.Replica{r})
	e.time = e.time.Add(2 * time.Second)
	if err := e.Claim(e.Context(), other); !errors.Is(err, store.ErrNamed) {
		e.Errorf("two have the name: %v", err)
	}
	e.time = e.time.Add(store.GoneAfter)
	all, err = e.Replicas(e.Context(), store.GoneAfter)
	e.must(err)
	e.equal(len(all), 0)
	e.must(e.Claim(e.Context(), other)) // it is gone
	if _, err := e.Beat(e.Context(), r); !errors.Is(err, store.ErrNamed) {
		e.Errorf("it goes on under a name that is another's: %v", err)
	}
}

// A follower knows what a broker knows of a database that others write.
type follower struct {
	taken     uint64
	resources map[string]store.Resource
	nodes     map[string]broker.Node
	cutoffs   map[string]time.Time
}

func newFollower() *follower {
	return &follower{resources: map[string]store.Resource{}, nodes: map[string]broker.Node{}, cutoffs: map[string]time.Time{}}
}

func (f *follower) take(c store.Changes) {
	for _, r := range c.Resources {
		if name := r.Kind + " " + r.Name; r.Body == nil {
			delete(f.resources, name)
		} else {
			f.resources[name] = r
		}
	}
	for _, n := range c.Nodes {
		f.nodes[n.ID] = n
	}
	for _, id := range c.Forgotten {
		delete(f.nodes, id)
	}
	for _, one := range c.Cutoffs {
		f.cutoffs[one.Kind+" "+one.Value] = one.Before
	}
	f.taken = c.Revision
}

// followed has writers commit and roll back beside each other at random, and
// holds that whoever follows ends with what stands, however seldom he looks.
func followed(e *env) {
	const writers, writes, followers = 4, 30, 3
	done := make(chan struct{})
	var writing, following sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for range writes {
				if err := e.writeAtRandom(random); err != nil {
					e.Error(err)
				}
			}
		})
	}
	all := make([]*follower, followers)
	for i := range all {
		all[i] = newFollower()
		following.Go(func() {
			for more := true; more; {
				select {
				case <-done:
					more = false // and look once more
				default:
				}
				for range i * 7 { // some look seldom
					if _, err := e.Revision(e.Context()); err != nil {
						e.Error(err)
					}
				}
				c, err := e.Changes(e.Context(), all[i].taken)
				if err != nil {
					e.Error(err)
					return
				}
				all[i].take(c)
			}
		})
	}
	writing.Wait()
	close(done)
	following.Wait()
	want := newFollower()
	resources, _, err := e.Resources(e.Context())
	e.must(err)
	for _, r := range resources {
		want.resources[r.Kind+" "+r.Name] = r
	}
	stand, err := e.Nodes(e.Context())
	e.must(err)
	for _, n := range stand {
		want.nodes[n.ID] = n
	}
	cut, _, err := e.Cutoffs(e.Context(), 0)
	e.must(err)
	for _, one := range cut {
		want.cutoffs[one.Kind+" "+one.Value] = one.Before
	}
	want.taken, err = e.Revision(e.Context())
	e.must(err)
	for _, f := range all {
		e.equal([]any{f.taken, f.resources, f.nodes, f.cutoffs}, []any{want.taken, want.resources, want.nodes, want.cutoffs})
	}
}

// writeAtRandom writes something; what is refused, or given up half way, writes
// nothing.
func (e *env) writeAtRandom(random *rand.Rand) error {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	name := fmt.Sprint("n", random.IntN(6))
	id := e.node(name).ID
	expected := []error{broker.ErrConflict, broker.ErrNotFound, context.Canceled}
	var err error
	switch random.IntN(7) {
	case 0, 1, 2:
		if random.IntN(4) == 0 {
			go cancel() // in the midst of it
		}
		var last uint64
		if _, last, err = e.Resources(e.Context()); err != nil {
			return err
		}
		changes := []store.Change{text("Identity", name), text("Identity", fmt.Sprint("m", random.IntN(6)))}
		if random.IntN(3) == 0 {
			changes[1].Body = nil // refused where there is none, and with it the other
		}
		_, err = e.Apply(ctx, last, by("a"), changes)
	case 3:
		_, err = e.SaveNode(ctx, e.node(name))
	case 4:
		_, err = e.EvictNode(ctx, id, e.time)
	case 5:
		err = e.AllowNode(ctx, id)
	case 6:
		err = e.SaveCutoff(ctx, broker.Cutoff{Kind: broker.CutIdentity, Value: name, Before: e.time.Add(time.Duration(random.IntN(9)) * time.Second)})
	}
	for _, target := range expected {
		if errors.Is(err, target) {
			return nil
		}
	}
	if ctx.Err() != nil { // an engine may say it in words of its own
		return nil
	}
	return err
}
