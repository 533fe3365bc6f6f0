package identity_test

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

// standing is policy by name.
type standing struct {
	identities map[string]identity.Identity
	denies     map[string]identity.Deny
}

func (s standing) resources() identity.Resources {
	return identity.Resources{Identities: slices.Collect(maps.Values(s.identities)), Denies: slices.Collect(maps.Values(s.denies))}
}

// draw makes a change of policy, and makes it there.
func (s standing) draw(rt *rapid.T) (ch identity.Changes) {
	for name := range drawNames(rt, "i", 6) {
		if rapid.IntRange(0, 2).Draw(rt, "deleted") == 0 {
			ch.WithoutIdentities = append(ch.WithoutIdentities, name)
			delete(s.identities, name)
			continue
		}
		i := identity.Identity{Name: name, Revision: rapid.Uint64Range(1, 9).Draw(rt, "revision"), Match: rapid.SliceOfN(drawItem(true), 1, 2).Draw(rt, "match"),
			SPIFFEID: rapid.SampledFrom([]string{"/" + name, "/{node.a}", "/{workload.u.b}/x"}).Draw(rt, "id"), Hint: rapid.SampledFrom([]string{"", "h"}).Draw(rt, "hint")}
		ch.Identities = append(ch.Identities, i)
		s.identities[name] = i
	}
	for name := range drawNames(rt, "d", 3) {
		if rapid.Bool().Draw(rt, "deleted") {
			ch.WithoutDenies = append(ch.WithoutDenies, name)
			delete(s.denies, name)
			continue
		}
		d := identity.Deny{Name: name, Match: rapid.SliceOfN(drawItem(false), 1, 2).Draw(rt, "deny"),
			SPIFFEIDs: rapid.SampledFrom([][]string{nil, {"/i1"}, {"/x*"}}).Draw(rt, "denied")}
		ch.Denies = append(ch.Denies, d)
		s.denies[name] = d
	}
	return ch
}

func drawNames(rt *rapid.T, prefix string, most int) map[string]bool {
	names := map[string]bool{}
	for _, n := range rapid.SliceOfN(rapid.IntRange(0, most), 0, 2).Draw(rt, "names") {
		names[fmt.Sprint(prefix, n)] = true
	}
	return names
}

// TestChangeIsReplace holds a Set that was changed again and again against one
// that is made of what stands, and what the changes are said to touch against
// what they do.
func TestChangeIsReplace(t *testing.T) {
	opts := []cmp.Option{cmp.AllowUnexported(identity.Grant{}), cmpopts.EquateComparable(spiffeid.ID{}), cmpopts.EquateEmpty()}
	rapid.Check(t, func(rt *rapid.T) {
		s := standing{map[string]identity.Identity{}, map[string]identity.Deny{}}
		s.draw(rt)
		set := requireSet(t, s.resources())
		var requests []identity.Request
		for range 4 {
			all := rapid.MapOfN(drawName, rapid.SliceOfN(drawValue, 1, 2), 0, 5).Draw(rt, "facts")
			all["node.id"] = []string{"n"}
			q := request(t, all)
			q.Unknown = rapid.SliceOfN(rapid.SampledFrom([]string{"workload.u", "workload.v.a", "node.b", "workload"}), 0, 2).Draw(rt, "unknown")
			requests = append(requests, q)
		}
		for range rapid.IntRange(1, 6).Draw(rt, "changes") {
			ch := s.draw(rt)
			next, difference, err := set.Change(ch)
			if err != nil {
				rt.Fatal(err)
			}
			fresh := requireSet(t, s.resources())
			for _, q := range requests {
				before, _ := set.Decide(q)
				want, _ := fresh.Decide(q)
				got, _ := next.Decide(q)
				if diff := cmp.Diff(want, got, opts...); diff != "" {
					rt.Errorf("after %+v (-made anew +changed):\n%s", ch, diff)
				}
				if diff := cmp.Diff(before, got, opts...); diff != "" && !(difference.On(q) && difference.OnNode(q.Node)) {
					rt.Errorf("%+v is said not to touch\n%+v, and does:\n%s", ch, q, diff)
				}
				if diff := cmp.Diff(fresh.Explain(q).Granted, next.Explain(q).Granted); diff != "" {
					rt.Errorf("after %+v, explained (-made anew +changed):\n%s", ch, diff)
				}
			}
			if diff := cmp.Diff(fresh.WantedFacts(), next.WantedFacts(), cmpopts.EquateEmpty()); diff != "" {
				rt.Errorf("wanted (-made anew +changed):\n%s", diff)
			}
			set = next
		}
	})
}

