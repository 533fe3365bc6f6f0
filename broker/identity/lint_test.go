package identity_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// lints are the names of what is warned of one resource.
func lints(all []identity.Warning, kind, name string) string {
	var names []string
	for _, w := range all {
		if w.Kind == kind && w.Name == name {
			names = append(names, w.Lint+" "+w.Field)
		}
	}
	return strings.Join(names, ", ")
}

func TestLint(t *testing.T) {
	type id = identity.Identity
	targets := []identity.Target{
		{Name: "gcp", Audience: "x", Limits: identity.Limits{Provider: "Google Cloud", SPIFFEID: 127}},
		{Name: "roles", Limits: identity.Limits{Provider: "Roles Anywhere", SPIFFEID: 256, WantsRDN: "any"}},
		{Name: "bao", Limits: identity.Limits{Provider: "OpenBao", WantsRDN: "CN"}},
		{Name: "azure", Audience: "x", Limits: identity.Limits{Provider: "Entra", SPIFFEID: 600, App: "client_id a", Credentials: 20}},
		{Name: "other", Audience: "x"},
	}
	template := func(s string) func(*id) { return func(i *id) { i.SPIFFEID, i.Match = s, items("node.name", "n1") } }
	at := func(spiffeID string, pairs ...string) func(*id) {
		return func(i *id) {
			i.SPIFFEID, i.Targets, i.Match = spiffeID, []string{"gcp"}, items(append([]string{"node.name", "n1"}, pairs...)...)
		}
	}
	subject := func(target, s string) func(*id) {
		return func(i *id) { i.Targets, i.X509 = []string{target}, &identity.X509{Subject: s} }
	}
	jwt := func(j identity.JWT) func(*id) { return func(i *id) { i.JWT = &j } }
	output := func(life time.Duration) func(*id) {
		return func(i *id) {
			i.SPIFFEID, i.Match = "/a", items("node.name", "n1", "workload.output.name", "web")
			i.JWT = &identity.JWT{Audiences: identity.Plain("a"), TTL: life}
		}
	}
	orders := identity.Plain("orders")
	for _, row := range []struct {
		name   string
		change func(*id)
		want   string // lint and field; empty: no warning
	}{
		{"nothing", func(*id) {}, ""},
		{"any node", func(i *id) {
			i.Match = []identity.Item{{Terms: terms("workload.unix.uid", "0", "workload.kubernetes.namespace", "a"), AnyNode: true}}
		}, "any_node match[0].any_node"},
		{"only stars", func(i *id) {
			i.SPIFFEID, i.Match = "/a", []identity.Item{{Terms: terms("node.name", "**"), AnyNode: true}}
		}, "any_node match[0].any_node, stars_alone match[0]"},
		{"only a when", func(i *id) {
			i.SPIFFEID, i.Match = "/a", []identity.Item{{When: `node.name == "n1"`, AnyNode: true}}
		}, "any_node match[0].any_node, when_alone match[0]"},
		{"127 bytes", at("/" + strings.Repeat("a", 127-21)), ""},
		{"128 bytes", at("/" + strings.Repeat("a", 128-21)), "subject_long spiffe_id"},
		{"128 bytes where nobody minds", func(i *id) { i.SPIFFEID, i.Targets = "/"+strings.Repeat("a", 107), []string{"other"} }, ""},
		{"two facts", at("/{workload.a}/{workload.b}"), "subject_long spiffe_id"},
		{"two facts, fixed", at("/{workload.a}/{workload.b}", "workload.a", "x", "workload.b", strings.Repeat("b", 90)), ""},
		{"two facts, fixed and long", at("/{workload.a}/{workload.b}", "workload.a", "x", "workload.b", strings.Repeat("b", 127)), "subject_long spiffe_id"},
		{"two facts, one hashed", at("/{workload.a}/{workload.b | hash 32}"), ""},
		{"a path", at("/{workload.a | path}"), "subject_long spiffe_id"},
		{"no subject for Roles Anywhere", func(i *id) { i.Targets = []string{"gcp", "roles"} }, "subject_missing targets[1]"},
		{"a subject for Roles Anywhere", subject("roles", "O=Acme"), ""},
		{"no CN for OpenBao", subject("bao", "O=Acme"), "subject_missing targets[0]"},
		{"a CN for OpenBao", subject("bao", "O=Acme,CN=checkout"), ""},
		{"no subject where none is wanted", func(i *id) { i.Targets = []string{"other"} }, ""},
		{"a template for Entra", func(i *id) { i.SPIFFEID, i.Targets = "/{workload.a}", []string{"azure"} }, "credentials_template targets[0]"},
		{"a fixed template for Entra", func(i *id) { i.Targets = []string{"azure"} }, ""},
		{"any audience", jwt(identity.JWT{Audiences: identity.Plain("**")}), "audience_any jwt.audiences[0]"},
		{"no audience", jwt(identity.JWT{}), "jwt_no_audience jwt.audiences"},
		{"an algorithm that clouds don't find", jwt(identity.JWT{Audiences: orders, Alg: "ES256"}), "alg_undiscovered jwt.audiences[0]"},
		{"the same for SPIFFE IDs", jwt(identity.JWT{Audiences: identity.Plain("spiffe://a/b"), Alg: "ES256"}), ""},
		{"a long life", jwt(identity.JWT{Audiences: orders, TTL: 16 * time.Minute}), "jwt_life_long jwt.ttl"},
		{"not so long a life", jwt(identity.JWT{Audiences: orders, TTL: 15 * time.Minute}), ""},
		{"a file's short life", output(24 * time.Minute), "file_token_short jwt.ttl"},
		{"a file's default life", output(0), "file_token_short jwt.ttl"},
		{"a file's life", output(25 * time.Minute), ""},
		{"lower", template("/{workload.a | lower}"), "template_lossy spiffe_id"},
		{"lower of what is fixed", func(i *id) { i.SPIFFEID = "/{workload.kubernetes.namespace | lower}" }, ""},
		{"a short hash", template("/{workload.a | hash 31}"), "template_lossy spiffe_id"},
		{"a hash", template("/{workload.a | hash 32}"), ""},
		{"escape", template("/{workload.a | escape}"), ""},
		{"two facts in a segment", template("/{workload.a}-{workload.b}"), "template_ambiguous spiffe_id"},
		{"two facts in a segment, one hashed", template("/{workload.a}-{workload.b | hash 32}"), ""},
		{"two facts in a segment, one fixed", func(i *id) { i.SPIFFEID = "/{workload.kubernetes.namespace}-{workload.b}" }, ""},
		{"two facts in two", template("/{workload.a}/{workload.b}"), ""},
		{"a path and a segment", template("/{workload.a | path}/{workload.b}"), ""},
		{"two paths", template("/{workload.a | path}/{workload.b | path}"), "template_ambiguous spiffe_id"},
	} {
		s := requireSet(t, identity.Resources{Identities: []id{with(checkout(), row.change)}, Targets: targets})
		all := s.Lint(identity.Scope{})
		if got := lints(all, "Identity", "checkout"); got != row.want {
			t.Errorf("%s: %s, want %s: %v", row.name, got, row.want, all)
		}
		for _, w := range all {
			if !strings.HasSuffix(w.String(), "["+w.Lint+"]") || !strings.Contains(w.Msg, ":") && !strings.Contains(w.Msg, ",") {
				t.Errorf("%s tells no way out: %s", row.name, w)
			}
		}
	}
	if all := requireSet(t, of(with(checkout(), jwt(identity.JWT{Audiences: orders})))).Lint(identity.Scope{}); len(all) != 0 {
		t.Errorf("with an issuer: %v", all)
	}
	c := config()
	c.JWT = false
	s, err := identity.NewSet(c, of(with(checkout(), jwt(identity.JWT{Audiences: orders}))))
	if err != nil || lints(s.Lint(identity.Scope{}), "Identity", "checkout") != "jwt_no_issuer jwt" {
		t.Error("without an issuer", err)
	}
}

