package broker_test

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

// item asks for what a process of uid 33 gets.
func item(t testing.TB, n int) broker.X509Item {
	t.Helper()
	return broker.X509Item{Workload: workload(t, "workload.unix.uid", "33"), Set: set(n), Keys: keys(t, 1)}
}

func (e *env) issue(n broker.Node, items ...broker.X509Item) []broker.X509Result {
	e.Helper()
	results, err := e.IssueX509(e.Context(), n, items)
	e.must(err)
	if len(results) != len(items) {
		e.Fatalf("%d results for %d items", len(results), len(items))
	}
	return results
}

func TestIssueX509(t *testing.T) {
	e := newEnv(t)
	first, second := web("a"), web("b")
	first.Targets, first.FederatesWith = []string{"cloud"}, nil
	first.X509 = &identity.X509{TTL: 30 * time.Minute, Subject: "CN=a"}
	e.SetPolicy(e.newPolicy(7, identity.Resources{
		Identities: []identity.Identity{first, second}, Targets: []identity.Target{{Name: "cloud", Revision: 5, Audience: "https://cloud.example"}},
	}))
	n := e.caller("n1")
	ask := item(t, 1)
	ask.Workload = workload(t, "workload.unix.uid", "33", "workload.unix.gid", "34")
	ask.Keys = keys(t, 3)[1:] // one to spare in the end
	r := e.issue(n, ask)[0]
	if r.Revision != 7 || r.KeysNeeded != 0 || r.Denial != nil || len(r.SVIDs) != 2 {
		t.Fatalf("the result is %+v", r)
	}
	var recorded []audit.Event
	for i, svid := range r.SVIDs {
		id := "spiffe://example.org/" + svid.Identity
		leaf := svid.Chain[0]
		e.equal([]string{svid.ID.String(), e.verify(svid.Chain).String()}, []string{id, id})
		e.equal(svid.PublicKey, i)
		e.equal(leaf.PublicKey, ask.Keys[i])
		e.equal(svid.Depends, map[string][]string{"node.name": {"n1"}, "workload.unix.uid": {"33"}})
		sum := digestOf(leaf.Raw)
		recorded = append(recorded, audit.Event{
			Kind: "issue.x509", OK: true, Node: n.ID, SPIFFEID: id, Identity: svid.Identity, Revision: 1,
			Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), NotAfter: leaf.NotAfter, Digest: hex.EncodeToString(sum[:]),
			Authority: e.active(authority.Issuing, ""), Issued: e.now(),
			Facts:  map[string][]string{"node.name": {"n1"}, "workload.unix.uid": {"33"}}, // and not what the process is besides
			Detail: nodeSVID(n),
		})
	}
	e.equal(e.record.of("issue.x509"), recorded)
	a, b := r.SVIDs[0], r.SVIDs[1]
	e.equal(a.Targets, []broker.Target{{Name: "cloud", Revision: 5, Flow: "cloud", Settings: []byte("{}")}})
	e.equal(b.Targets, []broker.Target{})
	if !a.Chain[0].NotAfter.Equal(start.Add(30*time.Minute)) || a.Chain[0].Subject.CommonName != "a" || !b.Chain[0].NotAfter.Equal(start.Add(time.Hour)) {
		t.Errorf("%s ends at %s, the other at %s", a.Chain[0].Subject, a.Chain[0].NotAfter, b.Chain[0].NotAfter)
	}
	if a.Digest == b.Digest || a.Digest == [sha256.Size]byte{} {
		t.Error("two SVIDs have one digest, or none")
	}

	ask.TTL = 5 * time.Minute
	ask.Keys = keys(t, 1)
	r = e.issue(n, ask)[0]
	if len(r.SVIDs) != 1 || r.KeysNeeded != 1 || !r.SVIDs[0].Chain[0].NotAfter.Equal(start.Add(5*time.Minute)) {
		t.Errorf("with one key: %+v", r)
	}
	ask.Keys = nil
	if r = e.issue(n, ask)[0]; len(r.SVIDs) != 0 || r.KeysNeeded != 2 {
		t.Errorf("without keys: %+v", r)
	}
}

