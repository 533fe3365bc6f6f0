package exchangers_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// tried tries, and returns the token or the class of the refusal.
func tried(t *testing.T, s *exchangers.Source) string {
	t.Helper()
	c, err := s.Try(t.Context())
	var refusal *exchangers.Error
	switch {
	case errors.As(err, &refusal):
		return string(refusal.Class)
	case err != nil:
		t.Fatal(err)
	}
	return c.Bearer.Token.Reveal()
}

// A try asks whatever is held, and a failed one takes nothing away.
func TestTryAsksWhateverIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := true
		c := &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) {
			if good {
				return bearer(n, time.Hour)
			}
			return refuse(exchangers.Config)
		}}
		s, e := open(t, c)
		if got := token(t, s) + " " + tried(t, s) + " " + token(t, s); got != "token-1 token-2 token-2" {
			t.Error(got)
		}
		time.Sleep(5 * time.Second)
		good = false
		if got := tried(t, s) + " " + token(t, s); got != "config token-2" {
			t.Error(got)
		}
		if n := len(e.all()); n != 3 {
			t.Errorf("%d reports of 3 exchanges", n)
		}
	})
}

// Who tries in a loop is not the provider's loop, and what the provider asks
// for is kept.
func TestTryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		class := exchangers.Config
		c := &cloud{answer: func(n int) (exchangers.Credential, error) {
			if class == "" {
				return bearer(n, time.Hour)
			}
			return refuse(class)
		}}
		s, _ := open(t, c)
		times := func(want int) {
			t.Helper()
			for range 100 {
				_, _ = s.Try(t.Context())
			}
			if got := c.count(); got != want {
				t.Errorf("the provider was asked %d times, want %d", got, want)
			}
		}
		times(1)
		time.Sleep(5 * time.Second)
		times(2) // its pause is longer by now, and the operator has mended something
		class = exchangers.Throttled
		time.Sleep(5 * time.Second)
		times(3)
		time.Sleep(5 * time.Second)
		times(3) // the third pause after a failure is 8 s
		class = ""
		time.Sleep(5 * time.Second)
		times(4)
		if got := tried(t, s); got != "token-4" {
			t.Error(got)
		}
		time.Sleep(5 * time.Second)
		times(5)
	})
}

func TestTryWaitsForWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) { return bearer(n, time.Hour) }}
		s, _ := open(t, c)
		done := make(chan string)
		go func() { c, _ := s.Credential(t.Context()); done <- c.Bearer.Token.Reveal() }()
		synctest.Wait()
		if got, other := tried(t, s), <-done; got != other || c.count() != 1 {
			t.Errorf("%s and %s, asked %d times", got, other, c.count())
		}
		s.Close()
		if _, err := s.Try(t.Context()); !errors.Is(err, exchangers.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}
