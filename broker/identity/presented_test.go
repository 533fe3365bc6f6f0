package identity_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
)

const endpoint = "https://id.example.org/token"

// shown is a request with an SVID of ours as its evidence.
func shown(t testing.TB, id string) identity.Request {
	return identity.Request{
		NodeID: "spiffe://example.org/credence/node/n1", Node: facts(t, "node", "node.name", "n1", "node.site", "a"),
		Presented: &identity.Presented{Identity: "web", Revision: 3, ID: spiffeid.RequireFromString("spiffe://example.org" + id)},
		Audiences: []string{"orders"}, Time: now, Ends: now.Add(4 * time.Minute),
	}
}

func webIdentity(change func(*identity.Identity)) identity.Identity {
	i := identity.Identity{
		Name: "web", Revision: 3, SPIFFEID: "/web", Match: items("node.name", "n1", "workload.unix.uid", "33"),
		JWT: &identity.JWT{Audiences: identity.Plain("orders", endpoint)}, Targets: []string{"cloud", "self"},
	}
	if change != nil {
		change(&i)
	}
	return i
}

func TestPresented(t *testing.T) {
	for _, row := range []struct {
		name    string
		change  func(*identity.Identity)
		request func(*identity.Request)
		deny    []identity.Item
		id      string
		want    bool
	}{
		{name: "as it was issued", want: true},
		{name: "another revision", change: func(i *identity.Identity) { i.Revision = 4 }},
		{name: "another name", change: func(i *identity.Identity) { i.Name = "web2" }},
		{name: "another ID", id: "/web2"},
		{name: "facts of the node refute it", request: func(r *identity.Request) { r.Node = facts(t, "node", "node.name", "n2") }},
		{name: "an audience that is not listed", request: func(r *identity.Request) { r.Audiences = []string{"other"} }},
		{name: "the endpoint's audience", request: func(r *identity.Request) { r.Audiences = []string{endpoint} }},
		{name: "the endpoint's audience among others", request: func(r *identity.Request) { r.Audiences = []string{"orders", endpoint} }},
		{name: "a target", request: func(r *identity.Request) { r.Audiences, r.Target = nil, "cloud" }, want: true},
		{name: "a target that is the endpoint", request: func(r *identity.Request) { r.Audiences, r.Target = nil, "self" }},
		{name: "with facts of a process", request: func(r *identity.Request) { r.Workload = facts(t, "workload", "workload.unix.uid", "33") }},
		{name: "without a node", request: func(r *identity.Request) { r.NodeID = "" }},
		{name: "that has ended", request: func(r *identity.Request) { r.Ends = now }},
		{name: "a template that reads the node", change: func(i *identity.Identity) { i.SPIFFEID = "/{node.site}/web" }, id: "/a/web", want: true},
		{name: "a template that reads what the node is no more", change: func(i *identity.Identity) { i.SPIFFEID = "/{node.site}/web" }, id: "/b/web"},
		{name: "a template that reads what the node never proved", change: func(i *identity.Identity) { i.SPIFFEID = "/{node.rack}/web" }, id: "/b/web"},
		{name: "a template that reads the process", change: func(i *identity.Identity) { i.SPIFFEID = "/{workload.unix.user}/{node.site}-x" }, id: "/web/a-x", want: true},
		{name: "which gives one segment", change: func(i *identity.Identity) { i.SPIFFEID = "/u/{workload.unix.user}" }, id: "/u/web/x"},
		{name: "and nothing reserved", change: func(i *identity.Identity) { i.SPIFFEID = "/{workload.unix.user}/node/n1" }, id: "/credence/node/n1"},
		{name: "a when on the process", change: func(i *identity.Identity) { i.Match[0].When = `workload.unix.uid == "33"` }, want: true},
		{name: "a when that the node refutes", change: func(i *identity.Identity) { i.Match[0].When = `node.site == "b"` }},
		{name: "a deny on the node", deny: items("node.name", "n1")},
		{name: "a deny on another node", deny: items("node.name", "n2"), want: true},
		{name: "a deny on the process: it is not known", deny: items("workload.unix.uid", "1000")},
		{name: "on the process of another node", deny: items("node.name", "n2", "workload.unix.uid", "33"), want: true},
		{name: "a deny whose when reads the process", deny: []identity.Item{{When: `workload.unix.uid == "1000"`}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := config()
			c.TokenEndpoint = endpoint
			r := identity.Resources{
				Identities: []identity.Identity{webIdentity(row.change)},
				Targets:    []identity.Target{{Name: "cloud", Audience: "https://cloud"}, {Name: "self", Audience: endpoint}},
			}
			if row.deny != nil {
				r.Denies = []identity.Deny{{Name: "d", Match: row.deny}}
			}
			s, err := identity.NewSet(c, r)
			if err != nil {
				t.Fatal(err)
			}
			if row.id == "" {
				row.id = "/web"
			}
			request := shown(t, row.id)
			if row.request != nil {
				row.request(&request)
			}
			if !row.want {
				requireDenied(t, s, request)
				return
			}
			d := requireNamed(t, s, request, "web")[0]
			if d.Grant.ID().Path() != row.id || !d.Grant.Expires().Equal(request.Ends) || d.Grant.Node() != request.NodeID || d.Grant.Act() != "" {
				t.Errorf("granted %s until %s for %s", d.Grant.ID(), d.Grant.Expires(), d.Grant.Node())
			}
		})
	}
}

