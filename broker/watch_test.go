package broker_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
)

// told returns what a session is told, and checks that it was woken for it,
// and only for it.
func (e *env) told(s *broker.Session) []broker.Change {
	e.Helper()
	woken := false
	select {
	case <-s.Wake():
		woken = true
	default:
	}
	changes, evicted := s.Take()
	if evicted {
		e.Fatal("it is told of an eviction")
	}
	if woken != (len(changes) > 0) {
		e.Fatalf("woken is %v, changes are %v", woken, changes)
	}
	erased := slices.IndexFunc(changes, func(c broker.Change) bool { return !c.Erase })
	if erased >= 0 && slices.ContainsFunc(changes[erased:], func(c broker.Change) bool { return c.Erase }) {
		e.Fatalf("a denial comes after something else: %v", changes)
	}
	if again, _ := s.Take(); len(again) > 0 {
		e.Fatalf("it is told twice: %v", again)
	}
	return changes
}

func (e *env) swap(r identity.Resources) {
	e.Helper()
	e.policy = e.newPolicy(e.policy.Revision+1, r)
	e.SetPolicy(e.policy)
}

// change is swap where Identities and Denies alone change.
func (e *env) change(before, after identity.Resources) {
	e.Helper()
	ch := identity.Changes{Denies: after.Denies}
	for _, d := range before.Denies {
		if !slices.ContainsFunc(after.Denies, func(o identity.Deny) bool { return o.Name == d.Name }) {
			ch.WithoutDenies = append(ch.WithoutDenies, d.Name)
		}
	}
	for _, i := range after.Identities {
		if !slices.ContainsFunc(before.Identities, func(o identity.Identity) bool { return cmp.Equal(o, i) }) {
			ch.Identities = append(ch.Identities, i)
		}
	}
	for _, i := range before.Identities {
		if !slices.ContainsFunc(after.Identities, func(o identity.Identity) bool { return o.Name == i.Name }) {
			ch.WithoutIdentities = append(ch.WithoutIdentities, i.Name)
		}
	}
	set, difference, err := e.policy.Set.Change(ch)
	e.must(err)
	next := *e.policy
	next.Revision++
	next.Set, next.Difference = set, difference
	e.policy = &next
	e.SetPolicy(e.policy)
}

