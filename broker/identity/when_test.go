package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
)

func TestWhen(t *testing.T) {
	for _, row := range []struct {
		when string
		want bool
	}{
		{`workload.unix.uid == "1000"`, true},
		{`int(workload.unix.uid) >= 1000`, true},
		{`workload.kubernetes.labels["app.kubernetes.io/name"] == "checkout"`, true},
		{`workload["kubernetes"]["labels"]["app.kubernetes.io/name"] == "checkout"`, true},
		{`workload.kubernetes.labels.tier in ["web", "api"]`, true},
		{`workload.kubernetes.labels.tier in ["api"]`, false},
		{`"app.kubernetes.io/name" in workload.kubernetes.labels`, true},
		{`"tier" in workload.kubernetes.labels && workload.kubernetes.labels.tier == "web"`, true},
		{`workload.kubernetes.labels.exists(k, k.startsWith("app.kubernetes.io/"))`, true},
		{`workload.kubernetes.labels.exists(k, workload.kubernetes.labels[k] == "checkout")`, true},
		{`workload.kubernetes.labels.all(k, k in ["tier", "app.kubernetes.io/name"])`, true},
		{`has(workload.kubernetes) && workload.kubernetes.namespace == "shop"`, true},
		{`has(workload.docker) || workload.kubernetes.namespace == "shop"`, true},
		{`!has(workload.docker)`, true},
		{`!has(workload.docker.labels.quarantine)`, true},
		{`has(workload.kubernetes.labels) && !("quarantine" in workload.kubernetes.labels)`, true},
		{`"docker" in workload.unix.groups`, true},
		{`"1000" in workload.unix.uid`, true}, // one value, searched: a list all the same
		{`workload.unix.groups.exists(g, g == "docker")`, true},
		{`workload.unix.uid.exists(g, g == "1000")`, true},
		{`size(workload.unix.groups) == 2`, true},
		{`workload.unix.groups[1] == "docker"`, true},
		{`workload.unix.groups == ["web", "docker"]`, true},
		{`workload.unix.groups == "docker"`, false},
		{`node.name.matches("^n[0-9]$")`, true},
		{`.node.name == "n1"`, true},
		{`["n1", "n2"].exists(n, n == node.name)`, true},
		{`{"a": node.name}.a == "n1"`, true},
		{`workload.kubernetes.labels.none == "x"`, false},
		{`user.email == "ana@example.org"`, false},
	} {
		item := identity.Item{Terms: terms("node.name", "n1"), When: row.when}
		if got := granted(t, item, shop(t)); got != row.want {
			t.Errorf("%s: %v", row.when, got)
		}
	}
}

func TestWhenRefused(t *testing.T) {
	for _, row := range []struct{ when, msg string }{
		{`workload.unix.uid`, "condition gives bool"},
		{`workload.unix.uid == "0" ? node.name : node.id`, "condition gives bool"},
		{`"a"`, "condition gives bool"},
		{`workload.unix.uid ==`, "Syntax error"},
		{`workflow.x == "a"`, "undeclared reference"},
		{`now() == "a"`, "undeclared reference"},
		{`workload.unix.uid == 1000`, "quote it"},
		{`1000 != workload.unix.uid`, "quote it"},
		{`workload.unix.uid in ["1", 2]`, "quote it"},
		{`workload == node`, "is no fact"},
		{`size(workload) > 0`, "is no fact"},
		{`workload.a == "x" && workload.a.b == "y"`, "both as a fact and as a group"},
		{`["a"].exists(node, node == "a")`, "call the variable something else"},
		{`true`, "reads no fact"},
		{`workload["a b"] == "x"`, "not a fact's name"},
		{`workload.unix.uid == "0" || ` + strings.Repeat(" ", 4096) + `true`, "4096 are taken"},
		{strings.Repeat("(", 300) + `workload.unix.uid == "0"` + strings.Repeat(")", 300), "recursion"},
	} {
		_, err := identity.NewSet(config(), of(identity.Identity{
			Name: "a", SPIFFEID: "/a", Match: []identity.Item{{Terms: terms("node.name", "n1"), When: row.when}},
		}))
		if err == nil || !strings.Contains(err.Error(), row.msg) || !strings.Contains(err.Error(), "match[0].when") {
			t.Errorf("%.60s: %v", row.when, err)
		}
	}
}

