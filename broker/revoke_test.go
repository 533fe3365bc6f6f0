package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

const nodeID = "spiffe://example.org/credence/node/n1"

// run has the broker do its upkeep until the returned function is called.
func (e *env) run() (stop func()) {
	e.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	b := e.Broker
	running.Go(func() {
		if err := b.Run(ctx); err != nil {
			e.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	e.Cleanup(stop)
	return stop
}

func (e *env) revoke(kind, value string) broker.Revoked {
	e.Helper()
	r, err := e.Revoke(e.Context(), broker.Cutoff{Kind: kind, Value: value, Reason: "leaked", Actor: "uid:0"})
	e.must(err)
	return r
}

// eventually waits for what a loop does by itself.
func (e *env) eventually(what string, ok func() bool) {
	e.Helper()
	late := time.After(40 * time.Second)
	for !ok() {
		select {
		case <-late:
			e.Fatalf("waited in vain until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (e *env) stands() (all []string) {
	e.Helper()
	cutoffs, err := e.Cutoffs(e.Context())
	e.must(err)
	for _, c := range cutoffs {
		all = append(all, c.Kind+" "+c.Value+" "+c.Before.UTC().Format(time.RFC3339))
	}
	return all
}

// TestRevokeNode holds that a node's SVID from before is refused, however it
// calls, and one from after is good.
func TestRevokeNode(t *testing.T) {
	for kind, value := range map[string]func(*env) string{
		broker.CutNode: func(*env) string { return nodeID },
		broker.CutID:   func(*env) string { return nodeID },
	} {
		t.Run(kind, func(t *testing.T) {
			e := newEnv(t)
			e.pass(500 * time.Millisecond) // a cut-off needs no whole seconds
			joined := e.join("n1")
			n, err := e.as(joined)
			e.must(err)
			session := e.Watch(n)
			defer session.Close()
			if session.Stale() {
				t.Fatal("its stream is to end before anything is revoked")
			}
			e.pass(time.Millisecond)
			r := e.revoke(kind, value(e))
			if !r.Cutoff.Before.Equal(e.now()) {
				t.Errorf("it reaches to %s", r.Cutoff.Before)
			}
			_, err = e.as(joined)
			e.refused(err, broker.ErrNotFound)
			if !session.Stale() {
				t.Error("its stream goes on")
			}
			late := e.Watch(n) // that was authenticated just before
			defer late.Close()
			if !late.Stale() {
				t.Error("a stream that is just opened goes on")
			}
			_, err = e.Renew(t.Context(), n, keys(t, 1)[0])
			e.refused(err, broker.ErrNotFound)
			_, err = e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1)})
			e.refused(err, broker.ErrNotFound)
			_, _, err = e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
			e.refused(err, broker.ErrNotFound)

			again := e.join("n1")
			if n, err = e.as(again); err != nil {
				t.Fatal("joined anew: ", err)
			}
			if len(e.issue(n, item(t, 1))[0].SVIDs) != 1 {
				t.Error("joined anew it gets nothing")
			}
			if _, err = e.as(joined); err == nil { // which is now its last but one
				t.Error("the SVID from before is good again")
			}
			e.start() // from what was kept
			if _, err = e.as(again); err != nil {
				t.Error("after a restart: ", err)
			}
			_, err = e.as(joined)
			e.refused(err, broker.ErrNotFound)
		})
	}
}

// TestRevokedAuthorityKeepsNodes holds that a node whose key we know goes on
// when the authority that signed for it is revoked, and that nobody else does
// under its serial number.
func TestRevokedAuthorityKeepsNodes(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	session := e.Watch(n)
	defer session.Close()
	e.pass(time.Second)
	e.revoke(broker.CutAuthority, e.active(authority.Issuing, ""))
	if _, err = e.as(joined); err != nil || session.Stale() {
		t.Errorf("shut out: %v", err)
	}
	_, err = e.Renew(t.Context(), n, keys(t, 1)[0])
	e.must(err)
	forged := joined.Chain[0].SerialNumber
	_, err = e.Node(t.Context(), spiffeid.RequireFromString(nodeID), forged, identity.KeyDigest{1})
	e.refused(err, broker.ErrNotFound)
}

// TestRevokeWhileItIsMade revokes between a signature and its release.
func TestRevokeWhileItIsMade(t *testing.T) {
	jwt := func(e *env, n broker.Node) error {
		_, _, err := e.IssueJWT(e.Context(), n, broker.JWTRequest{Workload: workload(e, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
		return err
	}
	x509 := func(e *env, n broker.Node) error {
		_, err := e.IssueX509(e.Context(), n, []broker.X509Item{item(e, 1)})
		return err
	}
	renew := func(e *env, n broker.Node) error {
		_, err := e.Renew(e.Context(), n, keys(e, 1)[0])
		return err
	}
	issuing := func(e *env) string { return e.active(authority.Issuing, "") }
	key := func(e *env) string { return e.active(authority.JWTKey, "ES256") }
	is := func(value string) func(*env) string { return func(*env) string { return value } }
	for _, row := range []struct {
		name, kind string
		value      func(*env) string
		ask        func(*env, broker.Node) error
		refused    error
	}{
		{"an ID, x509", broker.CutID, is("spiffe://example.org/web"), x509, broker.ErrConflict},
		{"an identity, x509", broker.CutIdentity, is("web"), x509, broker.ErrConflict},
		{"its CA, x509", broker.CutAuthority, issuing, x509, broker.ErrConflict},
		{"its node, x509", broker.CutNode, is(nodeID), x509, broker.ErrNotFound},
		{"another ID, x509", broker.CutID, is("spiffe://example.org/other"), x509, nil},
		{"an ID, jwt", broker.CutID, is("spiffe://example.org/web"), jwt, broker.ErrConflict},
		{"its key, jwt", broker.CutAuthority, key, jwt, broker.ErrConflict},
		{"its node, jwt", broker.CutNode, is(nodeID), jwt, broker.ErrNotFound},
		{"its node, renewing", broker.CutNode, is(nodeID), renew, broker.ErrNotFound},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := newEnv(t)
			n := e.caller("n1")
			e.must(jwt(e, n)) // the keys are there
			e.pass(time.Second)
			e.issuer.mu.Lock()
			revoke := func() {
				e.pass(time.Second)
				e.revoke(row.kind, row.value(e))
				e.pass(time.Second)
			}
			e.issuer.hook = revoke
			e.issuer.mu.Unlock()
			switch err := row.ask(e, n); {
			case row.refused == nil:
				e.must(err)
			default:
				e.refused(err, row.refused)
			}
			if !errors.Is(row.refused, broker.ErrConflict) {
				return
			}
			// Revoked but once, what is released is from after it.
			e.issuer.mu.Lock()
			e.issuer.hook = sync.OnceFunc(revoke)
			e.issuer.mu.Unlock()
			e.must(row.ask(e, n))
		})
	}
}

// TestRenewalDoesNotOutrunRevocation revokes after the new SVID was made, and
// before the old one's holder has it.
func TestRenewalDoesNotOutrunRevocation(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	e.pass(time.Minute)
	e.store.saved = sync.OnceFunc(func() {
		before := e.now()
		_, err := e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutNode, Value: nodeID, Before: before.Add(-time.Second)})
		e.must(err)
	})
	_, err := e.Renew(t.Context(), n, keys(t, 1)[0])
	e.refused(err, broker.ErrNotFound) // though the new one is from after the cut-off
}

// TestRevokeHeld holds that what an agent holds from before is signed anew, and
// what it gets then is held again.
func TestRevokeHeld(t *testing.T) {
	for _, row := range []struct {
		kind, value string
		hit         bool
	}{
		{broker.CutID, "spiffe://example.org/web", true}, {broker.CutIdentity, "web", true}, {broker.CutNode, nodeID, true},
		{broker.CutID, "spiffe://example.org/other", false}, {broker.CutIdentity, "other", false}, {broker.CutNode, nodeID + "1", false},
		{broker.CutAuthority, "any", true},
	} {
		t.Run(row.kind+" "+row.value, func(t *testing.T) {
			e := newEnv(t)
			n := e.caller("n1")
			session := e.Watch(n)
			defer session.Close()
			idle := e.Watch(e.caller("n2"))
			defer idle.Close()
			svid := e.issue(n, item(t, 1))[0].SVIDs[0]
			e.told(session)
			e.pass(time.Second)
			e.revoke(row.kind, row.value)
			if changes, _ := session.Take(); row.hit {
				want := []broker.Change{{Set: set(1), Erase: true}, {Set: set(1)}}
				if row.kind == broker.CutAuthority { // nobody's right is in doubt
					want = want[1:]
				}
				e.equal(changes, want)
			} else {
				e.equal(changes, []broker.Change(nil))
			}
			changes, _ := idle.Take()
			e.equal(changes, []broker.Change(nil))
			if row.kind == broker.CutNode && row.hit {
				n = e.caller("n1")
			}
			held := func(svid broker.X509SVID) broker.X509SVID {
				t.Helper()
				again := item(t, 1)
				again.Held = []broker.Held{{Identity: "web", Digest: svid.Digest, NotAfter: svid.Grant.Expires()}}
				return e.issue(n, again)[0].SVIDs[0]
			}
			next := held(svid)
			if anew := next.Chain != nil; anew != row.hit {
				t.Fatalf("signed anew: %v", anew)
			}
			if row.hit {
				if last := held(next); last.Chain != nil {
					t.Error("what was signed after the cut-off is signed again")
				}
			}
			e.swap(e.same())
			changes, _ = session.Take()
			e.equal(changes, []broker.Change(nil)) // it knows
		})
	}
}

func TestRevokeOfManySets(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	for batch := range slices.Chunk(e.held(n, 4097), broker.MaxItems) {
		e.issue(n, batch...)
	}
	session.Take()
	e.revoke(broker.CutIdentity, "other") // one set is not remembered: who knows
	changes, _ := session.Take()
	e.equal(changes, []broker.Change{{Erase: true}, {}})
}

// TestRevokedSerials holds that Revoke returns what is outstanding, and no more.
func TestRevokedSerials(t *testing.T) {
	e := newEnv(t)
	e.run()
	n := e.caller("n1")
	other := e.caller("n2")
	_ = other
	first := e.issue(n, item(t, 1))[0].SVIDs[0]
	svids, _, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
	e.must(err)
	_, c := claims(t, svids[0].Token)
	e.pass(time.Second)
	r := e.revoke(broker.CutIdentity, "web")
	var got []string
	for _, i := range r.Serials {
		got = append(got, i.Kind+" "+i.Serial)
		if i.SPIFFEID != "spiffe://example.org/web" || i.Node != n.ID || i.Identity != "web" || i.Authority == "" || !i.IssuedAt.Equal(start) || !i.ExpiresAt.After(start) {
			t.Errorf("row %+v", i)
		}
	}
	want := []string{"jwt " + c["jti"].(string), "x509 " + fmt.Sprintf("%x", first.Chain[0].SerialNumber.Bytes())}
	slices.Sort(got)
	e.equal(got, want)
	e.equal(r.Count, 2)
	e.equal(r.Problems, []string(nil))

	second := e.issue(n, item(t, 1))[0].SVIDs[0] // is from after the cut-off
	r = e.revoke(broker.CutID, "spiffe://example.org/web")
	if slices.ContainsFunc(r.Serials, func(i broker.Issued) bool { return i.Serial == fmt.Sprintf("%x", second.Chain[0].SerialNumber.Bytes()) }) || r.Count != 2 {
		t.Errorf("with one that is not revoked: %v", r.Serials)
	}
	r = e.revoke(broker.CutNode, nodeID)
	e.equal(r.Count, 3) // the node's own too
	r = e.revoke(broker.CutAuthority, e.active(authority.Issuing, ""))
	e.equal(r.Count, 3) // two nodes' and the first: what is issued at this moment is not revoked
	e.pass(2 * time.Hour)
	r = e.revoke(broker.CutID, "spiffe://example.org/web")
	e.equal(r.Count, 0) // all of it has ended
	e.equal(len(e.record.of("revoke")), 5)
	e.equal(e.record.of("revoke")[0], audit.Event{
		Kind: "revoke", OK: true, Identity: "web", Actor: "uid:0", Reason: "leaked",
		Detail: map[string]string{"kind": "identity", "value": "web", "before": start.Add(time.Second).Format(time.RFC3339)},
	})
}

// TestStoreAway revokes while the store is away: it holds at once, over a
// restart too, and goes to the store when that is back.
func TestStoreAway(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(time.Second)
	e.store.away.Store(true)
	r := e.revoke(broker.CutNode, nodeID)
	if text := strings.Join(r.Problems, "; "); !strings.Contains(text, "on this broker's disk only") || !strings.Contains(text, "serials are not known") {
		t.Errorf("problems: %s", text)
	}
	want := []string{"node " + nodeID + " 2026-05-04T10:20:31Z"}
	for range 2 {
		_, err := e.as(joined)
		e.refused(err, broker.ErrNotFound)
		e.equal(e.stands(), want)
		e.start()
	}
	stop := e.run()
	e.store.away.Store(false)
	e.eventually("the store has it", func() bool {
		all, _, err := e.store.Cutoffs(t.Context(), 0)
		return err == nil && len(all) == 1 && all[0].Value == nodeID
	})
	stop()
	e.must(os.Remove(filepath.Join(e.dir, "revoked.jsonl"))) // and from the store alone
	e.start()
	e.equal(e.stands(), want)
	_, err := e.as(joined)
	e.refused(err, broker.ErrNotFound)
	e.store.away.Store(true) // which put it on the disk again
	e.start()
	e.equal(e.stands(), want)
}

// TestEvictWithoutStore holds that an eviction which cannot be written revokes
// all the same.
func TestEvictWithoutStore(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	session := e.Watch(n)
	defer session.Close()
	e.pass(time.Second)
	e.store.away.Store(true)
	if _, err := e.Evict(t.Context(), nodeID, "uid:0", "stolen"); !errors.Is(err, errAway) || !strings.Contains(err.Error(), "it may join again") {
		t.Errorf("the error is %v", err)
	}
	_, err = e.as(joined)
	e.refused(err, broker.ErrNotFound)
	if !session.Stale() {
		t.Error("its stream goes on")
	}
	e.store.away.Store(false)
	_, err = e.Evict(t.Context(), nodeID, "uid:0", "stolen")
	e.must(err)
	e.equal(e.stands(), []string{"node " + nodeID + " 2026-05-04T10:20:31Z"})
	e.must(e.Allow(t.Context(), nodeID, "uid:0", "found"))
	_, err = e.as(joined)
	e.refused(err, broker.ErrNotFound)
	_, err = e.as(e.join("n1"))
	e.must(err)
	_, err = e.as(joined) // that it is known again makes nothing good
	e.refused(err, broker.ErrNotFound)
}

func TestRevokeOfOtherBrokers(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(time.Second)
	since, err := e.store.Revision(t.Context())
	e.must(err)
	e.must(e.store.SaveCutoff(t.Context(), broker.Cutoff{Kind: broker.CutNode, Value: nodeID, Before: e.now(), MadeAt: e.now()}))
	changes, err := e.store.Changes(t.Context(), since)
	e.must(err)
	e.must(e.Take(changes.Changes))
	if _, err := e.as(joined); err == nil {
		t.Error("it does not hold here")
	}
	if text, _ := os.ReadFile(filepath.Join(e.dir, "revoked.jsonl")); !bytes.Contains(text, []byte(nodeID)) {
		t.Error("it is not on our disk")
	}
}

// TestOldCutoffs holds that a cut-off is forgotten when nothing lives any more
// that it could hit, and not before.
func TestOldCutoffs(t *testing.T) {
	e := newEnv(t)
	e.revoke(broker.CutIdentity, "web")
	e.pass(56 * time.Hour)
	for range 2 {
		stop := e.run()
		e.eventually("the store has it", func() bool { all, _, err := e.store.Cutoffs(t.Context(), 0); return err == nil && len(all) == 1 })
		stop()
		e.equal(len(e.stands()), 1)
		e.start()
	}
	e.pass(time.Second)
	stop := e.run()
	e.eventually("it is forgotten", func() bool {
		all, _, err := e.store.Cutoffs(t.Context(), 0)
		return err == nil && len(all) == 0 && len(e.stands()) == 0
	})
	stop()
	if text, err := os.ReadFile(filepath.Join(e.dir, "revoked.jsonl")); err != nil || len(text) > 0 {
		t.Errorf("the file holds %q (%v)", text, err)
	}
}

func TestRevokeRefuses(t *testing.T) {
	e := newEnv(t)
	const web = "spiffe://example.org/web"
	for name, c := range map[string]broker.Cutoff{
		"no kind":              {Value: web},
		"another kind":         {Kind: "moon", Value: web},
		"no value":             {Kind: broker.CutID},
		"a long value":         {Kind: broker.CutID, Value: web + strings.Repeat("x", 2048)},
		"a long name":          {Kind: broker.CutIdentity, Value: strings.Repeat("x", 129)},
		"a name of two lines":  {Kind: broker.CutIdentity, Value: "a\nb"},
		"a foreign ID":         {Kind: broker.CutID, Value: "spiffe://other.example/web"},
		"a trust domain":       {Kind: broker.CutID, Value: "spiffe://example.org"},
		"no ID":                {Kind: broker.CutID, Value: "web"},
		"the broker":           {Kind: broker.CutID, Value: "spiffe://example.org/credence/broker"},
		"a node that is none":  {Kind: broker.CutNode, Value: web},
		"a long reason":        {Kind: broker.CutID, Value: web, Reason: strings.Repeat("x", 513)},
		"a reason of no text":  {Kind: broker.CutID, Value: web, Reason: "\xff"},
		"a long actor":         {Kind: broker.CutID, Value: web, Actor: strings.Repeat("x", 257)},
		"an actor of no text":  {Kind: broker.CutID, Value: web, Actor: "\xff"},
		"the future":           {Kind: broker.CutID, Value: web, Before: e.now().Add(time.Millisecond)},
		"what has long ended":  {Kind: broker.CutID, Value: web, Before: e.now().Add(-56*time.Hour - time.Second)},
		"an authority of dust": {Kind: broker.CutAuthority, Value: "\x00"},
	} {
		if _, err := e.Revoke(t.Context(), c); !errors.Is(err, broker.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e.equal(e.stands(), []string(nil))
	if _, err := os.Stat(filepath.Join(e.dir, "revoked.jsonl")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is written (%v)", err)
	}
	e.equal(len(e.record.of("revoke")), 0)
}

// TestCutoffsOnlyGrow holds that nothing that was revoked becomes good again.
func TestCutoffsOnlyGrow(t *testing.T) {
	e := newEnv(t)
	e.pass(time.Hour)
	e.revoke(broker.CutID, "spiffe://example.org/web")
	now := e.stands()
	r, err := e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutID, Value: "spiffe://example.org/web", Before: start})
	e.must(err)
	if !r.Cutoff.Before.Equal(e.now()) {
		t.Errorf("it now reaches to %s", r.Cutoff.Before)
	}
	e.equal(e.stands(), now)
	e.start()
	e.equal(e.stands(), now)
	e.pass(time.Hour)
	e.revoke(broker.CutID, "spiffe://example.org/web")
	e.equal(e.stands(), []string{"id spiffe://example.org/web 2026-05-04T12:20:30Z"})
	e.start()
	e.equal(e.stands(), []string{"id spiffe://example.org/web 2026-05-04T12:20:30Z"})
}

// TestTokensOfTheSecond holds that a token which could not be told from those
// that are revoked is not made.
func TestTokensOfTheSecond(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	ask := func(ctx context.Context) error {
		_, _, err := e.IssueJWT(ctx, n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
		return err
	}
	e.must(ask(t.Context()))
	e.pass(500 * time.Millisecond)
	e.revoke(broker.CutID, "spiffe://example.org/web")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	e.refused(ask(ctx), context.DeadlineExceeded)
	e.pass(500 * time.Millisecond)
	begun := time.Now()
	e.must(ask(t.Context()))
	if took := time.Since(begun); took > 400*time.Millisecond {
		t.Errorf("in the next second it still takes %s", took)
	}
}

// TestCutoffsForValidators holds that a session tells those that a token can be
// judged by, whole, when they change.
func TestCutoffsForValidators(t *testing.T) {
	e := newEnv(t)
	session := e.Watch(e.caller("n1"))
	defer session.Close()
	look := func(want []string, wantChanged bool) {
		t.Helper()
		all, changed := session.Cutoffs()
		var got []string
		for _, c := range all {
			got = append(got, c.Kind+" "+c.Value)
		}
		e.equal(got, want)
		e.equal(changed, wantChanged)
	}
	look(nil, true) // an agent must know that there are none
	look(nil, false)
	e.revoke(broker.CutIdentity, "web")
	e.revoke(broker.CutNode, "spiffe://example.org/credence/node/n2")
	look(nil, false)
	e.revoke(broker.CutID, "spiffe://example.org/x")
	select {
	case <-session.Wake():
	default:
		t.Error("it is not woken")
	}
	e.revoke(broker.CutAuthority, "k")
	look([]string{"authority k", "id spiffe://example.org/x"}, true)
	look([]string{"authority k", "id spiffe://example.org/x"}, false)
	e.pass(57 * time.Hour)
	e.run()
	e.eventually("they are dropped", func() bool { return len(e.stands()) == 0 })
	look(nil, true)
}

// TestNeitherDiskNorStore: it holds, and the error says for how long.
func TestNeitherDiskNorStore(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(time.Second)
	e.store.away.Store(true)
	path := filepath.Join(e.dir, "revoked.jsonl")
	e.must(os.Mkdir(path, 0o700)) // nobody can write it as a file
	_, err := e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutNode, Value: nodeID})
	if err == nil || errors.Is(err, broker.ErrRequest) || !strings.Contains(err.Error(), "only until this broker stops") {
		t.Fatalf("the error is %v", err)
	}
	_, err = e.as(joined)
	e.refused(err, broker.ErrNotFound)

	e.store.away.Store(false)
	r, err := e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "web"})
	e.must(err)
	if text := strings.Join(r.Problems, "; "); !strings.Contains(text, "in the store only") {
		t.Errorf("problems: %s", text)
	}
	e.must(os.Remove(path))
	e.run()
	e.eventually("both are on the disk", func() bool {
		text, _ := os.ReadFile(path)
		return bytes.Count(text, []byte("\n")) == 2
	})
	e.record.fail(true)
	_, err = e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "more"})
	e.refused(err, audit.ErrUnavailable)
	e.equal(len(e.stands()), 3)
}

