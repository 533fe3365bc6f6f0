package agentcmd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	workload "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

// A node is an agent that serves, as agent.yaml has it.
type node struct {
	*agenttest.Broker
	file  agentcmd.File
	fatal error  // that it ends with
	quit  func() // stops it
}

func serve(t *testing.T, change func(*agentcmd.File)) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{Broker: agenttest.NewBroker(t, "example.org").Start()}
	n.file = agentcmd.File{TrustDomain: "example.org", Data: dir, Broker: []string{n.Address()}}
	n.file.Trust.CAPin = []string{n.Pin()}
	n.file.Join.Method, n.file.Join.TokenFile = "token", filepath.Join(dir, "token")
	if err := os.WriteFile(n.file.Join.TokenFile, []byte(n.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	change(&n.file)
	if err := n.file.Complete(); err != nil {
		t.Fatal(err)
	}
	d, err := agentcmd.New(n.file, nil, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.quit = cancel
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		if n.fatal == nil {
			cancel()
		}
		defer cancel()
		if err := <-done; !errors.Is(err, n.fatal) {
			t.Error(err)
		}
	})
	select {
	case <-d.Agent.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("it is not ready")
	}
	return n
}

// get asks over a socket, or over TCP.
func get(t *testing.T, network, address, path string) (int, string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	late, again := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer again.Stop()
	for {
		r, err := client.Get("http://127.0.0.1" + path)
		if err == nil {
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			return r.StatusCode, string(text)
		}
		select { // it may not listen yet
		case <-again.C:
		case <-late:
			t.Fatal(err)
		}
	}
}

func (n *node) command(args ...string) (int, string, string) {
	var out, errs bytes.Buffer
	p := &cli.Program{In: strings.NewReader(""), Out: &out, Err: &errs, Now: time.Now}
	code := p.Execute(context.Background(), agentcmd.Root(p), append(args, "--agent-admin", n.file.Admin))
	return code, out.String(), errs.String()
}

// check is what a third party's probe does: no metadata.
func check(t *testing.T, socket, service string) (health.HealthCheckResponse_ServingStatus, error) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := health.NewHealthClient(conn).Check(t.Context(), &health.HealthCheckRequest{Service: service})
	return r.GetStatus(), err
}

