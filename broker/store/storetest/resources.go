package storetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
)

func (e *env) conflict(err error) {
	e.Helper()
	e.refused(err, broker.ErrConflict)
}

func text(kind, name string) store.Change {
	return store.Change{Kind: kind, Name: name, Owner: "team", Body: []byte("kind: " + kind + "\nname: " + name + "\n")}
}

// by is an apply.
func by(actor string) store.Act { return store.Act{Actor: actor, What: "apply"} }

func revisions(e *env) {
	const writers, writes = 6, 8
	var mu sync.Mutex
	wrote := map[string]uint64{}
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			var last uint64
			for i := range writes {
				n, err := e.SaveNode(e.Context(), e.node(fmt.Sprintf("n%d-%d", w, i)))
				if err != nil {
					e.Error(err)
					return
				}
				if n.Revision <= last {
					e.Errorf("revision %d comes after %d", n.Revision, last)
				}
				last = n.Revision
				mu.Lock()
				wrote[n.ID] = n.Revision
				mu.Unlock()
			}
		})
	}
	// Whoever has seen a revision has seen every change up to it.
	type look struct {
		revision uint64
		saw      map[string]bool
	}
	var looks []look
	done := make(chan struct{})
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			l := look{saw: map[string]bool{}}
			var err error
			if l.revision, err = e.Revision(e.Context()); err != nil {
				e.Error(err)
				return
			}
			all, err := e.Nodes(e.Context())
			if err != nil {
				e.Error(err)
				return
			}
			for _, n := range all {
				l.saw[n.ID] = true
			}
			looks = append(looks, l)
		}
	})
	writing.Wait()
	close(done)
	reading.Wait()
	seen := map[uint64]bool{}
	for id, r := range wrote {
		if seen[r] || r == 0 || r > e.revision() {
			e.Errorf("revision %d of %s is not its own, or not known", r, id)
		}
		seen[r] = true
		for _, l := range looks {
			if r <= l.revision && !l.saw[id] {
				e.Fatalf("revision %d was seen, but not %s of revision %d", l.revision, id, r)
			}
		}
	}
	e.equal(len(seen), writers*writes)
	e.equal(e.revision(), uint64(writers*writes))
}

func applied(e *env) {
	changes := []store.Change{text("Peer", "z"), text("Identity", "b"), text("Identity", "a")}
	changes[1].Body = append(changes[1].Body, "note: \x00 and \xff\n"...) // a text is bytes
	written, err := e.Apply(e.Context(), 0, by("uid:1000"), changes)
	e.must(err)
	var want []store.Resource
	for _, c := range changes {
		want = append(want, store.Resource{
			Kind: c.Kind, Name: c.Name, Revision: 1, Owner: "team", Body: c.Body, Actor: "uid:1000", WrittenAt: e.time,
		})
	}
	e.equal(written, want)
	got, last, err := e.Resources(e.Context())
	e.must(err)
	e.equal(got, []store.Resource{want[2], want[1], want[0]}) // by kind and name
	e.equal(last, uint64(1))

	// Another writer's revision in between is no other resource.
	_, err = e.SaveNode(e.Context(), e.node("n1"))
	e.must(err)
	again := text("Identity", "a")
	again.Body = []byte("another text\n")
	written, err = e.Apply(e.Context(), last, by("uid:0"), []store.Change{again, {Kind: "Identity", Name: "b", Owner: "team"}})
	e.must(err)
	got, last, err = e.Resources(e.Context())
	e.must(err)
	e.equal(got, []store.Resource{written[0], want[0]})
	e.equal(last, uint64(3)) // the deletion counts
	e.equal([]uint64{written[0].Revision, written[1].Revision}, []uint64{last, last})

	written, err = e.Apply(e.Context(), last, by("uid:0"), []store.Change{text("Identity", "b")})
	e.must(err)
	e.equal(written[0].Revision, uint64(4))
	_, err = e.Apply(e.Context(), 4, by("uid:0"), []store.Change{{Kind: "Identity", Name: "b", Owner: "team"}})
	e.must(err)
	_, last, err = e.Resources(e.Context())
	e.must(err)
	e.equal(last, uint64(5)) // a deletion alone, too
}