// A life that is asked for is never more than the identities give, what is held
// does not stand for it, and nobody is told of its changes.
func TestLifeAskedFor(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	plain := e.issue(n, item(t, 1))[0].SVIDs[0]
	e.equal(plain.Chain[0].NotAfter, start.Add(time.Hour))
	ask := item(t, 2)
	ask.Held = []broker.Held{{Identity: "web", Digest: plain.Digest, NotAfter: plain.Chain[0].NotAfter}}
	ask.TTL = 12 * time.Minute
	if r := e.issue(n, ask)[0]; len(r.SVIDs) != 1 || len(r.SVIDs[0].Chain) == 0 || !r.SVIDs[0].Chain[0].NotAfter.Equal(start.Add(12*time.Minute)) {
		t.Errorf("what is held stands for a shorter life: %+v", r)
	}
	ask.TTL = time.Hour + time.Second
	r := e.issue(n, ask)[0]
	if r.Denial == nil || r.Denial.Code != broker.DeniedLife || r.Denial.Most != time.Hour || len(r.SVIDs) > 0 || !strings.HasPrefix(r.Denial.Record, "r-") {
		t.Errorf("over the cap: %+v", r)
	}
	ask.TTL = time.Second
	if r := e.issue(n, ask)[0]; r.Denial == nil || r.Denial.Code != broker.DeniedLife || r.Denial.Least != time.Minute {
		t.Errorf("under the least: %+v", r)
	}
	denied := e.record.of("deny")
	if len(denied) == 0 || denied[0].Code != broker.DeniedLife || denied[0].Detail["ttl"] != "1h0m1s" {
		t.Errorf("recorded %+v", denied)
	}
	e.told(session)
	e.swap(identity.Resources{})
	e.equal(e.told(session), []broker.Change{{Set: set(1), Erase: true}})
}

func TestHeld(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	first := e.issue(n, item(t, 1))[0].SVIDs[0]
	e.issuer.signatures()
	held := broker.Held{Identity: "web", Digest: first.Digest, NotAfter: first.Chain[0].NotAfter}
	for _, row := range []struct {
		name   string
		change func(*broker.Held)
		signed int
	}{
		{"the same", func(*broker.Held) {}, 0},
		{"for a minute and a second yet", func(h *broker.Held) { h.NotAfter = start.Add(61 * time.Second) }, 0},
		{"for a minute", func(h *broker.Held) { h.NotAfter = start.Add(time.Minute) }, 1},
		{"ended", func(h *broker.Held) { h.NotAfter = time.Time{} }, 1},
		{"another digest", func(h *broker.Held) { h.Digest[0]++ }, 1},
		{"another identity", func(h *broker.Held) { h.Identity = "web2" }, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, before := held, len(e.record.of("issue.x509"))
			row.change(&h)
			ask := item(t, 1)
			ask.Held = []broker.Held{{}, h}
			r := e.issue(n, ask)[0]
			if len(r.SVIDs) != 1 || (len(r.SVIDs[0].Chain) > 0) != (row.signed > 0) || r.SVIDs[0].Digest != first.Digest || r.KeysNeeded != 0 {
				t.Errorf("the result is %+v", r)
			}
			e.equal(e.issuer.signatures(), row.signed)
			e.equal(len(e.record.of("issue.x509"))-before, row.signed)
		})
	}

	// What is held is no longer what is granted.
	for name, change := range map[string]func(*identity.Identity){
		"hint":      func(i *identity.Identity) { i.Hint = "main" },
		"audiences": func(i *identity.Identity) { i.JWT.Audiences = append(i.JWT.Audiences, identity.Audience{Pattern: "x"}) },
		"use":       func(i *identity.Identity) { i.JWT.Audiences[0].Use = identity.UseAudited },
		"ID":        func(i *identity.Identity) { i.SPIFFEID = "/elsewhere" },
		"ttl":       func(i *identity.Identity) { i.X509 = &identity.X509{TTL: time.Minute} },
		"subject":   func(i *identity.Identity) { i.X509 = &identity.X509{Subject: "CN=web"} },
	} {
		i := web("web")
		change(&i)
		e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: []identity.Identity{i}}))
		ask := item(t, 1)
		ask.Held = []broker.Held{held}
		if r := e.issue(n, ask)[0]; len(r.SVIDs) != 1 || r.SVIDs[0].Chain == nil {
			t.Errorf("another %s: %+v", name, r)
		}
	}

	// To hold an SVID gives nobody anything.
	ask := item(t, 2)
	ask.Workload = workload(t, "workload.unix.uid", "0")
	ask.Held = []broker.Held{held}
	if r := e.issue(n, ask)[0]; len(r.SVIDs) != 0 || r.Denial == nil {
		t.Errorf("denied, but holding: %+v", r)
	}
}