// What is evidence at the token endpoint is for it alone, short, and used once;
// a target's token is no longer than the target wants.
func TestTokensForTheEndpoint(t *testing.T) {
	c := config()
	c.TokenEndpoint = endpoint
	s, err := identity.NewSet(c, identity.Resources{
		Identities: []identity.Identity{webIdentity(func(i *identity.Identity) { i.JWT.TTL = time.Hour })},
		Targets:    []identity.Target{{Name: "cloud", Audience: "https://cloud", TTL: 3 * time.Minute}, {Name: "self", Audience: endpoint}},
	})
	if err != nil {
		t.Fatal(err)
	}
	request := func(target string, audiences ...string) identity.Request {
		return identity.Request{
			NodeID: "n", Node: facts(t, "node", "node.name", "n1"), Workload: facts(t, "workload", "workload.unix.uid", "33"),
			Target: target, Audiences: audiences, Time: now,
		}
	}
	for _, row := range []struct {
		name   string
		r      identity.Request
		life   time.Duration
		single bool
	}{
		{"for others", request("", "orders"), time.Hour, false},
		{"for the endpoint", request("", endpoint), 5 * time.Minute, true},
		{"for a target that is the endpoint", request("self"), 5 * time.Minute, true},
		{"for a target that wants it short", request("cloud"), 3 * time.Minute, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := requireNamed(t, s, row.r, "web")[0]
			if (d.Use == identity.UseSingle) != row.single || d.Grant.Expires().Sub(now) != row.life {
				t.Errorf("use %q, for %s", d.Use, d.Grant.Expires().Sub(now))
			}
		})
	}
	requireDenied(t, s, request("", "orders", endpoint))
	requireDenied(t, s, request("", endpoint, endpoint))
	shouted := request("", endpoint+"/")
	requireDenied(t, s, shouted)
}

func TestPeersAreBound(t *testing.T) {
	c := config()
	c.TokenEndpoint = endpoint
	peer := func(id string) identity.Request {
		return identity.Request{
			Peer: facts(t, "peer", "peer.trust_domain", "partner.example", "peer.id", "spiffe://partner.example"+id, "peer.path", id),
			Time: now, Ends: now.Add(time.Minute), Audiences: []string{"orders"},
		}
	}
	jwt := &identity.JWT{Audiences: identity.Plain("**")}
	s, err := identity.NewSet(c, identity.Resources{Identities: []identity.Identity{
		{Name: "anything", SPIFFEID: "/anything", Match: []identity.Item{{When: `peer.path != ""`, AnyNode: true}}, JWT: jwt},
		{Name: "loose", SPIFFEID: "/loose", Match: []identity.Item{{Terms: terms("peer.path", "/**"), AnyNode: true}}, JWT: jwt},
		{Name: "billing", SPIFFEID: "/partner/billing", Match: []identity.Item{{Terms: terms("peer.trust_domain", "partner.example", "peer.path", "/billing/*")}}, JWT: jwt},
	}})
	if err != nil {
		t.Fatal(err)
	}
	d := requireNamed(t, s, peer("/billing/x"), "billing")[0]
	if d.Grant.Act() != "spiffe://partner.example/billing/x" || d.ID.Path() != "/partner/billing" || !d.Grant.Expires().Equal(now.Add(time.Minute)) {
		t.Errorf("granted %s for %s until %s", d.ID, d.Grant.Act(), d.Grant.Expires())
	}
	requireDenied(t, s, peer("/other/x"))
	again := peer("/billing/x")
	again.Audiences = []string{endpoint}
	requireDenied(t, s, again)
}

// requireNamed is requireDecisions of exactly these Identities.
func requireNamed(t *testing.T, s *identity.Set, r identity.Request, want ...string) []identity.Decision {
	t.Helper()
	ds := requireDecisions(t, s, r)
	if d := cmp.Diff(want, names(ds)); d != "" {
		t.Fatal(d)
	}
	return ds
}
