package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
)

// replicas are brokers that share a database and their keys.
func replicas(t *testing.T, n int, changes ...func(*env)) (*postgrestest.Server, []*env) {
	t.Helper()
	database := postgrestest.Start(t)
	url := database.Database(t)
	var all []*env
	for i := range n {
		all = append(all, newEnv(t, func(e *env) {
			if e.database, e.name = url, fmt.Sprint("b", i+1); i > 0 {
				e.keys = all[0].keys
			}
			for _, change := range changes {
				change(e)
			}
		}))
	}
	return database, all
}

// at is the same node, connected to another broker.
func (n *node) at(e *env) *node {
	other := *n
	other.NodeClient = api.NewNodeClient(e.dial(n.cert))
	return &other
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	_, all := replicas(t, 2)
	a, b := all[0], all[1]
	a.apply(web)
	n := a.join("n1")

	// Who joined at one broker is known to the other at once, and what it asks for
	// there is decided by the same policy.
	there := n.at(b)
	w, _ := there.watch(t)
	await(t, "the other decides by what was applied", func() bool {
		got, _, err := there.issue(t.Context(), t, "33")
		if err != nil {
			t.Fatal(err)
		}
		return len(got.GetSvids()) == 1
	})

	// A change here, on top of one that was made there a moment ago.
	a.apply(strings.ReplaceAll(web, "name: web", "name: other"))
	b.apply(strings.ReplaceAll(web, "name: web", "name: third"))
	have := func(n int) func() bool {
		return func() bool {
			for _, e := range all {
				r, err := e.admin().Get(t.Context(), &api.GetRequest{Kind: "Identity"})
				if err != nil {
					t.Fatal(err)
				}
				if len(r.GetResources()) != n {
					return false
				}
			}
			return true
		}
	}
	await(t, "both have all", have(3))

	// What was deleted so long ago that the database forgot it.
	db, err := sql.Open("pgx", a.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `UPDATE head SET revision = revision + 1;
		DELETE FROM resource WHERE name = 'third';
		UPDATE resource SET revision = (SELECT revision FROM head) WHERE name = 'other';
		DELETE FROM policy_revision;
		INSERT INTO policy_revision (revision, act, owner, actor, created, changed, deleted, written_at) SELECT revision, 'apply', 'default', 'a', 0, 1, 0, 0 FROM head`)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "both have lost what was deleted", have(2))

	a.apply(deny)
	w.until(func(m *api.WatchResponse) bool {
		for _, c := range m.GetChanges() {
			if c.GetErase() {
				return true
			}
		}
		return false
	})

	// An eviction at one ends the node's stream at the other.
	if _, err := a.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: n.id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := w.stream.Recv()
		if err == nil {
			continue
		}
		wantCode(t, err, codes.PermissionDenied)
		break
	}
	_, _, err = there.issue(t.Context(), t, "33")
	wantCode(t, err, codes.Unauthenticated)
}

// TestReplicasEndIssuing holds that a broker whose CA another ended, by mistake, goes
// on under a new one: agents would not take it for the broker with what it had.
func TestReplicasEndIssuing(t *testing.T) {
	t.Parallel()
	_, all := replicas(t, 2)
	a, b := all[0], all[1]
	shown := func() *x509.Certificate {
		t.Helper()
		conn, err := tls.Dial("tcp", b.listeners.Agents.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	ended := b.authority.IssuingChain()[0]
	if err := shown().CheckSignatureFrom(ended); err != nil {
		t.Fatal(err)
	}
	if _, err := api.NewAuthoritiesClient(a.adminConn()).Replace(t.Context(), &api.ReplaceRequest{What: "issuing", Broker: "b2", Reason: "a mistake"}); err != nil {
		t.Fatal(err)
	}
	await(t, "it shows what another CA signed", func() bool { return shown().CheckSignatureFrom(ended) != nil })
}

// TestReplicasOfOneName holds that a broker whose name another took ends.
func TestReplicasOfOneName(t *testing.T) {
	t.Parallel()
	_, all := replicas(t, 1)
	e := all[0]
	other := store.Replica{Name: "b1", Instance: "another", StartedAt: e.now()}
	if err := e.store.Claim(t.Context(), other); err == nil {
		t.Fatal("two have one name")
	}
	e.ahead.Add(int64(time.Hour)) // it was frozen
	if err := e.store.Claim(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	e.ahead.Add(int64(time.Hour))
	select {
	case <-e.stopped:
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if e.failed == nil || !strings.Contains(e.failed.Error(), store.ErrNamed.Error()) {
		t.Errorf("it ended with %v", e.failed)
	}
}

// TestSteadyState counts what a broker asks of the database while nothing
// changes, by the database's own log, with no agent and with many streams.
func TestSteadyState(t *testing.T) {
	t.Parallel()
	steady(t, 25, 8) // as many streams as one node may
}

func steady(t *testing.T, nodes, streams int) {
	t.Helper()
	database, all := replicas(t, 1)
	e := all[0]
	e.apply(web)
	count := func() (asked []string) {
		e.settle()
		told := database.Statements(t)
		start := time.Now()
		<-time.After(3 * server.LookEvery)
		asked, seconds := told(), int(time.Since(start)/time.Second)+1
		if len(asked) > seconds {
			t.Errorf("%d questions in %d s:\n%s", len(asked), seconds, strings.Join(asked, "\n"))
		}
		return asked
	}
	if len(count()) == 0 {
		t.Error("it asks nothing: or nothing is counted")
	}
	var open atomic.Int64
	for i := range nodes {
		n := e.join(fmt.Sprint("n", i))
		for range streams {
			w, _ := n.watchFor(t, time.Hour)
			open.Add(1)
			go func() {
				for _, err := w.stream.Recv(); err == nil; _, err = w.stream.Recv() {
				}
				open.Add(-1)
			}()
		}
	}
	asked := count()
	if n := int(open.Load()); n != nodes*streams {
		t.Errorf("%d of %d streams are open", n, nodes*streams)
	}
	t.Logf("%d agents, %d streams: %d questions in 3 s", nodes, nodes*streams, len(asked))
}

// settle waits until all that happened is in the index and in force.
func (e *env) settle() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		before, err := e.store.Revision(ctx)
		if err != nil {
			e.t.Fatal(err)
		}
		mark, err := e.store.IndexedUpTo(ctx, e.name)
		if err != nil {
			e.t.Fatal(err)
		}
		<-time.After(2 * server.LookEvery)
		after, err := e.store.Revision(ctx)
		if err != nil {
			e.t.Fatal(err)
		}
		if again, err := e.store.IndexedUpTo(ctx, e.name); err == nil && before == after && again == mark {
			return
		}
	}
}
