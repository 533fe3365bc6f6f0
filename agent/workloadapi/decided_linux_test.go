package workloadapi_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
)

// TestDecided are the contradictions in SPIFFE's documents that the package
// comment decides.
func TestDecided(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	g := grant("/a")
	g.FederatesWith = []string{"empty.example", "peer.example"}
	b.Decide(granted(g))
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("empty.example", []byte(`{"keys":[]}`))
	b.AddBundle("peer.example", peer.Document())
	client, conn := raw(t, socket)
	open := func(t *testing.T, method string) error {
		ctx, cancel := context.WithCancel(header(t.Context()))
		defer cancel()
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		must(t, err)
		must(t, stream.SendMsg(&workloadpb.X509SVIDRequest{}))
		must(t, stream.CloseSend())
		return stream.RecvMsg(&workloadpb.X509SVIDResponse{})
	}
	t.Run("D-10 the service has the name in the proto", func(t *testing.T) {
		if err := open(t, "/SpiffeWorkloadAPI/FetchX509SVID"); err != nil {
			t.Error(err)
		}
		for _, method := range []string{"/WorkloadAPI/FetchX509SVID", "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID"} {
			if err := open(t, method); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: %v", method, err)
			}
		}
	})
	t.Run("D-11 WIT bundles are not served", func(t *testing.T) {
		if err := open(t, "/SpiffeWorkloadAPI/FetchWITBundles"); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
	t.Run("D-17 an empty bundle is left out", func(t *testing.T) {
		ctx, cancel := context.WithCancel(header(t.Context()))
		defer cancel()
		stream, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		must(t, err)
		m, err := stream.Recv()
		must(t, err)
		if diff := cmp.Diff(map[string][]byte{"spiffe://peer.example": peer.Root.Raw}, m.GetFederatedBundles()); diff != "" {
			t.Errorf("federated bundles: %s", diff)
		}
		if len(m.GetSvids()) != 1 || len(m.GetSvids()[0].GetBundle()) == 0 {
			t.Errorf("SVIDs: %v", m.GetSvids())
		}
	})
	t.Run("D-18 a token that is not valid is InvalidArgument", func(t *testing.T) {
		_, err := client.ValidateJWTSVID(header(t.Context()), &workloadpb.ValidateJWTSVIDRequest{Audience: "a", Svid: "x.y.z"})
		if status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
}
