package exchangers_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// A session tells when what is held ends and was obtained, and since when exchanges
// fail: of many failures the first.
func TestSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := &cloud{takes: time.Second, answer: func(n int) (exchangers.Credential, error) {
			if n == 2 || n == 3 {
				return refuse(exchangers.Outage)
			}
			return bearer(n, time.Hour)
		}}
		s := exchangers.NewSource(exchangers.SourceConfig{Target: "t", Exchanger: c, SVIDs: svids{}, Jitter: func() float64 { return 0.5 }})
		defer s.Close()
		if got := s.Session(); got != (exchangers.Session{}) {
			t.Errorf("before: %+v", got)
		}
		if _, err := s.Credential(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := exchangers.Session{Obtained: began.Add(time.Second), Expires: began.Add(time.Second + time.Hour)}
		if got := s.Session(); !got.Obtained.Equal(first.Obtained) || !got.Expires.Equal(first.Expires) || !got.Failing.IsZero() || got.Failure != nil {
			t.Errorf("held: %+v", got)
		}
		time.Sleep(30*time.Minute + 3*time.Second) // half of its life: it fails, and again
		if got := s.Session(); c.count() < 2 || !got.Expires.Equal(first.Expires) || !got.Failing.Equal(began.Add(30*time.Minute+2*time.Second)) || got.Failure == nil {
			t.Errorf("failing after %d: %+v", c.count(), got)
		}
		time.Sleep(10 * time.Second)
		if got := s.Session(); !got.Expires.After(first.Expires) || !got.Obtained.After(first.Obtained) || !got.Failing.IsZero() || got.Failure != nil {
			t.Errorf("renewed: %+v", got)
		}
		s.Drop()
		if got := s.Session(); got != (exchangers.Session{}) {
			t.Errorf("dropped: %+v", got)
		}
	})
}

type keptKey struct{}

// An exchange keeps of its first asker's context what Keep says, and not its end.
func TestKeep(t *testing.T) {
	t.Parallel()
	var got any
	s := exchangers.NewSource(exchangers.SourceConfig{
		Target: "t", SVIDs: svids{}, Exchanger: asked(func(ctx context.Context) (exchangers.Credential, error) {
			got = ctx.Value(keptKey{})
			return bearer(1, time.Hour)
		}),
		Keep: func(ctx context.Context) context.Context {
			return context.WithValue(context.Background(), keptKey{}, ctx.Value(keptKey{}))
		},
	})
	defer s.Close()
	if _, err := s.Credential(context.WithValue(t.Context(), keptKey{}, "trace")); err != nil || got != "trace" {
		t.Errorf("%v, %v", got, err)
	}
}

type asked func(context.Context) (exchangers.Credential, error)

func (a asked) Exchange(ctx context.Context, _ exchangers.SVIDs) (exchangers.Credential, error) {
	return a(ctx)
}
