package local_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
)

type traceKey struct{}

// noting is a source that notes under which trace it is asked.
type noting struct {
	*source
	mu     sync.Mutex // guards what follows
	traces []any
	ended  []int
}

func (s *noting) note(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.traces = append(s.traces, ctx.Value(traceKey{}))
}

func (s *noting) end(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, status)
}

func (s *noting) Fetch(ctx context.Context, target string) (*api.FetchResponse, error) {
	s.note(ctx)
	return s.source.Fetch(ctx, target)
}

func (s *noting) Token(ctx context.Context, target string, toFile bool) (*api.TokenResponse, error) {
	s.note(ctx)
	return s.source.Token(ctx, target, toFile)
}

// What an SDK's request asks for is asked for under its trace; a request that gets no
// further than the door has none.
func TestRequestsAreTraced(t *testing.T) {
	t.Parallel()
	from := &noting{source: clouds()}
	targets := []string{"anywhere", "gcp", "azure"}
	s := opened(t, from.source, targets, func(c *local.Config) {
		c.Source = from
		c.Trace = func(r *http.Request, target string) (context.Context, func(int)) {
			return context.WithValue(r.Context(), traceKey{}, r.Header.Get("Traceparent")+" "+target), from.end
		}
	})
	from.mu.Lock()
	from.traces = nil // of what was asked for before
	from.mu.Unlock()
	for _, target := range targets {
		r := s.endpoint(target).request(t)
		r.Header.Set("Traceparent", "theirs")
		do(t, r)
		r.Header.Set(s.endpoint(target).header, "wrong")
		do(t, r)
	}
	from.fail(status.Error(codes.PermissionDenied, "not listed"))
	do(t, s.endpoint("gcp").request(t))
	from.mu.Lock()
	defer from.mu.Unlock()
	if want := []any{"theirs anywhere", "theirs gcp", "theirs azure", " gcp"}; !slices.Equal(from.traces, want) {
		t.Errorf("asked under %q, want %q", from.traces, want)
	}
	if want := []int{200, 200, 200, 403}; !slices.Equal(from.ended, want) {
		t.Errorf("ended with %v, want %v", from.ended, want)
	}
}
