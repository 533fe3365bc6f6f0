package exchangers

import (
	"context"
	"errors"
	"time"
)

// tryPause keeps whoever tries again and again from becoming the provider's
// loop: within it the outcome is the last one.
const tryPause = 5 * time.Second

// Try asks the provider now, whatever is held, and keeps what it gives as a
// refresh would. A failure leaves what is held. Whoever tries while it runs, or
// just after, gets the same; a pause that the provider asked for is kept.
func (s *Source) Try(ctx context.Context) (Credential, error) {
	c, cred, err := s.trying(ctx)
	if c == nil {
		return cred, err
	}
	return s.await(ctx, c)
}

// trying returns the call to wait for, or the last outcome.
func (s *Source) trying(ctx context.Context) (*call, Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	var refusal *Error
	throttled := errors.As(s.failure, &refusal) && classOf(refusal) == Throttled && now.Before(s.next)
	switch {
	case s.closed:
		return nil, Credential{}, ErrClosed
	case s.call != nil:
		return s.call, Credential{}, nil
	case s.failure != nil && (throttled || now.Before(s.tried.Add(tryPause))):
		return nil, Credential{}, s.failure
	case s.usable(now) && now.Before(s.tried.Add(tryPause)):
		return nil, s.cred, nil
	}
	s.tried = now
	s.start(ctx)
	return s.call, Credential{}, nil
}
