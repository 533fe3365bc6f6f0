package sds_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
)

// delta is a stream in the incremental form.
type delta struct {
	t        testing.TB
	stream   grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	versions map[string]string
	last     *discovery.DeltaDiscoveryResponse
}

func openDelta(t testing.TB, c secret.SecretDiscoveryServiceClient, q *discovery.DeltaDiscoveryRequest) *delta {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := c.DeltaSecrets(ctx)
	must(t, err)
	q.Node, q.TypeUrl = envoy(38), typeURL
	must(t, stream.Send(q))
	return &delta{t: t, stream: stream, versions: map[string]string{}, last: &discovery.DeltaDiscoveryResponse{}}
}

func (d *delta) send(q *discovery.DeltaDiscoveryRequest) {
	d.t.Helper()
	must(d.t, d.stream.Send(q))
}

// next receives and acknowledges.
func (d *delta) next() (changed map[string]*tlspb.Secret, removed []string) {
	d.t.Helper()
	changed, removed = d.receive()
	d.send(&discovery.DeltaDiscoveryRequest{ResponseNonce: d.last.GetNonce()})
	return changed, removed
}

func (d *delta) receive() (changed map[string]*tlspb.Secret, removed []string) {
	d.t.Helper()
	m, err := d.stream.Recv()
	must(d.t, err)
	if m.GetNonce() == d.last.GetNonce() || m.GetTypeUrl() != typeURL {
		d.t.Errorf("nonce %q after %q, type %q", m.GetNonce(), d.last.GetNonce(), m.GetTypeUrl())
	}
	d.last, changed = m, map[string]*tlspb.Secret{}
	for _, r := range m.GetResources() {
		s := secrets(d.t, r.GetResource())[r.GetName()]
		if s == nil || r.GetVersion() == "" || r.GetVersion() == d.versions[r.GetName()] {
			d.t.Errorf("%q, version %q: %v", r.GetName(), r.GetVersion(), s)
		}
		changed[r.GetName()], d.versions[r.GetName()] = s, r.GetVersion()
	}
	for _, name := range m.GetRemovedResources() {
		delete(d.versions, name)
	}
	return changed, m.GetRemovedResources()
}

// want receives, acknowledges and compares.
func (d *delta) want(what string, changed, removed []string) {
	d.t.Helper()
	c, r := d.next()
	if diff := cmp.Diff(changed, slices.Sorted(maps.Keys(c))); diff != "" {
		d.t.Errorf("%s: changed: %s", what, diff)
	}
	if diff := cmp.Diff(removed, r); diff != "" {
		d.t.Errorf("%s: removed: %s", what, diff)
	}
}

func (d *delta) ends() error {
	d.t.Helper()
	m, err := d.stream.Recv()
	if err == nil {
		d.t.Fatalf("a response instead of the end: %v", m.GetNonce())
	}
	return err
}

func TestDelta(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a", "/b"), newViews()
	u := w.update()
	v.set(u, nil)
	client, _, _ := serve(t, v, nil)
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ROOTCA"}})
	d.want("at first", []string{"ROOTCA", "default"}, nil)
	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"spiffe://example.org/b"}})
	d.want("one more", []string{"spiffe://example.org/b"}, nil)
	u = w.update()
	v.set(u, nil)
	d.want("SVIDs are new, roots are not", []string{"default", "spiffe://example.org/b"}, nil)

	d.versions = map[string]string{} // it may have dropped them
	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
	d.want("subscribed anew", []string{"default"}, nil)

	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ALL"}, ResourceNamesUnsubscribe: []string{"default", "nobody's"}})
	d.want("another instead", []string{"ALL"}, nil)
	v.set(w.update(), nil)
	d.want("one less", []string{"spiffe://example.org/b"}, nil)

	w.ids = []string{"/a"}
	v.set(w.update(), nil)
	d.want("an identity goes", nil, []string{"spiffe://example.org/b"})
	w.ids = []string{"/a", "/b"}
	v.set(w.update(), nil)
	d.want("it is back", []string{"spiffe://example.org/b"}, nil)

	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"nobody's"}})
	if err := d.ends(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestDeltaGoesOn: who comes back with what it has is told the difference.
func TestDeltaGoesOn(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	w.peers = []*agenttest.CA{agenttest.NewCA(t, "peer.example")}
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	names := []string{"default", "ROOTCA", "spiffe://peer.example"}
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
	d.want("at first", slices.Sorted(slices.Values(names)), nil)

	w.peers = nil
	v.set(w.update(), nil)
	d.want("the peer goes", []string{"default"}, []string{"spiffe://peer.example"})
	d.versions["spiffe://peer.example"] = "of before"
	again := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, InitialResourceVersions: d.versions})
	again.want("it comes back with the peer's", nil, []string{"spiffe://peer.example"})

	v.set(w.update(), nil)
	delete(d.versions, "spiffe://peer.example")
	third := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names[:2], InitialResourceVersions: d.versions})
	third.want("and after a rotation", []string{"default"}, nil)
}

