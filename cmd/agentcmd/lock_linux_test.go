package agentcmd_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/cmd/agentcmd"
)

// A data directory is one agent's for as long as that runs, however often memory is
// collected meanwhile, and the next one's after.
func TestDataIsLocked(t *testing.T) {
	data := filepath.Join(t.TempDir(), "agent")
	file := func(sockets string) agentcmd.File {
		f := agentcmd.File{TrustDomain: "example.org", Data: data, Broker: []string{"127.0.0.1:1"}, Socket: filepath.Join(t.TempDir(), sockets, "w"), Admin: filepath.Join(t.TempDir(), sockets, "a")}
		f.Trust.CAPin = []string{"sha256:" + strings.Repeat("0", 64)}
		f.Join.Method, f.Join.TokenFile = "token", filepath.Join(data, "none")
		if err := f.Complete(); err != nil {
			t.Fatal(err)
		}
		return f
	}
	evidence := func(ctx context.Context) ([]byte, error) { // it never joins
		<-ctx.Done()
		return nil, ctx.Err()
	}
	open := func(sockets string) (*agentcmd.Daemon, error) {
		return agentcmd.New(file(sockets), evidence, time.Now, slog.New(slog.DiscardHandler))
	}
	first, err := open("first")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- first.Run(ctx) }()
	for range 20 {
		runtime.GC()
		if second, err := open("second"); err == nil || !strings.Contains(err.Error(), "another agent uses") {
			if err == nil {
				second.Close()
			}
			t.Fatalf("a second agent has the directory too: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	next, err := open("next")
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
}
