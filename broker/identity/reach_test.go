package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/identity"
)

func place(t testing.TB, name string, more ...string) identity.Place {
	return identity.Place{ID: name, Facts: facts(t, "node", append([]string{"node.name", name, "node.method", "token"}, more...)...)}
}

func TestReachOf(t *testing.T) {
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{{Name: "web", SPIFFEID: "/{node.name}/{workload.unix.uid}/{workload.app}", Match: []identity.Item{
			{Terms: terms("node.zone", "a", "workload.unix.uid", "33"), When: `workload.app != "x" && node.method == "token"`},
			{Terms: terms("node.zone", "b"), When: `node.method == "tpm"`},
			{Terms: terms("user.group", "ops")},
		}}},
		Denies: []identity.Deny{
			{Name: "n2-is-out", Match: items("node.name", "n2")},
			{Name: "some-app", Match: items("workload.app", "y")},
		},
	})
	nodes := []identity.Place{place(t, "n1", "node.zone", "a"), place(t, "n2", "node.zone", "a"), place(t, "n3", "node.zone", "b")}
	got, ok := s.ReachOf("web", nodes)
	want := identity.Reach{Ways: []identity.Way{
		{Identity: "web", SPIFFEID: "spiffe://example.org/n1/33/{workload.app}", Nodes: []string{"n1", "n2"}, Count: 2,
			Let:    []identity.Holding{{Fact: "node.zone", Want: "a", Found: []string{"a"}}},
			Needs:  []string{`workload.unix.uid: "33"`, `when: workload.app != "x" && node.method == "token"`},
			Denied: []string{"n2 by Deny n2-is-out"}},
		{Identity: "web", Item: 1, SPIFFEID: "spiffe://example.org/{node.name}/{workload.unix.uid}/{workload.app}"},
		{Identity: "web", Item: 2, SPIFFEID: "spiffe://example.org/{node.name}/{workload.unix.uid}/{workload.app}", Needs: []string{`user.group: "ops"`}, Callers: "people"},
	}}
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Error(ok, diff)
	}
	for _, line := range []string{"nodes n1, n2\n", "DENY  n2 by Deny n2-is-out\n", "none that stands", "people who prove"} {
		if !strings.Contains(got.String(), line) {
			t.Errorf("no %q in\n%s", line, got)
		}
	}
	if _, ok := s.ReachOf("wen", nodes); ok {
		t.Error("there is no such Identity")
	}
}

func TestReachFrom(t *testing.T) {
	s := requireSet(t, of(
		identity.Identity{Name: "all", SPIFFEID: "/all", Match: items("node.name", "n1")},
		identity.Identity{Name: "other", SPIFFEID: "/other", Match: items("node.name", "n2")},
		identity.Identity{Name: "people", SPIFFEID: "/people", Match: items("user.group", "ops")},
		identity.Identity{Name: "web", SPIFFEID: "/web", Match: items("node.name", "n1", "workload.unix.uid", "33")},
	))
	got := s.ReachFrom(place(t, "n1"))
	let := []identity.Holding{{Fact: "node.name", Want: "n1", Found: []string{"n1"}}}
	want := identity.Reach{Ways: []identity.Way{
		{Identity: "all", SPIFFEID: "spiffe://example.org/all", Let: let, Nodes: []string{"n1"}, Count: 1},
		{Identity: "web", SPIFFEID: "spiffe://example.org/web", Let: let, Nodes: []string{"n1"}, Count: 1, Needs: []string{`workload.unix.uid: "33"`}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(got.String(), "every workload there gets it") {
		t.Errorf("%s", got)
	}
}

// A node that asks why learns nothing of what it could not get by lying about
// its workloads: no Identity of other nodes, no Deny, no wanted value.
func TestWhatANodeIsTold(t *testing.T) {
	secret := "workload.unix.uid"
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{
			{Name: "audience", SPIFFEID: "/audience", JWT: &identity.JWT{Audiences: []identity.Audience{{Pattern: "s3cret"}}}, Match: items("node.name", "n1", "workload.unix.gid", "1000")},
			{Name: "denied-s3cret", SPIFFEID: "/denied", Match: items("node.name", "n1")},
			{Name: "denied-too-s3cret", SPIFFEID: "/denied/too", Match: items("node.name", "n1", "workload.x", "y")},
			{Name: "mine", SPIFFEID: "/mine", Match: items("node.name", "n1", secret, "s3cret")},
			{Name: "other-s3cret", SPIFFEID: "/other", Match: items("node.name", "n2", secret, "1")},
			{Name: "people-s3cret", SPIFFEID: "/people", Match: items("user.group", "ops")},
			{Name: "when", SPIFFEID: "/when", Match: []identity.Item{{Terms: terms("node.name", "n1"), When: `workload.unix.uid == "s3cret"`}}},
			{Name: "when-node-s3cret", SPIFFEID: "/when/node", Match: []identity.Item{{Terms: terms("node.name", "n1"), When: `node.zone == "b" && workload.unix.uid == "1"`}}},
		},
		Denies: []identity.Deny{{Name: "deny-s3cret", Match: items("node.name", "n1"), SPIFFEIDs: []string{"/denied/**", "/denied"}, Reason: "s3cret"}},
	})
	r := identity.Request{
		Node:     facts(t, "node", "node.name", "n1", "node.zone", "a"),
		Workload: facts(t, "workload", "workload.unix.uid", "1", "workload.unix.gid", "1000"), Time: now, Audiences: []string{"orders"},
	}
	got := s.NearTo(r)
	want := []identity.Near{
		{Identity: "audience", Code: "audience_not_listed"},
		{Identity: "when", When: true},
		{Identity: "mine", Missing: []string{secret}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if text := fmt.Sprintf("%+v", got); strings.Contains(text, "s3cret") {
		t.Errorf("it tells %s", text)
	}
}

func BenchmarkExplain(b *testing.B) {
	s := requireSet(b, manyIdentities(100_000))
	r := manyRequest(b, "none")
	for name, f := range map[string]func(){
		"why":  func() { s.Explain(r) },
		"near": func() { s.NearTo(r) },
		"from": func() { s.ReachFrom(identity.Place{Facts: r.Node}) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
