package local_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/attest/unix"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/workloadapi"
	brokerapi "github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// wholeAgent is an agent with a broker that grants a target, on its socket as
// agent run serves it.
func wholeAgent(b *testing.B) *grpc.ClientConn {
	b.Helper()
	broker := agenttest.NewBroker(b, "example.org").Start()
	broker.Grant(agenttest.Grant{Identity: "a", Path: "/a", Targets: []*brokerapi.Target{{Name: "t", Revision: 1, Provider: "azure", Settings: []byte(`{"flow":"azure","settings":{}}`)}}})
	dir := b.TempDir()
	a, err := agent.New(agent.Config{
		TrustDomain: broker.TrustDomain, Broker: []string{broker.Address()}, CAPins: []string{broker.Pin()}, Data: filepath.Join(dir, "data"),
		Join:      agent.Join{Method: "token", Evidence: func(context.Context) ([]byte, error) { return []byte("token-1"), nil }},
		Attestors: map[string]agent.Attestor{unix.Prefix: unix.New(unix.Config{})},
		Exchanger: func(agent.Target) (exchangers.Exchanger, error) { return &entra{}, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	path := filepath.Join(dir, "w.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	server := workloadapi.New(workloadapi.Config{Agent: a}).GRPC()
	api.RegisterCredentialsServer(server, local.NewService(a, nil))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	b.Cleanup(func() {
		server.Stop()
		cancel()
		if err := errors.Join(<-served, <-ran); err != nil {
			b.Error(err)
		}
	})
	<-a.Ready()
	return dial(b, path)
}

func dial(b *testing.B, path string) *grpc.ClientConn {
	b.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}

// echo is a bare gRPC server on a socket: what any answer costs.
func echo(b *testing.B) *grpc.ClientConn {
	b.Helper()
	path := filepath.Join(b.TempDir(), "e.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "echo.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Echo", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := &emptypb.Empty{}
			return m, decode(m)
		},
	}}}, struct{}{})
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	b.Cleanup(func() { server.Stop(); <-done })
	return dial(b, path)
}

// measure times each call, and returns the CPU time of one.
func measure(b *testing.B, n int, call func() error) (p50, p99, each time.Duration) {
	b.Helper()
	took := make([]time.Duration, n)
	before := cpu(b)
	for i := range took {
		start := time.Now()
		if err := call(); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	each = (cpu(b) - before) / time.Duration(n)
	slices.Sort(took)
	return took[n/2], took[n*99/100], each
}

// BenchmarkCachedCredential is a credential that is held, through
// Credentials.Fetch on the Unix socket, the caller attested afresh; beside a
// bare gRPC echo in the same run. CPU is of client and server together.
func BenchmarkCachedCredential(b *testing.B) {
	client, bare := api.NewCredentialsClient(wholeAgent(b)), echo(b)
	ctx := metadata.AppendToOutgoingContext(b.Context(), "workload.spiffe.io", "true")
	fetch := func() error {
		r, err := client.Fetch(ctx, &api.FetchRequest{Target: "t"})
		if err == nil && r.GetBearer().GetToken() != "secret-1" {
			err = fmt.Errorf("got %v", r)
		}
		return err
	}
	plain := func() error { return bare.Invoke(ctx, "/echo.Echo/Echo", &emptypb.Empty{}, &emptypb.Empty{}) }
	for range 200 {
		if err := errors.Join(fetch(), plain()); err != nil {
			b.Fatal(err)
		}
	}
	n := max(b.N, 2000)
	b.ResetTimer()
	p50, p99, each := measure(b, n, fetch)
	b.StopTimer()
	e50, e99, eeach := measure(b, n, plain)
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	b.ReportMetric(us(p50), "p50-µs")
	b.ReportMetric(us(p99), "p99-µs")
	b.ReportMetric(us(each), "cpu-µs")
	b.ReportMetric(us(e50), "echo-p50-µs")
	b.ReportMetric(us(e99), "echo-p99-µs")
	b.ReportMetric(us(eeach), "echo-cpu-µs")
	b.Logf("a cached credential costs %.0f µs of CPU more than an echo", us(each-eeach))
}
