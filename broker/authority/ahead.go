package authority

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"
)

// How long signing goes on while nothing can be written, and how a signature
// that needs a write treats a store that does not answer.
const (
	spare        = 65 * time.Minute
	raiseTimeout = 3 * time.Second // where a shorter life will do
	raiseAgain   = 5 * time.Second
)

// ahead is what promises must cover.
type ahead struct {
	x509, jwt atomic.Int64 // the longest life asked for, in nanoseconds
	failed    atomic.Int64 // when a promise failed last, in Unix nanoseconds
}

func longer(of *atomic.Int64, life time.Duration) {
	for {
		last := of.Load()
		if int64(life) <= last || of.CompareAndSwap(last, int64(life)) {
			return
		}
	}
}

// covered is the life that promises cover: an hour at least.
func covered(of *atomic.Int64) time.Duration { return max(time.Duration(of.Load()), time.Hour) }

// promise makes it durable that the authority r may have signed an SVID that
// lives until expiry, and so long after it that most signatures write nothing.
// Where that fails and what is promised already lets half of the life be signed,
// that is the end of it; again says that the authorities were read anew, and
// to begin anew.
func (a *Authority) promise(ctx context.Context, r Record, now, expiry time.Time) (end time.Time, again bool, err error) {
	enough := r.LastExpiry.Sub(now) >= expiry.Sub(now)/2
	if failed := time.Unix(0, a.ahead.failed.Load()); enough && now.Sub(failed).Abs() < raiseAgain {
		return r.LastExpiry, false, nil
	}
	raising := ctx
	if enough {
		var cancel context.CancelFunc
		raising, cancel = context.WithTimeout(ctx, raiseTimeout)
		defer cancel()
	}
	err = a.raise(raising, map[string]time.Time{r.ID: step(expiry)})
	switch {
	case err == nil:
		return time.Time{}, true, nil
	case errors.Is(err, ErrConflict): // it was revoked elsewhere
		return time.Time{}, true, a.read(ctx)
	case ctx.Err() != nil || !enough:
		return time.Time{}, false, fmt.Errorf("authority %s may sign until %s, as was promised, and the store takes no more: %w", r.ID, r.LastExpiry.UTC().Format(time.RFC3339), err)
	}
	a.ahead.failed.Store(now.UnixNano())
	a.cfg.Log.WarnContext(ctx, "SVIDs end sooner than asked for: what was promised ends, and the store takes nothing", "authority", r.ID, "until", r.LastExpiry, "error", err)
	return r.LastExpiry, false, nil
}

// step is the end of the hour after t.
func step(t time.Time) time.Time { return t.Truncate(time.Hour).Add(time.Hour) }

// promiseAhead raises what the keys in use promise in time before it is
// passed, so that signatures need not wait for the store, and says when to do
// it again.
func (a *Authority) promiseAhead(ctx context.Context) (next time.Time, err error) {
	s, now := a.live.Load(), a.cfg.Now()
	ends := map[string]time.Time{}
	plan := func(r Record, life time.Duration) {
		if r.Use != JWTKey && !r.LastExpiry.Before(r.NotAfter) {
			return
		}
		at := r.LastExpiry.Add(-life - spare)
		if !now.Before(at) {
			ends[r.ID] = step(now.Add(life + spare))
			at = ends[r.ID].Add(-life - spare)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if s.issuing != nil {
		plan(s.issuing.Record, covered(&a.ahead.x509))
	}
	for _, key := range s.jwt {
		plan(key.Record, covered(&a.ahead.jwt))
	}
	if len(ends) == 0 {
		return next, nil
	}
	return next, a.raise(ctx, ends)
}

// raise makes it durable that authorities may have signed what lives as long as
// ends say.
func (a *Authority) raise(ctx context.Context, ends map[string]time.Time) error {
	return a.withKeys(ctx, func() error {
		last := a.live.Load()
		records, later := last.records, map[string]time.Time{}
		for id, end := range ends {
			r, ok := last.find(id)
			if r.Use != JWTKey && end.After(r.NotAfter) {
				end = r.NotAfter
			}
			if !ok || !end.After(r.LastExpiry) {
				continue // somebody else did
			}
			later[id], r.LastExpiry = end, end
			records = merge(records, []Record{r})
		}
		if len(later) == 0 {
			return nil
		}
		next, err := a.snapshot(records, a.publication.Sequence)
		if err != nil {
			return err
		}
		if _, err := a.cfg.Records.SaveAuthorities(ctx, Change{Broker: a.cfg.Broker, LastExpiry: maps.Clone(later)}); err != nil {
			return err
		}
		a.install(next, a.publication)
		return nil
	})
}