func TestLintDenies(t *testing.T) {
	for _, row := range []struct {
		name string
		item identity.Item
		want string
	}{
		{"a node", items("node.name", "n1")[0], ""},
		{"a node's workload", items("node.name", "n1", "workload.unix.uid", "0")[0], ""},
		{"a workload", items("workload.unix.uid", "0")[0], "deny_workload_only match[0]"},
		{"a workload, and a node by when", identity.Item{Terms: terms("workload.unix.uid", "0"), When: `node.name != "n1"`}, ""},
		{"a workload, and another by when", identity.Item{Terms: terms("workload.unix.uid", "0"), When: `has(workload.a)`}, "deny_workload_only match[0]"},
		{"a person", items("user.name", "a")[0], ""},
		{"only a when", identity.Item{When: `node.name == "n1"`}, "deny_when_alone match[0]"},
		{"a digest", items("node.name", "n1", "workload.unix.sha256", "x")[0], "deny_costly match[0]"},
	} {
		s := requireSet(t, identity.Resources{Denies: []identity.Deny{{Name: "d", Match: []identity.Item{row.item}}}})
		if got := lints(s.Lint(identity.Scope{}), "Deny", "d"); got != row.want {
			t.Errorf("%s: %s", row.name, got)
		}
	}
	many := func(n int) string {
		var pairs []string
		for i := range 32 {
			pairs = append(pairs, fmt.Sprintf("node.x.f%d", i), "x")
		}
		rest := make([]string, 0, 2*n)
		for i := 32; i < n; i++ {
			rest = append(rest, fmt.Sprintf("node.x.f%d", i), "x")
		}
		all := []identity.Deny{{Name: "a", Match: items(pairs...)}}
		for i := 0; i < len(rest); i += 20 {
			all = append(all, identity.Deny{Name: fmt.Sprintf("b%d", i), Match: items(rest[i:min(len(rest), i+20)]...)})
		}
		return lints(requireSet(t, identity.Resources{Denies: all}).Lint(identity.Scope{}), "", "")
	}
	if got := many(64); got != "" {
		t.Errorf("64 facts: %s", got)
	}
	if got := many(65); got != "denies_many denies" {
		t.Errorf("65 facts: %s", got)
	}
}

