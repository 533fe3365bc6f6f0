package local_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/exchangers"
)

// held is an agent that holds a credential: what remains is our own cost.
type held struct{}

func (held) Exchange(context.Context, *caller.Process, string, string) (agent.Exchanged, error) {
	return agent.Exchanged{
		Credential: exchangers.Credential{Expires: expires, AWS: &exchangers.AWS{
			AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: exchangers.NewSecret("secret-key"), SessionToken: exchangers.NewSecret("session"), Region: "eu-west-1",
		}},
		Target: agent.Target{Name: "anywhere", Flow: "aws_roles_anywhere", Settings: []byte(`{"flow":"aws_roles_anywhere","settings":{}}`)},
		ID:     spiffeid.RequireFromString(id),
	}, nil
}

func (held) TargetToken(context.Context, *caller.Process, string, bool) (agent.JWTSVID, agent.Target, error) {
	return agent.JWTSVID{}, agent.Target{}, agent.ErrUnavailable
}

// remote asks the service over its socket, as exec does.
type remote struct{ client api.CredentialsClient }

func (r remote) Fetch(ctx context.Context, target string) (*api.FetchResponse, error) {
	return r.client.Fetch(ctx, &api.FetchRequest{Target: target})
}

func (r remote) Token(ctx context.Context, target string, toFile bool) (*api.TokenResponse, error) {
	return r.client.Token(ctx, &api.TokenRequest{Target: target, ToFile: toFile})
}

func (remote) X509(context.Context, string) (chain, key []byte, err error) {
	return nil, nil, agent.ErrUnavailable
}

func benchService(b *testing.B) remote {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "s")
	l, err := caller.Listen(socket, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(caller.Credentials()))
	api.RegisterCredentialsServer(server, local.NewService(held{}, nil))
	go func() { _ = server.Serve(l) }()
	b.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return remote{api.NewCredentialsClient(conn)}
}

// BenchmarkContainer is a cached credential, through the container endpoint,
// the workload socket and the service: on one connection, and on a new one
// each time, whose owner is looked up then. cpu-µs is of the whole process,
// the client's share too.
func BenchmarkContainer(b *testing.B) {
	from := benchService(b)
	s, err := local.Open(b.Context(), local.Config{
		Dir: filepath.Join(b.TempDir(), "run"), UID: syscall.Getuid(), GID: syscall.Getgid(), Targets: []string{"anywhere"}, Source: from,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	e := benchEndpoint(b, s)
	for name, fresh := range map[string]bool{"one connection": false, "a connection each": true} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: fresh, DialContext: (&net.Dialer{}).DialContext}}
			times := make([]time.Duration, 0, b.N)
			before := cpu(b)
			for b.Loop() {
				began := time.Now()
				response, err := client.Do(e.Clone(b.Context()))
				if err != nil {
					b.Fatal(err)
				}
				_, err = io.Copy(io.Discard, response.Body)
				if response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
					b.Fatal(response.Status, err)
				}
				times = append(times, time.Since(began))
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(len(times)), "cpu-µs/op")
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
		})
	}
}

func benchEndpoint(b *testing.B, s *local.Surfaces) *http.Request {
	b.Helper()
	env := map[string]string{}
	for _, v := range s.Env() {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	secret, err := os.ReadFile(env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
	if err != nil {
		b.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodGet, env["AWS_CONTAINER_CREDENTIALS_FULL_URI"], nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Authorization", string(secret))
	return r
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
