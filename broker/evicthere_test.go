package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

// away takes the store away, or brings it back.
func (e *env) away(is bool) {
	e.store.away.Store(is)
	if e.unwritable = nil; is {
		e.unwritable = errAway
	}
}

// TestEvictHere evicts while the store is away: the node is out, by its durable key
// and over a restart, whatever comes from other brokers; and everywhere once the
// store is back.
func TestEvictHere(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	n, err := e.as(joined)
	e.must(err)
	session := e.Watch(n)
	defer session.Close()
	request := e.joinRequest("n1")
	e.pass(time.Second)
	e.away(true)
	_, problem, err := e.EvictHere(t.Context(), nodeID, "uid:0", "stolen")
	e.must(err)
	if !strings.Contains(problem, "on this broker alone") {
		t.Errorf("the problem is %q", problem)
	}
	if _, evicted := session.Take(); !evicted {
		t.Error("its stream goes on")
	}
	e.equal(e.record.of("evict"), []audit.Event{{Kind: "evict", OK: true, Node: nodeID, Actor: "uid:0", Reason: "stolen", Detail: map[string]string{"here": "true"}}})
	e.issuer.signatures()
	for range 2 {
		newer := joined.Node // as another broker renewed it that had the store
		newer.Revision += 5
		e.must(e.Take(broker.Changes{Revision: newer.Revision, Nodes: []broker.Node{newer}}))
		_, err = e.as(joined)
		e.refused(err, broker.ErrEvicted)
		_, err = e.IssueX509(t.Context(), n, []broker.X509Item{item(t, 1)})
		e.refused(err, broker.ErrNotFound)
		e.start()
	}
	e.refused(e.Allow(t.Context(), nodeID, "uid:0", "found"), errAway)
	e.unwritable = nil // joins reach it, and evictions don't
	_, err = e.Join(t.Context(), request)
	e.refused(err, broker.ErrConflict)
	e.equal(e.issuer.signatures(), 0)
}

// TestEvictionGoesToTheStore holds that what was evicted here is out everywhere
// when the store is back, and here no more than there.
func TestEvictionGoesToTheStore(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(time.Second)
	e.away(true)
	_, _, err := e.EvictHere(t.Context(), nodeID, "uid:0", "stolen")
	e.must(err)
	e.start()
	stop := e.run()
	path := filepath.Join(e.dir, "revoked.jsonl")
	kept := func() int {
		text, err := os.ReadFile(path)
		e.must(err)
		return bytes.Count(text, []byte(`"kind":"evict"`))
	}
	e.equal(kept(), 1)
	e.away(false)
	e.eventually("the store has it", func() bool { return kept() == 0 })
	stop()
	stored, err := e.store.Node(t.Context(), nodeID)
	e.must(err)
	if stored.EvictedAt.IsZero() {
		t.Error("it is not evicted in the store")
	}
	e.must(os.Remove(path))
	e.start()
	_, err = e.as(joined)
	e.refused(err, broker.ErrEvicted)
	_, err = e.Join(t.Context(), e.joinRequest("n1"))
	e.refused(err, broker.ErrConflict)
	e.must(e.Allow(t.Context(), nodeID, "uid:0", "found"))
	e.must(err2(e.as(e.join("n1"))))

	_, problem, err := e.EvictHere(t.Context(), nodeID, "uid:0", "again") // with the store
	e.must(err)
	e.equal([]any{problem, kept()}, []any{"", 0})
	_, _, err = e.EvictHere(t.Context(), nodeID+"x", "uid:0", "")
	e.refused(err, broker.ErrNotFound)
}

func err2[T any](_ T, err error) error { return err }

// TestEvictionUnknownToTheStore keeps out here whom the store doesn't know, until
// an operator allows it.
func TestEvictionUnknownToTheStore(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.pass(time.Second)
	asked := make(chan struct{}, 100)
	e.store.evicting = func() error { asked <- struct{}{}; return broker.ErrNotFound }
	e.away(true)
	_, _, err := e.EvictHere(t.Context(), nodeID, "uid:0", "stolen")
	e.must(err)
	e.away(false)
	stop := e.run()
	<-asked
	stop()
	e.start()
	_, err = e.as(joined)
	e.refused(err, broker.ErrEvicted)
	e.must(e.Allow(t.Context(), nodeID, "uid:0", "found"))
	e.must(err2(e.as(e.join("n1"))))
	e.start()
	e.must(err2(e.as(e.join("n1"))))
}