func TestDenyFile(t *testing.T) {
	const good = `{"kind":"id","value":"spiffe://example.org/web","before":"2026-05-04T10:20:30Z"}` + "\n"
	for name, row := range map[string]struct {
		text string
		want int // cut-offs; -1: the broker does not start
	}{
		"empty":               {"", 0},
		"one":                 {good, 1},
		"a write cut short":   {good + good[:40], 1},
		"nothing but a piece": {good[:40], 0},
		"a broken line":       {good + "{}\n" + good, -1},
		"a piece in between":  {good[:40] + "\n" + good, -1},
		"two in a line":       {strings.TrimSuffix(good, "\n") + good, -1},
		"an unknown field":    {strings.Replace(good, `"kind"`, `"x":1,"kind"`, 1), -1},
		"an unknown kind":     {strings.Replace(good, `"id"`, `"moon"`, 1), -1},
		"another's":           {strings.Replace(good, "example.org", "other.example", 1), -1},
		"no time":             {strings.Replace(good, "2026-05-04T10:20:30Z", "0001-01-01T00:00:00Z", 1), -1},
		"a long line":         {strings.Replace(good, `{`, `{`+strings.Repeat(" ", 33<<10), 1), -1},
		"too many lines":      {strings.Repeat(good, 2*broker.MaxCutoffs+1), -1},
		"old ones":            {strings.Replace(good, "05-04", "05-01", 1), 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			path := filepath.Join(e.dir, "revoked.jsonl")
			e.must(os.WriteFile(path, []byte(row.text), 0o600))
			b, err := broker.New(t.Context(), e.config())
			if row.want < 0 {
				if err == nil || !strings.Contains(err.Error(), path+" line ") {
					t.Fatalf("the error is %v", err)
				}
				return
			}
			e.must(err)
			e.Broker = b
			defer b.Close()
			e.equal(len(e.stands()), row.want)
			e.pass(time.Second)
			e.revoke(broker.CutIdentity, "more") // after a piece it is not glued to it
			e.start()
			e.equal(len(e.stands()), row.want+1)
		})
	}
}

