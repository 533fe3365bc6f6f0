package broker_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

func TestJoin(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	const id = "spiffe://example.org/credence/node/n1"
	leaf := joined.Chain[0]
	if got := e.verify(joined.Chain); got.String() != id || joined.Node.ID != id {
		t.Errorf("the SVID names %s, the node %s", got, joined.Node.ID)
	}
	e.equal(leaf.PublicKey, keys(t, 1)[0])
	if want := start.Add(4 * time.Hour); !leaf.NotAfter.Equal(want) || !joined.Node.ExpiresAt.Equal(want) {
		t.Errorf("it ends %s, the node's at %s", leaf.NotAfter, joined.Node.ExpiresAt)
	}
	facts := map[string][]string{"node.method": {"token"}, "node.id": {"n1"}, "node.name": {"n1"}, "node.token.site": {"a"}}
	e.equal(joined.Node.Facts.Map(), facts)
	sum := digestOf(leaf.Raw)
	e.equal(e.record.of("join"), []audit.Event{{
		Kind: "join", OK: true, Node: id, SPIFFEID: id, Identity: "node", Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()),
		NotAfter: leaf.NotAfter, Digest: hex.EncodeToString(sum[:]), Facts: facts, Authority: e.active(authority.Issuing, ""), Issued: e.now(),
		Detail: map[string]string{"method": "token", "rule": "", "agent": "1.2.3"},
	}})
	n, err := e.as(joined)
	e.must(err)
	e.equal(n.Facts.Map(), facts)

	e.start() // and it is kept
	n, err = e.as(joined)
	e.must(err)
	e.equal(n.Facts.Map(), facts)
	e.equal(len(e.Nodes()), 1)
}

func TestJoinRefused(t *testing.T) {
	e := newEnv(t)
	spent := e.joinRequest("n0")
	_, err := e.Join(t.Context(), spent)
	e.must(err)
	e.issuer.signatures()
	fresh := e.joinRequest("n1")
	for _, row := range []struct {
		name   string
		change func(*broker.JoinRequest)
		want   error
	}{
		{"a spent token", func(r *broker.JoinRequest) { r.Evidence = spent.Evidence }, join.ErrEvidence},
		{"no token", func(r *broker.JoinRequest) { r.Evidence = []byte("cjt_x") }, join.ErrEvidence},
		{"no evidence", func(r *broker.JoinRequest) { r.Evidence = nil }, broker.ErrRequest},
		{"long evidence", func(r *broker.JoinRequest) { r.Evidence = make([]byte, broker.MaxEvidence+1) }, broker.ErrRequest},
		{"no key", func(r *broker.JoinRequest) { r.PublicKey = nil }, broker.ErrRequest},
		{"no public key", func(r *broker.JoinRequest) { r.PublicKey = "key" }, broker.ErrRequest},
		{"a rule", func(r *broker.JoinRequest) { r.Rule = "any" }, broker.ErrRequest},
		{"no method", func(r *broker.JoinRequest) { r.Method = "" }, identity.ErrDenied},
		{"a method without a rule", func(r *broker.JoinRequest) { r.Method = "fake" }, identity.ErrDenied},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := fresh
			row.change(&r)
			joined, err := e.Join(t.Context(), r)
			if !errors.Is(err, row.want) || joined.Chain != nil || joined.Node.ID != "" {
				t.Errorf("%v, the error is %v, want %v", joined, err, row.want)
			}
		})
	}
	e.equal(e.issuer.signatures(), 0)
	e.equal(len(e.Nodes()), 1)
	e.equal(len(e.record.of("join")), 1)
	_, err = e.Join(t.Context(), fresh) // none of it has spent it
	e.must(err)

	e.must(e.Close()) // which writes what was counted
	total := uint64(0)
	for _, r := range e.record.of("join.refused") {
		total += r.Count
	}
	e.equal(total, uint64(9))
}

