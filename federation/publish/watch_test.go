package publish_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

// watched is a broker, a place, and what was told of them.
type watched struct {
	mu       sync.Mutex
	set      publish.Set
	down     error // of the broker
	memory   publishtest.Memory
	outcomes []publish.Outcome
}

func (w *watched) source(context.Context) (publish.Set, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set, w.down
}

func (w *watched) change(edit func()) { w.mu.Lock(); defer w.mu.Unlock(); edit() }

func (w *watched) report(o publish.Outcome) { w.change(func() { w.outcomes = append(w.outcomes, o) }) }

// told is what was told since it was asked last.
func (w *watched) told() (all []publish.Outcome) {
	synctest.Wait()
	w.change(func() { all, w.outcomes = w.outcomes, nil })
	return all
}

func (w *watched) run(t *testing.T, target publish.Target) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- publish.Watch(ctx, publish.Config{Source: w.source, Target: target, Report: w.report})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWatchPublishesChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{set: set(1)}
		w.run(t, publish.Documents{Store: &w.memory})
		if got := w.told(); len(got) != 1 || got[0].Err != nil || len(got[0].Changed) != 3 {
			t.Fatalf("at first: %+v", got)
		}
		time.Sleep(time.Minute)
		if got := w.told(); len(got) > 0 {
			t.Errorf("without a change: %+v", got)
		}
		w.change(func() { w.set = set(2) })
		time.Sleep(5 * time.Second)
		if got := w.told(); len(got) != 1 || !slices.Equal(got[0].Changed, []string{publish.KeysName, publish.BundleName}) {
			t.Errorf("after a change: %+v", got)
		}
		// What somebody else spoils is mended.
		held, err := w.memory.Get(t.Context(), publish.KeysName)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.memory.Put(t.Context(), publish.Document{Name: publish.KeysName, Body: []byte(`{"keys":[]}`)}, held); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if got := w.told(); len(got) != 1 || !slices.Equal(got[0].Changed, []string{publish.KeysName}) {
			t.Errorf("after it was spoiled: %+v", got)
		}
	})
}

func TestWatchTellsOfEachFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{set: set(1)}
		w.run(t, publish.Documents{Store: &w.memory})
		start := time.Now()
		w.told()
		down := errors.New("no network")
		w.memory.Before = func(string, string) error { w.mu.Lock(); defer w.mu.Unlock(); return down }
		w.change(func() { w.set = set(2) })
		time.Sleep(20 * time.Second) // after 5, 10 and 20 s
		got := w.told()
		if len(got) != 3 {
			t.Fatalf("%d outcomes", len(got))
		}
		for _, o := range got {
			if !errors.Is(o.Err, down) || !o.Since.Equal(start) || string(o.Set.Bundle) != string(set(2).Bundle) {
				t.Errorf("%+v", o)
			}
		}
		time.Sleep(time.Hour)
		if got := w.told(); len(got) < 59 || len(got) > 61 {
			t.Errorf("%d outcomes of an hour", len(got))
		}
		w.change(func() { w.set = set(3) }) // what is new doesn't wait
		time.Sleep(5 * time.Second)
		if got := w.told(); len(got) != 1 || string(got[0].Set.Bundle) != string(set(3).Bundle) {
			t.Errorf("another change: %+v", got)
		}
		w.change(func() { down = nil })
		time.Sleep(time.Minute)
		if got := w.told(); len(got) != 1 || got[0].Err != nil || len(got[0].Changed) != 2 {
			t.Errorf("when it is back: %+v", got)
		}
		w.change(func() { w.down = errors.New("no broker") })
		time.Sleep(5 * time.Second)
		if got := w.told(); len(got) != 1 || !errors.Is(got[0].Err, w.down) || got[0].Since.IsZero() {
			t.Errorf("without a broker: %+v", got)
		}
		w.change(func() { w.down = nil })
		time.Sleep(5 * time.Second)
		if got := w.told(); len(got) != 1 || got[0].Err != nil || len(got[0].Changed) > 0 {
			t.Errorf("when it is back: %+v", got)
		}
	})
}

// A place that does not answer is given up, and tried again.
func TestWatchGivesUpSlowPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{set: set(1)}
		w.run(t, hanging{})
		time.Sleep(2*time.Minute + time.Second)
		got := w.told()
		if len(got) != 2 {
			t.Fatalf("%d outcomes: %+v", len(got), got)
		}
		if !errors.Is(got[0].Err, context.DeadlineExceeded) || !got[0].Since.IsZero() {
			t.Errorf("%+v", got[0])
		}
	})
}

type hanging struct{}

func (hanging) Publish(ctx context.Context, _ publish.Set) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestWatchWantsItsParts(t *testing.T) {
	if err := publish.Watch(t.Context(), publish.Config{}); err == nil {
		t.Error("watched nothing")
	}
}
