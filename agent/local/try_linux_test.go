package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/exchangers"
)

// tryer ends each exchange by its target's name.
type tryer map[string]error

func (r tryer) Try(_ context.Context, p *caller.Process, target string) (exchangers.Credential, spiffeid.ID, error) {
	if p.Check() != nil {
		return exchangers.Credential{}, spiffeid.ID{}, errors.New("no process")
	}
	err := r[target]
	if err != nil {
		return exchangers.Credential{}, spiffeid.RequireFromString(id), err
	}
	return exchangers.Credential{Expires: time.Unix(1800000000, 0), RequestID: "q-1",
		Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("secret-1")}}, spiffeid.RequireFromString(id), nil
}

func (r tryer) Explain(_ context.Context, p *caller.Process, _ []string, target string) (agent.Explained, error) {
	failed := []agent.Failure{{Attestor: "workload.docker", Err: errors.New("words of docker's own")}}
	return agent.Explained{Refusal: r[target], Note: fmt.Sprint(p.PID()), Attestation: agent.Attestation{
		Facts: map[string][]string{"workload.unix.uid": {"33"}, "workload.docker.labels.x": {"secret"}}, Unknown: []string{"workload.docker"}, Failed: failed,
	}}, nil
}

// A workload is told about itself: of nobody else, and of itself no label.
func TestExplainSelf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workload.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(caller.Credentials()))
	api.RegisterChecksServer(server, local.NewChecks(tryer{"t": &agent.Denied{Record: "r-1", Code: agent.TargetNotListed}}, nil))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := api.NewChecksClient(conn)
	got, err := client.Explain(t.Context(), &api.ExplainRequest{Target: "t"})
	want := &api.ExplainResponse{
		Code: agent.TargetNotListed, Record: "r-1", Text: got.GetText(), Note: fmt.Sprint(os.Getpid()), Unknown: []string{"workload.docker"},
		Facts: map[string]*api.Values{"workload.unix.uid": {Values: []string{"33"}}}, Why: map[string]string{"workload.docker": "the agent's log says why"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for name, r := range map[string]*api.ExplainRequest{
		"another":     {Pid: 1},
		"itself too":  {Pid: int32(os.Getpid())},
		"no audience": {Audiences: []string{""}},
		"too many":    {Audiences: make([]string, 17)},
		"a long one":  {Audiences: []string{strings.Repeat("a", 1025)}},
		"a target":    {Target: strings.Repeat("a", 254)},
	} {
		if _, err := client.Explain(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

// A refusal arrives with all that it says, a credential does not arrive at all.
func TestTry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workload.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(caller.Credentials()))
	api.RegisterChecksServer(server, local.NewChecks(tryer{
		"refused": &exchangers.Error{Provider: "aws", Status: 403, Code: "AccessDenied", Message: "no", Class: exchangers.Config, RequestID: "q-2", Hint: "h", Reason: "trust_policy", Field: "f"},
		"denied":  &agent.Denied{Reason: "not listed"}, "odd": errors.New("odd"),
	}, nil))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := api.NewChecksClient(conn)
	for _, tt := range []struct {
		target string
		want   *api.TryResponse
		code   codes.Code
	}{
		{"good", &api.TryResponse{SpiffeId: id, Expires: 1800000000, RequestId: "q-1"}, codes.OK},
		{"refused", &api.TryResponse{SpiffeId: id, RequestId: "q-2", Refusal: &api.Refusal{Provider: "aws", Status: 403, Code: "AccessDenied", Message: "no",
			Class: "config", RequestId: "q-2", Hint: "h", Reason: "trust_policy", Field: "f"}}, codes.OK},
		{"denied", nil, codes.PermissionDenied},
		{"odd", nil, codes.Unavailable},
		{"", nil, codes.InvalidArgument},
		{strings.Repeat("a", 254), nil, codes.InvalidArgument},
	} {
		got, err := client.Try(t.Context(), &api.TryRequest{Target: tt.target})
		if status.Code(err) != tt.code || cmp.Diff(tt.want, got, protocmp.Transform()) != "" {
			t.Errorf("%q: %v, %v", tt.target, got, err)
		}
	}
	if _, err := local.NewChecks(tryer{}, nil).Try(t.Context(), &api.TryRequest{Target: "good"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a caller: %v", err)
	}
}
