package agent

import (
	"slices"
	"time"
)

// A JWTHolding is how long an audience that an identity lists goes on without a
// broker.
type JWTHolding struct {
	Audience string    // or a pattern
	Use      string    // "", "audited" or "single_use"
	Ends     time.Time // of the token that ends first; zero: some workload has none
}

// tellTokens fills in the audiences of what is held. A pattern has no end: what
// it matches is known when it is asked for.
func (a *Agent) tellTokens(held map[holding]*Holding) {
	now := a.cfg.Now()
	used := a.sets.inUse(now)
	kept := a.kept.all()
	a.tokens.mu.Lock()
	defer a.tokens.mu.Unlock()
	for _, u := range used {
		for _, v := range u.svids {
			if h := held[v.holding()]; h != nil {
				h.tell(v, a.tokens.endOf(u, v, now))
			}
		}
	}
	for _, v := range kept {
		if h := held[v.holding()]; h != nil && h.Workloads == 0 {
			h.tell(v, a.tokens.endOf(usedSet{svids: kept, lent: true}, v, now))
		}
	}
}

// tell adds what one workload has.
func (h *Holding) tell(v *SVID, end func(audience string) time.Time) {
	for n, audience := range v.JWTAudiences {
		ends := end(audience)
		if n >= len(h.JWT) {
			h.JWT = append(h.JWT, JWTHolding{audience, v.JWTUses[audience], ends})
		} else if ends.Before(h.JWT[n].Ends) { // of another the zero time too
			h.JWT[n].Ends = ends
		}
	}
}

// endOf says when the token for an audience ends that a set has of an identity.
// It must be called with mu held.
func (t *tokens) endOf(u usedSet, v *SVID, now time.Time) func(audience string) time.Time {
	return func(audience string) (ends time.Time) {
		look := func(held map[tokenKey]*tokenEntry) {
			for k, e := range held {
				if k.target != "" || k.audiences != joined(audience) || e.stage == unproven || !now.Before(e.ends) {
					continue
				}
				if slices.ContainsFunc(e.svids, func(h heldJWT) bool { return h.isOf(v) && h.fits([]*SVID{v}) }) && ends.Before(e.ends) {
					ends = e.ends
				}
			}
		}
		if u.set != nil {
			look(t.all[u.set.id])
		}
		for id := range t.all {
			if u.lent {
				look(t.all[id])
			}
		}
		return ends
	}
}
