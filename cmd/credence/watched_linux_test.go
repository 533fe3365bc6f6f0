package main_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// A broker's admin socket speaks gRPC and HTTP; metrics and health are where
// broker.yaml says besides, each alone.
func TestABrokerIsWatched(t *testing.T) {
	t.Parallel()
	var ports [2]string
	for i := range ports {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = "127.0.0.1:" + port
	}
	s := newSide(t, "example.org", func(s *side) {
		s.more = fmt.Sprintf("health: {listen: %q}\nmetrics: {listen: %q}\npprof: true\n", ports[0], ports[1])
	})
	admin := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.path("broker", "run", "admin.sock"))
	}}}
	get := func(c *http.Client, url string) (int, string) {
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
		return r.StatusCode, string(text)
	}
	for _, c := range []struct {
		what   string
		client *http.Client
		url    string
		code   int
		part   string
	}{
		{"admin, live", admin, "http://broker/live", 200, "live"},
		{"admin, ready", admin, "http://broker/ready", 200, "ready"},
		{"admin, metrics", admin, "http://broker/metrics", 200, "credence_broker_ready 1"},
		{"admin, profiles", admin, "http://broker/debug/pprof/heap?debug=1", 200, ""},
		{"health", http.DefaultClient, "http://" + ports[0] + "/ready", 200, "ready"},
		{"health, no metrics", http.DefaultClient, "http://" + ports[0] + "/metrics", 404, ""},
		{"metrics", http.DefaultClient, "http://" + ports[1] + "/metrics", 200, `credence_broker_build_info{`},
		{"metrics, no profiles", http.DefaultClient, "http://" + ports[1] + "/debug/pprof/heap", 404, ""},
	} {
		if code, text := get(c.client, c.url); code != c.code || !strings.Contains(text, c.part) {
			t.Errorf("%s: %d %.300s", c.what, code, text)
		}
	}
	conn, err := grpc.NewClient("unix://"+s.path("broker", "run", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, service := range []string{"", "liveness", "readiness"} {
		r, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", service, r, err)
		}
	}
}
