package exchangers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// MaxSkew is how far a clock may be off before anybody is told.
const MaxSkew = time.Minute

// A Clock compares this machine's clock with those of the providers that an
// exchange talks to, by the Date of their answers (RFC 9110 §6.6.1), refusals
// included. What sits between may have kept an answer: it is a hint, never a
// reason to refuse.
type Clock struct {
	now func() time.Time

	mu   sync.Mutex // guards skew
	skew time.Duration
}

type clockKey struct{}

// WatchClock has the clients of HTTPClient note in the Clock what they see
// during calls with the context. A nil now is time.Now.
func WatchClock(ctx context.Context, now func() time.Time) (context.Context, *Clock) {
	if now == nil {
		now = time.Now
	}
	c := &Clock{now: now}
	return context.WithValue(ctx, clockKey{}, c), c
}

func clockOf(ctx context.Context) *Clock {
	c, _ := ctx.Value(clockKey{}).(*Clock)
	return c
}

// asked is when a request leaves; nil clocks tell nothing.
func (c *Clock) asked() time.Time {
	if c == nil {
		return time.Time{}
	}
	return c.now()
}

// answered notes an answer's Date: it was written after we asked and before we
// had it, give or take the second that it is cut to.
func (c *Clock) answered(asked time.Time, h http.Header) {
	if c == nil {
		return
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	var skew time.Duration
	switch got := c.now(); {
	case date.Add(time.Second).Before(asked):
		skew = asked.Sub(date.Add(time.Second))
	case date.After(got):
		skew = got.Sub(date)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = skew
}

// Skew is how far this machine's clock is ahead of the one that answered last,
// negative: behind; zero where they agree or nobody told.
func (c *Clock) Skew() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew
}

// SkewText says whose clock is off; empty within MaxSkew.
func SkewText(skew time.Duration, provider string) string {
	if skew.Abs() <= MaxSkew {
		return ""
	}
	whose, unit := "ahead of", time.Minute
	if skew < 0 {
		whose = "behind"
	}
	if skew.Abs() < 2*time.Minute {
		unit = time.Second
	}
	text := fmt.Sprintf("%d s", skew.Abs()/time.Second)
	if unit == time.Minute {
		text = fmt.Sprintf("%d min", (skew.Abs()+30*time.Second)/time.Minute)
	}
	return fmt.Sprintf("this machine's clock is %s %s %s's", text, whose, provider)
}

// clock warns of a clock that is off, once for as long as it stays so, and says
// it in a refusal.
func (s *Source) clock(c *Clock, err error) error {
	skew := c.Skew()
	var refusal *Error
	provider := "the provider"
	if errors.As(err, &refusal) {
		provider = refusal.Provider
	}
	text := SkewText(skew, provider)
	s.mu.Lock()
	warn := text != "" && (s.skewed-skew).Abs() > MaxSkew
	if warn || text == "" {
		s.skewed = skew
	}
	s.mu.Unlock()
	if warn {
		s.cfg.Log.Warn("clocks differ", "problem", text, "target", s.cfg.Target, "skew", skew.Round(time.Second))
	}
	if text == "" || err == nil {
		return err
	}
	if direct, ok := err.(*Error); ok {
		told := *direct
		told.Hint = joinHints(direct.Hint, text)
		return &told
	}
	return fmt.Errorf("%w; %s", err, text)
}

func joinHints(hint, more string) string {
	if hint == "" {
		return more
	}
	return more + "; " + hint
}
