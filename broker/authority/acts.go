package authority

import (
	"context"
	"fmt"
	"time"
)

// A Replacement is what came of a compromised key.
type Replacement struct {
	Old, New Status
	Believed []string  // sentences: until when a stolen copy is believed, and by whom
	Until    time.Time // nobody believes it after that
}

// act does one thing that an operator asked for: one at a time, not beside Tick,
// on what is durable. Signing goes on meanwhile. It takes the lead from another
// broker, and does it again where that had changed something before.
func (a *Authority) act(what string, ctx context.Context, do func(now time.Time) error) error {
	if err := a.ticking.take(ctx); err != nil {
		return fmt.Errorf("%s: waiting for what is under way: %w", what, err)
	}
	defer a.ticking.leave()
	defer a.resign(ctx)
	a.asked = true
	defer func() { a.asked = false }()
	if err := a.sync(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := a.decide(ctx, func(context.Context) error { return do(a.now()) }); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// RotateJWT has the standby key of alg take over as soon as its lead allows,
// however long the active one could have signed. If that is not now, the error
// is ErrNotYet and says when: Tick does it then.
func (a *Authority) RotateJWT(ctx context.Context, alg string) (Status, error) {
	var st Status
	err := a.act("rotating the "+alg+" key", ctx, func(now time.Time) error {
		if err := a.lookAround(ctx, alg); err != nil {
			return err
		}
		k, err := a.jwtPair(alg)
		if err != nil {
			return err
		}
		st = a.status(k.standby.ID)
		at := k.earliest(a.cfg.Lives)
		if len(k.missing) > 0 {
			at = latest(at, now.Add(a.cfg.Lives.Lead))
		}
		if k.active.NotAfter.After(now) {
			k.active.NotAfter = now // it lives no longer than the standby's lead asks
			if now.Before(at) {
				if err := a.change(ctx, *k.active); err != nil {
					return err
				}
			}
		}
		if len(k.missing) > 0 {
			return notYet(at, "relying parties learn the key %s for %s before its first use, and %s", k.standby.ID, a.cfg.Lives.Lead, missingAt(k.missing))
		}
		if now.Before(at) {
			return notYet(at, "relying parties learn the key %s for %s before its first use, and no more than three are published", k.standby.ID, a.cfg.Lives.Lead)
		}
		if k, err = a.withoutOld(ctx, alg, now); err != nil {
			return err
		}
		k.active.NotAfter = now
		changed, err := a.nextJWT(ctx, alg, k, now)
		if err != nil {
			return err
		}
		if err := a.change(ctx, changed...); err != nil {
			return err
		}
		st = a.status(k.standby.ID)
		return nil
	})
	return st, err
}

// jwtPair are the keys of alg, of which two are always published.
func (a *Authority) jwtPair(alg string) (jwtKeys, error) {
	if a.cfg.Issuer == "" {
		return jwtKeys{}, nothing("without an issuer there are no JWT keys")
	}
	k := a.jwtKeys(a.live.Load(), alg)
	if k.active == nil || k.standby == nil {
		return k, nothing("there is no active and standby key of %q: want RS256 or ES256, once made", alg)
	}
	return k, nil
}

// earliest is when the standby may take over, whatever the active key's age.
func (k jwtKeys) earliest(l Lives) time.Time {
	at := k.since.Add(l.Lead)
	if k.old != nil {
		at = latest(at, k.old.removeAt(l))
	}
	return at
}

// ReplaceJWT is for a compromised key: the standby signs at once, the bad key
// leaves the bundle, and a new standby is published, all in one change.
func (a *Authority) ReplaceJWT(ctx context.Context, alg, reason string) (Replacement, error) {
	var done Replacement
	var asked string // the key that was active when it was asked for
	err := a.act("replacing the "+alg+" key", ctx, func(now time.Time) error {
		k, err := a.jwtPair(alg)
		if err != nil {
			return err
		}
		if err := a.lead(ctx); err != nil {
			return err
		}
		if asked == "" {
			asked = k.active.ID
		}
		if r, ok := a.live.Load().find(asked); ok && r.State == Revoked { // another broker did it
			done = Replacement{Old: a.status(asked), New: a.status(k.active.ID), Until: now.Add(a.cfg.Lives.Lead), Believed: a.believedJWT(alg, now)}
			return nil
		}
		made, err := a.newJWTKeys(ctx, alg, 1, now)
		if err != nil {
			return err
		}
		bad, next := *k.active, a.activate(*k.standby, now)
		bad.State, bad.NotAfter, bad.RevokedAt, bad.Reason = Revoked, now, now, reason
		if err := a.change(ctx, bad, next, made[0]); err != nil {
			return err
		}
		a.cfg.Log.WarnContext(ctx, "JWT key replaced", "authority", bad.ID, "alg", alg, "reason", reason)
		done = Replacement{Old: a.status(bad.ID), New: a.status(next.ID), Until: now.Add(a.cfg.Lives.Lead)}
		done.Believed = a.believedJWT(alg, now)
		return nil
	})
	return done, err
}

func (a *Authority) believedJWT(alg string, now time.Time) []string {
	l := a.cfg.Lives
	believed := []string{fmt.Sprintf("agents drop the key as their stream tells them; peers at their next fetch, by the refresh hint until %s",
		now.Add(l.RefreshHint).UTC().Format(time.RFC3339))}
	if alg != "RS256" {
		return append(believed, "no cloud takes it: the OIDC keys are RS256 alone")
	}
	return append(believed,
		fmt.Sprintf("AWS STS keeps fetched keys for a time that it does not document: count on hours, at most until %s", now.Add(l.Lead).UTC().Format(time.RFC3339)),
		"Google Cloud keeps fetched keys for a time that it does not document; a key set uploaded to the provider is in force in seconds: upload it again",
		"Microsoft Entra ID takes it for about an hour after it left the key set",
		"what clouds gave for its tokens already lives on to its own end")
}
