package resource_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/gcp"
)

// example is the one that design.md gives users, its dots filled in.
func example(t *testing.T) ([]resource.Resource, *identity.Set) {
	t.Helper()
	registry := resource.Registry{
		Methods: map[string]func() join.Settings{"github": func() join.Settings { return new(githubSettings) }},
		Flows: map[string]func() exchangers.Settings{
			"aws_roles_anywhere": func() exchangers.Settings { return new(aws.RolesAnywhere) },
			"gcp":                func() exchangers.Settings { return new(gcp.Settings) },
		},
	}
	text, err := os.ReadFile("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all, err := registry.Parse("design.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	var r identity.Resources
	for _, one := range all {
		switch {
		case one.Identity != nil:
			r.Identities = append(r.Identities, *one.Identity)
		case one.Deny != nil:
			r.Denies = append(r.Denies, *one.Deny)
		case one.Peer != nil:
			r.Peers = append(r.Peers, one.Name)
		case one.Target != nil:
			r.Targets = append(r.Targets, identity.Target{Name: one.Name, Audience: one.Target.Settings.Audience()})
		}
	}
	set, err := identity.NewSet(identity.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), JWT: true,
		DNSSuffixes: []string{"svc", "example.org"}, Subjects: []string{"O=Acme"},
	}, r)
	if err != nil {
		t.Fatal(resource.Locate(err, all))
	}
	return all, set
}

type facts map[string][]string

// but returns the facts with one changed, or taken out where no value is given.
func (f facts) but(name string, values ...string) facts {
	g := facts{}
	for n, v := range f {
		if n != name {
			g[n] = v
		}
	}
	if len(values) > 0 {
		g[name] = values
	}
	return g
}

var (
	cluster = facts{"node.name": {"n1"}, "node.method": {"kubernetes"}, "node.kubernetes.cluster": {"eu-prod"}}
	shop    = facts{
		"workload.kubernetes.namespace": {"shop"}, "workload.kubernetes.service_account": {"checkout"},
		"workload.kubernetes.labels.tier": {"web"},
	}
	runner = facts{
		"node.name": {"r1"}, "node.github.repository": {"acme/checkout"}, "node.github.repository_owner": {"acme"},
		"node.github.environment": {"production"}, "node.github.ref": {"refs/tags/v1.2"},
	}
)