// TestManyIdentities gives a workload more SVIDs than it may send keys at once.
func TestManyIdentities(t *testing.T) {
	e := newEnv(t)
	var all []identity.Identity
	for i := range 19 {
		all = append(all, web(fmt.Sprintf("i%02d", i)))
	}
	e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: all}))
	n := e.caller("n1")
	ask := item(t, 1)
	got := map[string]bool{}
	for round, want := range []struct{ svids, signed, needed int }{{8, 8, 11}, {16, 8, 3}, {19, 3, 0}, {19, 0, 0}} {
		ask.Keys = keys(t, broker.MaxKeys)
		r := e.issue(n, ask)[0]
		ask.Held = nil
		for _, svid := range r.SVIDs {
			ask.Held = append(ask.Held, broker.Held{Identity: svid.Identity, Digest: svid.Digest, NotAfter: start.Add(time.Hour)})
			if svid.Chain == nil {
				continue
			}
			if got[svid.Identity] {
				t.Errorf("round %d: %s is signed again", round, svid.Identity)
			}
			got[svid.Identity] = true
			e.equal(svid.Chain[0].PublicKey, ask.Keys[svid.PublicKey])
			e.equal(e.verify(svid.Chain).Path(), "/"+svid.Identity)
		}
		if len(r.SVIDs) != want.svids || r.KeysNeeded != want.needed || e.issuer.signatures() != want.signed {
			t.Errorf("round %d: %d SVIDs, %d keys needed", round, len(r.SVIDs), r.KeysNeeded)
		}
	}
}

func TestDenial(t *testing.T) {
	e := newEnv(t)
	e.SetPolicy(e.newPolicy(2, identity.Resources{
		Identities: []identity.Identity{web("web")}, Denies: []identity.Deny{deny("workload.unix.gid", "0")},
	}))
	n := e.caller("n1")
	ask := item(t, 1)
	ask.Workload = workload(t, "workload.unix.uid", "33", "workload.unix.gid", "0", "workload.unix.gid", "5")
	ask.Workload.Unknown = []string{"workload.docker", "workload.systemd"}
	other := item(t, 2)
	results := e.issue(n, ask, other)
	r := results[0]
	if r.Denial == nil || r.Denial.Code != "denied" || len(r.SVIDs) != 0 || r.KeysNeeded != 0 {
		t.Fatalf("the result is %+v", r)
	}
	if len(results[1].SVIDs) != 1 || results[1].Denial != nil {
		t.Errorf("and of the other item: %+v", results[1])
	}
	text, err := json.Marshal(r)
	e.must(err)
	for _, told := range []string{"secret", "web", "deny\"", "gid"} {
		if strings.Contains(string(text), told) {
			t.Errorf("it is told %q: %s", told, text)
		}
	}
	recorded := e.record.of("deny")
	if len(recorded) != 1 {
		t.Fatalf("recorded: %+v", recorded)
	}
	e.equal(recorded[0].Facts, map[string][]string{"workload.unix.uid": {"33"}, "workload.unix.gid": {"0", "5"}})
	e.equal([]any{recorded[0].OK, recorded[0].Node, recorded[0].Detail["unknown"], recorded[0].Detail["asked"]},
		[]any{false, n.ID, "workload.docker workload.systemd", "x509"})
	if got := e.recordOf("deny"); got != r.Denial.Record {
		t.Errorf("it is told of record %s, which is %s", r.Denial.Record, got)
	}
	if again := e.issue(n, ask)[0]; again.Denial == nil || again.Denial.Record != r.Denial.Record {
		t.Errorf("again: %+v", again.Denial)
	}
	e.equal(len(e.record.of("deny")), 1)

	// The same process of another node is another denial.
	another := e.issue(e.caller("n2"), ask)[0]
	if another.Denial == nil || another.Denial.Record == r.Denial.Record {
		t.Errorf("of another node: %+v", another.Denial)
	}
}