// TestStrangersDoNotWait holds that a failed join needs no record.
func TestStrangersDoNotWait(t *testing.T) {
	e := newEnv(t)
	e.record.fail(true)
	_, err := e.Join(t.Context(), broker.JoinRequest{Method: "token", Evidence: []byte("x"), PublicKey: keys(t, 1)[0]})
	e.refused(err, join.ErrEvidence)
	e.record.fail(false)
}

// fake is a join method whose evidence is the proof itself: the name and the
// owner, which is also the durable key.
type fake struct {
	prove    func(*join.Proof) map[string][]string // changes it, and may say what the facts are
	wait     bool
	instance string
	key      *identity.KeyDigest // is set to what it is told
}

func (f fake) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	if f.wait {
		<-ctx.Done()
		return join.Proof{}, ctx.Err()
	}
	if f.key != nil {
		*f.key, _ = join.Key(ctx)
	}
	if ask != nil {
		answer, err := ask(ctx, []byte("challenge"))
		if err != nil || string(answer) != "answer" {
			return join.Proof{}, fmt.Errorf("%w: %q, %w", join.ErrEvidence, answer, err)
		}
	}
	name, owner, _ := strings.Cut(string(evidence), " ")
	p := join.Proof{Name: name, DurableKey: owner, Instance: f.instance}
	facts := map[string][]string{"node.fake.owner": {owner}}
	if f.prove != nil {
		facts = f.prove(&p)
	}
	var err error
	p.Facts, err = identity.NewFacts("node", facts)
	return p, err
}

func rule(name string, items ...identity.Item) join.Rule {
	return join.Rule{Name: name, Revision: 1, Method: "fake", Allow: items}
}

func owner(pattern string) identity.Item {
	return identity.Item{Terms: []identity.Term{{Name: "node.fake.owner", Pattern: pattern}}}
}

func TestJoinByRule(t *testing.T) {
	good := []join.Rule{rule("acme", owner("acme")), {Name: "other", Method: "another", Allow: []identity.Item{owner("acme")}}}
	for _, row := range []struct {
		name  string
		rules []join.Rule
		rule  string // asked for
		prove func(*join.Proof) map[string][]string
		want  string // part of the error
		kind  error
	}{
		{"allowed", good, "", nil, "", nil},
		{"by name", append(good, rule("globex", owner("globex"))), "acme", nil, "", nil},
		{"any of two", []join.Rule{rule("r", owner("globex"), owner("ac*"))}, "", nil, "", nil},
		{"not allowed", []join.Rule{rule("r", owner("globex"))}, "", nil, "allows no such node", identity.ErrDenied},
		{"allowing nobody", []join.Rule{rule("r")}, "", nil, "allows nobody", identity.ErrDenied},
		{"an empty item", []join.Rule{rule("r", identity.Item{})}, "", nil, "join rule r", nil},
		{"no rule", nil, "", nil, "0 join rules", identity.ErrDenied},
		{"two rules", append(good, rule("globex", owner("globex"))), "", nil, "2 join rules", identity.ErrDenied},
		{"another's rule", good, "other", nil, "0 join rules", identity.ErrDenied},
		{"no such rule", good, "nobody", nil, "0 join rules", identity.ErrDenied},
		{"no durable key", good, "", func(p *join.Proof) map[string][]string {
			p.DurableKey = ""
			return map[string][]string{"node.fake.owner": {"acme"}}
		}, "no durable key or name", nil},
		{"no name", good, "", func(p *join.Proof) map[string][]string {
			p.Name = ""
			return map[string][]string{"node.fake.owner": {"acme"}}
		}, "no durable key or name", nil},
		{"another method's facts", good, "", func(*join.Proof) map[string][]string {
			return map[string][]string{"node.fake.owner": {"acme"}, "node.token.site": {"a"}}
		}, `"node.token.site"`, nil},
		{"our own facts", good, "", func(*join.Proof) map[string][]string {
			return map[string][]string{"node.fake.owner": {"acme"}, "node.id": {"n1"}}
		}, `"node.id"`, nil},
		{"facts of a like name", good, "", func(*join.Proof) map[string][]string {
			return map[string][]string{"node.fake.owner": {"acme"}, "node.fakes": {"n1"}}
		}, `"node.fakes"`, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := newEnv(t)
			e.policy.Rules = row.rules
			e.method = fake{prove: row.prove}
			asked := 0
			joined, err := e.Join(t.Context(), broker.JoinRequest{
				Method: "fake", Rule: row.rule, Evidence: []byte("n1 acme"), PublicKey: keys(t, 1)[0],
				Ask: func(_ context.Context, challenge []byte) ([]byte, error) {
					asked++
					return []byte("answer"), nil
				},
			})
			if row.want != "" {
				if err == nil || !strings.Contains(err.Error(), row.want) || row.kind != nil && !errors.Is(err, row.kind) {
					t.Errorf("the error is %v, want %q", err, row.want)
				}
				e.equal(len(e.Nodes()), 0)
				e.equal(e.issuer.signatures(), 0)
				return
			}
			e.must(err)
			e.equal(asked, 1)
			id := strings.TrimPrefix(joined.Node.ID, "spiffe://example.org/credence/node/")
			if !strings.HasPrefix(id, "fake-") || strings.Contains(id, "acme") || len(id) != len("fake-")+24 {
				t.Errorf("its ID is %s", joined.Node.ID)
			}
			name := max(row.rule, row.rules[0].Name)
			e.equal(joined.Node.Facts.Map(), map[string][]string{
				"node.method": {"fake"}, "node.id": {id}, "node.name": {"n1"}, "node.join_rule": {name}, "node.fake.owner": {"acme"},
			})
		})
	}
}

