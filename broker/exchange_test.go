package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

const orders = "spiffe://example.org/db" // an audience that web lists

// shown is evidence of an X509-SVID that the broker issued.
func (e *env) shown(n broker.Node) broker.Evidence {
	e.Helper()
	svid := e.issue(n, item(e.TB, 1))[0].SVIDs[0]
	leaf := svid.Chain[0]
	return broker.Evidence{
		ID: svid.ID, Kind: broker.KindX509, Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), Authority: e.active(authority.Issuing, ""),
		IssuedAt: leaf.NotBefore, Expires: leaf.NotAfter,
	}
}

func (e *env) exchange(ev broker.Evidence) (broker.JWTSVID, *broker.Denial, error) {
	return e.Exchange(e.Context(), broker.ExchangeRequest{Evidence: ev, Audiences: []string{orders}})
}

func TestExchange(t *testing.T) {
	e := newEnv(t)
	e.run()
	n := e.caller("n1")
	good := e.shown(n)
	svid, denial, err := e.exchange(good)
	if err != nil || denial != nil {
		t.Fatal(denial, err)
	}
	if svid.ID != good.ID || svid.Expires.After(good.Expires) || svid.Token == "" {
		t.Errorf("got %+v", svid)
	}
	for _, row := range []struct {
		name   string
		change func(*broker.Evidence)
		code   string
	}{
		{"another ID under its serial number", func(v *broker.Evidence) { v.ID = spiffeid.RequireFromString("spiffe://example.org/admin") }, "unknown"},
		{"by another authority", func(v *broker.Evidence) { v.Authority = "00" }, "unknown"},
		{"of another kind", func(v *broker.Evidence) { v.Kind, v.Once = broker.KindJWT, sha256.Sum256([]byte("a")) }, "unknown"},
		{"that was never issued", func(v *broker.Evidence) { v.Serial = "1234" }, "unknown"},
		{"without a serial number", func(v *broker.Evidence) { v.Serial = "" }, "unknown"},
		{"of a node", func(v *broker.Evidence) {
			v.ID, v.Serial = spiffeid.RequireFromString(n.ID), hex.EncodeToString(n.Serial)
		}, "unknown"},
		{"of the broker", func(v *broker.Evidence) { v.ID = identity.BrokerID(td) }, "unknown"},
		{"of a peer that no Identity names", func(v *broker.Evidence) { v.ID = spiffeid.RequireFromString("spiffe://partner.example/x") }, "denied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			bad := good
			row.change(&bad)
			if svid, denial, err := e.exchange(bad); err != nil || denial == nil || denial.Code != row.code || denial.Record == "" || svid.Token != "" {
				t.Errorf("%+v, %+v, %v", svid, denial, err)
			}
		})
	}
	t.Run("asking for too much", func(t *testing.T) {
		for _, r := range []broker.ExchangeRequest{
			{Evidence: good}, {Evidence: good, Audiences: make([]string, 17)}, {Evidence: good, Audiences: []string{orders}, Target: "t"},
		} {
			_, _, err := e.Exchange(e.Context(), r)
			e.refused(err, broker.ErrRequest)
			_, err = e.ExchangeAt(e.Context(), broker.ExchangeRequest{Evidence: good, Audiences: r.Audiences}, nil)
			e.refused(err, broker.ErrRequest)
		}
	})
	t.Run("a token that cannot be spent", func(t *testing.T) {
		peer := broker.Evidence{ID: spiffeid.RequireFromString("spiffe://partner.example/x"), Kind: broker.KindJWT, IssuedAt: e.now(), Expires: e.now().Add(time.Minute)}
		e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: []identity.Identity{web("web"), {
			Name: "partner", SPIFFEID: "/partner", JWT: &identity.JWT{Audiences: identity.Plain(orders)},
			Match: []identity.Item{{Terms: []identity.Term{{Name: "peer.trust_domain", Pattern: "partner.example"}}}},
		}}}))
		if svid, denial, err := e.exchange(peer); err == nil || svid.Token != "" {
			t.Errorf("%+v, %+v, %v", svid, denial, err)
		}
		peer.Once = sha256.Sum256([]byte("b"))
		if _, denial, err := e.exchange(peer); err != nil || denial != nil {
			t.Errorf("%+v, %v", denial, err)
		}
	})
	t.Run("which of two identities", func(t *testing.T) {
		partner := func(name string) identity.Identity {
			return identity.Identity{Name: name, SPIFFEID: "/" + name, JWT: &identity.JWT{Audiences: identity.Plain(orders)},
				Match: []identity.Item{{Terms: []identity.Term{{Name: "peer.trust_domain", Pattern: "partner.example"}}}}}
		}
		e.SetPolicy(e.newPolicy(3, identity.Resources{Identities: []identity.Identity{partner("a"), partner("b")}}))
		peer := broker.Evidence{ID: spiffeid.RequireFromString("spiffe://partner.example/x"), Kind: broker.KindX509, Expires: e.now().Add(time.Minute)}
		if svid, denial, err := e.exchange(peer); err != nil || denial == nil || denial.Code != "ambiguous" || svid.Token != "" {
			t.Errorf("%+v, %+v, %v", svid, denial, err)
		}
	})
}

