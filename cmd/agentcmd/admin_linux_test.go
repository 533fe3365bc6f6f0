package agentcmd_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/cmd/agentcmd"
)

// An operator's call that panics (here for want of an agent) takes nothing
// else with it.
func TestAgentAdminSurvivesPanic(t *testing.T) {
	l, err := caller.Listen(filepath.Join(t.TempDir(), "admin.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	g := agentcmd.NewAdmin(nil, slog.New(slog.NewTextHandler(&log, nil)))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := agentapi.NewAdminClient(conn).Attest(context.Background(), &agentapi.AttestRequest{Pid: int32(os.Getpid())})
		if status.Code(err) != codes.Internal {
			t.Errorf("%v, want Internal", err)
		}
	}
	conn.Close()
	g.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if got := strings.Count(log.String(), "call panicked"); got != 2 {
		t.Errorf("%d panics in the log, want 2:\n%s", got, &log)
	}
}
