package local_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/workloadapi"
)

// issuer refuses by the life that is asked for, and else says what was asked.
type issuer struct{}

func (issuer) refuse(p *caller.Process, ttl time.Duration) error {
	switch {
	case p.Check() != nil:
		return errors.New("no process")
	case ttl == 2*time.Second:
		return &agent.Denied{Reason: "too long", Code: agent.LifeRefused}
	case ttl == 3*time.Second:
		return agent.ErrUnavailable
	}
	return nil
}

func (i issuer) X509Once(_ context.Context, p *caller.Process, ttl time.Duration) (agent.Update, error) {
	v := &agent.SVID{ID: spiffeid.RequireFromString(id), Hint: ttl.String(), KeyDER: []byte("key")}
	return agent.Update{SVIDs: []*agent.SVID{v}}, i.refuse(p, ttl)
}

func (i issuer) JWTOnce(_ context.Context, p *caller.Process, audiences []string, id spiffeid.ID, ttl time.Duration) ([]agent.JWTSVID, error) {
	return []agent.JWTSVID{{ID: id, Token: strings.Join(audiences, " ") + ttl.String(), Expires: time.Unix(1800000000, 0)}}, i.refuse(p, ttl)
}

// One-shot SVIDs need a life, the metadata of the Workload API, and a caller.
func TestSVIDs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workload.sock")
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := workloadapi.New(workloadapi.Config{}).GRPC()
	api.RegisterSVIDsServer(server, local.NewSVIDs(issuer{}, nil))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := api.NewSVIDsClient(conn)
	with := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	x, err := client.X509(with, &api.SVIDsX509Request{Ttl: 720})
	if err != nil || len(x.GetSvids()) != 1 || x.GetSvids()[0].GetSpiffeId() != id || x.GetSvids()[0].GetHint() != "12m0s" || string(x.GetSvids()[0].GetKey()) != "key" {
		t.Errorf("%v %v", x, err)
	}
	j, err := client.JWT(with, &api.SVIDsJWTRequest{Ttl: 720, Audiences: []string{"a", "b"}, SpiffeId: id})
	if err != nil || len(j.GetSvids()) != 1 || j.GetSvids()[0].GetToken() != "a b12m0s" || j.GetSvids()[0].GetSpiffeId() != id {
		t.Errorf("%v %v", j, err)
	}
	for name, row := range map[string]struct {
		ttl       int64
		audiences []string
		id        string
		want      codes.Code
	}{
		"denied":            {2, []string{"a"}, "", codes.PermissionDenied},
		"not reached":       {3, []string{"a"}, "", codes.Unavailable},
		"no life":           {0, []string{"a"}, "", codes.InvalidArgument},
		"a negative one":    {-1, []string{"a"}, "", codes.InvalidArgument},
		"one that is none":  {1 << 40, []string{"a"}, "", codes.InvalidArgument},
		"no audience":       {60, nil, "", codes.InvalidArgument},
		"an empty audience": {60, []string{""}, "", codes.InvalidArgument},
		"a long audience":   {60, []string{strings.Repeat("a", 1025)}, "", codes.InvalidArgument},
		"many audiences":    {60, strings.Split(strings.Repeat("a", 17), ""), "", codes.InvalidArgument},
		"no SPIFFE ID":      {60, []string{"a"}, "web", codes.InvalidArgument},
	} {
		if _, err := client.JWT(with, &api.SVIDsJWTRequest{Ttl: row.ttl, Audiences: row.audiences, SpiffeId: row.id}); status.Code(err) != row.want {
			t.Errorf("a JWT-SVID, %s: %v", name, err)
		}
		if row.ttl == 60 {
			continue
		}
		if _, err := client.X509(with, &api.SVIDsX509Request{Ttl: row.ttl}); status.Code(err) != row.want {
			t.Errorf("an X509-SVID, %s: %v", name, err)
		}
	}
	if _, err := client.X509(t.Context(), &api.SVIDsX509Request{Ttl: 720}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the metadata: %v", err)
	}
	if _, err := local.NewSVIDs(issuer{}, nil).X509(t.Context(), &api.SVIDsX509Request{Ttl: 720}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a caller: %v", err)
	}
}
