package authority

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LeaseName is of the lease under which brokers change what they share.
const LeaseName = "authority"

// leaseLife is how long a broker that ended amid its work holds others up.
// Nobody holds the lease but for work that is due: it costs nothing otherwise.
const leaseLife = time.Minute

// A Lease is the right to change what brokers share, until it ends or another
// broker has one with a higher fence.
type Lease struct {
	Holder string
	Fence  uint64
	Until  time.Time
	Ahead  time.Duration // by how much the broker's clock is, before the one that leases last by
}

// Leases are kept where the Records are.
type Leases interface {
	// Acquire gives holder the lease name under a higher fence than anybody had
	// before, if nobody else holds it or take is set. Else it returns the
	// other's, and false.
	Acquire(ctx context.Context, name, holder string, life time.Duration, take bool) (Lease, bool, error)
	// Release ends the lease with that fence, if it is the last.
	Release(ctx context.Context, name string, fence uint64) error
}

// maxAhead is by how much a broker's clock may differ that changes what brokers
// share, by which it ends what is another's: half of the time that they give each
// other.
const maxAhead = ownGrace / 2

// problemClock names that this broker's clock keeps it from leading.
const problemClock = "clock"

func (l Lease) checkClock() error {
	if l.Ahead.Abs() <= maxAhead {
		return nil
	}
	off := "ahead of"
	if l.Ahead < 0 {
		off = "behind"
	}
	return fmt.Errorf("changing authorities: this machine's clock is %s %s the database's: it changes nothing of what brokers share until both are right (NTP)", l.Ahead.Abs().Round(time.Second), off)
}

// errUnled says that a change of what is shared was tried without the lease.
var errUnled = errors.New("changing authorities: this broker does not lead")

// ledElsewhere says that another broker does what is due.
type ledElsewhere struct{ Lease }

func (l *ledElsewhere) Error() string {
	return fmt.Sprintf("broker %s changes what brokers share, at most until %s", l.Holder, l.Until.UTC().Format(time.RFC3339))
}

// lead makes this broker the one that changes what brokers share, before any
// key is made for that. What others changed until then is read; if that is
// anything since it was decided, the error is ErrConflict: decide again. The caller
// has its turn.
func (a *Authority) lead(ctx context.Context) error {
	if a.cfg.Leases == nil || a.lease.Fence != 0 && a.cfg.Now().Before(a.lease.Until.Add(-leaseLife/2)) {
		return nil
	}
	lease, ok, err := a.cfg.Leases.Acquire(ctx, LeaseName, a.cfg.Broker, leaseLife, a.asked)
	switch {
	case err != nil:
		return fmt.Errorf("taking the lead over the authorities: %w", err)
	case !ok:
		return &ledElsewhere{lease}
	}
	a.lease = lease
	err = lease.checkClock()
	a.problems.set(problemClock, err)
	if err != nil {
		a.resign(ctx)
		return err
	}
	if err := a.read(ctx); err != nil {
		return err
	}
	if a.version() != a.decided {
		return ErrConflict
	}
	return nil
}

func (a *Authority) version() Version {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.publication.Version
}

// releaseTimeout is how long a broker that ends waits for a store that does not
// answer.
const releaseTimeout = 3 * time.Second

// resign lets others lead. If it fails they wait until the lease ends.
func (a *Authority) resign(ctx context.Context) {
	if a.lease.Fence == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := a.cfg.Leases.Release(ctx, LeaseName, a.lease.Fence); err != nil {
		a.cfg.Log.WarnContext(ctx, "the lease of the authorities is not released", "until", a.lease.Until, "error", err)
	}
	a.lease = Lease{}
}

// decide does something again that was decided on what another broker has
// changed meanwhile.
func (a *Authority) decide(ctx context.Context, do func(context.Context) error) error {
	const tries = 8
	for try := 1; ; try++ {
		a.decided = a.version() // Reload may bring a newer one at any time
		err := do(ctx)
		if !errors.Is(err, ErrConflict) || try == tries {
			return err
		}
		if a.live.Load() == nil {
			continue // nothing is in use here
		}
		if err := a.sync(ctx); err != nil {
			return err
		}
	}
}

// How often a broker that starts looks whether another has made what both need,
// and how long it waits for that.
const (
	settleEvery = 100 * time.Millisecond
	settleMost  = 2 * leaseLife
)

// settled is decide at the start: it waits while another broker does it.
func (a *Authority) settled(ctx context.Context, do func(context.Context) error) error {
	for waited := time.Duration(0); ; waited += settleEvery {
		err := a.decide(ctx, do)
		var led *ledElsewhere
		if !errors.As(err, &led) || waited >= settleMost {
			return err
		}
		timer := time.NewTimer(settleEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
		if err := a.sync(ctx); err != nil {
			return err
		}
	}
}