// TestDenyFileStaysSmall holds that what was outdone makes room.
func TestDenyFileStaysSmall(t *testing.T) {
	e := newEnv(t)
	path := filepath.Join(e.dir, "revoked.jsonl")
	const good = `{"kind":"id","value":"spiffe://example.org/web","before":"2026-05-04T10:20:30Z"}` + "\n"
	e.must(os.WriteFile(path, bytes.Repeat([]byte(good), 2*broker.MaxCutoffs), 0o600))
	e.start()
	e.revoke(broker.CutIdentity, "web")
	text, err := os.ReadFile(path)
	e.must(err)
	if n := bytes.Count(text, []byte("\n")); n != 2 {
		t.Errorf("%d lines", n)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v (%v)", info.Mode(), err)
	}
}

// TestTooManyCutoffs bounds what is kept and sent.
func TestTooManyCutoffs(t *testing.T) {
	e := newEnv(t)
	var text strings.Builder
	for i := range broker.MaxCutoffs {
		fmt.Fprintf(&text, `{"kind":"identity","value":"i%d","before":"2026-05-04T10:20:30Z"}`+"\n", i)
	}
	e.must(os.WriteFile(filepath.Join(e.dir, "revoked.jsonl"), []byte(text.String()), 0o600))
	e.store.away.Store(true)
	e.start()
	e.pass(time.Second)
	_, err := e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "more"})
	e.refused(err, broker.ErrRequest)
	e.revoke(broker.CutIdentity, "i7") // is there already
}