// free is a port that nobody has, below those that outgoing connections of this
// machine get.
func free(t *testing.T) string {
	t.Helper()
	for range 200 {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(18000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func TestWatchedOver(t *testing.T) {
	t.Parallel()
	n := serve(t, func(f *agentcmd.File) {
		f.Health.Listen, f.Metrics.Listen, f.Metrics.SPIFFEIDs, f.Pprof = free(t), free(t), true, true
	})
	n.Grant(agenttest.Grant{Identity: "web", Path: "/web"})
	if _, err := workload.FetchX509Context(t.Context(), workload.WithAddr("unix://"+n.file.Socket)); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{n.file.Socket, n.file.Admin} {
		for _, service := range []string{"", "liveness", "readiness"} {
			if s, err := check(t, socket, service); err != nil || s != health.HealthCheckResponse_SERVING {
				t.Errorf("%s %q: %s %v", socket, service, s, err)
			}
		}
	}
	admin, scrapes, probes := n.file.Admin, n.file.Metrics.Listen, n.file.Health.Listen
	for _, c := range []struct {
		what, network, address, path string
		code                         int
		text                         string
	}{
		{"ready", "tcp", probes, "/ready", 200, "ready\n"},
		{"live", "unix", admin, "/live", 200, "live\n"},
		{"the SVID", "tcp", scrapes, "/metrics", 200, `credence_agent_svid_expiry_timestamp_seconds{spiffe_id="spiffe://example.org/web"}`},
		{"the call", "unix", admin, "/metrics", 200, `method="SpiffeWorkloadAPI/FetchX509SVID"} 1`},
		{"the attestation", "unix", admin, "/metrics", 200, `credence_agent_attestations_total{attestor="unix",outcome="ok"}`},
		{"the broker's answer", "unix", admin, "/metrics", 200, `credence_agent_svid_renewals_total{outcome="ok"}`},
		{"profiles", "unix", admin, "/debug/pprof/goroutine", 200, ""},
		{"no profiles on TCP", "tcp", scrapes, "/debug/pprof/goroutine", 404, ""},
		{"none beside probes", "tcp", probes, "/debug/pprof/goroutine", 404, ""},
		{"no metrics beside probes", "tcp", probes, "/metrics", 404, ""},
	} {
		late, again := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
		for over := false; !over; { // a call is counted when it has ended
			code, text := get(t, c.network, c.address, c.path)
			over = code == c.code && strings.Contains(text, c.text)
			select {
			case <-again.C:
			case <-late:
				t.Errorf("%s: %d %.2000s", c.what, code, text)
				over = true
			}
		}
		again.Stop()
	}
	if code, out, errs := n.command("metrics"); code != 0 || !strings.Contains(out, "credence_agent_ready 1\n") {
		t.Errorf("metrics: %d %s%s", code, out, errs)
	}
	if code, out, errs := n.command("status", "--ready"); code != 0 || strings.Contains(out, "not ready") {
		t.Errorf("status: %d %s%s", code, out, errs)
	}
}

// By default there are no profiles, and no SPIFFE IDs in labels; and a broker
// that is away leaves it ready.
func TestWatchedOverByDefault(t *testing.T) {
	t.Parallel()
	n := serve(t, func(*agentcmd.File) {})
	if code, _ := get(t, "unix", n.file.Admin, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("profiles: %d", code)
	}
	if code, text := get(t, "unix", n.file.Admin, "/metrics"); code != http.StatusOK || strings.Contains(text, "spiffe_id=") {
		t.Errorf("metrics: %d %s", code, text)
	}
	n.Stop()
	if code, out, errs := n.command("status", "--ready"); code != 0 {
		t.Errorf("the broker is away, and nothing else: %d %s%s", code, out, errs)
	}
}

func TestHealthAndMetricsOfTheFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what   string
		change func(*agentcmd.File)
		want   string // of the error; empty: it is taken
	}{
		{"nothing", func(*agentcmd.File) {}, ""},
		{"loopback", func(f *agentcmd.File) { f.Health.Listen, f.Metrics.Listen = "127.0.0.1:1", "[::1]:2" }, ""},
		{"sockets", func(f *agentcmd.File) { f.Health.Listen, f.Metrics.Listen = "unix:///run/h.sock", "unix:///run/m.sock" }, ""},
		{"probes from elsewhere, said so", func(f *agentcmd.File) { f.Health.Listen, f.Health.AnyAddress = "0.0.0.0:8452", true }, ""},
		{"probes from elsewhere", func(f *agentcmd.File) { f.Health.Listen = "0.0.0.0:8452" }, "health.listen:"},
		{"metrics elsewhere", func(f *agentcmd.File) { f.Metrics.Listen = "0.0.0.0:9452" }, "metrics.listen:"},
		{"metrics elsewhere, with probes there", func(f *agentcmd.File) {
			f.Health.Listen, f.Health.AnyAddress, f.Metrics.Listen = "0.0.0.0:8452", true, "10.0.0.1:9452"
		}, "metrics.listen:"},
		{"a word without need", func(f *agentcmd.File) { f.Health.Listen, f.Health.AnyAddress = "127.0.0.1:8452", true }, "health.any_address:"},
		{"one place for both", func(f *agentcmd.File) { f.Health.Listen, f.Metrics.Listen = "127.0.0.1:1", "127.0.0.1:1" }, "metrics.listen: health listens there"},
	} {
		f := agentcmd.File{TrustDomain: "example.org", Data: t.TempDir(), Broker: []string{"127.0.0.1:1"}}
		f.Trust.CAPin = []string{"sha256:" + strings.Repeat("0", 64)}
		f.Join.Method, f.Join.TokenFile = "token", "t"
		c.change(&f)
		err := f.Complete()
		if (err != nil) != (c.want != "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
}