// TestEvictHereNotKept: it holds, and the error says for how long.
func TestEvictHereNotKept(t *testing.T) {
	e := newEnv(t)
	joined := e.join("n1")
	e.away(true)
	e.must(os.Mkdir(filepath.Join(e.dir, "revoked.jsonl"), 0o700)) // nobody can write it as a file
	_, _, err := e.EvictHere(t.Context(), nodeID, "uid:0", "stolen")
	if err == nil || !strings.Contains(err.Error(), "until this broker stops") {
		t.Errorf("the error is %v", err)
	}
	_, err = e.as(joined)
	e.refused(err, broker.ErrEvicted)
}

func TestEvictionsInDenyFile(t *testing.T) {
	const line = `{"kind":"evict","value":"` + nodeID + `","before":"2026-05-04T10:20:30Z","durable_key":"token:n1"}` + "\n"
	path := filepath.Join(t.TempDir(), "revoked.jsonl")
	if all, err := broker.ParseDenyFile(path, td, []byte(line)); err != nil || len(all) != 0 {
		t.Errorf("%v (%v)", all, err)
	}
	for what, bad := range map[string]string{
		"no durable key": strings.Replace(line, `"token:n1"`, `""`, 1), "no node": strings.Replace(line, "/credence/node/n1", "/web", 1),
		"another trust domain": strings.Replace(line, "example.org", "other.example", 1), "a cut-off with a key": strings.Replace(line, `"evict"`, `"node"`, 1),
		"no time": strings.Replace(line, `2026-05-04T10:20:30Z`, `0001-01-01T00:00:00Z`, 1),
	} {
		if _, err := broker.ParseDenyFile(path, td, []byte(bad)); err == nil {
			t.Errorf("%s: it is taken", what)
		}
	}
}

// TestIssueWithoutStore has the store end under the broker: whoever joined before
// sees nothing of it, and nobody is signed for who cannot be kept.
func TestIssueWithoutStore(t *testing.T) {
	e := newEnv(t)
	_, err := e.issuer.Tick(t.Context()) // makes the RS256 keys
	e.must(err)
	joined := e.join("n1")
	request := e.joinRequest("n2")
	n, err := e.as(joined)
	e.must(err)
	e.must(e.store.Close())
	e.away(true)
	stop := e.run()
	for i := range 3 {
		n, err = e.as(joined)
		e.must(err)
		if r := e.issue(n, item(t, i))[0]; len(r.SVIDs) != 1 || r.Denial != nil {
			t.Fatalf("the result is %+v", r)
		}
		svids, denial, err := e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Audiences: []string{"spiffe://example.org/db"}})
		e.must(err)
		if len(svids) != 1 || denial != nil {
			t.Fatalf("the tokens are %v, %v", svids, denial)
		}
		e.must(e.Take(broker.Changes{}))
		e.pass(time.Minute)
	}
	e.issuer.signatures()
	before := len(e.record.of("renew")) + len(e.record.of("join"))
	_, joining := e.Join(t.Context(), request)
	_, renewing := e.Renew(t.Context(), n, keys(t, 1)[0])
	if joining == nil || !errors.Is(renewing, errAway) {
		t.Errorf("joining: %v; renewing: %v", joining, renewing)
	}
	if _, err := e.Report(t.Context(), n, "00112233aabbccdd", []broker.Report{{Number: 1, Event: audit.Event{Kind: broker.RecordExchange, Node: n.ID}}}); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("a report: %v", err)
	}
	e.equal(fmt.Sprint(e.issuer.signatures(), len(e.record.of("renew"))+len(e.record.of("join"))), fmt.Sprint(0, before))
	stop()
}
