package identity_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// naive says what an item gives, without any index: -1 false, 0 unknown, 1
// true.
func naive(item identity.Item, all map[string][]string, unknown []string) int {
	truth := 1
	for _, t := range item.Terms {
		truth = min(truth, naiveTerm(t, all, unknown))
	}
	if item.When != "" {
		truth = min(truth, naiveWhens[item.When](all, unknown))
	}
	return truth
}

func naiveUnknown(name string, unknown []string) bool {
	return slices.ContainsFunc(unknown, func(u string) bool { return name == u || strings.HasPrefix(name, u+".") })
}

func naiveTerm(t identity.Term, all map[string][]string, unknown []string) int {
	if naiveUnknown(t.Name, unknown) {
		return 0
	}
	if slices.ContainsFunc(all[t.Name], asRegexp(t.Pattern).MatchString) {
		return 1
	}
	return -1
}

// naiveWhens are expressions and the same in Go.
var naiveWhens = map[string]func(map[string][]string, []string) int{
	`node.a == "x"`: func(all map[string][]string, unknown []string) int {
		if v := all["node.a"]; v == nil || naiveUnknown("node.a", unknown) {
			return 0
		}
		return map[bool]int{true: 1, false: -1}[slices.Equal(all["node.a"], []string{"x"})]
	},
	`has(workload.u.b)`: func(all map[string][]string, unknown []string) int {
		if naiveUnknown("workload.u.b", unknown) {
			return 0
		}
		return map[bool]int{true: 1, false: -1}[all["workload.u.b"] != nil]
	},
}

var (
	drawName    = rapid.SampledFrom([]string{"node.a", "node.b", "workload.u.a", "workload.u.b", "workload.v.a"})
	drawValue   = rapid.SampledFrom([]string{"x", "xy", "x/y", "y", ""})
	drawPattern = rapid.SampledFrom([]string{"x", "xy", "x/y", "y", "x*", "x**", "*", "**", "*y", "x*y", "xy*", "*x*", "**/y"})
	drawTerm    = rapid.Custom(func(t *rapid.T) identity.Term {
		return identity.Term{Name: drawName.Draw(t, "name"), Pattern: drawPattern.Draw(t, "pattern")}
	})
)

func drawItem(any bool) *rapid.Generator[identity.Item] {
	return rapid.Custom(func(t *rapid.T) identity.Item {
		i := identity.Item{Terms: rapid.SliceOfN(drawTerm, 0, 3).Draw(t, "terms"), AnyNode: any}
		if len(i.Terms) == 0 || rapid.IntRange(0, 4).Draw(t, "with when") == 0 {
			i.When = rapid.SampledFrom([]string{`node.a == "x"`, `has(workload.u.b)`}).Draw(t, "when")
		}
		return i
	})
}

// TestIndexIsTheNaiveLoop holds Decide against a loop over everything; a million
// requests take -rapid.checks=100000.
func TestIndexIsTheNaiveLoop(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var r identity.Resources
		for n := range rapid.IntRange(1, 8).Draw(rt, "identities") {
			name := fmt.Sprintf("i%d", n)
			match := rapid.SliceOfN(drawItem(true), 1, 2).Draw(rt, "match")
			r.Identities = append(r.Identities, identity.Identity{Name: name, SPIFFEID: "/" + name, Match: match})
		}
		for n := range rapid.IntRange(0, 3).Draw(rt, "denies") {
			id := fmt.Sprintf("/i%d", rapid.IntRange(0, 7).Draw(rt, "denied"))
			r.Denies = append(r.Denies, identity.Deny{Name: fmt.Sprintf("d%d", n), SPIFFEIDs: []string{id},
				Match: rapid.SliceOfN(drawItem(false), 1, 2).Draw(rt, "deny")})
		}
		s := requireSet(t, r)
		for range 10 {
			heldAgainstTheLoop(t, rt, s, r)
		}
	})
}

// heldAgainstTheLoop decides on a drawn request.
func heldAgainstTheLoop(t *testing.T, rt *rapid.T, s *identity.Set, r identity.Resources) {
	all := rapid.MapOfN(drawName, rapid.SliceOfN(drawValue, 1, 2), 0, 5).Draw(rt, "facts")
	all["node.id"] = []string{"n"}
	unknown := rapid.SliceOfN(rapid.SampledFrom([]string{"workload.u", "workload.v.a", "node.b", "workload"}), 0, 2).Draw(rt, "unknown")

	var want []string
	for _, i := range r.Identities {
		granted := slices.ContainsFunc(i.Match, func(m identity.Item) bool { return naive(m, all, unknown) == 1 })
		for _, d := range r.Denies {
			holds := slices.ContainsFunc(d.Match, func(m identity.Item) bool { return naive(m, all, unknown) >= 0 })
			granted = granted && !(holds && d.SPIFFEIDs[0] == i.SPIFFEID)
		}
		if granted {
			want = append(want, i.Name)
		}
	}

	q := request(t, all)
	q.Unknown = unknown
	ds, _ := s.Decide(q)
	if diff := cmp.Diff(want, names(ds)); diff != "" {
		rt.Errorf("(-naive +index):\n%s", diff)
	}
	var explained []string
	for _, g := range s.Explain(q).Granted {
		explained = append(explained, g.Identity)
	}
	if diff := cmp.Diff(want, explained); diff != "" {
		rt.Errorf("(-naive +explained):\n%s", diff)
	}
}

