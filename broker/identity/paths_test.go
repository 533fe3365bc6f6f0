package identity_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
)

func TestPathsHoldIdentities(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for _, row := range []struct {
		paths    []string
		template string
		want     bool
	}{
		{[]string{"/shop/**"}, "/shop/web", true},
		{[]string{"/shop/**"}, "spiffe://example.org/shop/web", true},
		{[]string{"/shop/**"}, "/shop/{workload.unix.user}/{node.name}", true},
		{[]string{"/shop/**"}, "/shop/{workload.docker.image | path}", true},
		{[]string{"/shop/*"}, "/shop/{workload.unix.user}", true},
		{[]string{"/shop/*"}, "/shop/x-{workload.unix.user}", true},
		{[]string{"/shop/*"}, "/shop/{workload.unix.user}/x", false},
		{[]string{"/shop/*"}, "/shop/{workload.docker.image | path}", false},
		{[]string{"/shop/*/*"}, "/shop/{workload.docker.image | path}", false},
		{[]string{"/shop/**"}, "/shopping/web", false},
		{[]string{"/shop/**"}, "/shop", false},
		{[]string{"/shop/**"}, "/Shop/web", false},
		{[]string{"/shop/**"}, "/{workload.unix.user}/web", false},
		{[]string{"/shop/**"}, "/sho{workload.unix.user}/web", false},
		{[]string{"/shop/**"}, "/shop{workload.unix.user}/web", false},
		{[]string{"/shop/**"}, "/x/shop/web", false},
		{[]string{"/shop/**"}, "spiffe://example.com/shop/web", false},
		{[]string{"/shop/**"}, "/shop/../bank", false},
		{[]string{"/shop/web"}, "/shop/web", true},
		{[]string{"/shop/web"}, "/shop/{workload.unix.user}", false},
		{[]string{"/shop/web"}, "/shop/web2", false},
		{[]string{"/*/web"}, "/{workload.unix.user}/web", true},
		{[]string{"/*/web"}, "/a/{workload.unix.user}", false},
		{[]string{"/a/**", "/b/**"}, "/b/{workload.unix.user}", true},
		{[]string{"/a/**", "/b/**"}, "/{workload.unix.user}/c", false},
		{[]string{"/**"}, "/{workload.docker.image | path}", true},
		{nil, "/shop/web", false},
	} {
		p, err := identity.ParsePaths(td, row.paths)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.HoldIdentity(identity.Identity{SPIFFEID: row.template}); got != row.want {
			t.Errorf("%q hold %s: %v", row.paths, row.template, got)
		}
	}
	if (identity.Paths{}).HoldIdentity(identity.Identity{SPIFFEID: "/shop/web"}) {
		t.Error("no paths hold something")
	}
}

func TestPathsHoldDenies(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	p, err := identity.ParsePaths(td, []string{"/shop/**", "/team/*"})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		ids  []string
		want bool
	}{
		{[]string{"/shop/**"}, true},
		{[]string{"/shop/web", "/team/*"}, true},
		{[]string{"spiffe://example.org/shop/*"}, true},
		{nil, false},
		{[]string{"/**"}, false},
		{[]string{"**"}, false},
		{[]string{"/shop**"}, false},
		{[]string{"/shop/**", "/bank/x"}, false},
		{[]string{"/team/**"}, false},
		{[]string{"/team/*/x"}, false},
		{[]string{"spiffe://**/shop/x"}, false},
		{[]string{"spiffe://example.org**"}, false},
		{[]string{"/*/web"}, false},
	} {
		if got := p.HoldDeny(identity.Deny{SPIFFEIDs: row.ids}); got != row.want {
			t.Errorf("%q: %v", row.ids, got)
		}
	}
	for _, bad := range []string{"", "shop/**", "**", "/a***", "/*/*/*/*/*"} {
		if _, err := identity.ParsePaths(td, []string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestCanGive(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for template, want := range map[string]bool{
		"/people/ana": true, "/people/{user.sub}": true, "/{workload.docker.image | path}": true, "/{user.sub}/{user.team}": true,
		"/people/bob": false, "/{user.sub}": false, "/people/ana/{user.sub}": false, "no template": true,
	} {
		if got := identity.CanGive(td, identity.Identity{SPIFFEID: template}, spiffeid.RequireFromString("spiffe://example.org/people/ana")); got != want {
			t.Errorf("%s: %v", template, got)
		}
	}
}

// What Paths say of two patterns is so of every path: where one holds another,
// nothing matches the other alone.
func FuzzPaths(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	f.Add("/shop/**", "/shop/*/a", "/shop/x/a")
	f.Add("/**/a", "/b/*", "/b/a")
	f.Add("/*a*/**", "/*a/a*", "/aa/aa")
	f.Fuzz(func(t *testing.T, outer, inner, path string) {
		p, err := identity.ParsePaths(td, []string{outer})
		if err != nil {
			t.Skip()
		}
		if _, err := identity.ParsePaths(td, []string{inner}); err != nil || !p.HoldDeny(identity.Deny{SPIFFEIDs: []string{inner}}) {
			t.Skip()
		}
		facts, err := identity.NewFacts("node", map[string][]string{"node.path": {path}})
		if err != nil {
			t.Skip()
		}
		matches := func(pattern string) bool {
			ok, err := identity.Matches([]identity.Item{{Terms: []identity.Term{{Name: "node.path", Pattern: pattern}}, AnyNode: true}}, facts)
			return ok && err == nil
		}
		if matches(inner) && !matches(outer) {
			t.Errorf("%q is said to hold %q, and %q is outside", outer, inner, path)
		}
	})
}
