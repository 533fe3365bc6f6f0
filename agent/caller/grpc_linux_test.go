package caller_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/caller"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// health answers each call, and hands its process to the test.
type health struct {
	healthpb.UnimplementedHealthServer
	seen chan *caller.Process
}

func (h *health) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	p, _ := caller.FromContext(ctx)
	h.seen <- p
	return &healthpb.HealthCheckResponse{}, nil
}

func serve(t *testing.T, creds credentials.TransportCredentials) (*health, string) {
	t.Helper()
	l, path := listen(t)
	h := &health{seen: make(chan *caller.Process, 1)}
	s := grpc.NewServer(grpc.Creds(creds))
	healthpb.RegisterHealthServer(s, h)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return h, path
}

func TestCallHasItsProcess(t *testing.T) {
	h, path := serve(t, caller.Credentials())
	c := start(t, "call", path).ready()
	p := <-h.seen
	if p == nil || p.PID() != c.cmd.Process.Pid {
		t.Fatalf("got %v", p)
	}
	must(t, p.Check())
}

// Regression: SPIRE 0.12.1 descriptors
func TestProcessClosesWithItsConnection(t *testing.T) {
	l, path := listen(t)
	start(t, "call", path)
	raw, err := l.Accept()
	must(t, err)
	c, info, err := caller.Credentials().ServerHandshake(raw)
	must(t, err)
	p, ok := caller.FromContext(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info}))
	if !ok || p.Check() != nil {
		t.Fatalf("no live process: %v", p)
	}
	must(t, c.Close())
	if err := p.Check(); !errors.Is(err, caller.ErrGone) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Check: %v", err)
	}
}

func TestAdmit(t *testing.T) {
	own := uint32(os.Getuid())
	for name, row := range map[string]struct {
		admit func(*caller.Process) error
		ok    bool
	}{
		"own uid":     {caller.RequireUID(own+1, own), true},
		"another uid": {caller.RequireUID(own + 1), false},
		"no uid":      {caller.RequireUID(), false},
		"no rule":     {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, path := serve(t, caller.CredentialsFor(row.admit))
			got := start(t, "call", path).line()
			if (got == "ready") != row.ok {
				t.Errorf("the caller said %q", got)
			}
		})
	}
}

// A process connects, says what gRPC wants to hear, leaves the socket with a
// child and executes another program before its connection is accepted: at
// accept, it runs that program. The child answers in its place.
//
// Regression: SPIRE #886
func TestExecBeforeAccept(t *testing.T) {
	l, path := listen(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	other := copyOf(t)
	h := start(t, "leave", path, func(c *exec.Cmd) {
		c.Env = append(c.Env, "EXEC="+other)
		c.ExtraFiles = []*os.File{nil, w}
	}).ready() // says the other program
	w.Close()
	c, err := l.Accept()
	must(t, err)
	p, err := caller.FromConn(c.(*net.UnixConn))
	must(t, err)
	defer p.Close()
	if exe, f, err := p.Executable(); err != nil || exe != other || p.PID() != h.cmd.Process.Pid {
		t.Fatalf("the attack isn't set up: %s, %v", exe, err)
	} else {
		f.Close()
	}
	_, _, err = caller.Credentials().ServerHandshake(c)
	if err == nil || !strings.Contains(err.Error(), "another process answered") {
		t.Errorf("handshake: %v", err)
	}
	c.Close()
	said, err := bufio.NewReader(r).ReadString('\n')
	must(t, err)
	if got := strings.TrimSpace(said); got != "got 0 bytes" {
		t.Errorf("the child %s", got)
	}
}

func TestHandshakeRefuses(t *testing.T) {
	for name, row := range map[string]struct{ say, want string }{
		"HTTP/1.1":           {"GET / HTTP/1.1\r\n\r\n", "doesn't speak gRPC"},
		"nothing":            {"", "EOF"},
		"no answer":          {hello, "EOF"},
		"a guessed answer":   {hello + "\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678", "EOF"},
		"much and no answer": {hello + strings.Repeat("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 16000), "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := listen(t)
			c, err := net.Dial("unix", path)
			must(t, err)
			defer c.Close()
			go func() {
				io.WriteString(c, row.say)
				c.(*net.UnixConn).CloseWrite()
			}()
			s, err := l.Accept()
			must(t, err)
			defer s.Close()
			if _, _, err := caller.Credentials().ServerHandshake(s); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// Regression: Dex #4927
func TestOnlyUnixSockets(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := caller.Credentials().ServerHandshake(a); err == nil {
		t.Error("took a connection that has no caller")
	}
	if p, ok := caller.FromContext(t.Context()); ok || p != nil {
		t.Error("found a process in an empty context")
	}
}

// Descriptors that a caller sends along must not fill our table.
//
// Regression: SPIRE 0.12.1 descriptors
func TestSentDescriptorsAreDropped(t *testing.T) {
	l, path := listen(t)
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	_, _, err = c.(*net.UnixConn).WriteMsgUnix([]byte(hello), unix.UnixRights(int(w.Fd())), nil)
	must(t, err)
	must(t, w.Close())
	must(t, c.(*net.UnixConn).CloseWrite())
	s, err := l.Accept()
	must(t, err)
	defer s.Close()
	if _, _, err := caller.Credentials().ServerHandshake(s); err == nil {
		t.Fatal("took a caller that didn't answer")
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF { // all writing ends are closed
		t.Errorf("read: %v", err)
	}
}
