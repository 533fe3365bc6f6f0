package storetest

import (
	"context"
	"time"

	"github.com/credence-id/credence/broker"
)

func (e *env) cutoff(kind, value string, before time.Time) broker.Cutoff {
	return broker.Cutoff{Kind: kind, Value: value, Before: before, Reason: "key' leaked", Actor: "uid:0", MadeAt: e.time}
}

func (e *env) cutoffs(after uint64) []broker.Cutoff {
	e.Helper()
	all, _, err := e.Cutoffs(e.Context(), after)
	e.must(err)
	return all
}

func cutoffs(e *env) {
	all := []broker.Cutoff{
		e.cutoff(broker.CutNode, "spiffe://example.org/credence/node/n1", e.time),
		e.cutoff(broker.CutID, "spiffe://example.org/w", e.time.Add(-time.Hour)),
		e.cutoff(broker.CutIdentity, "w", e.time.Add(-time.Minute)),
		e.cutoff(broker.CutAuthority, "w", e.time), // of another kind: another one
	}
	none, last, err := e.Cutoffs(e.Context(), 0)
	e.must(err)
	e.equal(len(none), 0)
	e.equal(last, uint64(0))
	for _, c := range all {
		e.must(e.SaveCutoff(e.Context(), c))
	}
	e.reopen()
	got, last, err := e.Cutoffs(e.Context(), 0)
	e.must(err)
	e.equal(got, all)
	e.equal(last, e.revision())
	e.equal(e.cutoffs(2), all[2:])
	none, last, err = e.Cutoffs(e.Context(), last)
	e.must(err)
	e.equal(len(none), 0)
	e.equal(last, e.revision())

	if err := e.SaveCutoff(e.Context(), e.cutoff("moon", "full", e.time)); err == nil {
		e.Error("a cut-off of the moon is taken")
	}
	e.equal(e.cutoffs(0), all)
}

// cutoffsOnlyGrow holds that nothing that was revoked becomes good again.
func cutoffsOnlyGrow(e *env) {
	middle := e.cutoff(broker.CutID, "spiffe://example.org/w", e.time)
	e.must(e.SaveCutoff(e.Context(), middle))
	earlier := middle
	earlier.Before, earlier.Reason = middle.Before.Add(-time.Hour), "earlier"
	e.must(e.SaveCutoff(e.Context(), earlier))
	e.equal(e.cutoffs(0), []broker.Cutoff{middle})
	later := middle
	later.Before, later.Reason = middle.Before.Add(time.Hour), "later"
	e.must(e.SaveCutoff(e.Context(), later))
	e.equal(e.cutoffs(0), []broker.Cutoff{later})
	e.equal(e.cutoffs(1), []broker.Cutoff{later}) // it is a change
}

func cutoffsForgotten(e *env) {
	for i, kind := range []string{broker.CutID, broker.CutNode, broker.CutAuthority} {
		e.must(e.SaveCutoff(e.Context(), e.cutoff(kind, "x", e.time.Add(time.Duration(i)*time.Hour))))
	}
	revision := e.revision()
	e.must(e.ForgetCutoffs(e.Context(), e.time.Add(-time.Millisecond)))
	e.equal(e.revision(), revision) // nothing to forget is no change
	e.must(e.ForgetCutoffs(e.Context(), e.time.Add(time.Hour)))
	e.equal(e.cutoffs(0), []broker.Cutoff{e.cutoff(broker.CutAuthority, "x", e.time.Add(2*time.Hour))})
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if e.SaveCutoff(ctx, e.cutoff(broker.CutID, "y", e.time)) == nil || e.ForgetCutoffs(ctx, e.time.Add(3*time.Hour)) == nil {
		e.Error("after the call ended: no error")
	}
	e.equal(len(e.cutoffs(0)), 1)
}
