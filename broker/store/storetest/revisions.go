package storetest

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
)

// write applies changes to whatever stands, and returns the revision.
func (e *env) write(act store.Act, changes ...store.Change) uint64 {
	e.Helper()
	_, last, err := e.Resources(e.Context())
	e.must(err)
	written, err := e.Apply(e.Context(), last, act, changes)
	e.must(err)
	return written[0].Revision
}

// at is what stood at a revision, as "kind name of owner: text", and of which
// revision policy was then.
func (e *env) at(revision uint64) (all []string, last uint64) {
	e.Helper()
	resources, last, err := e.ResourcesAt(e.Context(), revision)
	e.must(err)
	for _, r := range resources {
		all = append(all, fmt.Sprintf("%s %s of %s: %s", r.Kind, r.Name, r.Owner, r.Body))
	}
	return all, last
}

func body(kind, name, text string) store.Change {
	return store.Change{Kind: kind, Name: name, Owner: "team", Body: []byte(text)}
}

func gone(kind, name string) store.Change {
	return store.Change{Kind: kind, Name: name, Owner: "team"}
}

func pastPolicy(e *env) {
	_, _, err := e.ResourcesAt(e.Context(), 1)
	e.refused(err, broker.ErrNotFound)
	first := e.write(by("uid:0"), body("Identity", "a", "1"), body("Identity", "b", "1"))
	_, err = e.SaveNode(e.Context(), e.node("n1")) // a revision of its own
	e.must(err)
	taken := body("Identity", "b", "2")
	taken.From, taken.Owner = "team", "others"
	second := e.write(by("uid:1"), gone("Identity", "a"), taken, body("Deny", "d", "1"))
	third := e.write(by("uid:2"), body("Identity", "a", "3"))
	for revision, want := range map[uint64][]string{
		first:     {"Identity a of team: 1", "Identity b of team: 1"},
		first + 1: {"Identity a of team: 1", "Identity b of team: 1"}, // the node's
		second:    {"Deny d of team: 1", "Identity b of others: 2"},
		third:     {"Deny d of team: 1", "Identity a of team: 3", "Identity b of others: 2"},
	} {
		got, last := e.at(revision)
		e.equal(got, want)
		if want := map[uint64]uint64{first + 1: first}[revision]; want != 0 && last != want {
			e.Errorf("policy of revision %d is %d's, want %d's", revision, last, want)
		}
	}
	for _, revision := range []uint64{0, third + 1, 1 << 63} {
		_, _, err := e.ResourcesAt(e.Context(), revision)
		e.refused(err, broker.ErrNotFound)
	}
	written, err := e.Written(e.Context(), second)
	e.must(err)
	var names []string
	for _, r := range written {
		names = append(names, fmt.Sprintf("%s %s of %s: %q to %q %s", r.Kind, r.Name, r.Owner, r.Before, r.Body, r.TakenFrom))
	}
	e.equal(names, []string{`Deny d of team: "" to "1" `, `Identity a of team: "1" to "" `, `Identity b of others: "1" to "2" team`})
}

func policyRevisions(e *env) {
	all, oldest, err := e.Revisions(e.Context(), 0, "", "", 10)
	e.must(err)
	e.equal(all, []store.Revision(nil))
	e.equal(oldest, uint64(0))

	first := e.write(by("uid:0"), body("Identity", "a", "1"), body("Identity", "b", "1"))
	e.time = e.time.Add(time.Hour)
	others := body("Identity", "c", "1")
	others.Owner = "others"
	second := e.write(store.Act{Actor: "uid:1", What: "rollback to 9"}, gone("Identity", "a"), body("Identity", "b", "2"), others)
	third := e.write(store.Act{Actor: "uid:2", What: "delete"}, gone("Identity", "b"))
	want := []store.Revision{
		{Revision: third, Act: store.Act{Actor: "uid:2", What: "delete"}, Owner: "team", Deleted: 1, WrittenAt: e.time, Some: []string{"Identity b"}},
		{Revision: second, Act: store.Act{Actor: "uid:1", What: "rollback to 9"}, Created: 1, Changed: 1, Deleted: 1, WrittenAt: e.time, Some: []string{"Identity a", "Identity b", "Identity c"}},
		{Revision: first, Act: by("uid:0"), Owner: "team", Created: 2, WrittenAt: e.time.Add(-time.Hour), Some: []string{"Identity a", "Identity b"}},
	}
	for name, c := range map[string]struct {
		before     uint64
		kind, name string
		limit      int
		want       []store.Revision
	}{
		"all":              {limit: 10, want: want},
		"the last":         {limit: 1, want: want[:1]},
		"before the last":  {before: third, limit: 10, want: want[1:]},
		"before all":       {before: first, limit: 10},
		"of a resource":    {kind: "Identity", name: "a", limit: 10, want: want[1:]},
		"of one of others": {kind: "Identity", name: "c", limit: 10, want: want[1:2]},
		"of none":          {kind: "Deny", name: "a", limit: 10},
	} {
		all, oldest, err := e.Revisions(e.Context(), c.before, c.kind, c.name, c.limit)
		e.must(err)
		if oldest != first {
			e.Errorf("%s: the oldest is %d", name, oldest)
		}
		e.equal(all, c.want)
	}
}