func FuzzDenyFile(f *testing.F) {
	f.Add([]byte(`{"kind":"id","value":"spiffe://example.org/web","before":"2026-05-04T10:20:30Z"}` + "\n"))
	f.Add([]byte(`{"kind":"authority","value":"a","before":"2026-05-04T10:20:30Z","reason":"r","actor":"a","made_at":"2026-05-04T10:20:30Z"}` + "\n{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cutoffs, err := broker.ParseDenyFile(filepath.Join(t.TempDir(), "f"), td, text)
		for _, c := range cutoffs {
			if broker.CheckCutoff(td, c) != nil || c.Before.IsZero() {
				t.Errorf("taken: %+v", c)
			}
		}
		if err != nil && cutoffs != nil {
			t.Errorf("%v, and %v", err, cutoffs)
		}
	})
}

// TestRevokeBeforeItIsRemembered revokes after what a decision stands on was
// read, and before the session knows of its set: an answer that is on its way
// must be erased.
func TestRevokeBeforeItIsRemembered(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	session := e.Watch(n)
	defer session.Close()
	e.mu.Lock()
	e.hook = func() { e.revoke(broker.CutIdentity, "web") } // when the time of the decision is read
	e.mu.Unlock()
	e.issue(n, item(t, 1))
	changes, _ := session.Take()
	e.equal(changes, []broker.Change{{Set: set(1), Erase: true}, {Set: set(1)}})
}