// The 16th credential of an app is warned of, once: of an app, not of a Target.
func TestLintCredentials(t *testing.T) {
	set := func(n int) []identity.Warning {
		limits := identity.Limits{Provider: "Entra", App: "client_id a", Credentials: 20}
		r := identity.Resources{Targets: []identity.Target{{Name: "t1", Audience: "x", Limits: limits}, {Name: "t2", Audience: "x", Limits: limits}, {Name: "t3", Audience: "x"}}}
		for i := range n {
			r.Identities = append(r.Identities, identity.Identity{
				Name: fmt.Sprintf("i%02d", i), SPIFFEID: fmt.Sprintf("/i%d", i), Match: items("node.name", "n1"), Targets: []string{[]string{"t1", "t2"}[i%2]},
			})
		}
		for i := range 5 { // which share a SPIFFE ID, and others that need no credential
			r.Identities = append(r.Identities,
				identity.Identity{Name: fmt.Sprintf("same%d", i), SPIFFEID: "/i0", Match: items("node.name", fmt.Sprint("m", i)), Targets: []string{"t1"}},
				identity.Identity{Name: fmt.Sprintf("else%d", i), SPIFFEID: fmt.Sprintf("/else%d", i), Match: items("node.name", "n1"), Targets: []string{"t3"}})
		}
		return requireSet(t, r).Lint(identity.Scope{})
	}
	if all := set(15); len(all) != 0 {
		t.Errorf("15: %v", all)
	}
	if all := set(16); len(all) != 1 || all[0].Lint != "credentials_many" || !strings.Contains(all[0].Msg, "each of 16 SPIFFE IDs, and has at most 20") {
		t.Errorf("16: %v", all)
	}
}

func TestLintAlike(t *testing.T) {
	a := identity.Identity{Name: "a", SPIFFEID: "/same", Match: items("node.name", "n1", "workload.unix.uid", "0")}
	for _, row := range []struct {
		name   string
		change func(*identity.Identity) // of b, which is a else
		want   string                   // of a, then of b
	}{
		{"the same match", func(*identity.Identity) {}, "; shadowed match[0]"},
		{"in full", func(i *identity.Identity) { i.SPIFFEID = "spiffe://example.org/same" }, "; shadowed match[0]"},
		{"another SPIFFE ID", func(i *identity.Identity) { i.SPIFFEID = "/other" }, "; "},
		{"a narrower match", func(i *identity.Identity) { i.Match[0].When = "has(workload.x)" }, "; shadowed match[0]"},
		{"a wider match", func(i *identity.Identity) { i.Match[0].Terms = terms("node.name", "n1") }, "shadowed match[0]; "},
		{"a wider pattern", func(i *identity.Identity) { i.Match[0].Terms[1].Pattern = "*" }, "shadowed match[0]; "},
		{"another match", func(i *identity.Identity) { i.Match[0].Terms[1].Pattern = "1" }, "; "},
		{"a second item", func(i *identity.Identity) { i.Match = append(items("node.name", "n2"), i.Match...) }, "; shadowed match[1]"},
		{"a hint", func(i *identity.Identity) { i.SPIFFEID, i.Hint = "/other", "main" }, "; hint_shared hint"},
		{"another hint", func(i *identity.Identity) { i.SPIFFEID, i.Hint = "/other", "second" }, "; "},
		{"a hint of others", func(i *identity.Identity) {
			i.SPIFFEID, i.Hint, i.Match = "/other", "main", items("node.name", "n2")
		}, "; "},
	} {
		a.Hint = ""
		b := a
		b.Name, b.Match = "b", items("node.name", "n1", "workload.unix.uid", "0")
		row.change(&b)
		if b.Hint != "" {
			a.Hint = "main"
		}
		s := requireSet(t, of(a, b))
		all := s.Lint(identity.Scope{})
		if got := lints(all, "Identity", "a") + "; " + lints(all, "Identity", "b"); got != row.want {
			t.Errorf("%s: %s", row.name, got)
		}
		only := s.Lint(identity.Scope{Only: func(kind, name string) bool { return kind == "Identity" && name == "b" }})
		if got := "; " + lints(only, "Identity", "b"); strings.HasPrefix(row.want, ";") && got != row.want || lints(only, "Identity", "a") != "" {
			t.Errorf("%s, of b alone: %s", row.name, only)
		}
	}
}