// A caller who may choose a label's key must not turn the fact that a deny
// reads into a group of facts, which would equal nothing.
func TestWhenLabelsCannotHideAFact(t *testing.T) {
	item := identity.Item{When: `workload.docker.labels.a == "x"`}
	for name, label := range map[string]string{"absent": "workload.docker.id", "below": "workload.docker.labels.a.b"} {
		r := shop(t)
		r.Workload = facts(t, "workload", label, "1")
		if !denied(t, item, r) {
			t.Errorf("%s: the deny doesn't hold", name)
		}
	}
	r := shop(t)
	r.Workload = facts(t, "workload", "workload.docker.labels.a.b", "1")
	if granted(t, identity.Item{Terms: terms("node.name", "n1"), When: `has(workload.docker.labels.a)`}, r) {
		t.Error("a.b passes for a")
	}
}

// Nor may a path that is used in two ways become a group.
func TestWhenFactsAreNeverGroups(t *testing.T) {
	r := shop(t)
	r.Workload = facts(t, "workload", "workload.docker.labels.a.b", "1")
	if !denied(t, identity.Item{When: `"x" == workload.docker.labels.a || "q" in workload.docker.labels.a`}, r) {
		t.Error("the deny doesn't hold")
	}
}

// An item that two values lead to is one candidate.
func TestWhensAreCountedOnce(t *testing.T) {
	var all []identity.Identity
	for i := range 40 {
		all = append(all, identity.Identity{Name: fmt.Sprintf("i%d", i), SPIFFEID: "/a", Match: []identity.Item{
			{Terms: terms("workload.unix.groups", "*"), When: `node.name == "n1"`, AnyNode: true},
		}})
	}
	if ds := requireDecisions(t, requireSet(t, of(all...)), shop(t)); len(ds) != 40 {
		t.Errorf("%d decisions of 40", len(ds))
	}
}

func TestWhensAreCounted(t *testing.T) {
	many := func(n int, terms []identity.Term) identity.Resources {
		var r identity.Resources
		for range n {
			r.Identities = append(r.Identities, identity.Identity{
				Name: "i" + strings.Repeat("a", len(r.Identities)%50) + string(rune('a'+len(r.Identities)/50)), SPIFFEID: "/a",
				Match: []identity.Item{{Terms: terms, When: `node.name == "n1"`, AnyNode: true}},
			})
		}
		return r
	}
	if ds := requireDecisions(t, requireSet(t, many(64, terms("node.name", "n1"))), shop(t)); len(ds) != 64 {
		t.Errorf("%d decisions of 64", len(ds))
	}
	requireDenied(t, requireSet(t, many(65, terms("node.name", "n1"))), shop(t))
	requireSet(t, many(64, nil))
	if _, err := identity.NewSet(config(), many(65, nil)); err == nil || !strings.Contains(err.Error(), "only a when") {
		t.Errorf("65 items without terms: %v", err)
	}
}

func TestReplaceKeepsTheOldSet(t *testing.T) {
	item := identity.Item{Terms: terms("node.name", "n1"), When: `node.name == "n1"`}
	r := of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{item}})
	old := requireSet(t, r)
	r.Identities = append(r.Identities, identity.Identity{Name: "b", SPIFFEID: "/b", Match: []identity.Item{item}})
	next, err := old.Replace(config(), r)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := len(requireDecisions(t, old, shop(t))), len(requireDecisions(t, next, shop(t))); a != 1 || b != 2 {
		t.Errorf("%d and %d decisions", a, b)
	}
}

func FuzzWhen(f *testing.F) {
	for _, s := range []string{
		`workload.unix.uid == "0"`, `has(workload.a.b)`, `"x" in workload.labels && workload.labels.x == "1"`,
		`workload.labels.exists(k, workload.labels[k] == "x")`, `node.a.matches("(a*)*b")`, `workload["a"]["b.c"] != "d"`,
		`[1,2].map(x, x + 1) == [2, 3] || node.a == "b"`, `workload[node.name] == "x"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		item := []identity.Item{{When: text}}
		if identity.CheckItems(item) != nil {
			return
		}
		r := of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{{When: text, AnyNode: true}}})
		s, err := identity.NewSet(config(), r)
		if err != nil {
			return // path and sha256 don't stand alone
		}
		q := shop(t)
		s.Decide(q)
		// Kleene: what is granted while a prover failed is granted whatever it
		// would have said.
		q.Unknown = []string{"workload"}
		if _, err := s.Decide(q); err != nil {
			return
		}
		q.Unknown = nil
		if _, err := s.Decide(q); err != nil {
			t.Errorf("%q: granted on unknown facts, not on these", text)
		}
		q.Workload = identity.Facts{}
		if _, err := s.Decide(q); err != nil {
			t.Errorf("%q: granted on unknown facts, not on none", text)
		}
	})
}