// A method is told which key its proof is for.
func TestTheKeyOfAJoin(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("any", owner("**"))}
	var told identity.KeyDigest
	e.method = fake{key: &told}
	pub := keys(t, 1)[0]
	_, err := e.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte("n1 acme"), PublicKey: pub})
	e.must(err)
	want, err := identity.DigestKey(pub)
	e.must(err)
	e.equal(told, want)
	if _, ok := join.Key(join.WithKey(t.Context(), identity.KeyDigest{})); ok {
		t.Error("no key's digest is a key's")
	}
	if _, ok := join.Key(t.Context()); ok {
		t.Error("nobody told a key")
	}
}

func TestDurableKey(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("any", owner("**"))}
	e.method = fake{}
	as := func(evidence string) (broker.Joined, error) {
		return e.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte(evidence), PublicKey: keys(t, 1)[0]})
	}
	first, err := as("n1 acme")
	e.must(err)
	renamed, err := as("n2 acme")
	e.must(err)
	other, err := as("n1 globex")
	e.must(err)
	if first.Node.ID != renamed.Node.ID || first.Node.ID == other.Node.ID || renamed.Node.Name != "n2" {
		t.Errorf("IDs %s, %s and %s", first.Node.ID, renamed.Node.ID, other.Node.ID)
	}
	// A token for the same ID is for another machine.
	_, err = e.Join(t.Context(), e.joinRequest(strings.TrimPrefix(first.Node.ID, "spiffe://example.org/credence/node/")))
	e.refused(err, broker.ErrConflict)
	_, err = e.Evict(t.Context(), first.Node.ID, "uid:0", "")
	e.must(err)
	_, err = as("n9 acme") // under any name
	e.refused(err, broker.ErrConflict)
	_, err = as("n1 globex")
	e.must(err)
}

