package exchangers_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// challenging is a cloud whose resources challenge.
type challenging struct {
	*cloud
	mu     sync.Mutex
	claims []string
}

func (c *challenging) Answer(ctx context.Context, s exchangers.SVIDs, claims string) (exchangers.Credential, error) {
	c.mu.Lock()
	c.claims = append(c.claims, claims)
	c.mu.Unlock()
	return c.Exchange(ctx, s)
}

func openChallenging(t *testing.T, c *cloud) (*exchangers.Source, *challenging) {
	t.Helper()
	x := &challenging{cloud: c}
	s := exchangers.NewSource(exchangers.SourceConfig{Target: "arm", Exchanger: x, SVIDs: svids{}, Jitter: func() float64 { return 0.5 }})
	t.Cleanup(s.Close)
	return s, x
}

func answer(t *testing.T, s *exchangers.Source, claims string) string {
	t.Helper()
	c, err := s.Answer(t.Context(), claims)
	if err != nil {
		t.Fatalf("answer: %v", err)
	}
	return c.Bearer.Token.Reveal()
}

func TestAnAnswerReplacesTheCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, x := openChallenging(t, &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }})
		if got := token(t, s); got != "token-1" {
			t.Fatal(got)
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if got := answer(t, s, `{"a":1}`); got != "token-2" {
					t.Errorf("one of many gets %s", got)
				}
			})
		}
		all.Wait()
		if got := token(t, s); got != "token-2" {
			t.Errorf("who asks without a challenge gets %s", got)
		}
		if got := answer(t, s, `{"a":1}`); got != "token-2" {
			t.Errorf("the same challenge just after gets %s", got)
		}
		if got := answer(t, s, `{"a":2}`); got != "token-3" {
			t.Errorf("another challenge gets %s", got)
		}
		time.Sleep(11 * time.Second)
		if got := answer(t, s, `{"a":2}`); got != "token-4" {
			t.Errorf("the same one later gets %s: the resource refused it again", got)
		}
		if got := strings.Join(x.claims, " "); got != `{"a":1} {"a":2} {"a":2}` {
			t.Errorf("the provider was asked with %s", got)
		}
	})
}

// An exchange under way is no answer, and an answer under way is not another's.
func TestAnAnswerWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := openChallenging(t, &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }})
		var all sync.WaitGroup
		all.Go(func() { token(t, s) })
		synctest.Wait()
		all.Go(func() {
			if got := answer(t, s, `{"a":1}`); got != "token-2" {
				t.Errorf("the first challenge gets %s", got)
			}
		})
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond)
		if got := answer(t, s, `{"a":2}`); got != "token-3" {
			t.Errorf("the second gets %s", got)
		}
		all.Wait()
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.Answer(impatient, `{"a":3}`); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who doesn't wait gets %v", err)
		}
	})
}

func TestAnswersThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := true
		s, x := openChallenging(t, &cloud{answer: func(n int) (exchangers.Credential, error) {
			if n > 1 && fail {
				return refuse(exchangers.Throttled)
			}
			return bearer(n, time.Hour)
		}})
		token(t, s)
		for range 5 {
			if _, err := s.Answer(t.Context(), `{"a":1}`); err == nil {
				t.Fatal("a refusal is an answer")
			}
		}
		if n := len(x.claims); n != 1 {
			t.Errorf("the provider was asked %d times within the pause", n)
		}
		if got := token(t, s); got != "token-1" {
			t.Errorf("others get %s", got)
		}
		for name, claims := range map[string]string{"empty": "", "long": strings.Repeat("x", exchangers.MaxClaims+1)} {
			if _, err := s.Answer(t.Context(), claims); err == nil {
				t.Errorf("claims that are %s are passed on", name)
			}
		}
		plain, _ := open(t, &cloud{answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }})
		if _, err := plain.Answer(t.Context(), `{"a":1}`); err == nil {
			t.Error("a provider that knows no challenges answers one")
		}
		s.Close()
		if _, err := s.Answer(t.Context(), `{"a":9}`); !errors.Is(err, exchangers.ErrClosed) {
			t.Errorf("a closed source: %v", err)
		}
	})
}
