package sds_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/attest/unix"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/sds"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/broker/api"
)

// serveAgent is a broker, and an agent with both of its protocols.
func serveAgent(t *testing.T) (*agenttest.Broker, secret.SecretDiscoveryServiceClient) {
	t.Helper()
	b := agenttest.NewBroker(t, "example.org").Start()
	dir, err := os.MkdirTemp("", "s")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := agent.New(agent.Config{
		TrustDomain: b.TrustDomain, Broker: []string{b.Address()}, CAPins: []string{b.Pin()}, Data: filepath.Join(dir, "data"),
		Join:      agent.Join{Method: "token", Evidence: func(context.Context) ([]byte, error) { return []byte("token-1"), nil }},
		Attestors: map[string]agent.Attestor{unix.Prefix: unix.New(unix.Config{})}, Patience: time.Second,
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	socket := filepath.Join(dir, "w.sock")
	l, err := caller.Listen(socket, 0o666)
	must(t, err)
	server := workloadapi.New(workloadapi.Config{Agent: a}).GRPC()
	secret.RegisterSecretDiscoveryServiceServer(server, sds.New(sds.Config{
		TrustDomain: a.TrustDomain(), Identities: func(p *caller.Process) sds.View { return a.Identities(p) },
	}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		cancel()
		if err := errors.Join(<-served, <-ran); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-a.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the agent is not ready")
	}
	return b, dial(t, socket)
}

// TestWithAnAgent: renewal, another trust domain's bundle and a denial reach
// open streams.
func TestWithAnAgent(t *testing.T) {
	t.Parallel()
	b, client := serveAgent(t)
	if err := openWhole(t, client, "default").ends(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), agenttest.Record) {
		t.Errorf("nothing is granted: %v", err)
	}
	b.Grant(agenttest.Grant{Identity: "a", Path: "/a", TTL: 3 * time.Second, FederatesWith: []string{"peer.example"}})
	svid, all := openWhole(t, client, "default"), openWhole(t, client, "ALL")
	changes := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ROOTCA"}})
	before := leaf(t, svid.next()["default"])
	changes.next()
	if got := roots(t, all.next()["ALL"]); len(got) != 1 {
		t.Errorf("trust domains: %v", got)
	}
	if err := openWhole(t, client, "spiffe://peer.example").ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("a bundle that has yet to come: %v", err)
	}
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("peer.example", peer.Document())
	if got := roots(t, all.next()["ALL"]); got["peer.example"] != pemOf(peer) {
		t.Errorf("trust domains: %v", got)
	}
	if after := leaf(t, svid.next()["default"]); after.Equal(before) || !after.NotAfter.After(before.NotAfter) {
		t.Error("not renewed")
	}
	if got, _ := changes.next(); got["default"] == nil || len(got) != 1 {
		t.Errorf("changes: %v", got)
	}
	b.Grant()
	b.Push(&api.WatchResponse{Revision: 5, Changes: []*api.Change{{Erase: true}}})
	for name, s := range map[string]*whole{"an SVID": svid, "roots": all} {
		for {
			m, err := s.stream.Recv()
			if err == nil { // renewed just before
				secrets(t, m.GetResources()...)
				continue
			}
			if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), agenttest.Record) {
				t.Errorf("%s: %v, want PermissionDenied with the record", name, err)
			}
			break
		}
	}
}