// Nodes that have a durable key in common, such as the jobs of one repository,
// are nodes of their own; to ban one bans all.
func TestInstances(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("any", owner("**"))}
	as := func(instance string) (broker.Joined, error) {
		e.method = fake{instance: instance}
		return e.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte("n1 acme"), PublicKey: keys(t, 1)[0]})
	}
	first, err := as("1")
	e.must(err)
	again, err := as("1")
	e.must(err)
	second, err := as("2")
	e.must(err)
	if first.Node.ID != again.Node.ID || first.Node.ID == second.Node.ID {
		t.Errorf("IDs %s, %s and %s", first.Node.ID, again.Node.ID, second.Node.ID)
	}
	known, err := e.as(second)
	e.must(err)
	// Who shows that it is one of them stays it, if it proves the same.
	e.method = fake{instance: "4"}
	for evidence, same := range map[string]bool{"n1 acme": true, "n1 globex": false} {
		next, err := e.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte(evidence), PublicKey: keys(t, 1)[0], Known: known})
		e.must(err)
		if (next.Node.ID == second.Node.ID) != same {
			t.Errorf("by %s node %s is %s", evidence, second.Node.ID, next.Node.ID)
		}
	}
	_, err = e.Evict(t.Context(), first.Node.ID, "uid:0", "")
	e.must(err)
	_, err = e.as(second)
	e.refused(err, broker.ErrNotFound)
	_, err = as("3")
	e.refused(err, broker.ErrConflict)
}

// Who joined by something that can be shown again shows it again: it may have
// changed.
func TestOnlyTokensRenew(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("any", owner("**"))}
	e.method = fake{}
	joined, err := e.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte("n1 acme"), PublicKey: keys(t, 1)[0]})
	e.must(err)
	n, err := e.as(joined)
	e.must(err)
	_, err = e.Renew(t.Context(), n, keys(t, 2)[1])
	e.refused(err, broker.ErrRequest)
}

func TestJoinTime(t *testing.T) {
	e := newEnv(t)
	e.policy.Rules = []join.Rule{rule("any", owner("**"))}
	e.method = fake{wait: true}
	config := e.config()
	config.JoinTime = time.Millisecond
	b, err := broker.New(t.Context(), config)
	e.must(err)
	defer b.Close()
	_, err = b.Join(t.Context(), broker.JoinRequest{Method: "fake", Evidence: []byte("n1 acme"), PublicKey: keys(t, 1)[0]})
	e.refused(err, context.DeadlineExceeded)
}

func (e *env) renew(j broker.Joined) broker.Joined {
	e.Helper()
	n, err := e.as(j)
	e.must(err)
	renewed, err := e.Renew(e.Context(), n, keys(e, 2)[1])
	e.must(err)
	return renewed
}

func TestSerials(t *testing.T) {
	e := newEnv(t)
	first := e.join("n1")
	second := e.renew(first)
	for _, j := range []broker.Joined{first, second} {
		if _, err := e.as(j); err != nil {
			t.Error(err)
		}
	}
	third := e.renew(second)
	check := func(when string) {
		t.Helper()
		if _, err := e.as(first); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s, the last but two: %v", when, err)
		}
		for _, j := range []broker.Joined{second, third} {
			if _, err := e.as(j); err != nil {
				t.Error(when, err)
			}
		}
	}
	check("at once")
	e.start()
	check("after a restart")
	id, held := spiffeid.RequireFromString(first.Node.ID), keyOf(t, third)
	for name, refused := range map[string]struct {
		id     spiffeid.ID
		serial *big.Int
		key    identity.KeyDigest
	}{
		"unknown serial":       {id, big.NewInt(1), held},
		"no serial":            {id, new(big.Int), held},
		"negative":             {id, new(big.Int).Neg(new(big.Int).Add(third.Chain[0].SerialNumber, big.NewInt(1))), held},
		"unknown node":         {spiffeid.RequireFromString("spiffe://example.org/credence/node/n2"), third.Chain[0].SerialNumber, held},
		"another trust domain": {spiffeid.RequireFromString("spiffe://peer.example/credence/node/n1"), third.Chain[0].SerialNumber, held},
		"no ID":                {spiffeid.ID{}, third.Chain[0].SerialNumber, held},
		"another's key":        {id, third.Chain[0].SerialNumber, identity.KeyDigest{1}},
		"no key":               {id, third.Chain[0].SerialNumber, identity.KeyDigest{}},
	} {
		if n, err := e.Node(t.Context(), refused.id, refused.serial, refused.key); !errors.Is(err, broker.ErrNotFound) || n.ID != "" {
			t.Errorf("%s: %v, %v", name, n, err)
		}
	}
	newcomer := e.join("n2") // has no previous serial
	if _, err := e.Node(t.Context(), spiffeid.RequireFromString(newcomer.Node.ID), new(big.Int), keyOf(t, newcomer)); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a serial of zero on a new node: %v", err)
	}
}

