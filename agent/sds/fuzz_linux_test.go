package sds_test

import (
	"encoding/binary"
	"maps"
	"testing"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/sds"
)

// stages are what a caller may have in turn: more, other, and less of it.
func stages(t testing.TB) []agent.Update {
	w := newWorld(t, "/a", "/b")
	w.wants, w.peers = []string{"peer.example"}, []*agenttest.CA{agenttest.NewCA(t, "peer.example")}
	all := []agent.Update{w.update(), w.update()}
	w.ids, w.peers = []string{"/a"}, nil
	return append(all, w.update())
}

// script is requests one after the other, as a fuzzer makes them: the length
// of each before it.
func script(all ...proto.Message) (b []byte) {
	for _, q := range all {
		m, err := proto.Marshal(q)
		if err != nil {
			panic(err)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

func each(b []byte, do func(step int, one []byte) bool) {
	for step := 0; len(b) >= 2; step++ {
		n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
		if !do(step, b[2:2+n]) {
			return
		}
		b = b[2+n:]
	}
}

// refusal refuses an error that says nothing to a caller.
func refusal(t *testing.T, err error) {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Unavailable, codes.FailedPrecondition, codes.PermissionDenied:
		if len(err.Error()) > 8<<10 {
			t.Fatalf("%d bytes of an error", len(err.Error()))
		}
	default:
		t.Fatalf("%v", err)
	}
}

func name(t *testing.T, a *anypb.Any) string {
	s := &tlspb.Secret{}
	if err := a.UnmarshalTo(s); err != nil {
		t.Fatal(err)
	}
	if err := complete(s); err != nil {
		t.Fatalf("%s: %v", s.GetName(), err)
	}
	return s.GetName()
}

// FuzzWhole: whatever is asked in whatever order, a response is never empty, has
// each name once, whole, and a new nonce.
func FuzzWhole(f *testing.F) {
	f.Add(script(fetch("default"), &discovery.DiscoveryRequest{ResourceNames: []string{"default", "ALL"}, ResponseNonce: "1", Node: envoy(38)}))
	f.Add(script(fetch(), &discovery.DiscoveryRequest{ResponseNonce: "1"}, &discovery.DiscoveryRequest{ResponseNonce: "0", ResourceNames: []string{"*", "x"}}))
	f.Add(script(fetch("spiffe://example.org/b", "spiffe://peer.example"), &discovery.DiscoveryRequest{}, fetch("spiffe://example.org/b")))
	f.Add(script(fetch("a", "", "spiffe://example.org/b\x00")))
	all := stages(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		w, nonces := sds.NewWhole(), map[string]bool{}
		each(b, func(step int, one []byte) bool {
			q := &discovery.DiscoveryRequest{}
			if proto.Unmarshal(one, q) != nil {
				return true
			}
			m, err := w.Ask(q, all[step%len(all)])
			if err != nil {
				refusal(t, err)
				return false
			}
			if m == nil {
				return true
			}
			if len(m.GetResources()) == 0 || m.GetVersionInfo() == "" || nonces[m.GetNonce()] {
				t.Fatalf("%d resources, version %q, nonce %q", len(m.GetResources()), m.GetVersionInfo(), m.GetNonce())
			}
			nonces[m.GetNonce()] = true
			seen := map[string]bool{}
			for _, r := range m.GetResources() {
				n := name(t, r)
				if seen[n] {
					t.Fatalf("%q twice", n)
				}
				seen[n] = true
			}
			return true
		})
	})
}

// FuzzDelta: the same of incremental streams; what is removed was known.
func FuzzDelta(f *testing.F) {
	f.Add(script(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}, Node: envoy(38)}, &discovery.DeltaDiscoveryRequest{ResponseNonce: "1"}))
	f.Add(script(&discovery.DeltaDiscoveryRequest{}, &discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"*"}}, &discovery.DeltaDiscoveryRequest{}))
	f.Add(script(&discovery.DeltaDiscoveryRequest{
		ResourceNamesSubscribe: []string{"spiffe://example.org/b", "ROOTCA"}, InitialResourceVersions: map[string]string{"spiffe://example.org/b": "1", "gone": "2"},
	}, &discovery.DeltaDiscoveryRequest{}, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}}))
	all := stages(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, nonces, known := sds.NewDelta(), map[string]bool{}, map[string]string{}
		first := true
		each(b, func(step int, one []byte) bool {
			q := &discovery.DeltaDiscoveryRequest{}
			if proto.Unmarshal(one, q) != nil {
				return true
			}
			m, err := d.Ask(q, all[step%len(all)])
			if err != nil {
				refusal(t, err)
				return false
			}
			if first {
				maps.Copy(known, q.GetInitialResourceVersions())
			}
			first = false
			if m == nil {
				return true
			}
			if len(m.GetResources())+len(m.GetRemovedResources()) == 0 || nonces[m.GetNonce()] {
				t.Fatalf("empty, or nonce %q again", m.GetNonce())
			}
			nonces[m.GetNonce()] = true
			for _, r := range m.GetResources() {
				if n := name(t, r.GetResource()); n != r.GetName() || r.GetVersion() == "" {
					t.Fatalf("%q holds %q of version %q", r.GetName(), n, r.GetVersion())
				}
				known[r.GetName()] = r.GetVersion()
			}
			for _, n := range m.GetRemovedResources() {
				if _, ok := known[n]; !ok {
					t.Fatalf("%q is removed, and was not there", n)
				}
				delete(known, n)
			}
			return true
		})
	})
}
