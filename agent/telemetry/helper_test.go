package telemetry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// state is an agent that does as the test says.
type state struct {
	mu            sync.Mutex
	hung, unready []string
	status        agent.Status
	asked         int // about readiness
}

func (s *state) set(hung, unready []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung, s.unready = hung, unready
}

func (s *state) Hung() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hung
}

func (s *state) Unready() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.unready
}

func (s *state) Status() agent.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func id(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://example.org" + path) }

// serve runs Serve until the test ends.
func serve(t *testing.T, cfg telemetry.Config) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); telemetry.Serve(ctx, cfg) }()
	t.Cleanup(func() { cancel(); <-done })
}

// over is an HTTP client whose every connection dial makes.
func over(t *testing.T, network, address string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, strings.TrimSpace(string(text))
}