// TestLostAnswers renews again and again with the SVID that the agent has.
func TestLostAnswers(t *testing.T) {
	e := newEnv(t)
	has := e.join("n1")
	var last broker.Joined
	for range 3 {
		last = e.renew(has)
	}
	for _, j := range []broker.Joined{has, last} {
		if _, err := e.as(j); err != nil {
			t.Error(err)
		}
	}
	e.renew(last)
	if _, err := e.as(has); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("once it has used the new one, the old: %v", err)
	}
}

// Regression: CVE-2026-39388
func TestRenew(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(2 * time.Hour)
	renewed := e.renew(joined)
	e.equal(e.verify(renewed.Chain).String(), joined.Node.ID)
	e.equal(renewed.Chain[0].PublicKey, keys(t, 2)[1])
	e.equal(renewed.Node.Facts.Map(), joined.Node.Facts.Map())
	if !renewed.Node.JoinedAt.Equal(joined.Node.JoinedAt) || !renewed.Chain[0].NotAfter.Equal(start.Add(6*time.Hour)) {
		t.Errorf("it joined at %s, the SVID ends at %s", renewed.Node.JoinedAt, renewed.Chain[0].NotAfter)
	}
	recorded := e.record.of("renew")
	if len(recorded) != 1 || !recorded[0].OK || recorded[0].Node != joined.Node.ID ||
		recorded[0].Serial != hex.EncodeToString(renewed.Chain[0].SerialNumber.Bytes()) {
		t.Errorf("recorded: %+v", recorded)
	}
	n, err := e.as(renewed)
	e.must(err)
	_, err = e.Renew(t.Context(), n, "no key")
	e.refused(err, broker.ErrRequest)

	e.join("n1") // anew, while that is on its way
	_, err = e.Renew(t.Context(), n, keys(t, 1)[0])
	e.refused(err, broker.ErrConflict)
}

func TestEvict(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	session := e.Watch(n)
	defer session.Close()
	other := e.Watch(e.join("n2").Node)
	defer other.Close()
	_, err = e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1)})
	e.must(err)
	e.SetPolicy(e.newPolicy(2, identity.Resources{})) // something else to say
	<-session.Wake()

	out, err := e.Evict(t.Context(), n.ID, "uid:0", "stolen")
	e.must(err)
	if out.EvictedAt.IsZero() {
		t.Error("no time of it is returned")
	}
	<-session.Wake()
	changes, evicted := session.Take()
	e.equal(changes, []broker.Change{{Erase: true}})
	e.equal(evicted, true)
	if _, evicted = other.Take(); evicted {
		t.Error("another node's session ends")
	}
	e.equal(e.record.of("evict"), []audit.Event{{Kind: "evict", OK: true, Node: n.ID, Actor: "uid:0", Reason: "stolen"}})
	e.issuer.signatures()

	shutOut := func() {
		t.Helper()
		if _, err := e.as(joined); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("its SVID: %v", err)
		}
		if r, err := e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1)}); !errors.Is(err, broker.ErrNotFound) || r != nil {
			t.Errorf("X509-SVIDs on a call that was on its way: %v", err)
		}
		if r, d, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Audiences: []string{"spiffe://example.org/db"}}); !errors.Is(err, broker.ErrNotFound) || r != nil || d != nil {
			t.Errorf("JWT-SVIDs: %v", err)
		}
		if _, err := e.Renew(t.Context(), n, keys(t, 1)[0]); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("its renewal: %v", err)
		}
		if _, err := e.Join(t.Context(), e.joinRequest("n1")); !errors.Is(err, broker.ErrConflict) {
			t.Errorf("its return: %v", err)
		}
		again := e.Watch(n)
		defer again.Close()
		<-again.Wake()
		if changes, evicted := again.Take(); !evicted || len(changes) != 1 || !changes[0].Erase {
			t.Errorf("a new stream: %v, %v", changes, evicted)
		}
		e.equal(e.issuer.signatures(), 0)
	}
	shutOut()
	e.policy = e.newPolicy(1, identity.Resources{Identities: []identity.Identity{web("web")}})
	e.start()
	shutOut()
	_, err = e.Evict(t.Context(), "spiffe://example.org/credence/node/nobody", "uid:0", "")
	e.refused(err, broker.ErrNotFound)

	// Allowed, it joins anew, and what it held stays without effect.
	e.must(e.Allow(t.Context(), n.ID, "uid:0", "found"))
	if _, err := e.as(joined); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("its old SVID: %v", err)
	}
	if _, err := e.Renew(t.Context(), n, keys(t, 1)[0]); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("its old renewal: %v", err)
	}
	back := e.join("n1")
	if _, err := e.as(back); err != nil {
		t.Error(err)
	}
	if _, err := e.as(joined); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("its old SVID, once it is back: %v", err)
	}
}

