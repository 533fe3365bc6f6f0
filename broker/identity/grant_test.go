package identity_test

import (
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestGrantsOfReservedIDs(t *testing.T) {
	end := now.Add(time.Hour)
	g, err := identity.ForNode(td, "n1", key(1), now, end)
	if err != nil {
		t.Fatal(err)
	}
	by, _ := g.By()
	if g.IsZero() || g.ID().String() != "spiffe://example.org/credence/node/n1" || by != "node" ||
		g.Node() != g.ID().String() || g.Key() != key(1) || !g.Made().Equal(now) || !g.Expires().Equal(end) {
		t.Errorf("ForNode: %+v", g)
	}
	g, err = identity.ForBroker(td, key(1), now, end)
	if err != nil {
		t.Fatal(err)
	}
	if by, _ := g.By(); g.IsZero() || g.ID() != identity.BrokerID(td) || by != "broker" || g.Key() != key(1) || !g.Expires().Equal(end) {
		t.Errorf("ForBroker: %+v", g)
	}
	if !(identity.Grant{}).IsZero() {
		t.Error("the zero Grant permits something")
	}
}

func TestGrantsOfReservedIDsRefuse(t *testing.T) {
	for _, row := range []struct {
		name         string
		td           spiffeid.TrustDomain
		key          identity.KeyDigest
		now, expires time.Time
	}{
		{"no trust domain", spiffeid.TrustDomain{}, key(1), now, now.Add(time.Hour)},
		{"no key", td, identity.KeyDigest{}, now, now.Add(time.Hour)},
		{"no time", td, key(1), time.Time{}, now},
		{"no end", td, key(1), now, time.Time{}},
		{"an end at the start", td, key(1), now, now},
	} {
		if g, err := identity.ForNode(row.td, "n1", row.key, row.now, row.expires); err == nil || !g.IsZero() {
			t.Errorf("ForNode with %s: %+v, %v", row.name, g, err)
		}
		if g, err := identity.ForBroker(row.td, row.key, row.now, row.expires); err == nil || !g.IsZero() {
			t.Errorf("ForBroker with %s: %+v, %v", row.name, g, err)
		}
	}
	if g, err := identity.ForNode(td, "a/b", key(1), now, now.Add(time.Hour)); err == nil || !g.IsZero() {
		t.Errorf("ForNode with a path: %+v, %v", g, err)
	}
}
