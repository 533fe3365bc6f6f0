package identity_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
)

func TestExplain(t *testing.T) {
	when := func(i *identity.Identity) {
		i.Match = []identity.Item{{Terms: i.Match[0].Terms, When: `workload.kubernetes.labels.tier == "api"`}}
	}
	absent := func(i *identity.Identity) {
		i.Match = []identity.Item{{Terms: i.Match[0].Terms, When: `workload.docker.id == "x"`}}
	}
	near := func(i *identity.Identity) {
		i.Name, i.Match = "near", []identity.Item{{Terms: terms("node.name", "n1", "workload.unix.uid", "33", "workload.docker.id", "x")}}
	}
	far := identity.Identity{Name: "far", SPIFFEID: "/far", Match: items("node.name", "n9")}
	id := "spiffe://example.org/ns/shop/checkout"
	for _, row := range []struct {
		name   string
		r      identity.Resources
		change func(*identity.Request)
		want   identity.Explanation
	}{
		{"granted", of(checkout(), far), nil, identity.Explanation{Granted: []identity.Granted{{Identity: "checkout", SPIFFEID: id}}}},
		{"malformed", of(checkout()), func(r *identity.Request) { r.Keys = []identity.KeyDigest{{}} },
			identity.Explanation{Malformed: "the request's key 0 is zero, or stands there twice"}},
		{"the nearest first", of(far, with(checkout(), near)), nil, identity.Explanation{Misses: []identity.Miss{
			{Identity: "near", Held: 1, Failing: []identity.Failing{
				{Fact: "workload.unix.uid", Want: "33", Found: []string{"1000"}}, {Fact: "workload.docker.id", Want: "x"}}},
			{Identity: "far", Failing: []identity.Failing{{Fact: "node.name", Want: "n9", Found: []string{"n1"}}}},
		}}},
		{"an attestor failed", of(with(checkout(), near)), func(r *identity.Request) { r.Unknown = []string{"workload.docker"} },
			identity.Explanation{Misses: []identity.Miss{{Identity: "near", Held: 1, Failing: []identity.Failing{
				{Fact: "workload.unix.uid", Want: "33", Found: []string{"1000"}}, {Fact: "workload.docker.id", Want: "x", Unknown: true}}}}}},
		{"a when is false", of(with(checkout(), when)), nil, identity.Explanation{Misses: []identity.Miss{{Identity: "checkout", Held: 3,
			Failing: []identity.Failing{{Want: `workload.kubernetes.labels.tier == "api"`}}}}}},
		{"a when can't tell", of(with(checkout(), absent)), nil, identity.Explanation{Misses: []identity.Miss{{Identity: "checkout", Held: 3,
			Failing: []identity.Failing{{Want: `workload.docker.id == "x"`, Unknown: true, Why: "workload.docker.id is absent"}}}}}},
		{"an audience", of(with(checkout(), func(i *identity.Identity) { i.JWT = &identity.JWT{Audiences: identity.Plain("a")} })),
			func(r *identity.Request) { r.Audiences = []string{"b"} },
			identity.Explanation{Refused: []identity.Refused{{Identity: "checkout", Field: "jwt.audiences", Why: `"b" is not listed`}}}},
		{"a deny", identity.Resources{Identities: []identity.Identity{checkout()},
			Denies: []identity.Deny{{Name: "d", Match: append(items("node.x", "y"), items("node.name", "n1")...), Reason: "key leaked"}}}, nil,
			identity.Explanation{
				Denies:  []identity.DenyHit{{Deny: "d", Item: 1, Reason: "key leaked"}},
				Refused: []identity.Refused{{Identity: "checkout", Why: "withheld by Deny d"}}}},
		{"a deny for the unknown", identity.Resources{Identities: []identity.Identity{checkout()},
			Denies: []identity.Deny{{Name: "d", Match: items("workload.docker.id", "y")}}},
			func(r *identity.Request) { r.Unknown = []string{"workload.docker"} },
			identity.Explanation{
				Denies:  []identity.DenyHit{{Deny: "d", Unknown: true}},
				Refused: []identity.Refused{{Identity: "checkout", Why: "withheld by Deny d"}}}},
	} {
		r := shop(t)
		if row.change != nil {
			row.change(&r)
		}
		got := requireSet(t, row.r).Explain(r)
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

func TestExplainAsText(t *testing.T) {
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{
			with(checkout(), func(i *identity.Identity) { i.SPIFFEID = "/{workload.x}" }),
			{Name: "b", SPIFFEID: "/b", Match: []identity.Item{{Terms: terms("node.name", "n1"), When: `workload.docker.id == "x"`}}},
			{Name: "c", SPIFFEID: "/c", Match: items("node.name", "n1", "workload.unix.uid", "33", "workload.docker.id", "*")},
		},
		Denies: []identity.Deny{{Name: "d", Match: items("node.name", "n1"), Reason: "key\nleaked"}},
	})
	x := s.Explain(shop(t))
	want := `deny holds: d, match[0]: "key\nleaked"
not granted: Identity checkout: match[0] holds, but spiffe_id: workload.x has 0 values, and a SPIFFE ID takes exactly one
not matched: Identity b, match[0], where 1 terms hold:
  when "workload.docker.id == \"x\"" gives no answer: "workload.docker.id is absent"
not matched: Identity c, match[0], where 1 terms hold:
  workload.unix.uid wants "33", and is ["1000"]
  workload.docker.id wants "*", and is absent
`
	if diff := cmp.Diff(want, x.String()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	data, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var again identity.Explanation
	if err := json.Unmarshal(data, &again); err != nil || !cmp.Equal(x, again) {
		t.Errorf("JSON gave back %+v, %v", again, err)
	}
	if got := requireSet(t, identity.Resources{}).Explain(shop(t)).String(); got != "nothing granted: there are no Identities\n" {
		t.Errorf("without Identities: %q", got)
	}
}

func TestExplainIsBounded(t *testing.T) {
	var all []identity.Identity
	for i := range 100 {
		all = append(all, identity.Identity{Name: fmt.Sprintf("i%d", i), SPIFFEID: "/a", Match: items("node.name", "n1", "workload.x", "y")})
	}
	r := shop(t)
	pairs := make([]string, 0, 200)
	for range 100 {
		pairs = append(pairs, "workload.x", strings.Repeat("é", 200))
	}
	r.Workload = facts(t, "workload", pairs...)
	x := requireSet(t, of(all...)).Explain(r)
	if len(x.Misses) != 16 {
		t.Errorf("%d misses", len(x.Misses))
	}
	found := x.Misses[0].Failing[0].Found
	if len(found) != 9 || len(found[0]) > 260 || found[8] != "... and 92 more" {
		t.Errorf("%d values, the last %q", len(found), found[len(found)-1])
	}
}

func TestExplainIdentity(t *testing.T) {
	s := requireSet(t, of(checkout(), identity.Identity{Name: "far", SPIFFEID: "/far", Match: items("node.name", "n9")}))
	x := s.ExplainIdentity(shop(t), "far")
	if len(x.Granted) != 0 || len(x.Misses) != 1 || x.Misses[0].Identity != "far" {
		t.Errorf("far: %+v", x)
	}
	if x = s.ExplainIdentity(shop(t), "checkout"); len(x.Granted) != 1 || len(x.Misses) != 0 {
		t.Errorf("checkout: %+v", x)
	}
}

func TestLint(t *testing.T) {
	type id = identity.Identity
	for _, row := range []struct {
		name   string
		change func(*id)
		want   string // field: part of the message; empty: no warning
	}{
		{"nothing", func(*id) {}, ""},
		{"any node", func(i *id) { i.Match = []identity.Item{{Terms: terms("workload.unix.uid", "0"), AnyNode: true}} }, "match[0].any_node: no exact term"},
		{"only stars", func(i *id) { i.Match = []identity.Item{{Terms: terms("node.name", "**"), AnyNode: true}} }, "match[0]: its terms are bare stars"},
		{"only a when", func(i *id) { i.Match = []identity.Item{{When: `node.name == "n1"`, AnyNode: true}} }, "match[0]: it has only a when"},
		{"a long ID", func(i *id) { i.SPIFFEID, i.Targets = "/"+strings.Repeat("a", 120), []string{"gcp"} }, "spiffe_id: it may have 141 bytes"},
		{"an ID that may get long", func(i *id) { i.SPIFFEID, i.Targets = "/{node.a}/{node.b}", []string{"gcp"} }, "spiffe_id: it may have"},
		{"no subject", func(i *id) { i.Targets = []string{"roles"} }, "targets[0]: roles takes an X509-SVID"},
		{"a subject", func(i *id) { i.Targets, i.X509 = []string{"roles"}, &identity.X509{Subject: "CN=checkout"} }, ""},
		{"any audience", func(i *id) { i.JWT = &identity.JWT{Audiences: identity.Plain("**")} }, "jwt.audiences[0]: any audience"},
		{"no audience", func(i *id) { i.JWT = &identity.JWT{} }, "jwt.audiences: none are listed"},
		{"an algorithm that clouds don't find", func(i *id) { i.JWT = &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256"} }, "jwt.audiences[0]: \"a\" gets ES256"},
		{"the same for SPIFFE IDs", func(i *id) { i.JWT = &identity.JWT{Audiences: identity.Plain("spiffe://a/b"), Alg: "ES256"} }, ""},
	} {
		s := requireSet(t, identity.Resources{
			Identities: []id{with(checkout(), row.change)},
			Targets:    []identity.Target{{Name: "gcp", Audience: "x"}, {Name: "roles"}},
		})
		var all []string
		for _, w := range s.Lint() {
			all = append(all, w.String())
		}
		if got := strings.Join(all, "\n"); (row.want == "") != (got == "") || !strings.Contains(got, "Identity checkout: "+row.want) && row.want != "" {
			t.Errorf("%s: %q", row.name, got)
		}
	}
	s := requireSet(t, identity.Resources{Denies: []identity.Deny{
		{Name: "d", Match: []identity.Item{{When: `workload.unix.sha256 == "x"`}}},
	}})
	if ws := s.Lint(); len(ws) != 2 || ws[0].Kind != "Deny" || ws[0].Name != "d" || ws[0].Field != "match[0]" || !strings.Contains(ws[1].Msg, "workload.unix.sha256") {
		t.Errorf("deny: %v", ws)
	}
}
