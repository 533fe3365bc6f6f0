package identity_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestDepends(t *testing.T) {
	r := shop(t)
	r.Workload = facts(t, "workload",
		"workload.unix.uid", "0", "workload.unix.groups", "a", "workload.unix.groups", "b",
		"workload.labels.a", "1", "workload.labels.b.c/d", "2")
	base := []identity.Item{{Terms: terms("node.name", "n1")}}
	node := []string{"n1"}
	for _, row := range []struct {
		name string
		i    identity.Identity
		d    []identity.Item
		want map[string][]string
	}{
		{"a term", identity.Identity{Match: base}, nil, map[string][]string{"node.name": node}},
		{"an item that doesn't hold", identity.Identity{Match: append(base, items("node.id", "x", "workload.unix.uid", "1")...)}, nil,
			map[string][]string{"node.name": node, "node.id": nil, "workload.unix.uid": {"0"}}},
		{"a template", identity.Identity{SPIFFEID: "/{workload.labels.a}", Match: base}, nil,
			map[string][]string{"node.name": node, "workload.labels.a": {"1"}}},
		{"a deny's terms, absent and present", identity.Identity{Match: base}, items("workload.docker.image", "x", "workload.unix.groups", "c"),
			map[string][]string{"node.name": node, "workload.docker.image": nil, "workload.unix.groups": {"a", "b"}}},
		{"CEL that is cut short", identity.Identity{Match: []identity.Item{{Terms: terms("node.name", "n1"), When: `node.name == "n1" || workload.x.y == "z"`}}}, nil,
			map[string][]string{"node.name": node, "workload.x.y": nil}},
		{"has of a fact", identity.Identity{Match: base}, []identity.Item{{When: `has(workload.docker.image)`}},
			map[string][]string{"node.name": node, "workload.docker.image": nil}},
		{"has of a group that there is", identity.Identity{Match: base}, []identity.Item{{When: `has(workload.labels) && node.name == "x"`}},
			map[string][]string{"node.name": node, "workload.labels": nil, "workload.labels.a": {"1"}}},
		{"has of a group that there isn't", identity.Identity{Match: base}, []identity.Item{{When: `has(workload.docker)`}},
			map[string][]string{"node.name": node, "workload.docker": nil, "workload.docker.{*}": {""}}},
		{"a key in a group", identity.Identity{Match: base}, []identity.Item{{When: `"x" in workload.labels`}},
			map[string][]string{"node.name": node, "workload.labels": nil, "workload.labels.x": nil, "workload.labels.a": {"1"}}},
		{"a value in a list", identity.Identity{Match: base}, []identity.Item{{When: `"x" in workload.unix.groups`}},
			map[string][]string{"node.name": node, "workload.unix.groups": {"a", "b"}, "workload.unix.groups.x": nil}},
		{"iteration over a group", identity.Identity{Match: base}, []identity.Item{{When: `workload.labels.exists(k, k == "x")`}},
			map[string][]string{"node.name": node, "workload.labels": nil, "workload.labels.a": {"1"}, "workload.labels.b.c/d": {"2"},
				"workload.labels.{*}": {"workload.labels.a", "workload.labels.b.c/d"}}},
		{"iteration over no group", identity.Identity{Match: base}, []identity.Item{{When: `has(workload.docker) && workload.docker.exists(k, k == "x")`}},
			map[string][]string{"node.name": node, "workload.docker": nil, "workload.docker.{*}": {""}}},
		{"iteration over a list", identity.Identity{Match: base}, []identity.Item{{When: `workload.unix.groups.exists(g, g == "x")`}},
			map[string][]string{"node.name": node, "workload.unix.groups": {"a", "b"}}},
		{"a computed key", identity.Identity{Match: base}, []identity.Item{{When: `workload.labels["a" + ""] == "x"`}},
			map[string][]string{"node.name": node, "workload.labels": nil, "workload.labels.a": {"1"}, "workload.labels.b.c/d": {"2"},
				"workload.labels.{*}": {"workload.labels.a", "workload.labels.b.c/d"}}},
	} {
		row.i.Name = "a"
		if row.i.SPIFFEID == "" {
			row.i.SPIFFEID = "/a"
		}
		rs := of(row.i)
		if row.d != nil {
			rs.Denies = []identity.Deny{{Name: "d", Match: row.d}}
		}
		// A deny that holds in the row withholds another ID: what it read counts
		// all the same.
		for n := range rs.Denies {
			rs.Denies[n].SPIFFEIDs = []string{"/else"}
		}
		ds := requireDecisions(t, requireSet(t, rs), r)
		if diff := cmp.Diff(row.want, ds[0].Depends); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

// A mark for a group must never be taken for a fact.
func TestGroupMarksAreNoFacts(t *testing.T) {
	if err := identity.CheckFactName("workload.docker.{*}"); err == nil {
		t.Error("a fact may have a mark's name")
	}
}

func TestUnknownFactsAreNotDependedOn(t *testing.T) {
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1")}},
		Denies:     []identity.Deny{{Name: "d", Match: items("node.name", "n2", "workload.docker.image", "x")}},
	})
	r := shop(t)
	r.Workload = facts(t, "workload", "workload.docker.image", "y")
	r.Unknown = []string{"workload.docker"}
	got := requireDecisions(t, s, r)[0].Depends
	if diff := cmp.Diff(map[string][]string{"node.name": {"n1"}, "workload.docker.image": nil}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWantedFacts(t *testing.T) {
	bound := func(more ...string) []identity.Item {
		return items(append([]string{"node.name", "n1", "workload.unix.uid", "0"}, more...)...)
	}
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{
			{Name: "a", SPIFFEID: "/a", Match: bound("workload.unix.sha256", "00")},
			{Name: "b", SPIFFEID: "/b/{workload.docker.image.sha256}", Match: bound()},
			{Name: "c", SPIFFEID: "/c", Match: bound("workload.unix.sha256sum", "x")},
			{Name: "e", SPIFFEID: "/e", Match: bound("workload.docker.env.TIER", "web")},
		},
		Denies: []identity.Deny{{Name: "d", Match: []identity.Item{{When: `workload.pod.sha256 == "00"`}}}},
	})
	want := []string{"workload.docker.env", "workload.docker.env.TIER", "workload.docker.image.sha256", "workload.pod.sha256", "workload.unix.sha256"}
	if diff := cmp.Diff(want, s.WantedFacts()); diff != "" {
		t.Error(diff)
	}
	if got := requireSet(t, of(checkout())).WantedFacts(); len(got) != 0 {
		t.Errorf("wanted: %v", got)
	}
	s = requireSet(t, identity.Resources{Denies: []identity.Deny{{Name: "d", Match: []identity.Item{{When: `workload.unix.exists(k, k == "x")`}}}}})
	if diff := cmp.Diff([]string{"workload.unix.sha256"}, s.WantedFacts()); diff != "" {
		t.Error(diff)
	}
}

