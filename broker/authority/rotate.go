package authority

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// How Run waits: it looks at the clock at least hourly, since a machine may
// have slept, and tries again soon after a failure, since lives have slack.
const (
	maxWait   = time.Hour
	retryWait = 30 * time.Second
	ledWait   = 5 * time.Second // while another broker does what is due
)

// Run renews the authorities until ctx ends. The caller owns its goroutine.
func (a *Authority) Run(ctx context.Context) error {
	for {
		next, err := a.Tick(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := min(max(next.Sub(a.cfg.Now()), time.Second), maxWait)
		if err != nil {
			a.cfg.Log.ErrorContext(ctx, "renewing authorities", "error", err)
			wait = retryWait
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// Tick does what is due, and returns when something will be next. What fails
// does not hold up the rest.
func (a *Authority) Tick(ctx context.Context) (next time.Time, err error) {
	if err := a.ticking.take(ctx); err != nil {
		return time.Time{}, err
	}
	defer a.ticking.leave()
	defer a.resign(ctx)
	if err := a.sync(ctx); err != nil {
		return time.Time{}, err
	}
	next = a.cfg.Now().Add(maxWait)
	a.problems.set(problemClock, nil) // lead finds it again, where something is due
	var errs []error
	do := func(do func(context.Context) (time.Time, error)) {
		var at time.Time
		err := a.decide(ctx, func(ctx context.Context) (err error) {
			at, err = do(ctx)
			return err
		})
		var led *ledElsewhere
		switch {
		case errors.As(err, &led):
			at = earliest(led.Until, a.cfg.Now().Add(ledWait))
		case err != nil:
			errs = append(errs, err)
			return
		}
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	do(func(ctx context.Context) (time.Time, error) { return time.Time{}, a.change(ctx) })
	do(a.renewIssuing)
	for _, alg := range []string{"ES256", "RS256"} {
		do(func(ctx context.Context) (time.Time, error) { return a.rotateJWT(ctx, alg) })
	}
	do(a.promiseAhead) // of the keys that sign from now on
	do(a.retire)
	do(a.renewCRLs)
	return next, errors.Join(errs...)
}

// jwtKeys are the keys of one algorithm by state.
type jwtKeys struct {
	active, standby, old *Record
	since                time.Time // the standby is published since then
	missing              []string  // places that are not known to have it
}

func (s *snapshot) jwtKeys(alg string) (k jwtKeys) {
	for _, r := range s.of(JWTKey, alg) {
		switch r.State {
		case Active:
			k.active = &r
		case Published:
			k.standby, k.since = &r, r.PublishedAt
		case Old:
			k.old = &r
		}
	}
	return k
}

// promoteAt is when the standby takes over: when the active key has lived, the
// standby was published long enough (SPIFFE Federation §4.1), and no older key
// is still published. Without an active key there is nothing to wait for.
func (k jwtKeys) promoteAt(l Lives) (at time.Time, ok bool) {
	switch {
	case k.standby == nil:
		return time.Time{}, false
	case k.active == nil:
		return k.standby.PublishedAt, true
	case len(k.missing) > 0:
		return time.Time{}, false
	}
	at = latest(k.active.NotAfter, k.since.Add(l.Lead))
	if k.old != nil {
		at = latest(at, k.old.removeAt(l))
	}
	return at, true
}

// removeAt is when nothing that an old key signed can live, or be verified by
// a cache's leave.
func (r Record) removeAt(l Lives) time.Time {
	return latest(r.NotAfter.Add(max(l.Keep, l.MaxJWT)), r.LastExpiry)
}

func latest(t, u time.Time) time.Time {
	if u.After(t) {
		return u
	}
	return t
}

// rotateJWT keeps one active and one standby key of alg published, and says
// when to look again. Without an Issuer it makes none.
func (a *Authority) rotateJWT(ctx context.Context, alg string) (next time.Time, err error) {
	if a.cfg.Issuer == "" {
		return time.Time{}, nil
	}
	if err := a.lookAround(ctx, alg); err != nil {
		return time.Time{}, err
	}
	now := a.now()
	k, err := a.withoutOld(ctx, alg, now)
	if err != nil {
		return time.Time{}, err
	}
	changed, err := a.nextJWT(ctx, alg, k, now)
	if err != nil {
		return time.Time{}, err
	}
	if len(changed) > 0 {
		if err := a.change(ctx, changed...); err != nil {
			return time.Time{}, err
		}
		for _, r := range changed {
			a.cfg.Log.InfoContext(ctx, "JWT key changed", "state", string(r.State), "authority", r.ID, "alg", r.Alg)
		}
	}
	k = a.jwtKeys(a.live.Load(), alg)
	next, _ = k.promoteAt(a.cfg.Lives)
	if len(k.missing) > 0 {
		next = now.Add(placeWait)
	}
	if k.old != nil && k.old.removeAt(a.cfg.Lives).Before(next) {
		next = k.old.removeAt(a.cfg.Lives)
	}
	return next, nil
}

// withoutOld takes an old key out whose time is over: before the next one is
// published, so that there are three at most.
func (a *Authority) withoutOld(ctx context.Context, alg string, now time.Time) (jwtKeys, error) {
	k := a.jwtKeys(a.live.Load(), alg)
	if k.old == nil || now.Before(k.old.removeAt(a.cfg.Lives)) {
		return k, nil
	}
	if err := a.removeOld(ctx, *k.old); err != nil {
		return k, err
	}
	return a.jwtKeys(a.live.Load(), alg), nil
}

// nextJWT returns what changes now, the key that stops being active first. New
// keys are made before anything changes hands.
func (a *Authority) nextJWT(ctx context.Context, alg string, k jwtKeys, now time.Time) ([]Record, error) {
	at, ok := k.promoteAt(a.cfg.Lives)
	promote := ok && !now.Before(at)
	var missing int
	switch {
	case k.active == nil && k.standby == nil:
		missing = 2
	case k.standby == nil || promote:
		missing = 1
	}
	if missing > 0 {
		if err := a.lead(ctx); err != nil {
			return nil, err
		}
	}
	made, err := a.newJWTKeys(ctx, alg, missing, now)
	if err != nil {
		return nil, err
	}
	var changed []Record
	if promote {
		if k.active != nil {
			k.active.State, k.active.NotAfter = Old, now
			changed = append(changed, *k.active)
		}
		changed = append(changed, a.activate(*k.standby, now))
	}
	// The first key of a trust domain waits for nobody: no relying party has
	// cached a bundle without it. Nor does the first after all others ended:
	// tokens that some cloud must fetch the key for are better than none.
	if missing == 2 {
		made[0] = a.activate(made[0], now)
	}
	return append(changed, made...), nil
}

func (a *Authority) activate(r Record, now time.Time) Record {
	r.State, r.ActivatedAt, r.NotAfter = Active, now, now.Add(a.cfg.Lives.JWTKey)
	r.LastExpiry = now.Truncate(time.Hour).Add(3 * time.Hour)
	return r
}

// newJWTKeys makes n keys side by side.
func (a *Authority) newJWTKeys(ctx context.Context, alg string, n int, now time.Time) ([]Record, error) {
	records := make([]Record, n)
	signers := make([]crypto.Signer, n)
	g, making := errgroup.WithContext(ctx)
	for i := range n {
		g.Go(func() (err error) {
			records[i], signers[i], err = newRecord(making, a.cfg.JWTKeys, JWTKey, alg)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range records {
		if _, twice := a.live.Load().find(records[i].ID); twice {
			return nil, fmt.Errorf("making a key for jwt %s: the key source gave %s again", alg, records[i].ID)
		}
		records[i].State, records[i].PublishedAt = Published, stamp(now)
		a.keep(records[i], signers[i])
	}
	return records, nil
}

// removeOld takes a key out of the bundle for good.
func (a *Authority) removeOld(ctx context.Context, r Record) error {
	r.State = Revoked
	if err := a.change(ctx, r); err != nil {
		return err
	}
	a.cfg.Log.InfoContext(ctx, "authority removed", "authority", r.ID, "use", string(r.Use), "alg", r.Alg)
	return nil
}

// retire ends what has outlived its use: old CAs, roots that an act or the
// upstream has put aside and, without an Issuer, JWT keys of a time that had
// one.
func (a *Authority) retire(ctx context.Context) (next time.Time, err error) {
	now := a.now()
	for _, r := range a.live.Load().records {
		at, ok := a.retireAt(a.live.Load(), r)
		if !ok {
			continue
		}
		if now.Before(at) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		if err := a.removeOld(ctx, r); err != nil {
			return time.Time{}, err
		}
	}
	return next, nil
}

// ownGrace is how long a broker may see to its own CAs before others do.
const ownGrace = 10 * time.Minute

func (a *Authority) retireAt(s *snapshot, r Record) (at time.Time, ok bool) {
	switch {
	case r.Use == Issuing && r.Broker == a.cfg.Broker && (r.State == Old || r.State == Prepared):
		return r.NotAfter, true
	case r.Use == Issuing && r.Broker != a.cfg.Broker && r.State != Revoked:
		return r.NotAfter.Add(ownGrace), true // that broker is gone for good, or renews it when it comes back
	case r.Use == Domain && r.State == Old:
		return r.NotAfter, true
	case r.Use == Root && r.State == Old:
		until, _ := s.svidsUnder(r.ID)
		if s.putAside(r) || a.cfg.Upstream != nil && r.KeyRef == "" {
			return until, true
		}
		return latest(until, r.NotAfter), true
	case r.Use == JWTKey && a.cfg.Issuer == "" && r.published():
		return latest(r.removeAt(a.cfg.Lives), r.PublishedAt.Add(a.cfg.Lives.Keep)), true
	}
	return time.Time{}, false
}
