package output_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
)

var errTest = errors.New("as the test says")

// A stage is a feed that says what the test puts in, and a writer and a hook
// that note what they are told, and fail as often as the test says.
type stage struct {
	states chan error // nil: a state to write
	notes  []string
	fail   map[string]int
	again  time.Duration // of what is written; 0: never
	writes uint64
	during func() // a hook
}

func (s *stage) Next(ctx context.Context) (agent.Update, error) {
	select { // what is there is told though ctx has ended
	case err := <-s.states:
		return agent.Update{SVIDs: []*agent.SVID{{}}}, err
	default:
	}
	select {
	case err := <-s.states:
		return agent.Update{SVIDs: []*agent.SVID{{}}}, err
	case <-ctx.Done():
		return agent.Update{}, ctx.Err()
	}
}

func (s *stage) JWT(context.Context, []string, spiffeid.ID) (agent.JWTSVID, error) {
	return agent.JWTSVID{}, errTest
}

func (s *stage) TargetToken(context.Context, string, bool) (agent.JWTSVID, agent.Target, error) {
	return agent.JWTSVID{}, agent.Target{}, errTest
}

func (s *stage) Exchange(context.Context, string, string) (agent.Exchanged, error) {
	return agent.Exchanged{}, errTest
}

func (s *stage) note(what string) error {
	if s.fail[what] > 0 {
		s.fail[what]--
		s.notes = append(s.notes, what+" failed")
		return errTest
	}
	s.notes = append(s.notes, what)
	return nil
}

func (s *stage) Write(context.Context, output.Source, agent.Update) (output.Written, error) {
	if err := s.note("write"); err != nil {
		return output.Written{}, err
	}
	s.writes++
	w := output.Written{Changed: true, Generation: s.writes}
	if s.again > 0 {
		w.Again = time.Now().Add(s.again)
	}
	return w, nil
}

func (s *stage) Erase(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.note("erase")
}

func (s *stage) hook(context.Context, output.Written) error {
	if s.during != nil {
		s.during()
	}
	return s.note("hook")
}

// play runs an output until the time is over, and returns what was done.
func play(t *testing.T, s *stage, lasts time.Duration, act func(ctx context.Context, end func())) []string {
	t.Helper()
	var counted []string
	count := func(act string, err error) {
		if err != nil {
			act += " failed"
		}
		counted = append(counted, act)
	}
	synctest.Test(t, func(t *testing.T) {
		s.states = make(chan error, 8) // of the bubble
		ctx, cancel := context.WithTimeout(t.Context(), lasts)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			output.Run(ctx, output.Config{Name: "web", Feed: s, Writer: s, Hooks: []output.Hook{s.hook}, Log: slog.New(slog.DiscardHandler), Count: count})
		}()
		act(ctx, cancel)
		<-done
	})
	if d := cmp.Diff(s.notes, counted); d != "" {
		t.Errorf("what was done, and what was counted: %s", d)
	}
	return s.notes
}

func TestRun(t *testing.T) {
	denied := &agent.Denied{Reason: "no"}
	tell := func(states ...error) func(*stage) func(context.Context, func()) {
		return func(s *stage) func(context.Context, func()) {
			return func(context.Context, func()) {
				for _, err := range states {
					s.states <- err
					synctest.Wait()
				}
			}
		}
	}
	for _, c := range []struct {
		name  string
		stage stage
		lasts time.Duration
		act   func(*stage) func(context.Context, func())
		want  []string
	}{
		{"a change", stage{}, time.Minute, tell(nil, nil), []string{"write", "hook", "write", "hook"}},
		{"a denial", stage{}, time.Minute, tell(nil, denied), []string{"write", "hook", "erase"}},
		{"a denial of what an earlier run wrote", stage{}, time.Minute, tell(denied), []string{"erase"}},
		{"the broker is away", stage{}, time.Minute, tell(nil, agent.ErrUnavailable), []string{"write", "hook"}},
		{"what ends is written again", stage{again: 25 * time.Second}, time.Minute, tell(nil), []string{"write", "hook", "write", "hook", "write", "hook"}},
		{"nothing is written again after a denial", stage{again: 25 * time.Second}, time.Minute, tell(nil, denied), []string{"write", "hook", "erase"}},
		{"a write that fails is made again", stage{fail: map[string]int{"write": 2}}, time.Minute, tell(nil), []string{"write failed", "write failed", "write", "hook"}},
		{"an erasure that fails is made again", stage{fail: map[string]int{"erase": 2}}, time.Minute, tell(nil, denied), []string{"write", "hook", "erase failed", "erase failed", "erase"}},
		{"a hook that fails runs again, without a write", stage{fail: map[string]int{"hook": 1}}, time.Minute, tell(nil), []string{"write", "hook failed", "hook"}},
		{"a hook is not owed after a denial", stage{fail: map[string]int{"hook": 1}}, time.Minute, tell(nil, denied), []string{"write", "hook failed", "erase"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &c.stage
			if diff := cmp.Diff(c.want, play(t, s, c.lasts, c.act(s))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An eviction ends the agent, and with it ctx, perhaps while a hook runs: what
// was written is erased all the same.
func TestRunErasesAtTheEnd(t *testing.T) {
	s := &stage{}
	got := play(t, s, time.Minute, func(_ context.Context, end func()) {
		s.during = func() {
			s.states <- &agent.Denied{Reason: "this node has been evicted"}
			end()
		}
		s.states <- nil
	})
	if diff := cmp.Diff([]string{"write", "hook", "erase"}, got); diff != "" {
		t.Error(diff)
	}
}

// Failures are tried again ever more slowly.
func TestRunPauses(t *testing.T) {
	s := &stage{fail: map[string]int{"write": 1000}}
	play(t, s, 10*time.Minute, func(context.Context, func()) { s.states <- nil })
	if n := len(s.notes); n < 12 || n > 40 {
		t.Errorf("%d tries in ten minutes", n)
	}
}
