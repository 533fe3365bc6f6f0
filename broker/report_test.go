package broker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

const spoolA, spoolB = "00000000000000aa", "00000000000000bb"

func reports(spool string, from, to uint64) (all []broker.Report) {
	for n := from; n <= to; n++ {
		all = append(all, broker.Report{Number: n, Event: audit.Event{
			Kind: broker.RecordExchange, OK: true, Node: nodeID, Detail: map[string]string{broker.ReportDetail: broker.ReportID(spool, n)},
		}})
	}
	return all
}

// reported are the reports in the record, in order.
func (e *env) reported() (all []string) {
	e.Helper()
	for r, err := range audit.Read(e.Context(), e.dir+"/audit", 0) {
		e.must(err)
		if id := r.Detail[broker.ReportDetail]; id != "" {
			all = append(all, id)
		}
	}
	return all
}

func (e *env) report(spool string, from, to uint64, want int) {
	e.Helper()
	n, err := e.Report(e.Context(), broker.Node{ID: nodeID}, spool, reports(spool, from, to))
	e.must(err)
	if n != want {
		e.Errorf("%d to %d: %d are new, want %d", from, to, n, want)
	}
}

// once holds that each report up to last stands in the record once, in order.
func (e *env) once(spool string, last int) {
	e.Helper()
	var want []string
	for n := 1; n <= last; n++ {
		want = append(want, broker.ReportID(spool, uint64(n)))
	}
	e.equal(slices.DeleteFunc(e.reported(), func(id string) bool { return id[:16] != spool }), want)
}

func TestReportsStandInTheRecordOnce(t *testing.T) {
	e := newEnv(t)
	stop := e.run()
	e.report(spoolA, 1, 3, 3)
	e.report(spoolA, 1, 3, 0) // the answer was lost
	e.report(spoolA, 2, 5, 2)
	e.once(spoolA, 5)
	e.report(spoolB, 1, 2, 2) // a node whose data was lost
	e.once(spoolB, 2)
	stop()
}

func TestReportsStandInTheRecordOnceWhateverRestarts(t *testing.T) {
	e := newEnv(t)
	stop := e.run()
	e.report(spoolA, 1, 3, 3)
	e.store.away.Store(true) // the index learns nothing of these
	_, err := e.Report(t.Context(), broker.Node{ID: nodeID}, spoolA, reports(spoolA, 4, 6))
	e.refused(err, audit.ErrUnavailable) // nor can it be told what stands there
	e.store.away.Store(false)
	e.report(spoolA, 4, 6, 3)
	stop()
	e.start()
	if _, err := e.Report(t.Context(), broker.Node{ID: nodeID}, spoolA, reports(spoolA, 4, 6)); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("before the index runs: %v", err)
	}
	stop = e.run()
	e.eventually("the index has caught up", func() bool {
		_, err := e.Report(t.Context(), broker.Node{ID: nodeID}, spoolA, reports(spoolA, 4, 7))
		return err == nil
	})
	e.once(spoolA, 7)
	stop()
}

func TestReportsSentTwiceAtOnceStandOnce(t *testing.T) {
	e := newEnv(t)
	stop := e.run()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := e.Report(t.Context(), broker.Node{ID: nodeID}, spoolA, reports(spoolA, 1, 9)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	e.once(spoolA, 9)
	stop()
}

// A node that gives up while the disk is at work sends the same again.
func TestAReportOfANodeThatGaveUpStandsOnce(t *testing.T) {
	e := newEnv(t)
	stop := e.run()
	e.report(spoolA, 1, 1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = e.Report(ctx, broker.Node{ID: nodeID}, spoolA, reports(spoolA, 2, 4))
	e.eventually("it is taken", func() bool {
		_, err := e.Report(t.Context(), broker.Node{ID: nodeID}, spoolA, reports(spoolA, 2, 4))
		return err == nil
	})
	e.once(spoolA, 4)
	stop()
}

func TestReportIDs(t *testing.T) {
	for id, good := range map[string]bool{
		spoolA + "-1": true, spoolA + "-9223372036854775807": true,
		"": false, "1": false, "-1": false, spoolA: false, spoolA + "-": false, spoolA + "-0": false, spoolA + "--1": false, spoolA + "-01": false,
		spoolA + "-1 ": false, "00000000000000AA-1": false, spoolA[1:] + "-1": false, "zz" + spoolA[2:] + "-1": false,
		spoolA + "-9223372036854775808": false, spoolA + "-1-1": false,
	} {
		spool, n, err := broker.ParseReportID(id)
		if (err == nil) != good || err == nil && broker.ReportID(spool, n) != id {
			t.Errorf("%q: %s, %d, %v", id, spool, n, err)
		}
		if err != nil && !errors.Is(err, broker.ErrRequest) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