func request(t testing.TB, all map[string][]string) identity.Request {
	t.Helper()
	q := identity.Request{Time: now, Keys: []identity.KeyDigest{key(1)}}
	node, workload := map[string][]string{}, map[string][]string{}
	for name, values := range all {
		if strings.HasPrefix(name, "node.") {
			node[name] = values
		} else {
			workload[name] = values
		}
	}
	var err error
	if q.Node, err = identity.NewFacts("node", node); err != nil {
		t.Fatal(err)
	}
	if q.Workload, err = identity.NewFacts("workload", workload); err != nil {
		t.Fatal(err)
	}
	return q
}

// manyIdentities is a cluster's policy: a service account in a namespace each.
func manyIdentities(n int) identity.Resources {
	r := identity.Resources{Denies: []identity.Deny{{Name: "incident", Match: items("node.name", "build-7")}}}
	for i := range n {
		r.Identities = append(r.Identities, identity.Identity{
			Name: fmt.Sprintf("w%d", i), SPIFFEID: "/ns/{workload.kubernetes.namespace}/{workload.kubernetes.service_account}",
			Match: items("node.kubernetes.cluster", "eu-prod", "workload.kubernetes.namespace", fmt.Sprintf("ns%d", i%200),
				"workload.kubernetes.service_account", fmt.Sprintf("sa%d", i)),
		})
	}
	return r
}

func manyRequest(t testing.TB, account string) identity.Request {
	return identity.Request{
		Node: facts(t, "node", "node.name", "n1", "node.method", "token", "node.kubernetes.cluster", "eu-prod"),
		Workload: facts(t, "workload", "workload.kubernetes.namespace", "ns1", "workload.kubernetes.service_account", account,
			"workload.kubernetes.pod", "p", "workload.unix.uid", "1000", "workload.unix.gid", "1000", "workload.unix.path", "/bin/x"),
		Keys: []identity.KeyDigest{key(1)}, Time: now,
	}
}

// A denial costs what a grant costs, and neither grows with policy.
// BenchmarkDecide also prints how much more a decision costs than among the
// fewest identities: growth-x, which would be 1,000 of a loop over all.
func BenchmarkDecide(b *testing.B) {
	first := map[string]float64{}
	for _, n := range []int{100, 10_000, 100_000} {
		s := requireSet(b, manyIdentities(n))
		for name, account := range map[string]string{"grant": "sa1", "denial": "none"} {
			r := manyRequest(b, account)
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					s.Decide(r)
				}
				took := float64(b.Elapsed()) / float64(b.N)
				if first[name] == 0 {
					first[name] = took
				}
				b.ReportMetric(took/first[name], "growth-x")
			})
		}
	}
}

func BenchmarkDecideWhen(b *testing.B) {
	r := manyIdentities(1000)
	for i := range r.Identities {
		r.Identities[i].Match[0].When = `workload.kubernetes.pod in ["p", "q"] && workload.unix.uid != "0"`
	}
	s := requireSet(b, r)
	q := manyRequest(b, "sa1")
	b.ReportAllocs()
	for b.Loop() {
		s.Decide(q)
	}
}

func BenchmarkNewSet(b *testing.B) {
	r := manyIdentities(100_000)
	for b.Loop() {
		requireSet(b, r)
	}
}

func TestDecideDoesNotGrowWithPolicy(t *testing.T) {
	if testing.Short() {
		t.Skip("builds 50,000 identities")
	}
	s := requireSet(t, manyIdentities(50_000))
	grant, denial := manyRequest(t, "sa1"), manyRequest(t, "none")
	requireDecisions(t, s, grant)
	requireDenied(t, s, denial)
	// A loop over everything takes milliseconds: 200 of those would be seen.
	least := time.Hour
	for range 5 { // a busy machine may hold up any of them, and hardly all
		start := time.Now()
		for range 100 {
			s.Decide(grant)
			s.Decide(denial)
		}
		least = min(least, time.Since(start))
	}
	if least > 200*time.Millisecond {
		t.Errorf("200 decisions took %s", least)
	}
}