// TestChangeLeavesTheSet makes two changes of one Set, as an act that was
// refused and the next one do.
func TestChangeLeavesTheSet(t *testing.T) {
	web := func(name, value string) identity.Identity {
		return identity.Identity{Name: name, SPIFFEID: "/" + name, Match: items("node.name", "n1", "workload.u.b", value)}
	}
	set := requireSet(t, identity.Resources{Identities: []identity.Identity{web("a", "x"), web("b", "x"), web("c", "x")}})
	q := request(t, map[string][]string{"node.name": {"n1"}, "workload.u.b": {"x"}})
	change := func(ch identity.Changes) *identity.Set {
		t.Helper()
		next, _, err := set.Change(ch)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	first := change(identity.Changes{Identities: []identity.Identity{web("d", "x")}})
	second := change(identity.Changes{Identities: []identity.Identity{web("e", "x")}, WithoutIdentities: []string{"b", "nobody"}})
	for _, c := range []struct {
		set  *identity.Set
		want []string
	}{{set, []string{"a", "b", "c"}}, {first, []string{"a", "b", "c", "d"}}, {second, []string{"a", "c", "e"}}} {
		q.Keys = nil
		if diff := cmp.Diff(c.want, names(requireDecisions(t, c.set, q))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestChangeRefuses(t *testing.T) {
	set := requireSet(t, manyIdentities(3))
	for name, c := range map[string]struct {
		ch   identity.Changes
		want string
	}{
		"an identity": {identity.Changes{Identities: []identity.Identity{{Name: "w1", SPIFFEID: "/x", Match: items("node.name", "n")}, {Name: "w2", SPIFFEID: "/x"}}}, "Identity w2: match: missing"},
		"a target":    {identity.Changes{Identities: []identity.Identity{{Name: "w1", SPIFFEID: "/x", Match: items("node.name", "n"), Targets: []string{"t"}}}}, `there is no Target "t"`},
		"a deny":      {identity.Changes{Denies: []identity.Deny{{Name: "d", Match: items("node.name", "n"), SPIFFEIDs: []string{"x"}}}}, "Deny d: spiffe_ids[0]"},
		"twice":       {identity.Changes{Identities: []identity.Identity{{Name: "w1"}, {Name: "w1"}}}, "Identity w1: spiffe_id"},
	} {
		next, _, err := set.Change(c.ch)
		if err == nil || !strings.Contains(err.Error(), c.want) || next != nil || !errors.As(err, new(*identity.Error)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var ch identity.Changes
	for n := range 65 {
		ch.Identities = append(ch.Identities, identity.Identity{Name: fmt.Sprint("when", n), SPIFFEID: "/x", Match: []identity.Item{{When: `node.a == "x"`, AnyNode: true}}})
	}
	if _, _, err := set.Change(ch); err == nil || !strings.Contains(err.Error(), "65 items have only a when") {
		t.Errorf("items that are always found: %v", err)
	}
}

// TestChangesOfWhens holds that expressions which nothing has any more are let
// go of: each is compiled code.
func TestChangesOfWhens(t *testing.T) {
	set := requireSet(t, manyIdentities(3))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for n := range 500 {
		i := identity.Identity{Name: "w1", SPIFFEID: "/x", Match: items("node.name", "n")}
		i.Match[0].When = fmt.Sprintf(`workload.u.b == "%d" && workload.u.c in ["p", "q"] && workload.u.d != "0"`, n)
		var err error
		if set, _, err = set.Change(identity.Changes{Identities: []identity.Identity{i}}); err != nil {
			t.Fatal(err)
		}
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("500 changes of one expression keep %d bytes", grown)
	}
	runtime.KeepAlive(set)
}

// hurting is the policy that is slowest to look up: all identities share both
// terms on the node, 10,000 are in one namespace, 1 in 20 has a when.
func hurting(n, denies int) identity.Resources {
	var r identity.Resources
	for i := range n {
		namespace := fmt.Sprintf("ns%d", i%200)
		if i < 10_000 {
			namespace = "shop"
		}
		one := identity.Identity{
			Name: fmt.Sprintf("w%d", i), SPIFFEID: "/ns/{workload.kubernetes.namespace}/{workload.kubernetes.service_account}",
			Match: items("node.kubernetes.cluster", "eu-prod", "node.name", "n*", "workload.kubernetes.namespace", namespace,
				"workload.kubernetes.service_account", fmt.Sprintf("sa%d", i)),
		}
		if i%20 == 0 {
			one.Match[0].When = fmt.Sprintf(`workload.kubernetes.pod != "p%d"`, i%1000)
		}
		r.Identities = append(r.Identities, one)
	}
	for i := range denies {
		r.Denies = append(r.Denies, identity.Deny{Name: fmt.Sprintf("d%d", i), Match: items("node.name", fmt.Sprintf("build-%d", i), "workload.unix.uid", fmt.Sprint(i))})
	}
	return r
}

// BenchmarkHurting measures the policy that hurts: p99-µs of decisions, heap-MiB
// that it takes, one change of it, and what explains a refusal.
func BenchmarkHurting(b *testing.B) {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	set := requireSet(b, hurting(100_000, 1000))
	runtime.GC()
	runtime.ReadMemStats(&after)
	requests := []identity.Request{manyRequest(b, "sa777"), manyRequest(b, "sa780"), manyRequest(b, "none"), manyRequest(b, "sa20001")}
	b.Run("Decide", func(b *testing.B) {
		var took []time.Duration
		for n := 0; b.Loop(); n++ {
			start := time.Now()
			set.Decide(requests[n%len(requests)])
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "heap-MiB")
	})
	b.Run("Change", func(b *testing.B) {
		r := hurting(100_000, 1000)
		for n := 0; b.Loop(); n++ {
			i := r.Identities[n%100_000]
			i.Hint = "changed"
			if _, _, err := set.Change(identity.Changes{Identities: []identity.Identity{i}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Explain", func(b *testing.B) {
		for b.Loop() {
			set.Explain(requests[2])
		}
	})
	runtime.KeepAlive(set)
}
