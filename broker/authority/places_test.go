package authority_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// A key signs only once it has been for its lead wherever relying parties look.
func TestKeysWaitForPlaces(t *testing.T) {
	e := newEnv(t)
	have := map[string]map[string]time.Time{}
	var broken error
	e.change = func(c *authority.Config) {
		c.Places = []string{"s3://a", "gs://b"}
		c.Confirmed = func(_ context.Context, id string) (map[string]time.Time, error) { return have[id], broken }
	}
	a := e.openReady()
	first := of(a, authority.JWTKey, authority.Active)
	var standby authority.Status
	for _, st := range a.List() {
		if st.Use == authority.JWTKey && st.State == authority.Published && st.Alg == first.Alg {
			standby = st
		}
	}
	active := func() string {
		for _, st := range a.List() {
			if st.Use == authority.JWTKey && st.State == authority.Active && st.Alg == first.Alg {
				return st.ID
			}
		}
		return ""
	}
	e.clock.set(e.clock.now().Add(20 * day))
	e.tick(a)
	if active() != first.ID {
		t.Fatal("a key signs that no place has")
	}
	for _, st := range a.List() {
		if st.ID == standby.ID && (!strings.Contains(st.Problem, "s3://a, gs://b") || !strings.Contains(strings.Join(st.Waits, "; "), "gs://b has it")) {
			t.Errorf("problem %q, waits %q", st.Problem, st.Waits)
		}
	}
	if _, err := a.RotateJWT(t.Context(), first.Alg); !errors.Is(err, authority.ErrNotYet) || !strings.Contains(err.Error(), "s3://a") {
		t.Errorf("rotating: %v", err)
	}
	have[standby.ID] = map[string]time.Time{"s3://a": e.clock.now()}
	e.tick(a)
	e.clock.set(e.clock.now().Add(2 * day))
	e.tick(a)
	if active() != first.ID {
		t.Fatal("a key signs that one place lacks")
	}
	have[standby.ID]["gs://b"] = e.clock.now()
	if next := e.tick(a); next.After(e.clock.now().Add(25 * time.Hour)) {
		t.Errorf("it is looked at again at %s", next)
	}
	e.clock.set(e.clock.now().Add(23 * time.Hour))
	e.tick(a)
	if active() != first.ID {
		t.Fatal("a key signs before its lead at the last place is over")
	}
	broken = errors.New("the store is away")
	e.clock.set(e.clock.now().Add(2 * time.Hour))
	if _, err := a.Tick(t.Context()); err == nil || active() != first.ID {
		t.Fatalf("where it is is not known: %v", err)
	}
	broken = nil
	e.tick(a)
	if active() != standby.ID {
		t.Error("it never signs")
	}
}

// In haste nobody is waited for.
func TestReplacedKeyWaitsForNoPlace(t *testing.T) {
	e := newEnv(t)
	e.change = func(c *authority.Config) {
		c.Places = []string{"s3://a"}
		c.Confirmed = func(context.Context, string) (map[string]time.Time, error) { return nil, nil }
	}
	a := e.openReady()
	if _, err := a.ReplaceJWT(t.Context(), "ES256", "stolen"); err != nil {
		t.Error(err)
	}
}

func TestPlacesAreChecked(t *testing.T) {
	for name, change := range map[string]func(*authority.Config){
		"nobody to ask": func(c *authority.Config) { c.Places = []string{"s3://a"} },
		"no name": func(c *authority.Config) {
			c.Places = []string{""}
			c.Confirmed = func(context.Context, string) (map[string]time.Time, error) { return nil, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.change = change
			if _, err := authority.Open(t.Context(), e.config()); err == nil {
				t.Error("it opens")
			}
		})
	}
}
