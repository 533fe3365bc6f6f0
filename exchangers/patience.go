package exchangers

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How long one who has patience waits, from the first failure.
const (
	DefaultPropagation = 3 * time.Minute // for what was set up to be seen by the provider
	throttledTime      = 15 * time.Second
	outageTime         = 5 * time.Second // about three tries
)

// Progress is why somebody is waiting.
type Progress struct {
	Provider string
	Class    Class
	Code     string    // the provider's
	Attempt  int       // that comes next
	Next     time.Time // when
	Until    time.Time // how long is waited at most
}

// String says what to tell a person.
func (p Progress) String() string {
	what := p.Provider + " to answer"
	switch p.Class {
	case Propagation:
		what = providerName(p.Provider) + " propagation"
	case Throttled:
		what = p.Provider + ", which throttles"
	}
	if p.Code != "" {
		what += " (" + Clean(p.Code) + ")"
	}
	return fmt.Sprintf("waiting for %s, attempt %d, until %s", what, p.Attempt, p.Until.Local().Format("15:04:05"))
}

func providerName(provider string) string {
	switch provider {
	case "azure":
		return "Entra"
	case "aws":
		return "AWS"
	case "gcp":
		return "Google"
	}
	return provider
}

type patienceKey struct{}

type patience struct {
	propagation time.Duration
	told        func(Progress)
}

// WithPatience has Credential wait where a provider has not yet seen a change
// (Propagation) for so long from the first refusal on, 0 is 3 min; and for a few
// seconds where it throttles or is out of order. told is called before each
// pause, by the goroutine that waits. What a person has to mend is never waited
// for.
func WithPatience(ctx context.Context, propagation time.Duration, told func(Progress)) context.Context {
	if propagation <= 0 {
		propagation = DefaultPropagation
	}
	return context.WithValue(ctx, patienceKey{}, patience{propagation, told})
}

// worthWaiting waits for the next try, and says whether it is worth one.
func (s *Source) worthWaiting(ctx context.Context, err error) bool {
	p, ok := ctx.Value(patienceKey{}).(patience)
	var refusal *Error
	if !ok || !errors.As(err, &refusal) {
		return false
	}
	most := outageTime
	switch classOf(refusal) {
	case Config:
		return false
	case Propagation:
		most = p.propagation
	case Throttled:
		most = throttledTime
	}
	s.mu.Lock()
	now, next, until := s.cfg.Now(), s.next, s.since.Add(most)
	progress := Progress{refusal.Provider, classOf(refusal), refusal.Code, s.failures + 1, next, until}
	again := s.failure == nil || s.closed // it has gone on meanwhile
	s.mu.Unlock()
	if again {
		return true
	}
	if next.After(until) {
		return false
	}
	if p.told != nil {
		p.told(progress)
	}
	timer := time.NewTimer(max(next.Sub(now), time.Millisecond))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
