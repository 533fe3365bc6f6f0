package export

import (
	"context"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// How often a head goes along at most, and how long one is waited for.
const (
	headEvery = time.Minute
	headTime  = 10 * time.Second
)

// heads is what an Exporter knows of heads: one that waits until the record that
// it speaks of is acknowledged, and how far the last one went.
type heads struct {
	next    audit.Head // zero: none waits
	told    uint64     // sequence number of the last; at first, the cursor's
	notYet  time.Time  // before which none is asked for, nor handed over
	problem error      // why there is none; nil: said, or there is no problem
	failing bool
}

// askHead takes the newest head, if none waits and it's time.
func (e *Exporter) askHead(ctx context.Context) {
	h := &e.heads
	if e.cfg.Head == nil || h.next.Sequence > 0 || time.Now().Before(h.notYet) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, headTime)
	defer cancel()
	head, err := e.cfg.Head(ctx)
	switch {
	case err != nil:
		h.problem = err
	case head.Sequence > h.told:
		h.next = head
		return
	}
	h.notYet = time.Now().Add(headEvery)
}

// tellHead hands over the head that waits, if the record that it speaks of has
// been acknowledged, and says when to call again, if no record comes before. Where
// that fails, nothing waits for it: a later one says all that this one did.
func (e *Exporter) tellHead(ctx context.Context) time.Duration {
	e.askHead(ctx)
	h := &e.heads
	if h.next.Sequence > 0 && h.next.Sequence <= e.State().At.Sequence {
		err := e.cfg.Sink.SendHead(ctx, h.next)
		if err == nil {
			h.told, h.failing = h.next.Sequence, false
		}
		h.problem, h.next, h.notYet = err, audit.Head{}, time.Now().Add(headEvery)
	}
	if h.problem != nil && !h.failing && ctx.Err() == nil {
		h.failing = true
		e.cfg.Log.WarnContext(ctx, "no head of the record goes with the audit export for now; records do", "exporter", e.cfg.Name, "error", h.problem)
	}
	h.problem = nil
	if wait := time.Until(h.notYet); wait > 0 {
		return wait
	}
	return headEvery // one waits for its record
}