// recordOf returns the place of the first record of a kind.
func (e *env) recordOf(kind string) string {
	e.record.mu.Lock()
	defer e.record.mu.Unlock()
	for i, ev := range e.record.events {
		if ev.Kind == kind {
			return e.record.refs[i].IDAt("b1")
		}
	}
	return ""
}

// TestLongFacts holds that long facts neither go unrecorded nor keep others
// from an answer.
func TestLongFacts(t *testing.T) {
	e := newEnv(t)
	i := web("web")
	i.Match[0].Terms = append(i.Match[0].Terms, identity.Term{Name: "workload.container.env", Pattern: "**"})
	e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: []identity.Identity{i}}))
	n := e.caller("n1")
	long := strings.Repeat("\x01", identity.MaxFactsBytes-1000) // six bytes each in JSON
	granted, denied := item(t, 1), item(t, 2)
	granted.Workload = workload(t, "workload.unix.uid", "33", "workload.container.env", long)
	denied.Workload = workload(t, "workload.unix.uid", "0", "workload.container.env", long)
	for range 64 {
		denied.Workload.Unknown = append(denied.Workload.Unknown, "workload."+strings.Repeat("\xff", 500))
	}
	results := e.issue(n, granted, denied, item(t, 3))
	if len(results[0].SVIDs) != 1 || results[1].Denial == nil || results[2].Denial == nil {
		t.Fatalf("the results are %+v", results)
	}
	for _, kind := range []string{"issue.x509", "deny"} {
		facts := e.record.of(kind)[0].Facts
		if len(facts) != 1 || len(facts["sha256"]) != 1 || len(facts["sha256"][0]) != 64 {
			t.Errorf("%s: the facts are recorded as %.200v", kind, facts)
		}
	}
	detail := e.record.of("deny")[0].Detail
	if len(detail["unknown_sha256"]) != 64 || detail["unknown"] != "" {
		t.Errorf("what is unknown is recorded as %.200v", detail)
	}
}

// TestNodeFactsAreProven asks on n1 as if it were n2.
//
// Regression: CVE-2021-27098
// Regression: CVE-2026-16093
func TestNodeFactsAreProven(t *testing.T) {
	e := newEnv(t)
	i := web("web")
	i.Match[0].Terms = []identity.Term{{Name: "node.name", Pattern: "n2"}}
	e.SetPolicy(e.newPolicy(2, identity.Resources{Identities: []identity.Identity{i}}))
	n := e.caller("n1")
	facts, err := identity.NewFacts("node", map[string][]string{"node.name": {"n2"}, "node.token.site": {"b"}})
	e.must(err)
	ask := item(t, 1)
	ask.Workload.Facts, err = ask.Workload.Facts.Join(facts)
	e.must(err)
	if r := e.issue(n, ask)[0]; r.Denial == nil {
		t.Errorf("X509-SVIDs: %+v", r)
	}
	svids, d, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: ask.Workload, Audiences: []string{"spiffe://example.org/db"}})
	if err != nil || d == nil || len(svids) > 0 {
		t.Errorf("JWT-SVIDs: %v, %v", svids, err)
	}
	if r := e.issue(e.caller("n2"), item(t, 1))[0]; len(r.SVIDs) != 1 {
		t.Errorf("the right node: %+v", r)
	}
}

