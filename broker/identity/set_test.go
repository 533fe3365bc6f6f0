package identity_test

import (
	"errors"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("example.org")
	now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
)

func config() identity.Config {
	return identity.Config{
		TrustDomain: td, JWT: true,
		DNSSuffixes: []string{"svc", "example.org"},
		Subjects:    []string{"O=Acme", "OU=team-*"},
	}
}

func requireSet(t testing.TB, r identity.Resources) *identity.Set {
	t.Helper()
	s, err := identity.NewSet(config(), r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// facts makes Facts from name, value pairs; a name may come several times.
func facts(t testing.TB, root string, pairs ...string) identity.Facts {
	t.Helper()
	m := map[string][]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = append(m[pairs[i]], pairs[i+1])
	}
	f, err := identity.NewFacts(root, m)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func terms(pairs ...string) (all []identity.Term) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, identity.Term{Name: pairs[i], Pattern: pairs[i+1]})
	}
	return all
}

func items(pairs ...string) []identity.Item { return []identity.Item{{Terms: terms(pairs...)}} }

func key(n byte) identity.KeyDigest { return identity.KeyDigest{31: n, 0: 1} }

func names(ds []identity.Decision) (all []string) {
	for _, d := range ds {
		all = append(all, d.Identity)
	}
	return all
}

// requireDenied fails unless nothing is granted.
func requireDenied(t *testing.T, s *identity.Set, r identity.Request) {
	t.Helper()
	ds, err := s.Decide(r)
	if !errors.Is(err, identity.ErrDenied) || ds != nil {
		t.Errorf("Decide gave %v, %v; want ErrDenied", names(ds), err)
	}
}

func requireDecisions(t *testing.T, s *identity.Set, r identity.Request) []identity.Decision {
	t.Helper()
	ds, err := s.Decide(r)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

// shop is the request of a checkout pod.
func shop(t testing.TB) identity.Request {
	return identity.Request{
		NodeID: "spiffe://example.org/credence/node/n1",
		Node:   facts(t, "node", "node.name", "n1", "node.method", "token", "node.kubernetes.cluster", "eu-prod"),
		Workload: facts(t, "workload",
			"workload.unix.uid", "1000", "workload.unix.groups", "web", "workload.unix.groups", "docker",
			"workload.kubernetes.namespace", "shop", "workload.kubernetes.service_account", "checkout",
			"workload.kubernetes.labels.tier", "web", "workload.kubernetes.labels.app.kubernetes.io/name", "checkout"),
		Keys: []identity.KeyDigest{key(1), key(2)},
		Time: now,
	}
}

// checkout is the Identity that shop has.
func checkout() identity.Identity {
	return identity.Identity{
		Name: "checkout", Revision: 7,
		SPIFFEID: "/ns/{workload.kubernetes.namespace}/checkout",
		Match: items("node.kubernetes.cluster", "eu-prod",
			"workload.kubernetes.namespace", "shop",
			"workload.kubernetes.service_account", "checkout"),
		Hint: "main",
	}
}

func with(i identity.Identity, change func(*identity.Identity)) identity.Identity {
	change(&i)
	return i
}

func of(all ...identity.Identity) identity.Resources { return identity.Resources{Identities: all} }

func TestDecideGrantsWhatAnIdentitySays(t *testing.T) {
	i := checkout()
	i.Match[0].When = `workload.kubernetes.labels.tier in ["web", "api"]`
	i.X509 = &identity.X509{TTL: 30 * time.Minute, Subject: "CN=checkout,O=Acme", DNSNames: []string{"checkout.shop.svc"}}
	i.JWT = &identity.JWT{Audiences: identity.Plain("orders")}
	i.FederatesWith = []string{"partner.example"}
	i.Targets = []string{"gcp"}
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{i},
		Targets:    []identity.Target{{Name: "gcp", Audience: "//iam.googleapis.com/x"}},
		Peers:      []string{"partner.example"},
	})
	ds := requireDecisions(t, s, shop(t))
	if len(ds) != 1 {
		t.Fatalf("%d decisions", len(ds))
	}
	d := ds[0]
	g := d.Grant
	if g.IsZero() || g.ID().String() != "spiffe://example.org/ns/shop/checkout" || g.Key() != key(1) ||
		!g.Made().Equal(now) || !g.Expires().Equal(now.Add(30*time.Minute)) || g.Node() != "spiffe://example.org/credence/node/n1" ||
		g.Subject() != "CN=checkout,O=Acme" || len(g.Audiences()) != 0 {
		t.Errorf("grant is %+v", g)
	}
	if by, revision := g.By(); by != "checkout" || revision != 7 {
		t.Errorf("granted by %s at %d", by, revision)
	}
	got := d
	got.Grant = identity.Grant{}
	want := identity.Decision{
		Identity: "checkout", Revision: 7, ID: g.ID(), Hint: "main",
		FederatesWith: []string{"partner.example"}, Targets: []string{"gcp"}, JWTAudiences: identity.Plain("orders"),
		Depends: map[string][]string{
			"node.kubernetes.cluster":             {"eu-prod"},
			"workload.kubernetes.namespace":       {"shop"},
			"workload.kubernetes.service_account": {"checkout"},
			"workload.kubernetes.labels.tier":     {"web"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b identity.Grant) bool { return a.IsZero() == b.IsZero() }),
		cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Errorf("decision (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"checkout.shop.svc"}, g.DNSNames()); diff != "" {
		t.Error(diff)
	}
}