// TestLeaving holds that a node that calls while it is being evicted is not told
// that its SVID is revoked, which would have it join again.
func TestLeaving(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	for _, fails := range []error{errAway, nil} {
		var meanwhile error
		e.store.evicting = func() error {
			_, meanwhile = e.as(joined)
			return fails
		}
		_, err = e.Evict(t.Context(), n.ID, "uid:0", "stolen")
		if !errors.Is(err, fails) || !errors.Is(meanwhile, broker.ErrLeaving) {
			t.Errorf("%v: evicting: %v; meanwhile: %v", fails, err, meanwhile)
		}
		if _, err = e.as(joined); errors.Is(err, broker.ErrLeaving) || errors.Is(err, broker.ErrEvicted) != (fails == nil) {
			t.Errorf("%v: afterwards: %v", fails, err)
		}
	}
}

// TestEvictedMeanwhile evicts between a signature and its release.
func TestEvictedMeanwhile(t *testing.T) {
	for name, issue := range map[string]func(e *env, n broker.Node) (any, error){
		"x509": func(e *env, n broker.Node) (any, error) {
			r, err := e.IssueX509(e.Context(), n, []broker.X509Item{item(e, 1)})
			return r == nil, err
		},
		"jwt": func(e *env, n broker.Node) (any, error) {
			r, _, err := e.IssueJWT(e.Context(), n, broker.JWTRequest{Workload: workload(e, "workload.unix.uid", "33"), Audiences: []string{"spiffe://example.org/db"}})
			return r == nil, err
		},
		"renew": func(e *env, n broker.Node) (any, error) {
			r, err := e.Renew(e.Context(), n, keys(e, 1)[0])
			return r.Chain == nil, err
		},
		"join": func(e *env, n broker.Node) (any, error) {
			r, err := e.Join(e.Context(), e.joinRequest("n1"))
			return r.Chain == nil, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			n := e.caller("n1")
			e.issuer.hook = func() {
				_, err := e.Evict(context.WithoutCancel(t.Context()), n.ID, "uid:0", "")
				if err != nil {
					t.Error(err)
				}
			}
			empty, err := issue(e, n)
			if !errors.Is(err, broker.ErrNotFound) && !errors.Is(err, broker.ErrConflict) {
				t.Errorf("the error is %v", err)
			}
			e.equal(empty, true)
			e.equal(e.issuer.signatures(), 1) // it was made, and never left
		})
	}
}

