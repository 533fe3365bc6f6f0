package local_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/exchangers"
)

// sourced is an agent with a real Source for each target.
type sourced map[string]*exchangers.Source

func (a sourced) Exchange(ctx context.Context, _ *caller.Process, target, _ string) (agent.Exchanged, error) {
	credential, err := a[target].Credential(ctx)
	return agent.Exchanged{Credential: credential, Target: agent.Target{Flow: "azure", Settings: []byte("{}")}, ID: spiffeid.RequireFromString(id)}, err
}

func (sourced) TargetToken(context.Context, *caller.Process, string, bool) (agent.JWTSVID, agent.Target, error) {
	return agent.JWTSVID{}, agent.Target{}, errors.New("none")
}

// entra refuses so often with a code.
type entra struct {
	times atomic.Int32
	code  string
	class exchangers.Class
}

func (e *entra) Exchange(context.Context, exchangers.SVIDs) (exchangers.Credential, error) {
	if e.times.Add(-1) >= 0 {
		return exchangers.Credential{}, &exchangers.Error{Provider: "azure", Status: 400, Code: e.code, Class: e.class, RetryAfter: time.Second}
	}
	return exchangers.Credential{Expires: time.Now().Add(time.Hour), Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("secret-1")}}, nil
}

type shown struct{}

func (shown) ID() spiffeid.ID                              { return spiffeid.RequireFromString(id) }
func (shown) X509(context.Context) (*x509svid.SVID, error) { return nil, errors.New("none") }
func (shown) JWT(context.Context) (string, error)          { return "", errors.New("none") }

func serveCredentials(t testing.TB, a local.Agent) api.CredentialsClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "workload.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(caller.Credentials()))
	api.RegisterCredentialsServer(server, local.NewService(a, nil))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return api.NewCredentialsClient(conn)
}

// Whoever waits learns why, and until when; Fetch doesn't wait, and a refusal
// that a person must mend is told at once.
func TestProgressReachesWhoeverWaits(t *testing.T) {
	slow, wrong := &entra{code: "AADSTS70021", class: exchangers.Throttled}, &entra{code: "AADSTS700213", class: exchangers.Config}
	slow.times.Store(2)
	wrong.times.Store(1000)
	a := sourced{}
	for name, e := range map[string]*entra{"slow": slow, "wrong": wrong} {
		s := exchangers.NewSource(exchangers.SourceConfig{Target: name, Exchanger: e, SVIDs: shown{}, Jitter: func() float64 { return 0 }})
		t.Cleanup(s.Close)
		a[name] = s
	}
	client := serveCredentials(t, a)
	start := time.Now()
	_, err := waitFor(t, client, "wrong")
	if status.Code(err) != codes.FailedPrecondition || time.Since(start) > 2*time.Second {
		t.Errorf("a mistake: %v after %s", err, time.Since(start))
	}
	if _, err := client.Fetch(t.Context(), &api.FetchRequest{Target: "slow"}); status.Code(err) != codes.Unavailable {
		t.Errorf("fetch: %v", err)
	}
	told, err := waitFor(t, client, "slow")
	if err != nil || len(told) < 2 {
		t.Fatalf("%v, told %v", err, told)
	}
	for i, p := range told {
		if want := fmt.Sprintf("attempt %d, until ", i+2); !strings.Contains(p.GetText(), "azure, which throttles (AADSTS70021), "+want) || p.GetAttempt() != uint32(i+2) || p.GetUntil() < start.Unix() {
			t.Errorf("told %v", p)
		}
	}
}

func waitFor(t *testing.T, client api.CredentialsClient, target string) (told []*api.Progress, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := client.Wait(ctx, &api.FetchRequest{Target: target})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			t.Fatal("it ended without a credential")
		}
		if err != nil {
			return told, err
		}
		if c := m.GetCredential(); c != nil {
			if c.GetBearer().GetToken() != "secret-1" {
				t.Errorf("got %v", c)
			}
			return told, nil
		}
		told = append(told, m.GetProgress())
	}
}