func TestLintOfNodes(t *testing.T) {
	var many []identity.Place
	for i := range 9 {
		many = append(many, place(t, fmt.Sprint("m", i), "node.zone", "a"))
	}
	scope := identity.Scope{
		Live: true,
		Sources: []identity.Source{
			{Rule: "prod", Method: "kubernetes", Fixed: map[string]string{"node.kubernetes.cluster": "eu"}},
			{Rule: "ci", Method: "github"},
		},
	}
	for _, row := range []struct {
		name, want string
		item       identity.Item
		more       int // nodes
	}{
		{name: "a node that stands", item: items("node.name", "m1")[0]},
		{name: "a node to come", item: items("node.name", "new")[0]},
		{name: "a token's label to come", item: items("node.token.site", "b")[0]},
		{name: "a method's fact", item: items("node.github.repository", "a/b")[0]},
		{name: "a fact of a method without a JoinRule", item: items("node.gitlab.project", "a")[0], want: "unreachable match[0]"},
		{name: "a fact of nobody's that a node has", item: items("node.zone", "a")[0]},
		{name: "a fact of nobody's", item: items("node.zone", "b")[0], want: "unreachable match[0]"},
		{name: "a cluster", item: items("node.kubernetes.cluster", "eu")[0]},
		{name: "another cluster", item: items("node.kubernetes.cluster", "us")[0], want: "unreachable match[0]"},
		{name: "a JoinRule", item: items("node.join_rule", "ci")[0]},
		{name: "no JoinRule", item: items("node.join_rule", "cj")[0], want: "unreachable match[0]"},
		{name: "another method than the JoinRule's", item: items("node.join_rule", "ci", "node.method", "kubernetes")[0], want: "unreachable match[0]"},
		{name: "facts of two methods", item: items("node.github.repository", "a/b", "node.kubernetes.cluster", "eu")[0], want: "unreachable match[0]"},
		{name: "people", item: items("user.name", "ana")[0]},
		{name: "nine nodes", item: items("node.zone", "a", "workload.unix.uid", "0")[0]},
		{name: "ten nodes", more: 1, item: items("node.zone", "a", "workload.unix.uid", "0")[0], want: "nodes_many match[0]"},
		{name: "ten nodes that prove it", more: 1, item: items("node.zone", "a", "workload.kubernetes.proven", "true")[0]},
		{name: "one of ten", more: 1, item: items("node.zone", "a", "node.name", "m1")[0]},
	} {
		s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{row.item}}))
		scope.Nodes = many
		for i := range row.more {
			scope.Nodes = append(scope.Nodes, place(t, fmt.Sprint("n", i), "node.zone", "a"))
		}
		all := s.Lint(scope)
		if got := lints(all, "Identity", "a"); got != row.want {
			t.Errorf("%s: %v", row.name, all)
		}
		if all := s.Lint(identity.Scope{}); len(all) != 0 {
			t.Errorf("%s: without nodes it says %v", row.name, all)
		}
	}
}

// TestLintOfManyWhens holds that expressions count for more than terms: one that
// is slow, on each of many nodes, would keep an apply waiting.
func TestLintOfManyWhens(t *testing.T) {
	node := place(t, "n", "node.zone", "a")
	scope := identity.Scope{Live: true, Nodes: slices.Repeat([]identity.Place{node}, 20_000)}
	for when, want := range map[string]int{"": 1, `node.zone == "a"`: 0} {
		item := items("node.zone", "a", "workload.unix.uid", "0")
		item[0].When = when
		if all := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: item})).Lint(scope); len(all) != want {
			t.Errorf("%q: %v", when, all)
		}
	}
}