func allOrNothing(e *env) {
	e.fill()
	before, revision := e.state(), e.revision()
	empty := text("Identity", "c")
	empty.Body = []byte{}
	for name, last := range map[string]store.Change{
		"delete of what is absent": {Kind: "Identity", Name: "nobody", Owner: "team"},
		"another's":                {Kind: "Identity", Name: "a", Owner: "others", Body: []byte("x")},
		"an empty text":            empty,
		"the same again":           text("Identity", "new"),
	} {
		written, err := e.Apply(e.Context(), before.Last, by("uid:0"), []store.Change{text("Identity", "a"), text("Identity", "new"), last})
		if err == nil || written != nil {
			e.Errorf("%s: it is written: %v, %v", name, written, err)
		}
		e.unchanged(before)
		e.equal(e.revision(), revision)
	}
	written, err := e.Apply(e.Context(), 0, by("uid:0"), nil)
	e.must(err)
	e.equal(written, []store.Resource(nil))
	e.equal(e.revision(), revision)
}

func staleBase(e *env) {
	e.fill()
	before := e.state()
	for _, base := range []uint64{0, before.Last - 1, before.Last + 1, 1<<63 + before.Last} {
		_, err := e.Apply(e.Context(), base, by("uid:0"), []store.Change{text("Identity", "b")})
		e.conflict(err)
	}
	e.unchanged(before)
	_, err := e.Apply(e.Context(), before.Last, by("uid:0"), []store.Change{text("Identity", "b")})
	e.must(err)
}

func raceToApply(e *env) {
	var won []string
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			name := fmt.Sprintf("i%d", i)
			_, err := e.Apply(e.Context(), 0, by("uid:0"), []store.Change{text("Identity", name)})
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				won = append(won, name)
				return
			}
			if !errors.Is(err, broker.ErrConflict) {
				e.Error(err)
			}
		})
	}
	all.Wait()
	got, _, err := e.Resources(e.Context())
	e.must(err)
	if len(won) != 1 || len(got) != 1 || got[0].Name != won[0] {
		e.Errorf("%v won, %v stand", won, got)
	}
}

func owners(e *env) {
	_, err := e.Apply(e.Context(), 0, by("uid:0"), []store.Change{text("Identity", "a")})
	e.must(err)
	before := e.state()
	others := text("Identity", "a")
	others.Owner = "others"
	gone := store.Change{Kind: "Identity", Name: "a", Owner: "others"}
	for _, c := range []store.Change{others, gone} {
		_, err = e.Apply(e.Context(), before.Last, by("uid:0"), []store.Change{c})
		e.conflict(err)
	}
	e.unchanged(before)
	others.From, gone.From = "others", "nobody" // whose it is not
	for _, c := range []store.Change{others, gone} {
		_, err = e.Apply(e.Context(), before.Last, by("uid:0"), []store.Change{c})
		e.conflict(err)
	}
	e.unchanged(before)
	others.From = "team"
	_, err = e.Apply(e.Context(), before.Last, by("uid:0"), []store.Change{others})
	e.must(err)
	got, last, err := e.Resources(e.Context())
	e.must(err)
	e.equal(got[0].Owner, "others")
	gone.From = ""
	_, err = e.Apply(e.Context(), last, by("uid:0"), []store.Change{gone})
	e.must(err)
	_, err = e.Apply(e.Context(), last+1, by("uid:0"), []store.Change{text("Identity", "a")}) // free again
	e.must(err)
}

func deleteAbsent(e *env) {
	gone := store.Change{Kind: "Identity", Name: "a", Owner: "team"}
	_, err := e.Apply(e.Context(), 0, by("uid:0"), []store.Change{gone})
	e.refused(err, broker.ErrNotFound)
	_, err = e.Apply(e.Context(), 0, by("uid:0"), []store.Change{text("Identity", "a")})
	e.must(err)
	_, err = e.Apply(e.Context(), 1, by("uid:0"), []store.Change{gone})
	e.must(err)
	_, last, err := e.Resources(e.Context())
	e.must(err)
	_, err = e.Apply(e.Context(), last, by("uid:0"), []store.Change{gone})
	e.refused(err, broker.ErrNotFound)
}
