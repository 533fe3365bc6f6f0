package exchangers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
)

var workload = spiffeid.RequireFromString("spiffe://example.org/ns/shop/checkout")

type svids struct{}

func (svids) ID() spiffeid.ID                              { return workload }
func (svids) X509(context.Context) (*x509svid.SVID, error) { return nil, errors.New("no X509-SVID") }
func (svids) JWT(context.Context) (string, error)          { return "", errors.New("no JWT-SVID") }

// cloud answers each exchange by a function of its number, and counts how many
// run at once.
type cloud struct {
	answer func(n int) (exchangers.Credential, error)
	takes  time.Duration
	deaf   bool // does not end with its context

	mu        sync.Mutex
	calls, at int
	most      int
	times     []time.Time
}

func (c *cloud) Exchange(ctx context.Context, _ exchangers.SVIDs) (exchangers.Credential, error) {
	c.mu.Lock()
	c.calls++
	n := c.calls
	c.at++
	c.most = max(c.most, c.at)
	c.times = append(c.times, time.Now())
	c.mu.Unlock()
	defer func() { c.mu.Lock(); c.at--; c.mu.Unlock() }()
	done := ctx.Done()
	if c.deaf {
		done = nil
	}
	select {
	case <-time.After(c.takes):
		return c.answer(n)
	case <-done:
		return exchangers.Credential{}, ctx.Err()
	}
}

func (c *cloud) count() int { c.mu.Lock(); defer c.mu.Unlock(); return c.calls }

func bearer(n int, life time.Duration) (exchangers.Credential, error) {
	return exchangers.Credential{Expires: time.Now().Add(life), RequestID: fmt.Sprint("r", n),
		Bearer: &exchangers.Bearer{Token: exchangers.NewSecret(fmt.Sprint("token-", n))}}, nil
}

func refuse(class exchangers.Class) (exchangers.Credential, error) {
	return exchangers.Credential{}, &exchangers.Error{Provider: "aws", Status: 400, Code: "Code", Class: class, RequestID: "r"}
}

type events struct {
	mu   sync.Mutex
	list []exchangers.Event
}

func (e *events) report(_ context.Context, v exchangers.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, v)
	return nil
}

func (e *events) all() []exchangers.Event { e.mu.Lock(); defer e.mu.Unlock(); return e.list }

func open(t *testing.T, c *cloud) (*exchangers.Source, *events) {
	t.Helper()
	e := &events{}
	s := exchangers.NewSource(exchangers.SourceConfig{Target: "orders", Exchanger: c, SVIDs: svids{},
		Report: e.report, Jitter: func() float64 { return 0.5 }})
	t.Cleanup(s.Close)
	return s, e
}

func token(t *testing.T, s *exchangers.Source) string {
	t.Helper()
	c, err := s.Credential(t.Context())
	if err != nil {
		t.Fatalf("credential: %v", err)
	}
	return c.Bearer.Token.Reveal()
}

func TestOneCallForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: 3 * time.Second, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, e := open(t, c)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.Credential(impatient); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient waiter got %v", err)
			}
		})
		for range 100 {
			all.Go(func() {
				if got, err := s.Credential(t.Context()); err != nil || got.Bearer.Token.Reveal() != "token-1" {
					t.Errorf("waiter got %v, %v", got, err)
				}
			})
		}
		all.Wait()
		want := []exchangers.Event{{SPIFFEID: workload, Target: "orders", Time: time.Now(), OK: true, RequestID: "r1", Expires: time.Now().Add(time.Hour)}}
		if diff := cmp.Diff(want, e.all(), cmpopts.EquateComparable(spiffeid.ID{})); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestRefreshesAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, _ := open(t, c)
		for _, step := range []struct {
			wait time.Duration
			want string
		}{{0, "token-1"}, {29 * time.Minute, "token-1"}, {2 * time.Minute, "token-2"}, {28 * time.Minute, "token-2"}, {3 * time.Minute, "token-3"}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if got := token(t, s); got != step.want {
				t.Errorf("after %s more: %s, want %s", step.wait, got, step.want)
			}
		}
		if c.count() != 3 {
			t.Errorf("%d exchanges, want 3", c.count())
		}
	})
}

func TestJitterSpreadsRefreshes(t *testing.T) {
	for _, row := range []struct {
		jitter float64
		want   time.Duration
	}{{0, 24 * time.Minute}, {0.999999, 36 * time.Minute}} {
		synctest.Test(t, func(t *testing.T) {
			c := &cloud{answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
			s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{}, Jitter: func() float64 { return row.jitter }})
			defer s.Close()
			token(t, s)
			time.Sleep(row.want - time.Second)
			synctest.Wait()
			before := c.count()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if before != 1 || c.count() != 2 {
				t.Errorf("jitter %v: %d exchanges before %s, %d after", row.jitter, before, row.want, c.count())
			}
		})
	}
}

func TestServesOldOneThroughOutageUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n == 1 {
				return bearer(n, time.Hour)
			}
			return refuse(exchangers.Outage)
		}}
		s, e := open(t, c)
		token(t, s)
		time.Sleep(59*time.Minute + 29*time.Second)
		synctest.Wait()
		if got := token(t, s); got != "token-1" {
			t.Errorf("shortly before expiry: %s", got)
		}
		// 30 min at most one a minute, and six faster ones at first.
		if n := c.count(); n < 20 || n > 40 {
			t.Errorf("%d exchanges in half an hour of outage", n)
		}
		time.Sleep(2 * time.Second)
		before := c.count()
		if got, err := s.Credential(t.Context()); err == nil {
			t.Errorf("in its last seconds the credential is still served: %v", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := c.count(); n > before+1 {
			t.Errorf("%d exchanges in the background without a credential", n-before-1)
		}
		if len(e.all()) != c.count() {
			t.Errorf("%d events for %d exchanges", len(e.all()), c.count())
		}
	})
}

func TestRecoversInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n > 1 && n < 6 {
				return refuse(exchangers.Throttled)
			}
			return bearer(n, time.Hour)
		}}
		s, _ := open(t, c)
		token(t, s)
		time.Sleep(35 * time.Minute)
		synctest.Wait()
		if got := token(t, s); got != "token-6" {
			t.Errorf("after the provider recovered: %s", got)
		}
	})
}

// gaps asks every 100 ms for three minutes and returns the pauses between the
// exchanges that this caused.
func gaps(t *testing.T, s *exchangers.Source, c *cloud) []time.Duration {
	t.Helper()
	for range 1800 {
		if _, err := s.Credential(t.Context()); err == nil {
			t.Fatal("a credential in spite of the refusal")
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []time.Duration
	for i := 1; i < len(c.times); i++ {
		out = append(out, c.times[i].Sub(c.times[i-1]).Round(time.Second))
	}
	return out
}

func TestPausesByClass(t *testing.T) {
	seconds := func(n ...int) (out []time.Duration) {
		for _, v := range n {
			out = append(out, time.Duration(v)*time.Second)
		}
		return out
	}
	five := make([]int, 35)
	for i := range five {
		five[i] = 5
	}
	rows := map[string]struct {
		err  error
		want []time.Duration
	}{
		"config is remembered 5 s":   {&exchangers.Error{Class: exchangers.Config}, seconds(five...)},
		"no class is config":         {&exchangers.Error{}, seconds(five...)},
		"outage":                     {&exchangers.Error{Class: exchangers.Outage}, seconds(1, 2, 4, 8, 16, 32, 60)},
		"throttled":                  {&exchangers.Error{Class: exchangers.Throttled}, seconds(2, 4, 8, 16, 32, 60)},
		"propagation":                {&exchangers.Error{Class: exchangers.Propagation}, seconds(5, 10, 20, 40, 60)},
		"no refusal is an outage":    {errors.New("no SVID"), seconds(1, 2, 4, 8, 16, 32, 60)},
		"what the provider asks for": {&exchangers.Error{Class: exchangers.Throttled, RetryAfter: 50 * time.Second}, seconds(55, 55, 55)},
		"but at most 5 min":          {&exchangers.Error{Class: exchangers.Throttled, RetryAfter: 100 * time.Hour}, nil},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &cloud{answer: func(int) (exchangers.Credential, error) { return exchangers.Credential{}, row.err }}
				s, _ := open(t, c)
				if diff := cmp.Diff(row.want, gaps(t, s, c)); diff != "" {
					t.Errorf("pauses (-want +got):\n%s", diff)
				}
				time.Sleep(6 * time.Minute)
				before := c.count()
				if _, err := s.Credential(t.Context()); !errors.Is(err, row.err) || c.count() != before+1 {
					t.Errorf("after 5 more minutes: %v, %d more exchanges", err, c.count()-before)
				}
			})
		})
	}
}

func TestConfigRefusalOfRefreshWaitsForCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n == 1 {
				return bearer(n, time.Hour)
			}
			return refuse(exchangers.Config)
		}}
		s, _ := open(t, c)
		token(t, s)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if c.count() != 2 {
			t.Errorf("%d exchanges, want one refresh and no more", c.count())
		}
		for range 300 { // 5 min of demand
			if got := token(t, s); got != "token-1" {
				t.Fatalf("while it is valid: %s", got)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if n := c.count(); n < 6 || n > 8 {
			t.Errorf("%d exchanges, want one a minute on demand", n)
		}
	})
}

func TestDropErasesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: 10 * time.Second, deaf: true, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, e := open(t, c)
		var waiter sync.WaitGroup
		waiter.Go(func() {
			if got, err := s.Credential(t.Context()); !errors.Is(err, exchangers.ErrDropped) {
				t.Errorf("waiter of the dropped exchange got %v, %v", got, err)
			}
		})
		synctest.Wait()
		s.Drop()
		start := time.Now()
		waiter.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("waiter was told after %s", d)
		}
		// The abandoned exchange still runs: the next one waits for its end.
		if got := token(t, s); got != "token-2" {
			t.Errorf("after the drop: %s", got)
		}
		if c.most != 1 {
			t.Errorf("%d exchanges at once", c.most)
		}
		if len(e.all()) != 2 {
			t.Errorf("%d events, want one for each exchange, the abandoned too", len(e.all()))
		}
		s.Drop()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if c.count() != 2 {
			t.Errorf("%d exchanges: a dropped credential was refreshed", c.count())
		}
	})
}

func TestCloseEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: time.Minute, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, _ := open(t, c)
		var waiter sync.WaitGroup
		waiter.Go(func() {
			if _, err := s.Credential(t.Context()); !errors.Is(err, exchangers.ErrClosed) {
				t.Errorf("waiter got %v", err)
			}
		})
		synctest.Wait()
		s.Close()
		waiter.Wait()
		if c.at != 0 {
			t.Error("Close returned before the exchange had ended")
		}
		if _, err := s.Credential(t.Context()); !errors.Is(err, exchangers.ErrClosed) {
			t.Errorf("closed source: %v", err)
		}
		if c.count() != 1 {
			t.Errorf("%d exchanges", c.count())
		}
	})
}

func TestExchangeHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: time.Hour, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, e := open(t, c)
		start := time.Now()
		if _, err := s.Credential(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hanging provider: %v", err)
		}
		if d := time.Since(start); d != 30*time.Second {
			t.Errorf("gave up after %s", d)
		}
		if got := e.all(); len(got) != 1 || got[0].Class != exchangers.Outage {
			t.Errorf("events %+v", got)
		}
	})
}

func TestRefusesUnusableCredential(t *testing.T) {
	good, _ := bearer(1, time.Hour)
	rows := map[string]exchangers.Credential{
		"zero":         {},
		"both":         {Expires: time.Now().Add(time.Hour), AWS: &exchangers.AWS{}, Bearer: good.Bearer},
		"empty token":  {Expires: time.Now().Add(time.Hour), Bearer: &exchangers.Bearer{}},
		"empty secret": {Expires: time.Now().Add(time.Hour), AWS: &exchangers.AWS{AccessKeyID: "ASIA", SessionToken: exchangers.NewSecret("t")}},
		"no expiry":    {Bearer: good.Bearer},
		"expired":      {Expires: time.Now().Add(-time.Second), Bearer: good.Bearer},
	}
	for name, cred := range rows {
		t.Run(name, func(t *testing.T) {
			c := &cloud{answer: func(int) (exchangers.Credential, error) { return cred, nil }}
			s, e := open(t, c)
			if got, err := s.Credential(t.Context()); err == nil {
				t.Errorf("served %+v", got)
			}
			if got := e.all(); len(got) != 1 || got[0].OK {
				t.Errorf("events %+v", got)
			}
		})
	}
}

func TestWakesAfterSleepOfTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slept time.Duration
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			v, err := bearer(n, time.Hour)
			v.Expires = v.Expires.Add(slept)
			return v, err
		}}
		s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{}, Now: func() time.Time { return time.Now().Add(slept) }})
		defer s.Close()
		token(t, s)
		slept = 3 * time.Hour // the clock went on, the timers did not
		if got := token(t, s); got != "token-2" {
			t.Errorf("an expired credential was served: %s", got)
		}
	})
}

// Regression: CVE-2025-62513
func TestLogsNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n == 1 {
				return bearer(n, time.Hour)
			}
			return exchangers.Credential{}, errors.New("refused eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln\nsecond line")
		}}
		s := exchangers.NewSource(exchangers.SourceConfig{Exchanger: c, SVIDs: svids{},
			Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		defer s.Close()
		token(t, s)
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		s.Close()
		if got := out.String(); strings.Contains(got, "token-") || strings.Contains(got, "eyJ") || !strings.Contains(got, "exchange failed") {
			t.Errorf("log:\n%s", got)
		}
	})
}
