package identity_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/identity"
)

func TestTheStrictestUseCounts(t *testing.T) {
	i := checkout()
	i.JWT = &identity.JWT{Audiences: []identity.Audience{
		{Pattern: "orders"}, {Pattern: "pay", Use: identity.UseSingle}, {Pattern: "books", Use: identity.UseAudited}, {Pattern: "late"},
		{Pattern: "book*", Use: identity.UseSingle}, {Pattern: "la*", Use: identity.UseAudited}, {Pattern: "**"},
	}}
	s := requireSet(t, of(i))
	for _, row := range []struct {
		name      string
		audiences []string
		want      identity.Use
	}{
		{"a plain one", []string{"orders"}, identity.UseDefault},
		{"one that a plain pattern matches too", []string{"pay"}, identity.UseSingle},
		{"one that a stricter pattern matches after it", []string{"books"}, identity.UseSingle},
		{"one that a stricter pattern matches before another", []string{"late"}, identity.UseAudited},
		{"by pattern alone", []string{"lake"}, identity.UseAudited},
		{"any other", []string{"x"}, identity.UseDefault},
		{"of several the strictest", []string{"orders", "late", "pay"}, identity.UseSingle},
		{"in any order", []string{"late", "orders"}, identity.UseAudited},
		{"none: an X509-SVID", nil, identity.UseDefault},
	} {
		r := shop(t)
		r.Audiences = row.audiences
		if d := requireDecisions(t, s, r)[0]; d.Use != row.want {
			t.Errorf("%s: %q, want %q", row.name, d.Use, row.want)
		}
	}
	// What is told of a literal one is what counts for it.
	want := []identity.Audience{
		{Pattern: "orders"}, {Pattern: "pay", Use: identity.UseSingle}, {Pattern: "books", Use: identity.UseSingle}, {Pattern: "late", Use: identity.UseAudited},
		{Pattern: "book*", Use: identity.UseSingle}, {Pattern: "la*", Use: identity.UseAudited}, {Pattern: "**"},
	}
	if diff := cmp.Diff(want, requireDecisions(t, s, shop(t))[0].JWTAudiences); diff != "" {
		t.Error(diff)
	}
}

// A target's token is for its exchange: jwt.audiences say nothing of it.
func TestUsesAreNotOfTargets(t *testing.T) {
	i := checkout()
	i.JWT = &identity.JWT{Audiences: []identity.Audience{{Pattern: "**", Use: identity.UseSingle}}}
	i.Targets = []string{"t"}
	s, err := identity.NewSet(config(), identity.Resources{Identities: []identity.Identity{i}, Targets: []identity.Target{{Name: "t", Audience: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := shop(t)
	r.Target = "t"
	if d := requireDecisions(t, s, r)[0]; d.Use != identity.UseDefault {
		t.Errorf("use %q", d.Use)
	}
}
