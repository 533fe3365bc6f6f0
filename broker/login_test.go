package broker_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

// people are identities of persons.
func people() identity.Resources {
	item := func(terms ...string) []identity.Item {
		i := identity.Item{}
		for n := 0; n < len(terms); n += 2 {
			i.Terms = append(i.Terms, identity.Term{Name: terms[n], Pattern: terms[n+1]})
		}
		return []identity.Item{i}
	}
	return identity.Resources{Identities: []identity.Identity{
		web("web"),
		{Name: "ana", Revision: 1, SPIFFEID: "/people/{user.name}", Match: item("user.email", "ana@acme.example"), X509: &identity.X509{TTL: 10 * time.Minute}},
		{Name: "sre", Revision: 1, SPIFFEID: "/teams/sre", Match: item("user.groups", "sre", "user.email", "*@acme.example")},
		{Name: "sre2", Revision: 1, SPIFFEID: "/teams/sre", Match: item("user.groups", "sre")},
		{Name: "all", Revision: 1, SPIFFEID: "/all", Match: []identity.Item{{Terms: []identity.Term{{Name: "user.sub", Pattern: "**"}}, AnyNode: true}}},
	}}
}

// signIn is a login of somebody with these facts.
func signIn(t testing.TB, once string, facts map[string][]string) broker.Login {
	t.Helper()
	m := map[string][]string{"user.sub": {"1"}, "user.issuer": {"https://id.example"}}
	for name, values := range facts {
		m[name] = values
	}
	f, err := identity.NewFacts("user", m)
	if err != nil {
		t.Fatal(err)
	}
	return broker.Login{User: f, Once: sha256.Sum256([]byte(once)), Expires: start.Add(5 * time.Minute), Key: keys(t, 1)[0]}
}

var ana = map[string][]string{"user.name": {"ana"}, "user.email": {"ana@acme.example"}, "user.groups": {"dev", "sre"}}

func newLoginEnv(t *testing.T, change ...func(*identity.Resources)) *env {
	e := newEnv(t)
	r := people()
	for _, f := range change {
		f(&r)
	}
	e.SetPolicy(e.newPolicy(2, r))
	return e
}

// A person gets one SVID for each SPIFFE ID that their facts give, all for the one
// key, and what was given stands in the record and in the index before it leaves.
func TestLogin(t *testing.T) {
	e := newLoginEnv(t)
	e.run()
	svids, denial, err := e.Login(t.Context(), signIn(t, "a", ana))
	if err != nil || denial != nil {
		t.Fatal(denial, err)
	}
	var got []string
	for _, s := range svids {
		got = append(got, s.Identity+" "+e.verify(s.Chain).String())
		if key, _ := identity.DigestKey(s.Chain[0].PublicKey); key != s.Grant.Key() {
			t.Errorf("%s is for another key", s.ID)
		}
	}
	e.equal(got, []string{"ana spiffe://example.org/people/ana", "sre spiffe://example.org/teams/sre"})
	if life := svids[0].Chain[0].NotAfter.Sub(start); life != 10*time.Minute {
		t.Errorf("a life of %s", life)
	}
	logins, issues := e.record.of("login"), e.record.of("issue.x509")
	if len(logins) != 1 || !logins[0].OK || !cmp.Equal(logins[0].Facts["user.groups"], []string{"dev", "sre"}) || len(issues) != 2 {
		t.Errorf("recorded: %+v, %+v", logins, issues)
	}
	if issues[0].SPIFFEID != svids[0].ID.String() || issues[0].Serial == "" || !cmp.Equal(issues[0].Facts["user.email"], ana["user.email"]) {
		t.Errorf("recorded: %+v", issues[0])
	}
	e.eventually("the index has it", func() bool { return e.indexed("ana") == 1 && e.indexed("sre") == 1 })
	// A life that was asked for.
	l := signIn(t, "b", ana)
	l.TTL = 5 * time.Minute
	if svids, _, err = e.Login(t.Context(), l); err != nil || svids[0].Chain[0].NotAfter.Sub(start) != 5*time.Minute {
		t.Errorf("5 min were asked for: %+v, %v", svids, err)
	}
}