func TestWatch(t *testing.T) {
	one := func(change func(*identity.Identity)) identity.Resources {
		i := web("web")
		change(&i)
		return identity.Resources{Identities: []identity.Identity{i}}
	}
	same := func(*identity.Identity) {}
	targets := func(revision uint64) identity.Resources {
		r := one(func(i *identity.Identity) { i.Targets = []string{"cloud"} })
		r.Targets = []identity.Target{{Name: "cloud", Revision: revision, Audience: "x"}}
		return r
	}
	with := func(r identity.Resources, d ...identity.Deny) identity.Resources {
		r.Denies = d
		return r
	}
	other := web("other")
	other.Match[0].Terms[1].Pattern = "1000"
	more := web("more")
	erase, ask := []broker.Change{{Set: set(1), Erase: true}}, []broker.Change{{Set: set(1)}}
	for _, row := range []struct {
		name          string
		before, after identity.Resources
		want          []broker.Change
	}{
		{"the same", one(same), one(same), nil},
		{"a Deny", one(same), with(one(same), deny("workload.unix.uid", "33")), erase},
		{"a Deny of others that reads nothing new", one(same), with(one(same), deny("workload.unix.uid", "0")), nil},
		// What was granted may be lent to processes that the Deny is about.
		{"a Deny of others that reads something new", one(same), with(one(same), deny("workload.unix.gid", "0")), ask},
		{"a Deny is lifted of which we knew", with(one(same), deny("workload.unix.gid", "0")), one(same), ask},
		{"the identity is gone", one(same), identity.Resources{}, erase},
		{"it is for others now", one(same), one(func(i *identity.Identity) { i.Match[0].Terms[1].Pattern = "34" }), erase},
		{"another ID", one(same), one(func(i *identity.Identity) { i.SPIFFEID = "/x" }), ask},
		{"another hint", one(same), one(func(i *identity.Identity) { i.Hint = "x" }), ask},
		{"other audiences", one(same), one(func(i *identity.Identity) { i.JWT.Audiences = nil }), ask},
		{"another life", one(same), one(func(i *identity.Identity) { i.X509 = &identity.X509{TTL: time.Minute} }), ask},
		{"another subject", one(same), one(func(i *identity.Identity) { i.X509 = &identity.X509{Subject: "CN=web"} }), ask},
		{"a target's settings", targets(1), targets(2), ask},
		{"one more identity", one(same), identity.Resources{Identities: []identity.Identity{web("web"), more}}, ask},
		{"one fewer", identity.Resources{Identities: []identity.Identity{web("web"), more}}, one(same), ask},
		{"an identity of others", one(same), identity.Resources{Identities: []identity.Identity{web("web"), other}}, nil},
		{"a revision, and nothing else", one(same), one(func(i *identity.Identity) { i.Revision = 9 }), nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := newEnv(t)
			n := e.caller("n1")
			idle := e.Watch(e.caller("n2"))
			defer idle.Close()
			for _, change := range []bool{false, true} {
				if change && !cmp.Equal(row.before.Targets, row.after.Targets) {
					continue
				}
				e.swap(row.before)
				session := e.Watch(n)
				e.issue(n, item(t, 1))
				e.equal(e.told(session), []broker.Change(nil))
				if change {
					e.change(row.before, row.after)
				} else {
					e.swap(row.after)
				}
				e.equal(e.told(session), row.want)
				e.equal(e.told(idle), []broker.Change(nil))
				e.SetPolicy(e.policy) // it knows
				e.equal(e.told(session), []broker.Change(nil))
				session.Close()
			}
		})
	}
}

// TestWatchJWT holds that a JWT-SVID alone makes its facts watched.
func TestWatchJWT(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	_, d, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{
		Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}, TTL: time.Minute,
	})
	if err != nil || d != nil {
		t.Fatal(d, err)
	}
	e.issue(n, item(t, 1)) // which is the same
	e.swap(identity.Resources{Identities: []identity.Identity{web("web")}})
	e.equal(e.told(session), []broker.Change(nil))
	e.swap(identity.Resources{Identities: []identity.Identity{web("web")}, Denies: []identity.Deny{deny("workload.unix.uid", "33")}})
	e.equal(e.told(session), []broker.Change{{Set: set(1), Erase: true}})
}

func TestDenialsFirst(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	var items []broker.X509Item
	for i := range 20 {
		it := item(t, i)
		it.Workload = workload(t, "workload.unix.uid", "33", "workload.unix.gid", []string{"1", "2"}[i%2])
		items = append(items, it)
	}
	e.issue(n, items...)
	i := web("web")
	i.Hint = "x"
	e.swap(identity.Resources{Identities: []identity.Identity{i}}) // every set is to be asked for again
	e.swap(identity.Resources{Identities: []identity.Identity{i}, Denies: []identity.Deny{deny("workload.unix.gid", "2")}})
	changes := e.told(session)
	erased := map[[sha256.Size]byte]bool{}
	for _, c := range changes {
		if _, twice := erased[c.Set]; twice {
			t.Errorf("set %x is told twice", c.Set[:4])
		}
		erased[c.Set] = c.Erase
	}
	for i := range 20 {
		if got, ok := erased[set(i)]; !ok || got != (i%2 == 1) {
			t.Errorf("set %d: told %v, to erase %v", i, ok, got)
		}
	}
}

