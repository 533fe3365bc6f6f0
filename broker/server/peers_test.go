package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

const partnerURL = "https://spiffe.partner.example/bundle"

// partnerBundle is a bundle of partner.example with JWT keys of these IDs.
func partnerBundle(t *testing.T, sequence uint64, root *federationtest.CA, keyIDs ...string) (document []byte, fingerprint string) {
	t.Helper()
	b := spiffebundle.New(spiffeid.RequireTrustDomainFromString("partner.example"))
	b.SetSequenceNumber(sequence)
	b.AddX509Authority(root.Cert)
	for _, id := range keyIDs {
		if err := b.AddJWTAuthority(id, federationtest.NewKey(t).Public()); err != nil {
			t.Fatal(err)
		}
	}
	document, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return document, federation.BundleFingerprint(b)
}

const webPeer = "kind: Peer\nname: partner.example\nurl: " + partnerURL + "\nhttps_web: {}\n"

func TestPeers(t *testing.T) {
	e := newEnv(t)
	ctx, admin := t.Context(), e.admin()
	if r, err := admin.ListPeers(ctx, &api.ListPeersRequest{}); err != nil || len(r.GetPeers()) != 0 {
		t.Fatalf("got %v, %v", r, err)
	}
	a, b := federationtest.NewCA(t, time.Now(), nil), federationtest.NewCA(t, time.Now(), nil)
	first, firstPrint := partnerBundle(t, 1, a)
	second, secondPrint := partnerBundle(t, 2, b)
	e.apply(webPeer)
	one := func() *api.PeerInfo {
		t.Helper()
		r, err := admin.ListPeers(ctx, &api.ListPeersRequest{TrustDomain: "partner.example"})
		if err != nil || len(r.GetPeers()) != 1 {
			t.Fatalf("got %v, %v", r, err)
		}
		return r.GetPeers()[0]
	}
	if p := one(); p.GetState() != "waiting" || p.GetProfile() != "https_web" || p.GetLastError() == "" || p.GetNextPoll() == 0 {
		t.Errorf("before it answers: %v", p)
	}
	e.peers.set(partnerURL, first)
	r, err := admin.RefreshPeer(ctx, &api.RefreshPeerRequest{TrustDomain: "partner.example"})
	if p := r.GetPeer(); err != nil || p.GetState() != "fresh" || p.GetFingerprint() != firstPrint || p.GetSequence() != 1 || p.GetLastError() != "" || p.GetX509Keys() != 1 {
		t.Errorf("refreshed: %v, %v", p, err)
	}
	if _, err := admin.AcceptPeer(ctx, &api.AcceptPeerRequest{TrustDomain: "partner.example"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("accepting nothing: %v", err)
	}
	e.peers.set(partnerURL, second)
	if r, err = admin.RefreshPeer(ctx, &api.RefreshPeerRequest{TrustDomain: "partner.example"}); err != nil || r.GetPeer().GetState() != "held" ||
		r.GetPeer().GetHeldFingerprint() != secondPrint || r.GetPeer().GetClosesAt() == 0 {
		t.Errorf("changed whole: %v, %v", r, err)
	}
	if _, err := admin.AcceptPeer(ctx, &api.AcceptPeerRequest{TrustDomain: "partner.example", Fingerprint: firstPrint}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("accepting another than is held: %v", err)
	}
	accepted, err := admin.AcceptPeer(ctx, &api.AcceptPeerRequest{TrustDomain: "partner.example", Fingerprint: secondPrint})
	if p := accepted.GetPeer(); err != nil || p.GetState() != "fresh" || p.GetFingerprint() != secondPrint || p.GetHeldFingerprint() != "" {
		t.Errorf("accepted: %v, %v", p, err)
	}
	accepts := 0
	for _, r := range e.records() {
		if r.Kind == "peer.accept" && r.Detail["fingerprint"] == secondPrint && r.Actor != "" {
			accepts++
		}
	}
	if accepts != 1 {
		t.Errorf("%d records of it", accepts)
	}
	for name, call := range map[string]func(td string) error{
		"list": func(td string) error {
			_, err := admin.ListPeers(ctx, &api.ListPeersRequest{TrustDomain: td})
			return err
		},
		"refresh": func(td string) error {
			_, err := admin.RefreshPeer(ctx, &api.RefreshPeerRequest{TrustDomain: td})
			return err
		},
		"accept": func(td string) error {
			_, err := admin.AcceptPeer(ctx, &api.AcceptPeerRequest{TrustDomain: td})
			return err
		},
	} {
		for td, want := range map[string]codes.Code{"nobody.example": codes.NotFound, "Nobody": codes.InvalidArgument, td.Name(): codes.NotFound} {
			if err := call(td); status.Code(err) != want {
				t.Errorf("%s %s: %v", name, td, err)
			}
		}
	}
}

// The removal of a peer reaches agents at once, and what they are told of one
// that closes is an empty bundle, not the one before.
func TestAgentsAreToldOfPeers(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	a := federationtest.NewCA(t, time.Now(), nil)
	document, _ := partnerBundle(t, 1, a)
	e.peers.set(partnerURL, document)
	e.apply(webPeer)
	w, first := n.watch(t)
	holds := func(text string) func(*api.WatchResponse) bool {
		return func(m *api.WatchResponse) bool {
			for _, b := range m.GetBundles() {
				if b.GetTrustDomain() == "partner.example" {
					return strings.Contains(string(b.GetDocument()), text)
				}
			}
			return false
		}
	}
	if !holds("x5c")(first) {
		t.Errorf("the bundle is not told: %v", first)
	}
	e.peers.set(partnerURL, []byte(`{"spiffe_sequence":2,"keys":[]}`))
	if _, err := e.admin().RefreshPeer(t.Context(), &api.RefreshPeerRequest{TrustDomain: "partner.example"}); err != nil {
		t.Fatal(err)
	}
	w.until(holds(`"keys":[]`))
	removed := time.Now()
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Peer", Name: "partner.example"}); err != nil {
		t.Fatal(err)
	}
	w.until(func(m *api.WatchResponse) bool {
		return len(m.GetRemoved()) == 1 && m.GetRemoved()[0] == "partner.example"
	})
	if took := time.Since(removed); took > 5*time.Second {
		t.Errorf("its removal took %s", took)
	}
}