func TestLoginDenied(t *testing.T) {
	withDeny := func(name, value string) func(*identity.Resources) {
		return func(r *identity.Resources) { r.Denies = []identity.Deny{deny(name, value)} }
	}
	for _, row := range []struct {
		name   string
		change func(*identity.Resources)
		facts  map[string][]string
		as     func(*broker.Login)
		code   string
	}{
		{"nobody here", nil, map[string][]string{"user.email": {"mallory@evil.example"}}, nil, "denied"},
		{"the same name in another place", nil, map[string][]string{"user.email": {"ana@acme.example.evil.example"}}, nil, "denied"},
		{"another case", nil, map[string][]string{"user.email": {"Ana@acme.example"}}, nil, "denied"},
		{"a Deny", withDeny("user.email", "ana@*"), ana, nil, "denied"},
		{"a Deny on what is unknown", withDeny("user.level", "intern"), ana, func(l *broker.Login) { l.Unknown = []string{"user.level"} }, "denied"},
		{"a longer life", nil, ana, func(l *broker.Login) { l.TTL = 11 * time.Minute }, "ttl_refused"},
		{"a shorter life", nil, ana, func(l *broker.Login) { l.TTL = time.Second }, "ttl_refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.change == nil {
				row.change = func(*identity.Resources) {}
			}
			e := newLoginEnv(t, row.change)
			l := signIn(t, "a", row.facts)
			if row.as != nil {
				row.as(&l)
			}
			svids, denial, err := e.Login(t.Context(), l)
			if err != nil || denial == nil || denial.Code != row.code || denial.Record == "" || len(svids) > 0 {
				t.Fatalf("%+v, %+v, %v", svids, denial, err)
			}
			logins := e.record.of("login")
			if len(logins) != 1 || logins[0].OK || logins[0].Code != row.code || logins[0].Reason == "" || len(logins[0].Facts["user.sub"]) != 1 {
				t.Errorf("recorded: %+v", logins)
			}
			if n := e.issuer.signatures(); n != 0 {
				t.Errorf("%d were signed", n)
			}
		})
	}
}

// Of any number who show one ID token at once, one gets something.
func TestLoginOnce(t *testing.T) {
	e := newLoginEnv(t)
	var all sync.WaitGroup
	var got, spent atomic.Int64
	for range 50 {
		all.Go(func() {
			svids, denial, err := e.Login(t.Context(), signIn(t, "a", ana))
			switch {
			case err != nil:
				t.Error(err)
			case denial != nil && denial.Code == broker.DeniedSpent:
				spent.Add(1)
			case len(svids) == 2:
				got.Add(1)
			}
		})
	}
	all.Wait()
	if got.Load() != 1 || spent.Load() != 49 {
		t.Errorf("%d got something, %d were told that it is spent", got.Load(), spent.Load())
	}
}

// What cannot be recorded is not released, and what is revoked while it is made.
func TestLoginIsRecordedFirst(t *testing.T) {
	e := newLoginEnv(t)
	e.record.fail(true)
	if svids, denial, err := e.Login(t.Context(), signIn(t, "a", ana)); !errors.Is(err, audit.ErrUnavailable) || svids != nil || denial != nil {
		t.Errorf("%+v, %+v, %v", svids, denial, err)
	}
	e.record.fail(false)
	e.issuer.mu.Lock()
	e.issuer.hook = func() {
		e.pass(time.Second)
		if _, err := e.Revoke(context.Background(), broker.Cutoff{Kind: broker.CutID, Value: "spiffe://example.org/teams/sre"}); err != nil {
			t.Error(err)
		}
	}
	e.issuer.mu.Unlock()
	if svids, denial, err := e.Login(t.Context(), signIn(t, "b", ana)); !errors.Is(err, broker.ErrConflict) || svids != nil || denial != nil {
		t.Errorf("%+v, %+v, %v", svids, denial, err)
	}
}

// A login that says nothing is nobody's.
func TestLoginOfNobody(t *testing.T) {
	e := newLoginEnv(t)
	for name, spoil := range map[string]func(*broker.Login){
		"no facts":  func(l *broker.Login) { l.User = identity.Facts{} },
		"no digest": func(l *broker.Login) { l.Once = [32]byte{} },
		"no end":    func(l *broker.Login) { l.Expires = time.Time{} },
		"no key":    func(l *broker.Login) { l.Key = nil },
	} {
		l := signIn(t, name, ana)
		spoil(&l)
		if svids, denial, err := e.Login(t.Context(), l); err == nil || svids != nil || denial != nil {
			t.Errorf("%s: %+v, %+v, %v", name, svids, denial, err)
		}
	}
}

// A person's SVID is no workload's: the token endpoint gives nothing for it.
func TestAPersonsSVIDIsNotExchanged(t *testing.T) {
	e := newLoginEnv(t)
	e.run()
	svids, _, err := e.Login(t.Context(), signIn(t, "a", ana))
	e.must(err)
	leaf := svids[0].Chain[0]
	_, denial, err := e.exchange(broker.Evidence{
		ID: svids[0].ID, Kind: broker.KindX509, Serial: strings.ToLower(leaf.SerialNumber.Text(16)), Authority: e.active(authority.Issuing, ""),
		IssuedAt: leaf.NotBefore, Expires: leaf.NotAfter,
	})
	if err != nil || denial == nil || denial.Code != broker.DeniedUnknown {
		t.Errorf("%+v, %v", denial, err)
	}
	if denied := e.record.of("deny"); len(denied) != 1 || !strings.Contains(denied[0].Reason, "person") {
		t.Errorf("recorded: %+v", denied)
	}
}
