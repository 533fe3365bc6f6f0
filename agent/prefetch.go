package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// Tokens are made ahead one after the other, with a pause between: one agent
// never asks for two at once, and what it asks for does not hold up an X509-SVID.
const (
	aheadSpread = 3 * time.Second        // after which a new audience is asked for, at most: agents that begin together spread
	aheadPause  = 20 * time.Millisecond  // between two calls, on average
	aheadBatch  = 5 * time.Second        // what is due so soon is renewed with what is due
	aheadDenied = 10 * time.Minute       // until one that was listed and not given is tried again, if nothing changes
	aheadFailed = 10 * time.Second       // until one that the broker fails at is
	aheadLook   = time.Minute            // until tokens that nobody uses are looked for, at most
	aheadRest   = 100 * time.Millisecond // between two looks at all that is in use, however many workloads come
)

// A want is one token that is to be made ahead: one audience each, as callers
// ask for them. A token for several is a wider one, and made when asked for.
type want struct {
	set      *set
	audience string
	key      tokenKey
	since    time.Time // when the set was last used
}

// prefetch keeps a token for each audience that the SVIDs in use list by name,
// until ctx ends: with the broker away each is served for half of its life at
// least.
func (a *Agent) prefetch(ctx context.Context) error {
	var p pause
	turnedAway := uint64(0)
	for {
		now := a.cfg.Now()
		wait := max(p.until.Sub(now), 0)
		if wait == 0 {
			a.pulses.prefetch.work(now)
			var due []want
			due, wait = a.wants(now)
			if err := a.makeAhead(ctx, due); err != nil && ctx.Err() == nil {
				p.longer(a.cfg.Now(), maxPause)
				wait = max(p.until.Sub(a.cfg.Now()), 0)
				a.cfg.Log.DebugContext(ctx, "JWT-SVIDs not made ahead", "error", err)
			} else if len(due) > 0 {
				p, wait = pause{}, 0 // when they are due again is seen now
			}
			turnedAway = a.tellTurnedAway(ctx, turnedAway)
			a.pulses.prefetch.rest()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.tokens.wake:
			a.linger(ctx)
		case <-a.tokens.back: // the broker answers again: not all agents at once
			if p.length > 0 {
				p = pause{until: a.cfg.Now().Add(rand.N(aheadSpread))}
			}
		case <-time.After(wait):
		}
	}
}

// linger waits for more that has changed: to look at all takes time.
func (a *Agent) linger(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(aheadRest):
	}
}

func (a *Agent) tellTurnedAway(ctx context.Context, before uint64) uint64 {
	a.tokens.mu.Lock()
	defer a.tokens.mu.Unlock()
	if n := a.tokens.turnedAway; n > before {
		a.cfg.Log.WarnContext(ctx, "JWT-SVIDs were handed out and not kept, or not made ahead: there are too many", "tokens", n-before, "kept", a.tokens.count, "most", maxTokens)
	}
	return a.tokens.turnedAway
}

// wants are the tokens that are due, or how long it is until one is. It drops
// those of sets that nobody uses.
func (a *Agent) wants(now time.Time) (due []want, wait time.Duration) {
	used := a.sets.inUse(now)
	now = now.Round(0) // turns go by the wall clock, as the tokens do
	t := &a.tokens
	t.mu.Lock()
	defer t.mu.Unlock()
	live := make(map[[sha256.Size]byte]bool, len(used))
	for _, u := range used {
		live[u.set.id] = true
	}
	t.retain(live, now)
	wait = aheadLook
	for _, u := range used {
		if u.lent {
			continue // the broker is away; it decides first
		}
		a.prove(u, now)
		for _, audience := range listedAhead(u.svids) {
			k := tokenKey{set: u.set.id, audiences: joined(audience)}
			left := t.dueIn(k, u.svids, now)
			if left > 0 {
				wait = min(wait, left)
				continue
			}
			if t.made >= maxAheadAll && t.all[k.set][k] == nil {
				t.turnedAway++
				t.turns[k] = now.Add(aheadDenied)
				continue
			}
			due = append(due, want{u.set, audience, k, u.last})
		}
	}
	slices.SortStableFunc(due, func(x, y want) int { return cmp.Compare(y.since.UnixNano(), x.since.UnixNano()) })
	return due, wait
}

// retain drops the tokens of sets that are in use no more, and all that ended.
// It must be called with mu held.
func (t *tokens) retain(live map[[sha256.Size]byte]bool, now time.Time) {
	dropped := false
	for id := range t.all {
		t.drop(id, func(_ tokenKey, e *tokenEntry) bool {
			gone := !now.Before(e.ends) || !live[id] && e.stage == current
			dropped = dropped || gone
			return gone
		})
	}
	for k := range t.turns {
		if !live[k.set] {
			delete(t.turns, k)
		}
	}
	if dropped {
		t.kept.nudgeLater() // nobody took them back
	}
}