func TestBounds(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	items := func(n int, change func(*broker.X509Item)) (all []broker.X509Item) {
		for i := range n {
			it := item(t, i)
			if change != nil && i == n-1 {
				change(&it)
			}
			all = append(all, it)
		}
		return all
	}
	for name, asked := range map[string][]broker.X509Item{
		"no items":       nil,
		"65 items":       items(65, nil),
		"9 keys":         items(1, func(i *broker.X509Item) { i.Keys = keys(t, 9) }),
		"65 held":        items(1, func(i *broker.X509Item) { i.Held = make([]broker.Held, 65) }),
		"a key twice":    items(1, func(i *broker.X509Item) { i.Keys = []crypto.PublicKey{keys(t, 1)[0], keys(t, 2)[1], keys(t, 1)[0]} }),
		"no key":         items(1, func(i *broker.X509Item) { i.Keys = []crypto.PublicKey{nil} }),
		"no public key":  items(1, func(i *broker.X509Item) { i.Keys = []crypto.PublicKey{[]byte("key")} }),
		"one bad of two": items(2, func(i *broker.X509Item) { i.Keys = []crypto.PublicKey{nil} }),
	} {
		if r, err := e.IssueX509(t.Context(), n, asked); !errors.Is(err, broker.ErrRequest) || r != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := workload(t, "workload.unix.uid", "33")
	audiences := make([]string, 17)
	for i := range audiences {
		audiences[i] = "spiffe://example.org/db"
	}
	for name, asked := range map[string]broker.JWTRequest{
		"no audience":            {Workload: w},
		"17 audiences":           {Workload: w, Audiences: audiences},
		"an audience and target": {Workload: w, Audiences: audiences[:1], Target: "cloud"},
		"a long target":          {Workload: w, Target: strings.Repeat("x", 64)},
		"long audiences":         {Workload: w, Audiences: []string{strings.Repeat("\x01", 3000)}},
	} {
		if svids, d, err := e.IssueJWT(t.Context(), n, asked); !errors.Is(err, broker.ErrRequest) || svids != nil || d != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	e.equal(len(e.record.of("issue.x509"))+len(e.record.of("issue.jwt"))+len(e.record.of("deny")), 0)

	most := items(64, func(i *broker.X509Item) { i.Keys, i.Held = keys(t, 8), make([]broker.Held, 64) })
	e.issue(n, most...)
	_, _, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: w, Audiences: audiences[:16]})
	e.must(err)
}

// claims of a token, and the algorithm of its header.
func claims(t *testing.T, token string) (alg string, c map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no token", token)
	}
	var header struct{ Alg string }
	for i, into := range []any{&header, &c} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	return header.Alg, c
}