// TestEraseStays holds that to ask again never takes back to erase.
func TestEraseStays(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	e.issue(n, item(t, 1))
	denied := identity.Resources{Identities: []identity.Identity{web("web")}, Denies: []identity.Deny{deny("workload.unix.uid", "33")}}
	e.swap(denied)
	e.swap(identity.Resources{Identities: []identity.Identity{web("web")}})
	e.issue(n, item(t, 1)) // granted again, before it was told
	e.swap(identity.Resources{Identities: []identity.Identity{web("more"), web("web")}})
	e.equal(e.told(session), []broker.Change{{Set: set(1), Erase: true}, {Set: set(1)}})
}

// TestPolicyMoves swaps the policy after a decision's was chosen.
func TestPolicyMoves(t *testing.T) {
	for name, ask := range map[string]func(*env, broker.Node){
		"x509": func(e *env, n broker.Node) {
			if r := e.issue(n, item(e, 1))[0]; len(r.SVIDs) != 1 || r.Revision != 1 {
				e.Fatalf("the result is %+v", r)
			}
		},
		"jwt": func(e *env, n broker.Node) {
			svids, _, err := e.IssueJWT(e.Context(), n, broker.JWTRequest{Workload: workload(e, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
			if err != nil || len(svids) != 1 {
				e.Fatal(svids, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			n := e.caller("n1")
			session := e.Watch(n)
			defer session.Close()
			e.mu.Lock()
			e.hook = func() { e.swap(identity.Resources{}) }
			e.mu.Unlock()
			ask(e, n)
			e.equal(e.told(session), []broker.Change{{Set: set(1)}})
			if r := e.issue(n, item(t, 1))[0]; r.Denial == nil {
				t.Errorf("asked again: %+v", r)
			}
		})
	}
}

// TestPolicyComesLater asks for a token between a policy and its coming to the
// session: what the agent holds by the policy before is not forgotten by that.
func TestPolicyComesLater(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	both := identity.Resources{Identities: []identity.Identity{web("more"), web("web")}}
	e.swap(both)
	r := e.issue(n, item(t, 1))[0]
	if len(r.SVIDs)+r.KeysNeeded != 2 {
		t.Fatalf("the result is %+v", r)
	}
	without, difference, err := e.policy.Set.Change(identity.Changes{WithoutIdentities: []string{"more"}})
	e.must(err)
	next := *e.policy
	next.Revision, next.Set, next.Difference = next.Revision+1, without, difference
	e.StorePolicy(&next)
	svids, _, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
	if err != nil || len(svids) != 1 {
		t.Fatal(svids, err)
	}
	e.SetPolicy(&next)
	e.equal(e.told(session), []broker.Change{{Set: set(1)}})
	e.issue(n, item(t, 1))
	e.equal(e.told(session), []broker.Change(nil))
}

// held is an item that costs no signature.
func (e *env) held(n broker.Node, count int) []broker.X509Item {
	e.Helper()
	svid := e.issue(n, item(e, 0))[0].SVIDs[0]
	items := make([]broker.X509Item, count)
	for i := range items {
		items[i] = item(e, i)
		items[i].Keys = nil
		items[i].Held = []broker.Held{{Identity: "web", Digest: svid.Digest, NotAfter: start.Add(time.Hour)}}
	}
	return items
}

func TestManySets(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	items := e.held(n, 4097)
	some := func(items []broker.X509Item) {
		t.Helper()
		for batch := range slices.Chunk(items, broker.MaxItems) {
			e.issue(n, batch...)
		}
	}
	changed := web("web")
	changed.Hint = "x"
	some(items[:4096])
	e.swap(identity.Resources{Identities: []identity.Identity{changed}})
	if got := e.told(session); len(got) != 4096 || slices.Contains(got, broker.Change{}) {
		t.Fatalf("of 4096 sets %d are told", len(got))
	}
	some(items[4096:])
	e.swap(identity.Resources{Identities: []identity.Identity{changed}}) // the same, but who knows of the last one
	e.equal(e.told(session), []broker.Change{{}})

	// It is told everything at once, then begins anew.
	some(items[:1])
	e.swap(e.same())
	e.equal(e.told(session), []broker.Change{{Set: items[0].Set}}) // the hint is gone again

	// A denial of what is remembered is told by name all the same.
	some(items)
	e.swap(identity.Resources{})
	got := e.told(session)
	if len(got) != 4097 || got[4096] != (broker.Change{}) || slices.ContainsFunc(got[:4096], func(c broker.Change) bool { return !c.Erase }) {
		t.Errorf("%d changes, the last is %v", len(got), got[len(got)-1])
	}
}

func (e *env) same() identity.Resources {
	return identity.Resources{Identities: []identity.Identity{web("web")}}
}

// TestLargeSets holds that what a session remembers is bounded in bytes too.
func TestLargeSets(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	items := e.held(n, 150)
	for i := range items {
		items[i].Workload = workload(t, "workload.unix.uid", "33", "workload.x", strings.Repeat("x", 60<<10))
	}
	for batch := range slices.Chunk(items, 50) {
		e.issue(n, batch...)
	}
	e.issue(n, items[:50]...) // known ones take no more
	e.swap(e.same())
	e.equal(e.told(session), []broker.Change{{}})
	e.issue(n, items[:60]...) // room again
	e.swap(e.same())
	e.equal(e.told(session), []broker.Change(nil))
}

// TestRejoined holds that a node which proves other facts is judged by them.
func TestRejoined(t *testing.T) {
	e := newEnv(t)
	i := web("web")
	i.Match[0].Terms[0] = identity.Term{Name: "node.token.site", Pattern: "a"}
	e.swap(identity.Resources{Identities: []identity.Identity{i}})
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	e.issue(n, item(t, 1))
	e.join("n1")
	e.equal(e.told(session), []broker.Change(nil))
	elsewhere := web("other")
	elsewhere.Match[0].Terms[0].Pattern = "n2"
	// The last change of policy, which touches none of it, doesn't tell what a join does.
	e.change(identity.Resources{Identities: []identity.Identity{i}}, identity.Resources{Identities: []identity.Identity{i, elsewhere}})
	e.equal(e.told(session), []broker.Change(nil))
	e.site = "b"
	e.join("n1")
	e.equal(e.told(session), []broker.Change{{Set: set(1), Erase: true}})
}

// TestRejoinedUnderNames holds that an SVID with names of facts that the node no
// longer proves is not held any more.
func TestRejoinedUnderNames(t *testing.T) {
	e := newEnv(t)
	i := web("web")
	i.X509 = &identity.X509{DNSNames: []string{"{node.token.site}.svc"}}
	next := *e.policy
	next.Revision++
	var err error
	next.Set, err = identity.NewSet(identity.Config{TrustDomain: td, JWT: true, AnyDNSName: true}, identity.Resources{Identities: []identity.Identity{i}})
	e.must(err)
	e.SetPolicy(&next)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	asked := item(t, 1)
	svid := e.issue(n, asked)[0].SVIDs[0]
	e.equal(svid.Chain[0].DNSNames, []string{"a.svc"})
	asked.Held = []broker.Held{{Identity: "web", Digest: svid.Digest, NotAfter: start.Add(time.Hour)}}
	if held := e.issue(n, asked)[0].SVIDs[0]; held.Chain != nil {
		t.Error("it is not held")
	}
	e.site = "b"
	n = e.caller("n1")
	e.equal(e.told(session), []broker.Change{{Set: set(1)}})
	e.equal(e.issue(n, asked)[0].SVIDs[0].Chain[0].DNSNames, []string{"b.svc"})
}

// A node holds a bundle once it has acknowledged the message that brought it,
// on each of its streams.
func TestHolding(t *testing.T) {
	e := newEnv(t)
	one, two := e.caller("n1"), e.caller("n2")
	want := func(sequence uint64, connected, holding int) {
		t.Helper()
		c, h := e.Holding(sequence)
		e.equal([]int{c, h}, []int{connected, holding})
	}
	want(1, 0, 0)
	a, b, again := e.Watch(one), e.Watch(two), e.Watch(two)
	want(1, 2, 0)
	a.Acknowledge(9) // nothing was sent
	want(1, 2, 0)
	a.SendingBundle(5, 10)
	a.Acknowledge(9) // of the message before
	want(5, 2, 0)
	a.Acknowledge(10)
	want(5, 2, 1)
	want(6, 2, 0)
	for _, s := range []*broker.Session{b, again} {
		want(5, 2, 1)
		s.SendingBundle(6, 11)
		s.Acknowledge(11)
	}
	want(5, 2, 2)
	want(6, 2, 1)
	a.SendingBundle(7, 12)
	want(5, 2, 2) // it still holds what it held
	a.Close()
	want(6, 1, 1)
}

func TestSessions(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	if e.Connected(n.ID) || e.Acknowledged(n.ID) != 0 {
		t.Error("it is connected before it is")
	}
	first, second := e.Watch(n), e.Watch(n)
	if !e.Connected(n.ID) {
		t.Error("it is not connected")
	}
	first.Acknowledge(5)
	e.equal(e.Acknowledged(n.ID), uint64(0)) // the other has said nothing
	second.Acknowledge(7)
	second.Acknowledge(6) // comes late
	e.equal(e.Acknowledged(n.ID), uint64(5))
	first.Close()
	first.Close()
	e.equal(e.Acknowledged(n.ID), uint64(7))
	e.issue(n, item(t, 1))
	e.swap(identity.Resources{})
	e.equal(e.told(first), []broker.Change(nil)) // it is closed
	e.equal(e.told(second), []broker.Change{{Set: set(1), Erase: true}})
	second.Close()
	if e.Connected(n.ID) || e.Acknowledged(n.ID) != 0 {
		t.Error("it is connected after it was")
	}
	nobody := e.Watch(broker.Node{ID: "spiffe://example.org/credence/node/nobody"})
	defer nobody.Close()
	if _, evicted := nobody.Take(); !evicted {
		t.Error("a node that never joined has a session")
	}
}

// BenchmarkChange changes one Identity under 10,000 open streams of 20 sets of
// facts each: cpu-ms is what telling them costs, of at most 1,000. Of the shared
// one everybody has a set, of the own one a single process.
func BenchmarkChange(b *testing.B) {
	const nodes, streams, sets = 100, 100, 20
	e := newEnv(b)
	var r identity.Resources
	for n := range 2000 {
		i := web(fmt.Sprintf("w%d", n))
		i.Match = []identity.Item{{AnyNode: true, Terms: []identity.Term{{Name: "node.method", Pattern: "token"}, {Name: "workload.unix.uid", Pattern: fmt.Sprint(n)}}}}
		r.Identities = append(r.Identities, i)
	}
	e.swap(r)
	for n := range nodes {
		node := e.caller(fmt.Sprintf("n%d", n))
		for range streams {
			b.Cleanup(e.Watch(node).Close)
		}
		var items []broker.X509Item
		for s := range sets {
			uid := n*sets + s
			if s == 0 {
				uid = 0
			}
			items = append(items, broker.X509Item{Workload: workload(b, "workload.unix.uid", fmt.Sprint(uid), "workload.unix.path", "/bin/x"), Set: set(s)})
		}
		e.issue(node, items...)
	}
	for name, n := range map[string]int{"shared": 0, "own": 1} {
		b.Run(name, func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				i := r.Identities[n]
				i.Hint = fmt.Sprint(b.Elapsed())
				e.change(identity.Resources{}, identity.Resources{Identities: []identity.Identity{i}})
			}
			b.ReportMetric(float64((cpu(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is the processor time that we have taken.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
