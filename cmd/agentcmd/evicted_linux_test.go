package agentcmd_test

import (
	"context"
	"errors"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/agentcmd"
)

const typeSecret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// A message taken from a stream, or the end of it.
type receive func() error

func receiving[M any](s interface{ Recv() (M, error) }) receive {
	return func() error { _, err := s.Recv(); return err }
}

// streams opens one of each kind that the workload socket has, each with its
// first message.
func streams(t *testing.T, socket string) map[string]receive {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true"), 20*time.Second)
	t.Cleanup(cancel)
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	svids, err1 := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	x509, err2 := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	jwt, err3 := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	whole, err4 := secret.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	changes, err5 := secret.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	err1 = whole.Send(&discovery.DiscoveryRequest{TypeUrl: typeSecret, ResourceNames: []string{"default"}})
	err2 = changes.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResourceNamesSubscribe: []string{"default"}})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	all := map[string]receive{
		"X509-SVIDs": receiving(svids), "X.509 bundles": receiving(x509), "JWT bundles": receiving(jwt), "SDS": receiving(whole), "delta SDS": receiving(changes),
	}
	for name, next := range all {
		if err := next(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return all
}

// What ends a grant ends each open stream with PermissionDenied, which tells a
// workload to stop using what it has; an agent that stops tells no such thing.
func TestOpenStreamsTellWhyTheyEnd(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		act   func(*node)
		code  codes.Code
		fatal error
	}{
		"a deny, or no identity any more": {func(n *node) {
			n.Grant()
			n.Push(&api.WatchResponse{Revision: 5, Changes: []*api.Change{{Erase: true}}})
		}, codes.PermissionDenied, nil},
		"the node is evicted": {func(n *node) {
			n.EndWatch(status.Error(codes.PermissionDenied, "this node has been evicted"))
		}, codes.PermissionDenied, agent.ErrFatal},
		"the agent stops": {func(n *node) { n.quit() }, codes.Unavailable, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, func(*agentcmd.File) {})
			n.fatal = row.fatal
			n.Grant(agenttest.Grant{Identity: "a", Path: "/a"})
			all := streams(t, n.file.Socket)
			row.act(n)
			for stream, next := range all {
				if err := next(); status.Code(err) != row.code {
					t.Errorf("%s: %v, want %v", stream, err, row.code)
				}
			}
		})
	}
}