// TestDeltaWaitsForABundle: at the start of a stream a peer's bundle that isn't
// here has not gone.
func TestDeltaWaitsForABundle(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	w.wants = []string{"peer.example"}
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{
		ResourceNamesSubscribe: []string{"spiffe://peer.example"}, InitialResourceVersions: map[string]string{"spiffe://peer.example": "1"},
	})
	if err := d.ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestDeltaOfEverything(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{})
	d.want("at first", []string{"spiffe://example.org", "spiffe://example.org/a"}, nil)
	w.ids = []string{"/b"}
	v.set(w.update(), nil)
	d.want("another identity", []string{"spiffe://example.org/b"}, []string{"spiffe://example.org/a"})
	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}, ResourceNamesUnsubscribe: []string{"*"}})
	d.want("one alone", []string{"ROOTCA"}, nil)
	v.set(w.update(), nil)
	d.send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
	d.want("and one more", []string{"default"}, nil)
}

func TestDeltaRefused(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, log := serve(t, v, nil)
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
	d.receive()
	for range 5 {
		d.send(&discovery.DeltaDiscoveryRequest{ResponseNonce: d.last.GetNonce(), ErrorDetail: status.New(codes.Internal, "bad chain").Proto()})
	}
	log.await(t, "bad chain")
	next := w.update()
	v.set(next, nil)
	if got, _ := d.next(); !leaf(t, got["default"]).Equal(next.SVIDs[0].Certificates[0]) {
		t.Error("what was refused came again")
	}
	if n := strings.Count(log.String(), "bad chain"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}
}

// TestThousandRotations: whatever the pace, every secret is whole, none comes
// twice, and the last is the last.
func TestThousandRotations(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a", "/b"), newViews()
	peer := agenttest.NewCA(t, "peer.example")
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	s := openWhole(t, client, "default", "ALL", "spiffe://example.org/b")
	d := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ALL"}})
	const end = 1000
	w.ends = time.Now().Add(2 * time.Hour).Truncate(time.Second)
	last := w.ends.Add(end * time.Second)
	rotated := make(chan struct{})
	go func() {
		defer close(rotated)
		for n := range end {
			w.ends = w.ends.Add(time.Second)
			if w.peers = nil; n%10 == 0 {
				w.peers = []*agenttest.CA{peer}
			}
			v.set(w.update(), nil)
		}
	}()
	versions, responses := map[string]bool{}, 0
	for {
		got := s.next()
		if len(got) != 3 || versions[s.last.GetVersionInfo()] {
			t.Fatalf("response %d: %d secrets, version %s", responses, len(got), s.last.GetVersionInfo())
		}
		versions[s.last.GetVersionInfo()] = true
		responses++
		a, b := leaf(t, got["default"]), leaf(t, got["spiffe://example.org/b"])
		if !a.NotAfter.Equal(b.NotAfter) {
			t.Fatal("secrets of two rotations in one response")
		}
		if a.NotAfter.Equal(last) {
			break
		}
	}
	for {
		got, removed := d.next()
		if len(removed) > 0 {
			t.Fatalf("removed: %v", removed)
		}
		if c := got["default"]; c != nil && leaf(t, c).NotAfter.Equal(last) {
			break
		}
	}
	<-rotated
	t.Logf("%d rotations, %d responses", end, responses)
}
