package workloadapi_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/agent/agenttest"
)

// TestEveryMessageIsWhole: whatever changed, a message has everything, in the
// order of before (SPIFFE Workload API §4.3).
func TestEveryMessageIsWhole(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	one, two := agenttest.NewCA(t, "one.example"), agenttest.NewCA(t, "two.example")
	b.AddBundle("one.example", one.Document())
	b.AddBundle("two.example", two.Document())
	list := b.CRL(1, time.Now().Add(time.Hour))
	b.AddCRLs(list)
	first, second := grant("/a"), grant("/b")
	first.Hint, first.FederatesWith = "main", []string{"one.example"}
	second.Hint, second.FederatesWith = "other", []string{"two.example"}
	b.Decide(granted(first, second))
	client, _ := raw(t, socket)
	ctx, cancel := context.WithTimeout(header(t.Context()), 20*time.Second)
	defer cancel()
	stream, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	want := &workloadpb.X509SVIDResponse{}
	for len(want.GetCrl()) == 0 { // it may come to the agent a little later
		want, err = stream.Recv()
		must(t, err)
	}
	if n := want.GetSvids(); len(n) != 2 || n[0].GetHint() != "main" || n[1].GetHint() != "other" || len(want.GetFederatedBundles()) != 2 {
		t.Fatalf("%d SVIDs, %d federated bundles", len(n), len(want.GetFederatedBundles()))
	}
	next := agenttest.NewCA(t, "two.example")
	b.AddBundle("two.example", next.Document())
	want.FederatedBundles["spiffe://two.example"] = next.Root.Raw
	got, err := stream.Recv()
	must(t, err)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("after a peer's new root: %s", diff)
	}
	newer := b.CRL(2, time.Now().Add(time.Hour))
	b.AddCRLs(newer)
	want.Crl = [][]byte{newer.GetDer()}
	got, err = stream.Recv()
	must(t, err)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("after a new CRL: %s", diff)
	}
}
