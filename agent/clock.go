package agent

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	lookAtClock = 2 * time.Second
	leastJump   = 2 * time.Second // what NTP slews is far less
	afterJump   = 2 * time.Second // machines wake up together
)

// mindClock notices that the wall clock went on by more or less than the
// monotonic one, which stands still while the machine is suspended and which
// timers go by: until ctx ends.
func (a *Agent) mindClock(ctx context.Context) error {
	tick := time.NewTicker(lookAtClock)
	defer tick.Stop()
	wall, at := a.cfg.Now().Round(0), time.Now()
	for {
		a.pulses.clock.rest()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.pulses.clock.work(a.cfg.Now())
		elapsed := time.Since(at)
		now := a.cfg.Now().Round(0)
		by := now.Sub(wall) - elapsed
		wall, at = now, time.Now()
		if by.Abs() >= leastJump {
			a.jumped(ctx, by)
		}
	}
}

// jumped has everything looked at that goes by the wall clock: at once what must
// not be served any longer, and within moments what is to be had anew.
func (a *Agent) jumped(ctx context.Context, by time.Duration) {
	a.cfg.Log.WarnContext(ctx, "the clock jumped: this machine was suspended, or its clock was set; looking at everything that is due", "by", by)
	if by < 0 {
		// What ended at a time ends that much earlier by the clock as it is.
		a.sets.setBack(-by)
		a.kept.setBack(-by)
		a.tokens.forget(nil)
	}
	a.jumps.Add(1)
	a.sets.each(nil, func(*set) {})
	a.bundles.changed.ring()
	select {
	case <-ctx.Done():
		return
	case <-time.After(rand.N(afterJump)):
	}
	// After a suspension the connection is dead, and nobody has told us.
	if a.link.Load() != nil && a.node.mustJoin(a.cfg.Now()) == nil {
		if err := a.relink(); err != nil {
			a.cfg.Log.WarnContext(ctx, "connection not replaced", "error", err)
		}
	}
	a.node.nudge()
	a.wanting()
	a.sets.back()
	a.sources.look()
	a.reports.Nudge()
}

// setBack has all SVIDs end, and be renewed, by that much earlier.
func (s *sets) setBack(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		st.svids, st.partial = setBack(st.svids, by), setBack(st.partial, by)
	}
}

func (k *kept) setBack(by time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.svids = setBack(k.svids, by)
}

// setBack copies: an SVID is immutable.
func setBack(svids []*SVID, by time.Duration) (all []*SVID) {
	for _, v := range svids {
		earlier := *v
		earlier.back += by
		earlier.renewAt = v.renewAt.Add(-by)
		all = append(all, &earlier)
	}
	return all
}
