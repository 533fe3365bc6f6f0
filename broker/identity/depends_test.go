package identity_test

import (
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
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
		},
		Denies: []identity.Deny{{Name: "d", Match: []identity.Item{{When: `workload.pod.sha256 == "00"`}}}},
	})
	want := []string{"workload.docker.image.sha256", "workload.pod.sha256", "workload.unix.sha256"}
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