// stands is what an agent does: whether what was decided on depends may be
// served to a process with these facts.
func stands(depends, all map[string][]string) bool {
	for name, values := range depends {
		found := all[name]
		if group, ok := strings.CutSuffix(name, "{*}"); ok {
			found = nil
			for _, n := range slices.Sorted(maps.Keys(all)) {
				if strings.HasPrefix(n, group) {
					found = append(found, n)
				}
			}
			if found == nil {
				found = []string{""}
			}
		}
		if !slices.Equal(values, found) {
			return false
		}
	}
	return true
}

// TestDependsIsEnough: what was granted to one process would be granted to any
// other with equal values of what it depends on.
func TestDependsIsEnough(t *testing.T) {
	whens := rapid.SampledFrom([]string{
		"", `has(workload.l)`, `!has(workload.l)`, `has(workload.l.a)`, `!has(workload.l.a)`, `"a" in workload.l`, `!("a" in workload.l)`,
		`has(workload.l) && !("a" in workload.l)`, `workload.l.exists(k, k == "a")`, `workload.l.all(k, k != "a")`,
		`!workload.l.exists(k, k == "a.b")`, `workload.l["a.b"] == "x"`, `workload.l.a == "x" || workload.l["a.b"] == "x"`,
		`has(workload.l) && workload.l.a != "x"`, `workload.l[node.b] == "x"`, `workload.l.a.exists(v, v == "x")`, `"x" in workload.l.a`,
		`!("x" in workload.l.a)`, `workload.exists(k, k.startsWith("l.a"))`, `size(workload.l.a) == 2`,
	})
	name := rapid.SampledFrom([]string{"workload.l.a", "workload.l.a.b", "workload.l.c", "workload.m.a", "node.b"})
	value := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "a", "c"}), 1, 2, rapid.ID)
	item := rapid.Custom(func(t *rapid.T) identity.Item {
		i := identity.Item{When: whens.Draw(t, "when")}
		if i.When == "" || rapid.Bool().Draw(t, "with term") {
			i.Terms = terms(name.Draw(t, "name"), rapid.SampledFrom([]string{"x", "**", "a*"}).Draw(t, "pattern"))
		}
		return i
	})
	rapid.Check(t, func(rt *rapid.T) {
		own := item.Draw(rt, "item")
		own.AnyNode = true
		r := of(identity.Identity{Name: "a", SPIFFEID: rapid.SampledFrom([]string{"/a", "/{workload.l.c}"}).Draw(rt, "id"), Match: []identity.Item{own}})
		if rapid.Bool().Draw(rt, "with deny") {
			r.Denies = []identity.Deny{{Name: "d", Match: []identity.Item{item.Draw(rt, "deny")}}}
		}
		s := requireSet(t, r)
		one := rapid.MapOfN(name, value, 0, 5).Draw(rt, "one")
		one["node.id"] = []string{"n"}
		two := maps.Clone(one)
		for range rapid.IntRange(1, 2).Draw(rt, "changes") {
			if n := name.Draw(rt, "changed"); rapid.Bool().Draw(rt, "removed") {
				delete(two, n)
			} else {
				two[n] = value.Draw(rt, "to")
			}
		}
		q := request(t, one)
		if rapid.Bool().Draw(rt, "with unknown") {
			q.Unknown = []string{rapid.SampledFrom([]string{"workload.l", "workload.l.a", "workload.m", "workload"}).Draw(rt, "unknown")}
		}
		ds, err := s.Decide(q)
		if err != nil || !stands(ds[0].Depends, two) {
			return
		}
		again, err := s.Decide(request(t, two))
		if err != nil || again[0].ID != ds[0].ID {
			rt.Errorf("%v stands, but Decide gives %v", ds[0].Depends, err)
		}
	})
}
