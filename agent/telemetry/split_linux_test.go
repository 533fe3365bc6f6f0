package telemetry_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/telemetry"
)

// an admin socket that lets in whom admit does, with pprof.
func admin(t *testing.T, s *state, cfg telemetry.HealthConfig, admit func(*caller.Process) error) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "admin.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Agent = s
	h, m := telemetry.NewHealth(cfg), telemetry.NewMetrics(telemetry.MetricsConfig{})
	m.Of(s)
	split := telemetry.NewSplit(&failing{Listener: l}, admit)
	g := grpc.NewServer(append(m.ServerOptions(), grpc.Creds(caller.CredentialsFor(admit)))...)
	health.RegisterHealthServer(g, h)
	done := make(chan error, 2)
	go func() { split.Run(); done <- nil }()
	go func() { done <- g.Serve(split.GRPC()) }()
	t.Cleanup(func() {
		g.Stop()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	serve(t, telemetry.Config{Health: h, Metrics: m, Admin: split.HTTP(), Profiles: true})
	return path
}

// failing accepts nobody the first time.
type failing struct {
	net.Listener
	once sync.Once
}

func (f *failing) Accept() (_ net.Conn, err error) {
	f.once.Do(func() { err = syscall.EMFILE })
	if err != nil {
		return nil, err
	}
	return f.Listener.Accept()
}

func us(*caller.Process) error { return nil }

// prober asks as third parties' probes do: without metadata.
func prober(t *testing.T, path string) health.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return health.NewHealthClient(conn)
}

func TestOneSocketSpeaksBoth(t *testing.T) {
	t.Parallel()
	path := admin(t, everything(), telemetry.HealthConfig{}, us)
	client, probe := over(t, "unix", path), prober(t, path)
	for range 3 {
		if code, text := get(t, client, "http://agent/ready"); code != 200 || text != "ready" {
			t.Fatalf("%d %s", code, text)
		}
		if r, err := probe.Check(t.Context(), &health.HealthCheckRequest{}); err != nil || r.GetStatus() != health.HealthCheckResponse_SERVING {
			t.Fatalf("%v %v", r, err)
		}
	}
	if code, text := get(t, client, "http://agent/metrics"); code != 200 || !strings.Contains(text, `credence_agent_calls_total{code="OK",method="grpc.health.v1.Health/Check"} 3`) {
		t.Errorf("%d %s", code, text)
	}
	if code, _ := get(t, client, "http://agent/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
}

// What comes in pieces is told all the same, and who says nothing is let go
// when the socket is closed.
func TestSlowFirstBytes(t *testing.T) {
	t.Parallel()
	path := admin(t, everything(), telemetry.HealthConfig{}, us)
	for _, first := range []string{"P", "PR", ""} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, piece := range []string{"G", "E", "T /live HTTP/1.0\r\n", "\r\n"} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
	}
	text, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(text), "200 OK") || !strings.HasSuffix(string(text), "live\n") {
		t.Errorf("%q %v", text, err)
	}
}

// Another uid reaches neither side, though the socket's mode would let it.
func TestAnotherUIDIsRefused(t *testing.T) {
	t.Parallel()
	path := admin(t, everything(), telemetry.HealthConfig{}, caller.RequireUID(uint32(os.Getuid())+1))
	for _, of := range []string{"/ready", "/metrics", "/debug/pprof/"} {
		if r, err := over(t, "unix", path).Get("http://agent" + of); err == nil {
			r.Body.Close()
			t.Errorf("%s: %s", of, r.Status)
		}
	}
	if r, err := prober(t, path).Check(t.Context(), &health.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC: %v %v", r, err)
	}
}

func TestGRPCHealth(t *testing.T) {
	t.Parallel()
	s, clock := everything(), make(chan time.Time)
	go func() { // each look is a minute later
		for now := noon; ; now = now.Add(time.Minute) {
			select {
			case clock <- now:
			case <-t.Context().Done():
				close(clock)
				return
			}
		}
	}()
	probe := prober(t, admin(t, s, telemetry.HealthConfig{Now: func() time.Time { return <-clock }}, us))
	check := func(service string, want health.HealthCheckResponse_ServingStatus, why string) {
		t.Helper()
		var trailer metadata.MD
		r, err := probe.Check(t.Context(), &health.HealthCheckRequest{Service: service}, grpc.Trailer(&trailer))
		if err != nil || r.GetStatus() != want || strings.Join(trailer.Get("why"), "") != why {
			t.Errorf("%q: %v %v %v, want %s %s", service, r, err, trailer, want, why)
		}
	}
	const good, bad = health.HealthCheckResponse_SERVING, health.HealthCheckResponse_NOT_SERVING
	for _, service := range []string{"", "readiness", "liveness", "SpiffeWorkloadAPI"} {
		check(service, good, "")
	}
	s.set(nil, []string{"it ends", "\xff"})
	for _, service := range []string{"", "readiness", "SpiffeWorkloadAPI"} {
		check(service, bad, `"it ends; \xff"`)
	}
	check("liveness", good, "")
	s.set([]string{"it hangs"}, nil)
	check("liveness", bad, `"it hangs"`)
	check("readiness", good, "")
	if _, err := probe.Check(t.Context(), &health.HealthCheckRequest{Service: "another"}); status.Code(err) != codes.NotFound {
		t.Errorf("another service: %v", err)
	}
	all, err := probe.List(t.Context(), &health.HealthListRequest{})
	if err != nil || len(all.GetStatuses()) != 3 || all.GetStatuses()["liveness"].GetStatus() != bad || all.GetStatuses()["readiness"].GetStatus() != good {
		t.Errorf("%v %v", all, err)
	}
}

func TestGRPCHealthWatch(t *testing.T) {
	t.Parallel()
	s := everything()
	probe := prober(t, admin(t, s, telemetry.HealthConfig{}, us))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch, err := probe.Watch(ctx, &health.HealthCheckRequest{Service: "readiness"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want health.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if r, err := watch.Recv(); err != nil || r.GetStatus() != want {
			t.Fatalf("%v %v, want %s", r, err, want)
		}
	}
	next(health.HealthCheckResponse_SERVING)
	s.set(nil, []string{"it ends"})
	next(health.HealthCheckResponse_NOT_SERVING)
	s.set(nil, nil)
	next(health.HealthCheckResponse_SERVING)
	if watch, err = probe.Watch(ctx, &health.HealthCheckRequest{Service: "another"}); err != nil {
		t.Fatal(err)
	}
	next(health.HealthCheckResponse_SERVICE_UNKNOWN)
}

// Where everybody may ask, nobody learns why, keeps a stream, or keeps the
// agent busy.
func TestPublicHealth(t *testing.T) {
	t.Parallel()
	s := everything()
	s.set(nil, []string{"the SVID of spiffe://example.org/a ends"})
	probe := prober(t, admin(t, s, telemetry.HealthConfig{Public: true, Now: func() time.Time { return noon }}, us))
	for range 100 {
		var trailer metadata.MD
		r, err := probe.Check(t.Context(), &health.HealthCheckRequest{}, grpc.Trailer(&trailer))
		if err != nil || r.GetStatus() != health.HealthCheckResponse_NOT_SERVING || len(trailer.Get("why")) > 0 {
			t.Fatalf("%v %v %v", r, err, trailer)
		}
	}
	s.mu.Lock()
	if s.asked != 1 {
		t.Errorf("the agent was asked %d times in one second", s.asked)
	}
	s.mu.Unlock()
	watch, err := probe.Watch(t.Context(), &health.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unimplemented || errors.Is(err, io.EOF) {
		t.Errorf("a stream: %v", err)
	}
}