// dueIn says in how long a token is to be made. It must be called with mu held.
func (t *tokens) dueIn(k tokenKey, svids []*SVID, now time.Time) time.Duration {
	e := t.all[k.set][k]
	if e == nil || e.stage != current || !e.fits(svids) || !now.Before(e.ends) {
		turn, ok := t.turns[k]
		if !ok {
			turn = now.Add(rand.N(aheadSpread))
			t.turns[k] = turn
		}
		return turn.Sub(now)
	}
	if !e.ahead { // it was asked for before it was listed
		e.ahead = true
		t.made++
	}
	soon := min(aheadBatch, e.renewAt.Sub(e.obtained)/5)
	if turn, ok := t.turns[k]; ok && turn.After(now) {
		return turn.Sub(now)
	}
	return max(e.renewAt.Sub(now)-soon, 0)
}

// prove takes up what an earlier run held for a set, where the broker has
// confirmed since then all that it rests on: the SVIDs of the set are what they
// were, and neither the tokens nor their keys are revoked. It must be called
// with tokens.mu held.
func (a *Agent) prove(u usedSet, now time.Time) {
	if a.Cutoffs() == nil {
		return
	}
	a.tokens.drop(u.set.id, func(_ tokenKey, e *tokenEntry) bool {
		if e.stage != unproven {
			return false
		}
		holds := e.fits(u.svids) && !slices.ContainsFunc(e.svids, func(h heldJWT) bool { return a.checkJWT(h.JWTSVID, now) != nil })
		e.stage = current
		return !holds
	})
}

// checkJWT holds a token of ours against the bundle, and what is revoked.
func (a *Agent) checkJWT(v JWTSVID, now time.Time) error {
	j, err := federation.ParseJWT(v.Token)
	if err != nil {
		return err
	}
	own, ok := a.bundles.get(a.cfg.TrustDomain)
	if !ok || j.ID != v.ID {
		return errors.New("a token of somebody else")
	}
	key, err := j.Verify(jwtbundle.NewSet(jwtbundle.FromJWTAuthorities(a.cfg.TrustDomain, own.JWTAuthorities)))
	if err != nil {
		return err
	}
	if err := j.CheckTimes(now); err != nil {
		return err
	}
	return a.Cutoffs().Check(j.ID, key, j.IssuedAt, j.Expires)
}

// makeAhead asks for one after the other. It ends at the first that the broker
// does not answer.
func (a *Agent) makeAhead(ctx context.Context, all []want) error {
	for _, w := range all {
		a.pulses.prefetch.work(a.cfg.Now())
		if err := a.makeOne(ctx, w); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(aheadPause/2 + rand.N(aheadPause)):
		}
	}
	return nil
}

func (a *Agent) makeOne(ctx context.Context, w want) error {
	generation := a.tokens.now()
	svids, ok := a.sets.used(w.set, a.cfg.Now())
	if !ok || !slices.Contains(listedAhead(svids), w.audience) {
		return nil // meanwhile
	}
	known := usesOf(svids, []string{w.audience}, spiffeid.ID{})
	got, err := a.issueJWT(ctx, askFor(a.asks(ctx, w.set), []string{w.audience}, spiffeid.ID{}), svids)
	got.use = strictest(got.use, known)
	switch {
	case errors.Is(err, ErrDenied) || err == nil && got.use == useSingle:
		a.tokens.later(w.key, a.cfg.Now().Add(aheadDenied))
		return nil
	case err != nil:
		if u := new(Unavailable); !errors.As(err, &u) || u.Code != BrokerUnreachable {
			a.tokens.later(w.key, a.cfg.Now().Add(aheadFailed)) // the others first
		}
		return err
	}
	got.ahead = true
	if !a.tokens.put(w.key, got, a.cfg.Now(), generation) {
		a.tokens.later(w.key, a.cfg.Now().Add(aheadFailed))
	}
	return nil
}

func (t *tokens) later(k tokenKey, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turns[k] = at.Round(0)
}

// usedSet is a set of facts that a live workload holds.
type usedSet struct {
	set   *set
	svids []*SVID
	lent  bool
	last  time.Time
}

// inUse are the sets that somebody has open, or used within the last while.
func (s *sets) inUse(now time.Time) (all []usedSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		if st.inUse(now) {
			all = append(all, st.use(now))
		}
	}
	return all
}

// used is inUse of one set, where the broker decided for it.
func (s *sets) used(st *set, now time.Time) ([]*SVID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[st.id] != st || !st.inUse(now) {
		return nil, false
	}
	u := st.use(now)
	return u.svids, !u.lent
}

// inUse must be called with sets.mu held.
func (st *set) inUse(now time.Time) bool {
	return st.valid(now) && (st.users > 0 || now.Sub(st.lastUsed) <= idleLife)
}

// use must be called with sets.mu held.
func (st *set) use(now time.Time) usedSet {
	u := usedSet{st, st.svids, len(st.lenders) > 0, st.lastUsed}
	if st.users > 0 {
		u.last = now
	}
	return u
}

// held are the SVIDs of a set.
func (s *sets) held(st *set) []*SVID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.svids
}