// TestCutoffInWholeMilliseconds: what is kept in the store and on the disk is
// no earlier than what was meant.
func TestCutoffInWholeMilliseconds(t *testing.T) {
	e := newEnv(t)
	e.pass(300 * time.Microsecond)
	joined := e.join("n1") // the store has it as issued 0.3 ms earlier
	e.pass(300 * time.Microsecond)
	r := e.revoke(broker.CutNode, nodeID)
	if want := start.Add(time.Millisecond); !r.Cutoff.Before.Equal(want) {
		t.Errorf("it reaches to %s, want %s", r.Cutoff.Before, want)
	}
	e.start()
	_, err := e.as(joined)
	e.refused(err, broker.ErrNotFound)
}

// TestUnknownAuthority holds that a node of which the store does not know who
// signed its SVID, or when, falls under a cut-off of any.
func TestUnknownAuthority(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	n.Authority, n.IssuedAt, n.Key = "", time.Time{}, nil
	_, err = e.store.SaveNode(t.Context(), n)
	e.must(err)
	e.start()
	_, err = e.as(joined)
	e.must(err)
	e.revoke(broker.CutAuthority, "any")
	_, err = e.as(joined)
	e.refused(err, broker.ErrNotFound)
}

// TestNodesAreForgotten holds that machines which are gone for good don't fill the
// table, and that one which comes back is another than the one it was.
func TestNodesAreForgotten(t *testing.T) {
	e := newEnv(t)
	kept := e.caller("n1")
	job, err := e.store.SaveNode(t.Context(), broker.Node{
		ID: td.IDString() + "/credence/node/job", Name: "job", Method: "github", JoinRule: "ci", DurableKey: "github:a",
		Facts: kept.Facts, JoinedAt: e.now(), Serial: []byte{1}, ExpiresAt: e.now().Add(time.Hour),
	})
	e.must(err)
	e.start()
	stands := func() (ids []string) {
		for _, n := range e.Nodes() {
			ids = append(ids, n.ID)
		}
		return ids
	}
	e.equal(stands(), []string{job.ID, kept.ID})
	e.pass(31 * 24 * time.Hour)
	stop := e.run()
	e.eventually("the job's node is forgotten", func() bool { return len(e.Nodes()) == 1 })
	stop()
	e.equal(stands(), []string{kept.ID})
	e.start()
	e.equal(stands(), []string{kept.ID})
}
