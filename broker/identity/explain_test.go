package identity_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
		{"granted", of(checkout(), far), nil, identity.Explanation{Code: "granted", Granted: []identity.Granted{{Identity: "checkout", SPIFFEID: id}}}},
		{"malformed", of(checkout()), func(r *identity.Request) { r.Keys = []identity.KeyDigest{{}} },
			identity.Explanation{Code: "malformed", Malformed: "the request's key 0 is zero, or stands there twice"}},
		{"the nearest first", of(far, with(checkout(), near)), nil, identity.Explanation{Code: "no_identity", Misses: []identity.Miss{
			{Identity: "near", Held: 1, Failing: []identity.Failing{
				{Fact: "workload.unix.uid", Want: "33", Found: []string{"1000"}}, {Fact: "workload.docker.id", Want: "x"}}},
			{Identity: "far", Failing: []identity.Failing{{Fact: "node.name", Want: "n9", Found: []string{"n1"}}}},
		}}},
		{"an attestor failed", of(with(checkout(), near)), func(r *identity.Request) { r.Unknown = []string{"workload.docker"} },
			identity.Explanation{Code: "no_identity", Misses: []identity.Miss{{Identity: "near", Held: 1, Failing: []identity.Failing{
				{Fact: "workload.unix.uid", Want: "33", Found: []string{"1000"}}, {Fact: "workload.docker.id", Want: "x", Unknown: true}}}}}},
		{"a when is false", of(with(checkout(), when)), nil, identity.Explanation{Code: "no_identity", Misses: []identity.Miss{{Identity: "checkout", Held: 3,
			Failing: []identity.Failing{{Want: `workload.kubernetes.labels.tier == "api"`}}}}}},
		{"a when can't tell", of(with(checkout(), absent)), nil, identity.Explanation{Code: "when_no_answer", Misses: []identity.Miss{{Identity: "checkout", Held: 3,
			Failing: []identity.Failing{{Want: `workload.docker.id == "x"`, Unknown: true, Why: "workload.docker.id is absent"}}}}}},
		{"an audience", of(with(checkout(), func(i *identity.Identity) { i.JWT = &identity.JWT{Audiences: identity.Plain("a")} })),
			func(r *identity.Request) { r.Audiences = []string{"b"} },
			identity.Explanation{Code: "audience_not_listed", Refused: []identity.Refused{{Identity: "checkout", Code: "audience_not_listed", SPIFFEID: id, Field: "jwt.audiences", Why: `"b" is not listed`}}}},
		{"a deny", identity.Resources{Identities: []identity.Identity{checkout()},
			Denies: []identity.Deny{{Name: "d", Match: append(items("node.x", "y"), items("node.name", "n1")...), Reason: "key leaked"}}}, nil,
			identity.Explanation{
				Code:    "denied",
				Denies:  []identity.DenyHit{{Deny: "d", Item: 1, Reason: "key leaked"}},
				Refused: []identity.Refused{{Identity: "checkout", Code: "denied", SPIFFEID: id, Deny: "d", Why: "withheld by Deny d"}}}},
		{"a deny for the unknown", identity.Resources{Identities: []identity.Identity{checkout()},
			Denies: []identity.Deny{{Name: "d", Match: items("workload.docker.id", "y")}}},
			func(r *identity.Request) { r.Unknown = []string{"workload.docker"} },
			identity.Explanation{
				Code:    "denied_unknown",
				Denies:  []identity.DenyHit{{Deny: "d", Unknown: true, Failing: []identity.Failing{{Fact: "workload.docker.id", Want: "y", Unknown: true}}}},
				Refused: []identity.Refused{{Identity: "checkout", Code: "denied_unknown", SPIFFEID: id, Deny: "d", Why: "withheld by Deny d"}}}},
	} {
		r := shop(t)
		if row.change != nil {
			row.change(&r)
		}
		got := requireSet(t, row.r).Explain(r)
		holding := cmpopts.IgnoreTypes([]identity.Holding(nil)) // see TestExplainTellsWhatHolds
		if diff := cmp.Diff(row.want, got, holding); diff != "" {
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
	want := `nothing is granted (spiffe_id_no_value)
refused: Identity checkout, match[0] holds, but spiffe_id: workload.x has 0 values, and a template takes exactly one
deny holds: d, match[0]: "key\nleaked"
  ok    node.name is "n1"
`
	if diff := cmp.Diff(want, x.String()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	want = `nothing is granted (when_no_answer)
nearest: Identity b, match[0], where 1 of 2 hold
  ok    node.name is "n1"
  FAILS when "workload.docker.id == \"x\"" gives no answer: "workload.docker.id is absent"
then: Identity c, match[0], where 1 of 3 hold
  ok    node.name is "n1"
  FAILS workload.unix.uid wants "33", and is "1000"
  FAILS workload.docker.id wants "*", and is absent
`
	near := x
	near.Refused, near.Denies, near.Code = nil, nil, "when_no_answer"
	if diff := cmp.Diff(want, near.String()); diff != "" {
		t.Errorf("misses (-want +got):\n%s", diff)
	}
	data, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var again identity.Explanation
	if err := json.Unmarshal(data, &again); err != nil || !cmp.Equal(x, again) {
		t.Errorf("JSON gave back %+v, %v", again, err)
	}
	if got := requireSet(t, identity.Resources{}).Explain(shop(t)).String(); got != "nothing is granted (no_identity)\nthere are no Identities\n" {
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

// A grant shows the facts that it was made on, and what two Identities have
// alike.
func TestExplainTellsWhatHolds(t *testing.T) {
	when := `workload.unix.uid == "1000"`
	s := requireSet(t, of(
		identity.Identity{Name: "a", SPIFFEID: "/a", Hint: "main", Match: []identity.Item{{Terms: terms("node.name", "n*", "node.name", "n1"), When: when}}},
		identity.Identity{Name: "b", SPIFFEID: "/b", Hint: "main", Match: items("node.name", "n1")},
		identity.Identity{Name: "c", SPIFFEID: "/a", Match: items("node.name", "n1")},
	))
	x := s.Explain(shop(t))
	one := []identity.Holding{{Fact: "node.name", Want: "n1", Found: []string{"n1"}}}
	want := []identity.Granted{
		{Identity: "a", SPIFFEID: "spiffe://example.org/a", Holding: append([]identity.Holding{{Fact: "node.name", Want: "n*", Found: []string{"n1"}}}, append(one, identity.Holding{Want: when})...)},
		{Identity: "b", SPIFFEID: "spiffe://example.org/b", Holding: one, Note: `its hint "main" is that of Identity a, and is left out`},
		{Identity: "c", SPIFFEID: "spiffe://example.org/a", Holding: one, Note: "it has the SPIFFE ID of Identity a: the workload gets two SVIDs of it"},
	}
	if diff := cmp.Diff(want, x.Granted); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{"granted: spiffe://example.org/a, by Identity a, match[0]\n", "  ok    node.name wants \"n*\", and is \"n1\"\n", "  note: it has the SPIFFE ID of Identity a"} {
		if !strings.Contains(x.String(), line) {
			t.Errorf("no %q in\n%s", line, x)
		}
	}
}

// What is unknown says why, in the words of what failed.
func TestExplainBecause(t *testing.T) {
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1", "workload.docker.id", "x")}, {Name: "b", SPIFFEID: "/b", Match: items("node.name", "n1")}},
		Denies:     []identity.Deny{{Name: "d", Match: items("workload.docker.id", "y")}},
	})
	r := shop(t)
	r.Unknown = []string{"workload.docker"}
	x := s.Explain(r)
	x.Because(map[string]string{"workload.dock": "no", "workload.docker": "its socket is not there"})
	if x.Code != "denied_unknown" || x.Denies[0].Failing[0].Why != "its socket is not there" || x.Misses[0].Failing[0].Why != "its socket is not there" {
		t.Errorf("%+v", x)
	}
	if x = s.ExplainIdentity(r, "a"); x.Code != "attestor_failed" {
		t.Errorf("%+v", x)
	}
}

// An explanation fits a screen, whatever it is about.
func TestExplainFitsAScreen(t *testing.T) {
	var all []identity.Identity
	var pairs []string
	for i := range 32 {
		pairs = append(pairs, fmt.Sprintf("workload.x%d", i), "y")
	}
	pairs[0], pairs[1] = "node.name", "n1"
	for i := range 50 {
		all = append(all, identity.Identity{Name: fmt.Sprintf("i%d", i), SPIFFEID: "/a", Match: items(pairs...)})
	}
	text := requireSet(t, of(all...)).Explain(shop(t)).String()
	if n := strings.Count(text, "\n"); n > 40 {
		t.Errorf("%d lines:\n%s", n, text)
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
