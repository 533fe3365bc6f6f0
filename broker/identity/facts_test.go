package identity_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
)

func TestFactsRefused(t *testing.T) {
	many := map[string][]string{}
	for i := range 257 {
		many[fmt.Sprintf("node.%d", i)] = []string{"x"}
	}
	for name, row := range map[string]struct {
		prefix string
		m      map[string][]string
	}{
		"no prefix":              {"", map[string][]string{"node.a": {"x"}}},
		"another's fact":         {"workload.unix", map[string][]string{"workload.docker.id": {"x"}}},
		"a longer prefix":        {"workload.unix", map[string][]string{"workload.unixes.uid": {"x"}}},
		"the prefix itself":      {"node", map[string][]string{"node": {"x"}}},
		"no such root":           {"pod", map[string][]string{"pod.a": {"x"}}},
		"no value":               {"node", map[string][]string{"node.a": {}}},
		"an empty part":          {"node", map[string][]string{"node.a..b": {"x"}}},
		"a dot at the end":       {"node", map[string][]string{"node.a.": {"x"}}},
		"a space":                {"node", map[string][]string{"node.a b": {"x"}}},
		"a newline":              {"node", map[string][]string{"node.a\n": {"x"}}},
		"a brace":                {"node", map[string][]string{"node.{a}": {"x"}}},
		"a long name":            {"node", map[string][]string{"node." + strings.Repeat("a", 512): {"x"}}},
		"many facts":             {"node", many},
		"many bytes":             {"node", map[string][]string{"node.a": {strings.Repeat("a", 64<<10)}}},
		"many values of nothing": {"node", map[string][]string{"node.a": make([]string, 64<<10)}},
	} {
		if f, err := identity.NewFacts(row.prefix, row.m); err == nil {
			t.Errorf("%s: taken: %d facts", name, f.Len())
		}
	}
}

func TestFactsAreImmutable(t *testing.T) {
	m := map[string][]string{"node.a": {"x"}}
	f, err := identity.NewFacts("node", m)
	if err != nil {
		t.Fatal(err)
	}
	m["node.a"][0], m["node.b"] = "y", []string{"z"}
	f.Map()["node.a"][0] = "y"
	if diff := cmp.Diff(map[string][]string{"node.a": {"x"}}, f.Map()); diff != "" {
		t.Error(diff)
	}
}

func TestFactsJoin(t *testing.T) {
	a, b := facts(t, "node", "node.a", "x"), facts(t, "node", "node.b", "y", "node.c", "z")
	both, err := a.Join(b)
	if err != nil || both.Len() != 3 || a.Len() != 1 {
		t.Errorf("joined %v, %v", both.Map(), err)
	}
	if _, err := both.Join(a); err == nil {
		t.Error("one fact has two provers")
	}
	if zero, err := (identity.Facts{}).Join(a); err != nil || zero.Len() != 1 {
		t.Errorf("joined to nothing: %v, %v", zero.Map(), err)
	}
	var order []string
	for name := range both.All() {
		order = append(order, name)
	}
	if diff := cmp.Diff([]string{"node.a", "node.b", "node.c"}, order); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseFacts(f *testing.F) {
	f.Add("node", []byte(`{"node.a":["x"]}`))
	f.Add("workload.unix", []byte(`{"workload.unix.uid":["0"],"workload.unix.groups":["a","b"]}`))
	f.Add("node", []byte(`{"node.a":null}`))
	f.Fuzz(func(t *testing.T, prefix string, data []byte) {
		facts, err := identity.ParseFacts(prefix, data)
		if err != nil {
			return
		}
		for name, values := range facts.All() {
			if !strings.HasPrefix(name, prefix+".") || len(values) == 0 || identity.CheckFactName(name) != nil {
				t.Errorf("took %q under %q", name, prefix)
			}
		}
		again, err := json.Marshal(facts)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := identity.ParseFacts(prefix, again); err != nil && facts.Len() > 0 && !strings.Contains(err.Error(), "bytes") || err == nil && back.Len() != facts.Len() {
			t.Errorf("%s gave %v, %v", again, back, err)
		}
	})
}