func TestIssueJWT(t *testing.T) {
	e := newEnv(t)
	_, err := e.issuer.Tick(t.Context()) // makes the RS256 keys
	e.must(err)
	a, b := web("a"), web("b")
	a.Targets = []string{"cloud", "mtls"}
	a.JWT.Audiences = identity.Plain("spiffe://example.org/**", "orders")
	e.SetPolicy(e.newPolicy(2, identity.Resources{
		Identities: []identity.Identity{a, b},
		Targets:    []identity.Target{{Name: "cloud", Audience: "https://cloud.example"}, {Name: "mtls"}, {Name: "others", Audience: "x"}},
	}))
	n := e.caller("n1")
	w := workload(t, "workload.unix.uid", "33")
	const db = "spiffe://example.org/db"
	idA := spiffeid.RequireFromString("spiffe://example.org/a")
	for _, row := range []struct {
		name string
		ask  broker.JWTRequest
		want string // identities; empty: denied
		alg  string // of a denial its code
		life time.Duration
	}{
		{"an audience of both", broker.JWTRequest{Audiences: []string{db}}, "a b", "ES256", 5 * time.Minute},
		{"one of them", broker.JWTRequest{Audiences: []string{db}, SPIFFEID: idA}, "a", "ES256", 5 * time.Minute},
		{"shorter", broker.JWTRequest{Audiences: []string{db}, SPIFFEID: idA, TTL: time.Minute}, "a", "ES256", time.Minute},
		{"longer", broker.JWTRequest{Audiences: []string{db}, SPIFFEID: idA, TTL: time.Hour}, "", "ttl_refused", 0},
		{"too short", broker.JWTRequest{Audiences: []string{db}, SPIFFEID: idA, TTL: time.Second}, "", "ttl_refused", 0},
		{"two audiences", broker.JWTRequest{Audiences: []string{db, "orders"}}, "a", "RS256", 5 * time.Minute},
		{"one is not listed", broker.JWTRequest{Audiences: []string{db, "ledger"}}, "", "audience_not_listed", 0},
		{"a target's audience", broker.JWTRequest{Audiences: []string{"https://cloud.example"}}, "", "audience_not_listed", 0},
		{"a target", broker.JWTRequest{Target: "cloud"}, "a", "RS256", 15 * time.Minute},
		{"to a file", broker.JWTRequest{Target: "cloud", ToFile: true}, "a", "RS256", time.Hour},
		{"a target for X509-SVIDs", broker.JWTRequest{Target: "mtls"}, "", "target_takes_x509", 0},
		{"another's target", broker.JWTRequest{Target: "others"}, "", "target_not_listed", 0},
		{"no such target", broker.JWTRequest{Target: "nothing"}, "", "target_not_listed", 0},
		{"another's ID", broker.JWTRequest{Audiences: []string{db}, SPIFFEID: spiffeid.RequireFromString("spiffe://example.org/c")}, "", "spiffe_id_not_granted", 0},
		{"a file without a target", broker.JWTRequest{Audiences: []string{db}, ToFile: true}, "", "request_refused", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.ask.Workload, row.ask.Set = w, set(1)
			before := len(e.record.of("issue.jwt"))
			denied := len(e.record.of("deny"))
			svids, d, err := e.IssueJWT(t.Context(), n, row.ask)
			e.must(err)
			recorded := e.record.of("issue.jwt")[before:]
			if row.want == "" {
				if d == nil || d.Code != row.alg || !strings.HasPrefix(d.Record, "r-") || len(svids) > 0 || len(recorded) > 0 {
					t.Errorf("%v, %v, recorded %v", svids, d, recorded)
				}
				for _, event := range e.record.of("deny")[denied:] {
					e.equal([]any{event.Audiences, event.Target, event.Detail["asked"]}, []any{row.ask.Audiences, row.ask.Target, "jwt"})
				}
				return
			}
			if d != nil || len(recorded) != len(svids) {
				t.Fatalf("denied: %v, recorded %v", d, recorded)
			}
			var names []string
			for i, svid := range svids {
				names = append(names, svid.Identity)
				alg, c := claims(t, svid.Token)
				audiences := row.ask.Audiences
				if row.ask.Target != "" {
					audiences = []string{"https://cloud.example"}
				}
				var aud []string
				switch v := c["aud"].(type) {
				case string:
					aud = []string{v}
				case []any:
					for _, a := range v {
						aud = append(aud, a.(string))
					}
				}
				e.equal(aud, audiences)
				iat, exp := int64(c["iat"].(float64)), int64(c["exp"].(float64))
				e.equal([]any{alg, c["sub"], svid.ID.String(), time.Duration(exp-iat) * time.Second, svid.Expires.Unix()},
					[]any{row.alg, svid.ID.String(), "spiffe://example.org/" + svid.Identity, row.life, exp})
				sum := digestOf([]byte(svid.Token))
				e.equal(recorded[i], audit.Event{
					Kind: "issue.jwt", OK: true, Node: n.ID, SPIFFEID: svid.ID.String(), Identity: svid.Identity, Revision: 1,
					Serial: c["jti"].(string), Authority: e.active(authority.JWTKey, header(t, svid.Token)["alg"].(string)), Issued: e.now(), NotAfter: time.Unix(exp, 0), Digest: hex.EncodeToString(sum[:]),
					Audiences: audiences, Target: row.ask.Target, Facts: map[string][]string{"node.name": {"n1"}, "workload.unix.uid": {"33"}},
					Detail: nodeSVID(n),
				})
			}
			e.equal(strings.Join(names, " "), row.want)
		})
	}
}

// nodeSVID is how a record names the node's own, whose record has its facts.
func nodeSVID(n broker.Node) map[string]string {
	return map[string]string{"node_svid": hex.EncodeToString(n.Serial)}
}
