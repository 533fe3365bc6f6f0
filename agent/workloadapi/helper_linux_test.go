package workloadapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/attest/unix"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/broker/api"
)

const helperEnv = "WORKLOADAPI_TEST_HELPER"

// TestMain runs this binary as one of the processes that call.
func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		if err := helper(mode); err != nil {
			fmt.Println("error:", err)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// helper fetches and says what it got.
func helper(mode string) error {
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", os.Getenv("SOCKET"))
	}
	switch mode {
	case "exec": // connect, and let another program speak
		return leave()
	case "speak": // on descriptor 3
		dial = func(context.Context) (net.Conn, error) { return net.FileConn(os.NewFile(3, "socket")) }
	}
	conn, err := grpc.NewClient("passthrough:///socket", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stream, err := workloadpb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(header(ctx), &workloadpb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	m, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("%s: %w", status.Code(err), err)
	}
	fmt.Println("got", m.GetSvids()[0].GetSpiffeId())
	return nil
}

func leave() error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: os.Getenv("SOCKET")}); err != nil {
		return err
	}
	// The server speaks first, once it has looked at us: what is executed
	// before that is simply who calls.
	if _, _, err := syscall.Recvfrom(fd, make([]byte, 1), syscall.MSG_PEEK); err != nil {
		return err
	}
	if err := syscall.Dup2(fd, 3); err != nil {
		return err
	}
	if err := os.Setenv(helperEnv, "speak"); err != nil {
		return err
	}
	program := os.Getenv("EXEC")
	return syscall.Exec(program, []string{program}, os.Environ())
}

// as runs a helper to its end, and returns what it said.
func as(t *testing.T, mode, socket string, uid uint32, env ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+mode, "SOCKET="+socket, "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	cmd.Dir = "/"
	if uid != uint32(os.Getuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// copyOf returns another program: this one as another file.
func copyOf(t *testing.T) string {
	t.Helper()
	src, err := os.Open("/proc/self/exe")
	must(t, err)
	defer src.Close()
	name := filepath.Join(t.TempDir(), "other")
	dst, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(dst, src)
	must(t, err)
	must(t, dst.Close())
	return name
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func header(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

var self = strconv.Itoa(os.Getuid())

// granted has our own uid granted these, and nobody else anything.
func granted(grants ...agenttest.Grant) func(*api.Workload) []agenttest.Grant {
	return func(w *api.Workload) []agenttest.Grant {
		if got := w.GetFacts()[unix.UID].GetValues(); len(got) != 1 || got[0] != self {
			return nil
		}
		return grants
	}
}

func grant(path string) agenttest.Grant {
	return agenttest.Grant{Identity: path[1:], Path: path, Audiences: []string{"**"}}
}

// serve is a broker, an agent and its socket.
func serve(t *testing.T, start bool) (b *agenttest.Broker, socket string) {
	t.Helper()
	b = agenttest.NewBroker(t, "example.org").Start()
	if !start {
		b.Stop()
	}
	dir, err := os.MkdirTemp("", "w") // short, and open to other uids
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := agent.New(agent.Config{
		TrustDomain: b.TrustDomain, Broker: []string{b.Address()}, CAPins: []string{b.Pin()}, Data: filepath.Join(dir, "data"),
		Join:      agent.Join{Method: "token", Evidence: func(context.Context) ([]byte, error) { return []byte("token-1"), nil }},
		Attestors: map[string]agent.Attestor{unix.Prefix: unix.New(unix.Config{})}, Patience: time.Second,
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	socket = filepath.Join(dir, "w.sock")
	l, err := caller.Listen(socket, 0o666)
	must(t, err)
	server := workloadapi.New(workloadapi.Config{Agent: a}).GRPC()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		cancel()
		if err := errors.Join(<-served, <-ran); err != nil {
			t.Error(err)
		}
	})
	if start {
		select {
		case <-a.Ready():
		case <-time.After(10 * time.Second):
			t.Fatal("the agent is not ready")
		}
	}
	return b, socket
}

// raw is a client that sends no header by itself.
func raw(t *testing.T, socket string) (workloadpb.SpiffeWorkloadAPIClient, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return workloadpb.NewSpiffeWorkloadAPIClient(conn), conn
}
