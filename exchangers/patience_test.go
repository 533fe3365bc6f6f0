package exchangers_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// patient asks with patience, and returns what it was told.
func patient(t *testing.T, s *exchangers.Source) (told []exchangers.Progress, took time.Duration, err error) {
	t.Helper()
	start := time.Now()
	ctx := exchangers.WithPatience(t.Context(), 0, func(p exchangers.Progress) { told = append(told, p) })
	_, err = s.Credential(ctx)
	return told, time.Since(start), err
}

func TestPropagationIsWaitedForWithProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n < 4 {
				return exchangers.Credential{}, &exchangers.Error{Provider: "azure", Code: "AADSTS70021", Class: exchangers.Propagation}
			}
			return bearer(n, time.Hour)
		}}
		s, _ := open(t, c)
		start := time.Now()
		told, took, err := patient(t, s)
		if err != nil || took != 35*time.Second || len(told) != 3 {
			t.Fatalf("%v after %s, told %d times", err, took, len(told))
		}
		for i, p := range told {
			if p.Attempt != i+2 || p.Until != start.Add(3*time.Minute) || p.Provider != "azure" || p.Code != "AADSTS70021" {
				t.Errorf("told %+v", p)
			}
		}
		want := "waiting for Entra propagation (AADSTS70021), attempt 2, until " + start.Add(3*time.Minute).Local().Format("15:04:05")
		if got := told[0].String(); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

func TestPropagationIsWaitedForToADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(int) (exchangers.Credential, error) { return refuse(exchangers.Propagation) }}
		s, _ := open(t, c)
		_, took, err := patient(t, s)
		var refusal *exchangers.Error
		if !errors.As(err, &refusal) || took > 3*time.Minute || took < 2*time.Minute || c.count() > 8 {
			t.Errorf("%v after %s and %d exchanges", err, took, c.count())
		}
		// Who comes after the deadline doesn't wait again.
		if _, took, err := patient(t, s); err == nil || took > 0 {
			t.Errorf("%v after %s more", err, took)
		}
	})
}

func TestWhatAPersonMustMendIsNeverWaitedFor(t *testing.T) {
	for name, err := range map[string]error{
		"config": &exchangers.Error{Class: exchangers.Config}, "no class": &exchangers.Error{}, "no refusal": errors.New("no SVID"),
	} {
		synctest.Test(t, func(t *testing.T) {
			c := &cloud{takes: 300 * time.Millisecond, answer: func(int) (exchangers.Credential, error) { return exchangers.Credential{}, err }}
			s, _ := open(t, c)
			told, took, got := patient(t, s)
			if !errors.Is(got, err) || took > 2*time.Second || c.count() != 1 || len(told) != 0 {
				t.Errorf("%s: %v after %s and %d exchanges", name, got, took, c.count())
			}
		})
	}
}

func TestAnOutageIsWaitedForBriefly(t *testing.T) {
	for _, class := range []exchangers.Class{exchangers.Outage, exchangers.Throttled} {
		synctest.Test(t, func(t *testing.T) {
			c := &cloud{answer: func(n int) (exchangers.Credential, error) {
				if n < 3 {
					return refuse(class)
				}
				return bearer(n, time.Hour)
			}}
			s, _ := open(t, c)
			if told, took, err := patient(t, s); err != nil || len(told) != 2 || took > 15*time.Second {
				t.Errorf("%s: %v after %s", class, err, took)
			}
		})
	}
}

func TestRetryAfterIsHonouredByWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n == 1 {
				return exchangers.Credential{}, &exchangers.Error{Class: exchangers.Throttled, RetryAfter: 10 * time.Second}
			}
			return bearer(n, time.Hour)
		}}
		s, _ := open(t, c)
		if _, took, err := patient(t, s); err != nil || took < 10*time.Second || took > 12*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		c = &cloud{answer: func(int) (exchangers.Credential, error) {
			return exchangers.Credential{}, &exchangers.Error{Class: exchangers.Throttled, RetryAfter: time.Minute}
		}}
		s, _ = open(t, c)
		if _, took, err := patient(t, s); err == nil || took > 0 {
			t.Errorf("longer than anybody waits: %v after %s", err, took)
		}
	})
}

func TestTwoHundredCallersAreOneSessionCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) {
			if n < 3 {
				return refuse(exchangers.Propagation)
			}
			return bearer(n, time.Hour)
		}}
		s, e := open(t, c)
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				got, err := s.Credential(exchangers.WithPatience(t.Context(), 0, nil))
				if err != nil || got.Bearer.Token.Reveal() != "token-3" {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		all.Wait()
		if c.count() != 3 || c.most != 1 || len(e.all()) != 3 {
			t.Errorf("%d exchanges, %d at once, %d events", c.count(), c.most, len(e.all()))
		}
	})
}

func TestWhoeverLeavesStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(int) (exchangers.Credential, error) { return refuse(exchangers.Propagation) }}
		s, _ := open(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := s.Credential(exchangers.WithPatience(ctx, 0, nil)); err == nil || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// The report is durable before anybody gets the credential, and a slow disk
// delays new exchanges alone.
func TestNothingIsHandedOutBeforeItsReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Int64
		slow.Store(int64(5 * time.Second))
		c := &cloud{answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{}, Jitter: func() float64 { return 0.5 },
			Report: func(context.Context, exchangers.Event) error { time.Sleep(time.Duration(slow.Load())); return nil }})
		defer s.Close()
		start := time.Now()
		if got := token(t, s); got != "token-1" || time.Since(start) != 5*time.Second {
			t.Errorf("%s after %s", got, time.Since(start))
		}
		slow.Store(int64(10 * time.Minute))
		time.Sleep(31 * time.Minute) // the refresh's report is being written
		start = time.Now()
		if got := token(t, s); got != "token-1" || time.Since(start) != 0 || c.count() != 2 {
			t.Errorf("meanwhile %s after %s, %d exchanges", got, time.Since(start), c.count())
		}
		time.Sleep(10 * time.Minute)
		if got := token(t, s); got != "token-2" {
			t.Errorf("then %s", got)
		}
	})
}

func TestWhatCannotBeReportedReachesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full, ready := errors.New("the spool is full"), error(nil)
		c := &cloud{answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{},
			Ready:  func(context.Context) error { return ready },
			Report: func(context.Context, exchangers.Event) error { return full }})
		defer s.Close()
		if got, err := s.Credential(t.Context()); !errors.Is(err, full) || got != (exchangers.Credential{}) {
			t.Errorf("got %v, %v", got, err)
		}
		ready = full
		time.Sleep(time.Minute)
		if _, err := s.Credential(t.Context()); !errors.Is(err, full) || c.count() != 1 {
			t.Errorf("got %v, %d exchanges", err, c.count())
		}
	})
}
