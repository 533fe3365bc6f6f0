package identity_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation/federationtest"
)

// Regression: SPIRE #655
func TestParseIDVectors(t *testing.T) {
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			id, err := identity.ParseID(v.Input)
			if v.Valid() && (err != nil || id.String() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, id, err, v.Reason)
			}
			if !v.Valid() && err == nil { // also what may be taken: two spellings of one ID are two IDs
				t.Errorf("%.80q was taken: %s", v.Input, v.Reason)
			}
		})
	}
}

func TestParseTrustDomainVectors(t *testing.T) {
	for _, v := range federationtest.TrustDomains(t) {
		t.Run(v.ID, func(t *testing.T) {
			td, err := identity.ParseTrustDomain(v.Input)
			if v.Valid() && (err != nil || td.Name() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, td, err, v.Reason)
			}
			if !v.Valid() && err == nil {
				t.Errorf("%.80q was taken: %s", v.Input, v.Reason)
			}
		})
	}
}

// Regression: SPIRE #6324
func TestParseIDLengths(t *testing.T) {
	domain := func(n int) string { return "spiffe://" + strings.Repeat("a", n) }
	whole := func(n int) string { return "spiffe://a/" + strings.Repeat("b", n-len("spiffe://a/")) }
	for _, row := range []struct {
		name, id string
		ok       bool
	}{
		{"trust domain of 255", domain(255) + "/a", true},
		{"trust domain of 256", domain(256) + "/a", false},
		{"ID of 2048", whole(2048), true},
		{"ID of 2049", whole(2049), false},
		{"no path", "spiffe://a", true},
	} {
		if _, err := identity.ParseID(row.id); (err == nil) != row.ok {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

func TestReservedIDs(t *testing.T) {
	other := spiffeid.RequireTrustDomainFromString("other.example")
	node, err := identity.NodeID(td, "build-7")
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://example.org/credence/node/build-7"; node.String() != want {
		t.Errorf("NodeID is %s, want %s", node, want)
	}
	if got, want := identity.BrokerID(td).String(), "spiffe://example.org/credence/broker"; got != want {
		t.Errorf("BrokerID is %s, want %s", got, want)
	}
	for _, row := range []struct {
		name, id string
		td       spiffeid.TrustDomain
		want     bool
	}{
		{"a node", node.String(), td, true},
		{"of another trust domain", node.String(), other, false},
		{"no trust domain", node.String(), spiffeid.TrustDomain{}, false},
		{"below a node", node.String() + "/x", td, false},
		{"no id", "spiffe://example.org/credence/node", td, false},
		{"the broker", "spiffe://example.org/credence/broker", td, false},
		{"a workload", "spiffe://example.org/a/credence/node/x", td, false},
	} {
		if got := identity.IsNodeID(row.td, spiffeid.RequireFromString(row.id)); got != row.want {
			t.Errorf("%s: IsNodeID is %v", row.name, got)
		}
	}
	if identity.IsNodeID(td, spiffeid.ID{}) {
		t.Error("the zero ID is a node")
	}
	for _, id := range []string{"", ".", "..", "a/b", "a b", "é", strings.Repeat("a", 2048)} {
		if got, err := identity.NodeID(td, id); err == nil {
			t.Errorf("NodeID took %.20q: %s", id, got)
		}
	}
	if id := identity.BrokerID(spiffeid.TrustDomain{}); !id.IsZero() {
		t.Errorf("BrokerID of no trust domain is %q", id)
	}
}

// Regression: SPIRE #655
func FuzzParseID(f *testing.F) {
	for _, v := range federationtest.SPIFFEIDs(f) {
		f.Add(v.Input)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s || len(s) > 2048 || len(id.TrustDomain().Name()) > 255 || id.TrustDomain().IsZero() {
			t.Errorf("%q was taken as %q", s, id)
		}
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:") != "" {
			t.Errorf("%q was taken", s)
		}
		for _, segment := range strings.Split(strings.TrimPrefix(id.Path(), "/"), "/") {
			if id.Path() != "" && (segment == "" || segment == "." || segment == "..") {
				t.Errorf("%q was taken", s)
			}
		}
	})
}

// TestIdentityIDVectors are the vectors as the spiffe_id of an Identity in the
// trust domain that they name.
func TestIdentityIDVectors(t *testing.T) {
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			of := td
			if id, err := identity.ParseID(v.Input); err == nil {
				of = id.TrustDomain()
			}
			i := identity.Identity{
				Name: "a", SPIFFEID: v.Input,
				Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}},
			}
			_, err := identity.NewSet(identity.Config{TrustDomain: of}, identity.Resources{Identities: []identity.Identity{i}})
			want := v.Valid() && v.ID != "ID-001" || v.ID == "ID-056" // no workload's: it has no path; and a path of our trust domain
			if (err == nil) != want {
				t.Errorf("%.80q: %v: %s", v.Input, err, v.Reason)
			}
		})
	}
}
