package keystest

import (
	"context"
	"errors"
	"testing"
	"time"
)

// slow shows that a call which waits for the service holds nobody else up.
func (s Suite) slow(t *testing.T) {
	src := s.Source(t, time.Minute)
	stuck, key := Create(t, src, "P256")
	ref, other := Create(t, src, "P256")
	arrived, release := s.Hang(ActSign, stuck)
	done := make(chan error, 1)
	go func() { done <- signs(key) }()
	<-arrived
	s.signs(t, other)
	s.signs(t, Open(t, src, ref))
	Create(t, src, "P256")
	select {
	case err := <-done:
		t.Errorf("the slow call did not wait: %v", err)
	default:
	}
	release()
	if err := <-done; err != nil {
		t.Errorf("the slow call, once answered: %v", err)
	}
}

// timeout shows that a signature whose caller has no context ends all the same.
func (s Suite) timeout(t *testing.T) {
	ref, _ := Create(t, s.Source(t, 0), "P256")
	key := Open(t, s.Source(t, 2*time.Second), ref)
	_, release := s.Hang(ActSign, ref)
	defer release()
	if err := signs(key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a signature that is never answered: %v", err)
	}
}

// left shows that a caller who leaves while the service thinks is let go.
func (s Suite) left(t *testing.T) {
	src := s.Source(t, time.Minute)
	ref, _ := Create(t, src, "P256")
	doomed, _ := Create(t, src, "P256") // the service may yet do what nobody waits for
	for act, do := range map[string]func(context.Context) error{
		ActCreate: func(ctx context.Context) error { _, _, err := src.Create(ctx, "P256"); return err },
		ActOpen:   func(ctx context.Context) error { _, err := src.Open(ctx, ref); return err },
		ActRemove: func(ctx context.Context) error { return src.Remove(ctx, doomed) },
	} {
		of := map[string]string{ActOpen: ref, ActRemove: doomed}[act] // a new key has no name yet
		arrived, release := s.Hang(act, of)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- do(ctx) }()
		<-arrived
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the caller left: %v", act, err)
		}
		release()
	}
	s.signs(t, Open(t, src, ref))
}
