package exchangers

import (
	"context"
	"errors"
	"time"
)

const (
	maxMargin   = 30 * time.Second // a credential is not served in its last seconds
	configPause = 5 * time.Second  // a refusal is remembered, so that a caller's loop is not the provider's
	heldPause   = time.Minute      // the same, while an older credential is still served
	maxPause    = time.Minute
)

// settle takes a call's result, unless Drop or Close came first.
func (s *Source) settle(c *call, cred Credential, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.call != c {
		return
	}
	s.call = nil
	now := s.cfg.Now()
	if err == nil {
		s.keep(cred, now)
		s.answered = answered{c.claims, now}
	} else {
		s.remember(err, now)
	}
	c.cred, c.err = cred, err
	if err != nil {
		c.cred = Credential{}
	}
	close(c.done)
	s.schedule(now)
}

func (s *Source) keep(cred Credential, now time.Time) {
	s.cred, s.got, s.failure, s.failures, s.since = cred, now, nil, 0, time.Time{}
	// 40 to 60 % of the life: those who began together do not refresh together.
	now = now.Round(0) // by the wall clock: the other one stands still in a suspension
	life := cred.Expires.Sub(now)
	s.next = now.Add(time.Duration(float64(life) * (0.4 + 0.2*s.cfg.Jitter())))
	// Whoever gets it must have time to use it.
	s.lastUse = cred.Expires.Add(-min(maxMargin, life/10))
	s.cfg.Log.Debug("exchanged", "spiffe_id", s.cfg.SVIDs.ID().String(), "target", s.cfg.Target, "expires", cred.Expires)
}

func (s *Source) remember(err error, now time.Time) {
	if !s.usable(now) {
		s.cred = Credential{}
	}
	s.failure = err
	pause := s.pause(err)
	if s.failures++; s.since.IsZero() {
		s.since = now
	}
	s.next = now.Add(pause)
	s.cfg.Log.Warn("exchange failed", "spiffe_id", s.cfg.SVIDs.ID().String(), "target", s.cfg.Target,
		"error", Clean(err.Error()), "held", s.cred != Credential{}, "pause", pause)
}

// pause doubles with each failure in a row, up to a minute, within half and one
// and a half of that. What the provider asks for is the least: it asks all
// nodes for the same, so that up to a fifth is added.
func (s *Source) pause(err error) time.Duration {
	class, asked := Outage, time.Duration(0)
	var refusal *Error
	if errors.As(err, &refusal) {
		class, asked = classOf(refusal), min(refusal.RetryAfter, maxRetryAfter)
	}
	base := time.Second
	switch class {
	case Config:
		if s.cred != (Credential{}) {
			return heldPause
		}
		return configPause
	case Throttled:
		base = 2 * time.Second
	case Propagation:
		base = 5 * time.Second
	}
	pause := min(base<<min(s.failures, 6), maxPause)
	asked = time.Duration(float64(asked) * (1 + 0.2*s.cfg.Jitter()))
	return max(time.Duration(float64(pause)*(0.5+s.cfg.Jitter())), asked)
}

// usable says whether the credential may still be served; the caller holds mu.
func (s *Source) usable(now time.Time) bool {
	return s.cred != (Credential{}) && now.Before(s.lastUse)
}

// schedule sets the timer for the next refresh or, if that comes first or
// there will be none, for the credential's erasure. The caller holds mu.
func (s *Source) schedule(now time.Time) {
	s.stopTimer()
	if s.closed || s.cred == (Credential{}) {
		return
	}
	at := s.lastUse
	if s.background() && s.next.Before(at) {
		at = s.next
	}
	// Never a spin, even if Now stands still.
	s.timer = time.AfterFunc(max(at.Sub(now), 10*time.Millisecond), s.tick)
}

// background says whether to try again unasked: a Config refusal is repeated
// only when a caller asks.
func (s *Source) background() bool {
	var refusal *Error
	return !errors.As(s.failure, &refusal) || classOf(refusal) != Config
}

// Look has what is due by the clock done now, such as when it has jumped: timers
// don't see that.
func (s *Source) Look() { s.tick() }

func (s *Source) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.call != nil {
		return
	}
	now := s.cfg.Now()
	switch {
	case s.cred == (Credential{}):
	case !s.usable(now):
		s.cred = Credential{}
	case s.background() && !now.Before(s.next):
		s.start(context.Background())
	default:
		s.schedule(now)
	}
}

func (s *Source) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}
