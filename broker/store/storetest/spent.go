package storetest

import (
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/broker"
)

func spendEvidence(e *env) {
	a, b, ends := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b")), e.time.Add(5*time.Minute)
	var won, spent atomic.Int32
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			switch err := e.SpendEvidence(e.Context(), a, ends, e.time); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, broker.ErrSpent):
				spent.Add(1)
			default:
				e.Error(err)
			}
		})
	}
	all.Wait()
	e.equal([]int32{won.Load(), spent.Load()}, []int32{1, 99})
	revision := e.revision()
	e.must(e.SpendEvidence(e.Context(), b, ends, e.time))
	e.equal(e.revision(), revision)
	e.reopen()
	e.refusedSpent(e.SpendEvidence(e.Context(), a, ends, e.time))
	e.refusedSpent(e.SpendEvidence(e.Context(), a, ends, ends.Add(-time.Millisecond)))
	e.must(e.SpendEvidence(e.Context(), a, ends.Add(time.Hour), ends)) // what has ended is kept no longer
}

func spendEvidenceFor(e *env) {
	a, b, c, ends := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b")), sha256.Sum256([]byte("c")), e.time.Add(5*time.Minute)
	spend := func(digest [32]byte, holder string) error {
		return e.SpendEvidenceFor(e.Context(), digest, holder, ends, e.time)
	}
	e.must(spend(a, "x"))
	e.must(spend(a, "x"))
	for range 2 { // the first refusal leaves nothing that the second would take for a holder
		e.refusedSpent(spend(a, "y"))
	}
	e.reopen()
	e.must(spend(a, "x"))
	e.refusedSpent(spend(a, ""))
	holds := func(digest [32]byte, holder string, now time.Time) bool {
		ok, err := e.HoldsEvidence(e.Context(), digest, holder, now)
		e.must(err)
		return ok
	}
	e.equal([]bool{holds(a, "x", e.time), holds(a, "y", e.time), holds(a, "", e.time), holds(b, "x", e.time), holds(a, "x", ends)}, []bool{true, false, false, false, false})
	e.must(spend(b, "y"))
	e.refusedSpent(e.SpendEvidence(e.Context(), a, ends, e.time))
	e.must(e.SpendEvidence(e.Context(), c, ends, e.time))
	e.refusedSpent(spend(c, "x"))
	e.must(e.SpendEvidenceFor(e.Context(), a, "y", ends.Add(time.Hour), ends)) // what has ended is kept no longer
	var won atomic.Int32
	var all sync.WaitGroup
	d := sha256.Sum256([]byte("d"))
	for n := range 20 {
		all.Go(func() {
			switch err := spend(d, string(rune('a'+n%5))); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, broker.ErrSpent):
				e.Error(err)
			}
		})
	}
	all.Wait()
	e.equal(won.Load(), int32(4))
}
