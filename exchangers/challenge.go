package exchangers

import (
	"context"
	"fmt"
	"time"
)

// MaxClaims bounds a claims challenge, in bytes.
const MaxClaims = 4 << 10

// answerPause keeps a caller that is challenged again and again from becoming
// the provider's loop: within it the same challenge gets the same answer.
const answerPause = 10 * time.Second

// answered is the last challenge that was answered.
type answered struct {
	claims string
	at     time.Time
}

// Answer replaces the credential by one that answers a claims challenge, and
// returns it. The old one is served to others meanwhile, and if that fails: it
// is the resource that refuses it, not its provider. Whoever asks for the same
// while it runs, or just after, gets the same. Challenges pause after failures
// as exchanges do.
func (s *Source) Answer(ctx context.Context, claims string) (Credential, error) {
	if _, ok := s.cfg.Exchanger.(Challenged); !ok || claims == "" || len(claims) > MaxClaims {
		return Credential{}, &Error{Provider: "the provider", Code: "claims", Class: Config,
			Message: fmt.Sprintf("a claims challenge is 1 to %d bytes of JSON, for a target whose provider gives them (azure with continuous_access)", MaxClaims)}
	}
	for {
		c, cred, err := s.answering(ctx, claims)
		if c == nil {
			return cred, err
		}
		select {
		case <-c.done:
			if c.claims == claims {
				return c.cred, c.err
			} // else it was another call's turn
		case <-ctx.Done():
			return Credential{}, fmt.Errorf("waiting for an answer to a challenge of %s: %w", s.cfg.Target, ctx.Err())
		}
	}
}

// answering returns the call to wait for, or what there is already.
func (s *Source) answering(ctx context.Context, claims string) (*call, Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	switch {
	case s.closed:
		return nil, Credential{}, ErrClosed
	case s.call != nil:
		return s.call, Credential{}, nil
	case s.answered.claims == claims && now.Before(s.answered.at.Add(answerPause)) && s.usable(now):
		return nil, s.cred, nil
	case s.failure != nil && now.Before(s.next):
		return nil, Credential{}, s.failure
	}
	s.startWith(ctx, claims)
	return s.call, Credential{}, nil
}

// exchange asks the provider, or has it answer a challenge.
func (s *Source) exchange(ctx context.Context, svids SVIDs, claims string) (Credential, error) {
	if claims == "" {
		return s.cfg.Exchanger.Exchange(ctx, svids)
	}
	return s.cfg.Exchanger.(Challenged).Answer(ctx, svids, claims)
}