// An SVID of ours vouches for who shows it while what it was issued by stands, and
// nothing else of ours does.
func TestStands(t *testing.T) {
	e := newEnv(t)
	e.run()
	n := e.caller("n1")
	good := e.shown(n)
	e.must(e.Stands(t.Context(), good))
	e.must(e.Stands(t.Context(), good)) // it is not spent
	for name, change := range map[string]func(*broker.Evidence){
		"another ID under its serial number": func(v *broker.Evidence) { v.ID = spiffeid.RequireFromString("spiffe://example.org/admin") },
		"by another authority":               func(v *broker.Evidence) { v.Authority = "00" },
		"a token":                            func(v *broker.Evidence) { v.Kind = broker.KindJWT },
		"that was never issued":              func(v *broker.Evidence) { v.Serial = "1234" },
		"a peer's":                           func(v *broker.Evidence) { v.ID = spiffeid.RequireFromString("spiffe://partner.example/x") },
		"a node's": func(v *broker.Evidence) {
			v.ID, v.Serial = spiffeid.RequireFromString(n.ID), hex.EncodeToString(n.Serial)
		},
		"the broker's": func(v *broker.Evidence) { v.ID = identity.BrokerID(td) },
	} {
		bad := good
		change(&bad)
		if err := e.Stands(t.Context(), bad); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, row := range []struct {
		name   string
		change func()
	}{
		{"a Deny that may hold", func() {
			r := e.same()
			r.Denies = []identity.Deny{{Name: "d", Match: []identity.Item{{Terms: []identity.Term{{Name: "workload.unix.path", Pattern: "/bin/x"}}}}}}
			e.swap(r)
		}},
		{"its Identity is changed", func() {
			r := e.same()
			r.Identities[0].Revision = 99
			e.swap(r)
		}},
		{"it is revoked", func() { e.revoke(broker.CutID, good.ID.String()) }},
		{"its node is evicted", func() {
			if _, err := e.Evict(t.Context(), n.ID, "uid:0", "stolen"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		e.swap(e.same())
		good := e.shown(n)
		e.must(e.Stands(t.Context(), good))
		e.pass(time.Second)
		row.change()
		if err := e.Stands(t.Context(), good); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// What cannot be recorded, looked up or held against what is revoked meanwhile is
// not released.
func TestExchangesThatAreNotReleased(t *testing.T) {
	e := newEnv(t)
	stop := e.run()
	n := e.caller("n1")
	good := e.shown(n)
	if _, denial, err := e.exchange(good); err != nil || denial != nil {
		t.Fatal(denial, err)
	}
	t.Run("no record", func(t *testing.T) {
		e.record.fail(true)
		defer e.record.fail(false)
		svid, _, err := e.exchange(good)
		e.refused(err, audit.ErrUnavailable)
		e.equal(svid.Token, "")
	})
	t.Run("no index", func(t *testing.T) {
		e.store.away.Store(true)
		defer e.store.away.Store(false)
		svid, denial, err := e.exchange(good)
		e.refused(err, errAway)
		if svid.Token != "" || denial != nil {
			t.Errorf("%+v, %+v", svid, denial)
		}
	})
	t.Run("revoked while it is signed", func(t *testing.T) {
		e.issuer.mu.Lock()
		e.issuer.hook = func() {
			e.issuer.mu.Lock()
			e.issuer.hook = nil
			e.issuer.mu.Unlock()
			e.pass(time.Second)
			e.revoke(broker.CutIdentity, "web")
		}
		e.issuer.mu.Unlock()
		if svid, denial, err := e.exchange(good); svid.Token != "" || err == nil && denial == nil {
			t.Errorf("%+v, %+v, %v", svid, denial, err)
		}
	})
	t.Run("a peer's, whose identity here is revoked while it is signed", func(t *testing.T) {
		e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: []identity.Identity{web("web"), {
			Name: "partner", SPIFFEID: "/partner", JWT: &identity.JWT{Audiences: identity.Plain(orders)},
			Match: []identity.Item{{Terms: []identity.Term{{Name: "peer.trust_domain", Pattern: "partner.example"}}}},
		}}}))
		e.issuer.mu.Lock()
		e.issuer.hook = func() {
			e.issuer.mu.Lock()
			e.issuer.hook = nil
			e.issuer.mu.Unlock()
			e.pass(time.Second)
			e.revoke(broker.CutIdentity, "partner")
		}
		e.issuer.mu.Unlock()
		peer := broker.Evidence{ID: spiffeid.RequireFromString("spiffe://partner.example/x"), Kind: broker.KindX509, Expires: e.now().Add(time.Hour)}
		svid, _, err := e.exchange(peer)
		e.refused(err, broker.ErrConflict)
		e.equal(svid.Token, "")
	})
	stop()
	t.Run("an index that stands still", func(t *testing.T) {
		e.pass(time.Second)
		svid, denial, err := e.exchange(e.shown(n))
		if err == nil || svid.Token != "" || denial != nil {
			t.Errorf("%+v, %+v, %v", svid, denial, err)
		}
	})
}

// A provider's answer is nobody's that cannot be recorded.
func TestExchangeAt(t *testing.T) {
	e := newEnv(t)
	i := web("web")
	i.Targets = []string{"cloud"}
	e.SetPolicy(e.newPolicy(1, identity.Resources{Identities: []identity.Identity{i}, Targets: []identity.Target{{Name: "cloud"}}}))
	e.run()
	good := e.shown(e.caller("n1"))
	trade := func(in time.Duration, do func(broker.Lent)) func(context.Context, broker.Lent) (broker.Traded, error) {
		return func(ctx context.Context, l broker.Lent) (broker.Traded, error) {
			if chain, key, err := l.X509(ctx); err != nil || key == nil || chain[0].NotAfter.After(good.Expires) {
				return broker.Traded{}, errors.New("no SVID to show")
			}
			if do != nil {
				do(l)
			}
			return broker.Traded{Expires: e.now().Add(in), RequestID: "r"}, nil
		}
	}
	ask := broker.ExchangeRequest{Evidence: good, Target: "cloud"}
	if denial, err := e.ExchangeAt(e.Context(), ask, trade(time.Minute, nil)); err != nil || denial != nil {
		t.Fatal(denial, err)
	}
	shown := e.record.of("issue.x509")
	if last := shown[len(shown)-1]; last.Target != "cloud" || last.Detail["evidence"] != good.ID.String() || last.Node != nodeID {
		t.Errorf("recorded %+v", last)
	}
	_, err := e.ExchangeAt(e.Context(), ask, trade(2*time.Hour, nil))
	e.refused(err, broker.ErrOutlives)
	_, err = e.ExchangeAt(e.Context(), ask, trade(time.Minute, func(broker.Lent) { e.record.fail(true) }))
	e.record.fail(false)
	e.refused(err, audit.ErrUnavailable)
	for _, event := range e.record.of("exchange") {
		e.equal(event.OK, event.Code == "")
	}
	denial, err := e.ExchangeAt(e.Context(), ask, trade(time.Minute, func(broker.Lent) { e.pass(time.Second); e.revoke(broker.CutNode, nodeID) }))
	if err != nil || denial == nil || denial.Code != "revoked" {
		t.Errorf("revoked meanwhile: %+v, %v", denial, err)
	}
}
