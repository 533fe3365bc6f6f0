package authority

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// placeWait is how soon to look again whether a key is everywhere.
const placeWait = time.Minute

// A spread is where a JWT key is, besides in the bundle that we serve.
type spread struct {
	since   time.Time // it is everywhere since then, if nothing is missing
	missing []string  // places that are not known to have it
}

// spreads are those of the standby keys, as last looked at.
type spreads struct {
	mu sync.Mutex // guards m
	m  map[string]spread
}

func (s *spreads) get(id string) (spread, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, ok := s.m[id]
	return sp, ok
}

func (s *spreads) set(id string, sp spread) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil || len(s.m) > 8 { // of keys that signed long since
		s.m = make(map[string]spread)
	}
	s.m[id] = sp
}

func checkPlaces(cfg Config) error {
	if len(cfg.Places) > 0 && cfg.Confirmed == nil {
		return errors.New("places are named where keys are published, but nothing says what they have")
	}
	if i := slices.Index(cfg.Places, ""); i >= 0 {
		return errors.New("a place where keys are published has no name")
	}
	return nil
}

// jwtKeys are the keys of alg, with since when relying parties may know the
// standby: its lead counts from then on.
func (a *Authority) jwtKeys(s *snapshot, alg string) jwtKeys {
	k := s.jwtKeys(alg)
	if k.standby == nil || len(a.cfg.Places) == 0 {
		return k
	}
	sp, ok := a.spreads.get(k.standby.ID)
	if !ok {
		sp.missing = a.cfg.Places
	}
	k.since, k.missing = latest(k.since, sp.since), sp.missing
	return k
}

// lookAround finds out where the standby key of alg is.
func (a *Authority) lookAround(ctx context.Context, alg string) error {
	k := a.live.Load().jwtKeys(alg)
	if k.standby == nil || len(a.cfg.Places) == 0 {
		return nil
	}
	have, err := a.cfg.Confirmed(ctx, k.standby.ID)
	if err != nil {
		return fmt.Errorf("finding out where key %s is published: %w", k.standby.ID, err)
	}
	var sp spread
	for _, place := range a.cfg.Places {
		at, ok := have[place]
		if !ok {
			sp.missing = append(sp.missing, place)
		}
		sp.since = latest(sp.since, at)
	}
	a.spreads.set(k.standby.ID, sp)
	var late error
	if k.active != nil && len(sp.missing) > 0 && !a.now().Before(k.active.NotAfter) {
		late = errors.New(missingAt(sp.missing))
	}
	a.problems.set(problemJWT+alg, late)
	return nil
}

// problemJWT names, with the algorithm, what stands in the way of the next key.
const problemJWT = "jwt "

func missingAt(places []string) string {
	return "it is not known to be published at " + strings.Join(places, ", ") + " (credence bundle publish)"
}