// TestLateRenewal evicts after a renewal is in the store and before it is in
// memory.
func TestLateRenewal(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	e.store.saved = func() {
		if _, err := e.Evict(t.Context(), n.ID, "uid:0", ""); err != nil {
			t.Error(err)
		}
	}
	renewed, err := e.Renew(t.Context(), n, keys(t, 1)[0])
	e.must(err)
	for _, j := range []broker.Joined{joined, renewed} {
		if _, err := e.as(j); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("it is back: %v", err)
		}
	}
}

// TestNothingWithoutRecord holds that what cannot be recorded is not released.
func TestNothingWithoutRecord(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	tokens := map[string]broker.JoinRequest{"new": e.joinRequest("n2"), "again": e.joinRequest("n1")}
	stood := e.Nodes()
	e.record.fail(true)
	unrecorded := func(what string, empty bool, err error) {
		t.Helper()
		if !errors.Is(err, audit.ErrUnavailable) || !empty {
			t.Errorf("%s: empty is %v, the error is %v", what, empty, err)
		}
	}
	for name, r := range tokens {
		j, err := e.Join(t.Context(), r)
		unrecorded("joining "+name, j.Chain == nil && j.Node.ID == "", err)
	}
	j, err := e.Renew(t.Context(), n, keys(t, 1)[0])
	unrecorded("renewing", j.Chain == nil && j.Node.ID == "", err)
	x, err := e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1)})
	unrecorded("an X509-SVID", x == nil, err)
	refused := item(t, 2)
	refused.Workload = workload(t, "workload.unix.uid", "0")
	x, err = e.IssueX509(t.Context(), n, []broker.X509Item{refused})
	unrecorded("a denial", x == nil, err)
	x, err = e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1), refused})
	unrecorded("an X509-SVID and a denial", x == nil, err)
	w, d, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Audiences: []string{"spiffe://example.org/db"}})
	unrecorded("a JWT-SVID", w == nil && d == nil, err)
	w, d, err = e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "0"), Audiences: []string{"spiffe://example.org/db"}})
	unrecorded("a denied JWT-SVID", w == nil && d == nil, err)
	e.equal(e.Nodes(), stood)
	_, err = e.as(joined)
	e.must(err)

	// Evicting is the other way round: out first, then recorded.
	_, err = e.Evict(t.Context(), n.ID, "uid:0", "")
	unrecorded("evicting", true, err)
	if _, err := e.as(joined); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("and it acts on: %v", err)
	}
	err = e.Allow(t.Context(), n.ID, "uid:0", "")
	unrecorded("allowing", true, err)
	e.record.fail(false)
	_, err = e.Join(t.Context(), e.joinRequest("n1"))
	e.refused(err, broker.ErrConflict)
	_, err = e.Evict(t.Context(), n.ID, "uid:0", "again") // now it is recorded
	e.must(err)
	e.equal(len(e.record.of("evict")), 1)
}

// TestAtOnce does everything at once, for the race detector.
func TestAtOnce(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	policies := []*broker.Policy{e.policy, e.newPolicy(2, identity.Resources{})}
	out := e.caller("n2")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			session := e.Watch(n)
			defer session.Close()
			for j := range 5 {
				_, err := e.IssueX509(t.Context(), n, []broker.X509Item{item(t, i*5+j)})
				if err != nil {
					t.Error(err)
				}
				e.SetPolicy(policies[j%2])
				session.Take()
				session.Acknowledge(uint64(j))
				e.Acknowledged(n.ID)
				e.Connected(n.ID)
				e.Nodes()
			}
		})
		all.Go(func() {
			if _, err := e.Evict(t.Context(), out.ID, "uid:0", ""); err != nil {
				t.Error(err)
			}
			_, _ = e.Renew(t.Context(), out, keys(t, 1)[0])
		})
	}
	all.Wait()
	for _, n := range e.Nodes() {
		if n.ID == out.ID && n.EvictedAt.IsZero() {
			t.Error("the evicted node is back")
		}
	}
}
