package main_test

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	credence "github.com/credence-id/credence/cmd/credence"
)

// An olderBroker does not know of other brokers' CAs: whoever asks it to end one
// has it replace its own.
type olderBroker struct {
	api.UnimplementedAdminServer
	api.UnimplementedAuthoritiesServer
	*testing.T
}

func (olderBroker) ListAuthorities(context.Context, *api.ListAuthoritiesRequest) (*api.ListAuthoritiesResponse, error) {
	return &api.ListAuthoritiesResponse{Authorities: []*api.AuthorityInfo{{Id: "ca", Use: "x509", State: "active"}}}, nil
}

func (b olderBroker) Replace(_ context.Context, r *api.ReplaceRequest) (*api.ActResponse, error) {
	b.Errorf("it is asked to replace its own: %v", r)
	return &api.ActResponse{}, nil
}

// What was meant for another broker's CA never replaces that of the one that is asked.
func TestReplaceOfAnother(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(tempDir(t), "admin.sock")
	at, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, older := grpc.NewServer(), olderBroker{T: t}
	api.RegisterAdminServer(s, older)
	api.RegisterAuthoritiesServer(s, older)
	serving := make(chan error, 1)
	go func() { serving <- s.Serve(at) }()
	defer func() {
		s.Stop()
		if err := <-serving; err != nil {
			t.Error(err)
		}
	}()
	for of, want := range map[string]string{"": "a broker's name is wanted", "b2": "ask one that is upgraded"} {
		var out bytes.Buffer
		code := credence.Run(t.Context(), []string{"ca", "replace", "issuing", "--of", of, "--admin", socket}, strings.NewReader(""), &out, &out)
		if code != 2 || !strings.Contains(out.String(), want) {
			t.Errorf("of %q: %d, %s", of, code, out.String())
		}
	}
}
