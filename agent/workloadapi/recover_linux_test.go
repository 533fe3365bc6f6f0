package workloadapi_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/workloadapi"
)

// broken is an agent with a bug.
type broken struct{}

func (broken) TrustDomain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("example.org")
}

func (broken) Identities(*caller.Process) *agent.Identities { panic("a bug in a stream") }

func (broken) Cutoffs() *agent.Cutoffs { panic("a bug in a validation") }

func (broken) JWT(context.Context, *caller.Process, []string, spiffeid.ID) ([]agent.JWTSVID, error) {
	panic("a bug in a call")
}

func (broken) LearnKey(context.Context, spiffeid.TrustDomain, string) bool {
	panic("a bug in a validation")
}

// A panic ends the call that it is in, and nothing else.
func TestAPanicIsOneCalls(t *testing.T) {
	dir, err := os.MkdirTemp("", "w") // t.TempDir's are too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "w.sock")
	l, err := caller.Listen(path, 0o666)
	must(t, err)
	var log bytes.Buffer // read when the server has stopped
	server := workloadapi.New(workloadapi.Config{Agent: broken{}, Log: slog.New(slog.NewTextHandler(&log, nil))}).GRPC()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	client := workloadpb.NewSpiffeWorkloadAPIClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	for range 2 { // the second time it still answers
		_, err := client.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}})
		wantInternal(t, err)
		stream, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		must(t, err)
		_, err = stream.Recv()
		wantInternal(t, err)
	}
	server.Stop()
	<-served
	for _, want := range []string{"a bug in a stream", "a bug in a call", "recover_linux_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
}

func wantInternal(t *testing.T, err error) {
	t.Helper()
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "bug") {
		t.Errorf("the error is %v", err)
	}
}
