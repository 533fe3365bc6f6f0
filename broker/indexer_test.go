package broker_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

// indexed is how many SVIDs of an identity are in the index.
func (e *env) indexed(identity string) int {
	e.Helper()
	_, n, err := e.store.Store.Issued(e.Context(), broker.IssuedQuery{Identity: identity})
	e.must(err)
	return n
}

func (e *env) record1(n int) []audit.Event {
	events := make([]audit.Event, 0, n)
	for i := range n {
		events = append(events,
			audit.Event{Kind: "issue.x509", OK: true, SPIFFEID: "spiffe://example.org/bulk", Identity: "bulk", Serial: fmt.Sprintf("%d-%d", e.record.Head().Sequence, i), NotAfter: e.now().Add(time.Hour)},
			audit.Event{Kind: "deny", SPIFFEID: "spiffe://example.org/bulk"})
	}
	return events
}

// TestIndex holds that every issue of the record is in the index once, whatever
// stops and starts in between.
func TestIndex(t *testing.T) {
	e := newEnv(t)
	total := 0
	add := func(n int) {
		t.Helper()
		_, err := e.record.Append(t.Context(), e.record1(n)...)
		e.must(err)
		total += n
	}
	there := func() bool { return e.indexed("bulk") == total }
	add(1100) // before anybody reads: more than a batch
	stop := e.run()
	e.eventually("the past is indexed", there)
	add(10)
	e.eventually("what is new is indexed", there)
	e.store.away.Store(true)
	add(10)
	stop() // a broker that dies with some of it read
	add(10)
	e.start()
	stop = e.run()
	e.store.away.Store(false)
	e.eventually("it caught up", there)
	stop()

	ref, err := e.store.IndexedUpTo(t.Context(), "b1")
	e.must(err)
	if head := e.record.Head(); ref.Sequence+1 < head.Sequence { // the last record is a denial
		t.Errorf("the place is %d of %d", ref.Sequence, head.Sequence)
	}
	// A restart from an older copy of the place, as a backup brings it back.
	e.must(e.store.AddIssued(t.Context(), "b1", audit.Ref{}, nil))
	e.start()
	stop = e.run()
	add(1)
	e.eventually("nothing doubles", there)
	stop()
}

// TestIndexOfAnotherRecord indexes a record that was begun anew.
func TestIndexOfAnotherRecord(t *testing.T) {
	e := newEnv(t)
	_, err := e.record.Append(t.Context(), e.record1(5)...)
	e.must(err)
	stop := e.run()
	e.eventually("it is indexed", func() bool { return e.indexed("bulk") == 5 })
	stop()
	for name, n := range map[string]int{"shorter": 1, "longer": 50} {
		log, err := audit.Open(audit.Config{Dir: filepath.Join(t.TempDir(), "audit"), Now: e.now})
		e.must(err)
		defer log.Close()
		e.record.Log = log
		before := e.indexed("bulk")
		events := e.record1(n)
		for i := range events {
			if events[i].Serial != "" {
				events[i].Serial += name
			}
		}
		_, err = e.record.Append(t.Context(), events...)
		e.must(err)
		e.start()
		stop := e.run()
		e.eventually(name+" record is indexed", func() bool { return e.indexed("bulk") == before+n })
		stop()
	}
}

func TestIndexForgets(t *testing.T) {
	e := newEnv(t)
	_, err := e.record.Append(t.Context(), e.record1(600)...)
	e.must(err)
	stop := e.run()
	e.eventually("it is indexed", func() bool { return e.indexed("bulk") == 600 })
	stop()
	e.pass(25 * time.Hour) // ended a day ago, to the moment
	e.run()()
	e.equal(e.indexed("bulk"), 600)
	e.pass(time.Second)
	e.run()
	e.eventually("it is forgotten", func() bool { return e.indexed("bulk") == 0 })
}

// nowhere is an index that keeps nothing.
type nowhere struct {
	broker.Index
	rows, want int64
	done       chan struct{}
}

func (x *nowhere) IndexedUpTo(context.Context, string) (audit.Ref, error) { return audit.Ref{}, nil }
func (x *nowhere) AddIssued(_ context.Context, _ string, _ audit.Ref, rows []broker.Issued) error {
	if x.rows += int64(len(rows)); x.rows == x.want {
		close(x.done)
	}
	return nil
}
func (x *nowhere) ForgetIssued(context.Context, time.Time, int) (int, error) { return 0, nil }

// BenchmarkIndexer is what it takes to read one record of an issue back and
// check it; what it takes to write it to the index is measured in the store.
func BenchmarkIndexer(b *testing.B) {
	log, err := audit.Open(audit.Config{Dir: filepath.Join(b.TempDir(), "audit")})
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	for n := 0; n < b.N; n += 1000 {
		events := make([]audit.Event, min(1000, b.N-n))
		for i := range events {
			events[i] = audit.Event{
				Kind: "issue.x509", OK: true, Node: nodeID, SPIFFEID: "spiffe://example.org/ns/shop/checkout", Identity: "checkout", Revision: 7,
				Serial: fmt.Sprintf("%032x", n+i), Authority: "0123456789abcdef0123456789abcdef", Issued: start, NotAfter: start.Add(time.Hour),
				Digest: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
				Facts:  map[string][]string{"node.name": {"n1"}, "workload.kubernetes.namespace": {"shop"}, "workload.kubernetes.service_account": {"checkout"}},
			}
		}
		if _, err := log.Append(b.Context(), events...); err != nil {
			b.Fatal(err)
		}
	}
	index := &nowhere{done: make(chan struct{}), want: int64(b.N)}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ResetTimer()
	done := make(chan struct{})
	go func() { broker.RunIndexer(ctx, log, index); close(done) }()
	<-index.done
	b.StopTimer()
	cancel()
	<-done
}

// TestIndexAfterARestart holds that a broker which has nothing new to read knows
// that it has read everything.
func TestIndexAfterARestart(t *testing.T) {
	e := newEnv(t)
	e.issue(e.caller("n1"), item(t, 1))
	known := func() bool {
		count, _, err := e.Unreplaced(t.Context(), e.record.Head().Sequence, []string{"another"})
		return err == nil && count == 2 // the node's own, and the workload's
	}
	if known() {
		t.Error("it is known before anything runs")
	}
	for range 2 {
		stop := e.run()
		e.eventually("all is known to be indexed", known)
		stop()
		e.start()
	}
}