func TestExampleOfTheDesignIsDecided(t *testing.T) {
	all, set := example(t)
	const checkout, release = "spiffe://example.org/ns/shop/checkout", "spiffe://example.org/ci/checkout-release"
	const ledger = "spiffe://example.org/ledger"
	for name, c := range map[string]struct {
		node, workload facts
		unknown        []string
		audiences      []string
		target         string
		want           []string // none: denied
	}{
		"the shop's checkout":                {node: cluster, workload: shop, want: []string{checkout}},
		"its api tier":                       {node: cluster, workload: shop.but("workload.kubernetes.labels.tier", "api"), want: []string{checkout}},
		"another tier":                       {node: cluster, workload: shop.but("workload.kubernetes.labels.tier", "db")},
		"no tier":                            {node: cluster, workload: shop.but("workload.kubernetes.labels.tier")},
		"two tiers":                          {node: cluster, workload: shop.but("workload.kubernetes.labels.tier", "web", "db")},
		"another namespace":                  {node: cluster, workload: shop.but("workload.kubernetes.namespace", "blog")},
		"two namespaces":                     {node: cluster, workload: shop.but("workload.kubernetes.namespace", "shop", "blog")},
		"another service account":            {node: cluster, workload: shop.but("workload.kubernetes.service_account", "x")},
		"no service account":                 {node: cluster, workload: shop.but("workload.kubernetes.service_account")},
		"another cluster":                    {node: cluster.but("node.kubernetes.cluster", "us"), workload: shop},
		"a node of no cluster":               {node: cluster.but("node.kubernetes.cluster"), workload: shop},
		"labels not attested":                {node: cluster, workload: shop.but("workload.kubernetes.labels.tier"), unknown: []string{"workload.kubernetes.labels"}},
		"kubernetes not attested":            {node: cluster, unknown: []string{"workload.kubernetes"}},
		"the incident's node":                {node: cluster.but("node.name", "build-7"), workload: shop},
		"a node whose name nobody proved":    {node: cluster.but("node.name"), workload: shop, unknown: []string{"node.name"}},
		"a listed audience":                  {node: cluster, workload: shop, audiences: []string{"orders"}, want: []string{checkout}},
		"both listed audiences":              {node: cluster, workload: shop, audiences: []string{"orders", ledger}, want: []string{checkout}},
		"an audience that is not listed":     {node: cluster, workload: shop, audiences: []string{"orders", "sts.amazonaws.com"}},
		"its target with a token":            {node: cluster, workload: shop, target: "gcp-analytics", want: []string{checkout}},
		"its target with a certificate":      {node: cluster, workload: shop, target: "aws-orders"},
		"a target that is not there":         {node: cluster, workload: shop, target: "azure"},
		"a release":                          {node: runner, want: []string{release}},
		"a release, by the incident's node":  {node: runner.but("node.name", "build-7")},
		"a branch":                           {node: runner.but("node.github.ref", "refs/heads/main")},
		"no ref":                             {node: runner.but("node.github.ref")},
		"a fork":                             {node: runner.but("node.github.repository", "eve/checkout")},
		"another environment":                {node: runner.but("node.github.environment", "staging")},
		"a release has no jwt block":         {node: runner, audiences: []string{"orders"}},
		"a target that is another's":         {node: runner, target: "gcp-analytics"},
		"both, on a node that is of both":    {node: merge(cluster, runner.but("node.name")), workload: shop, want: []string{checkout, release}},
		"an unknown node of neither":         {node: facts{"node.name": {"x"}}, workload: shop},
		"a workload that says it is the run": {node: cluster.but("node.kubernetes.cluster"), workload: facts{"workload.github.repository": {"acme/checkout"}}},
	} {
		t.Run(name, func(t *testing.T) {
			node, err := identity.NewFacts("node", c.node)
			if err != nil {
				t.Fatal(err)
			}
			workload, err := identity.NewFacts("workload", c.workload)
			if err != nil {
				t.Fatal(err)
			}
			decisions, err := set.Decide(identity.Request{
				Node: node, Workload: workload, Unknown: c.unknown, Audiences: c.audiences, Target: c.target, Time: time.Unix(1_800_000_000, 0),
			})
			if (len(c.want) == 0) != errors.Is(err, identity.ErrDenied) {
				t.Fatalf("error %v, wanted %v", err, c.want)
			}
			var got []string
			for _, d := range decisions {
				got = append(got, d.ID.String())
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}

	rule := all[3].JoinRule
	for owner, want := range map[string]bool{"acme": true, "acme-evil": false, "": false} {
		proven, err := identity.NewFacts("node", runner.but("node.github.repository_owner", owner))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := identity.Matches(rule.Allow, proven); err != nil || got != want {
			t.Errorf("a repository of %q may join: %v, %v", owner, got, err)
		}
	}
}

func TestWhatTheExampleGrants(t *testing.T) {
	_, set := example(t)
	node, _ := identity.NewFacts("node", cluster)
	workload, _ := identity.NewFacts("workload", shop)
	decisions, err := set.Decide(identity.Request{Node: node, Workload: workload, Time: time.Unix(1_800_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	type granted struct {
		Hint           string
		Peers, Targets []string
		JWTAudiences   []identity.Audience
	}
	plain := identity.Plain("orders", "spiffe://example.org/ledger")
	want := granted{"main", []string{"partner.example"}, []string{"aws-orders", "gcp-analytics"}, plain}
	d := decisions[0]
	if diff := cmp.Diff(want, granted{d.Hint, d.FederatesWith, d.Targets, d.JWTAudiences}); diff != "" {
		t.Error(diff)
	}
}

func merge(all ...facts) facts {
	m := facts{}
	for _, f := range all {
		for name, values := range f {
			m[name] = values
		}
	}
	return m
}