// An agent that meets a key has its peer asked, and nobody asks twice in ten
// seconds.
func TestRefreshBundle(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	root := federationtest.NewCA(t, time.Now(), nil)
	first, _ := partnerBundle(t, 1, root, "k1")
	second, _ := partnerBundle(t, 2, root, "k1", "k2")
	third, _ := partnerBundle(t, 3, root, "k2", "k3")
	e.peers.set(partnerURL, first)
	e.apply(webPeer)
	ask := func(td, key string) bool {
		t.Helper()
		r, err := n.RefreshBundle(t.Context(), &api.RefreshBundleRequest{TrustDomain: td, KeyId: key})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetKnown()
	}
	e.peers.set(partnerURL, second)
	if !ask("partner.example", "k1") {
		t.Error("a known key is not known")
	}
	if !ask("partner.example", "k2") {
		t.Error("a new key was not fetched")
	}
	e.peers.set(partnerURL, third)
	if ask("partner.example", "k3") {
		t.Error("asked twice in ten seconds")
	}
	e.ahead.Store(int64(11 * time.Second))
	if !ask("partner.example", "k3") {
		t.Error("not asked after ten seconds")
	}
	if ask("nobody.example", "k3") || ask(td.Name(), "k3") {
		t.Error("a key of nobody is known")
	}
	if _, err := n.RefreshBundle(t.Context(), &api.RefreshBundleRequest{TrustDomain: "Nobody"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
}
