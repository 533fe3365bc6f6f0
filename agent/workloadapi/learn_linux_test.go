package workloadapi_test

import (
	"context"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
)

// A peer that has rotated its keys is believed as soon as it is asked, which a
// token with an unknown key brings about, once in ten seconds.
func TestAnUnknownKeyIsLearnt(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	old, next, absent := agenttest.NewCA(t, "peer.example"), agenttest.NewCA(t, "peer.example"), agenttest.NewCA(t, "absent.example")
	next.JWTKeyID = "next"
	b.AddBundle("peer.example", old.Document())
	b.AddBundle("absent.example", absent.Document())
	g := grant("/a")
	g.FederatesWith = []string{"peer.example"}
	b.Decide(granted(g))
	asked := make(chan string, 10)
	b.OnRefresh(func(td, keyID string) bool {
		asked <- td + " " + keyID
		b.AddBundle(td, next.Document())
		return true
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+socket))
	must(t, err)
	defer client.Close()
	token := func(ca *agenttest.CA) string {
		return ca.JWT(map[string]any{"sub": "spiffe://" + ca.TrustDomain.Name() + "/x", "aud": "reports", "exp": time.Now().Add(time.Minute).Unix()})
	}
	if _, err := client.ValidateJWTSVID(ctx, token(old), "reports"); err != nil || len(asked) != 0 {
		t.Fatalf("a known key: %v, the broker was asked %d times", err, len(asked))
	}
	if _, err := client.ValidateJWTSVID(ctx, token(next), "reports"); err != nil {
		t.Errorf("a new key: %v", err)
	}
	if got := <-asked; got != "peer.example next" {
		t.Errorf("the broker was asked for %s", got)
	}
	// The one before is gone, and the broker is not asked so soon again; for a
	// trust domain that the caller does not federate with, and for our own, never.
	for name, ca := range map[string]*agenttest.CA{"the old key": old, "no peer of the caller's": absent, "our own": {
		TrustDomain: b.TrustDomain, JWTKey: old.JWTKey, JWTKeyID: "nobody's"}} {
		if _, err := client.ValidateJWTSVID(ctx, token(ca), "reports"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(asked) != 0 {
		t.Errorf("the broker was asked for %s", <-asked)
	}
}

func TestAnUnknownKeyThatTheBrokerDoesNotKnow(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("peer.example", peer.Document())
	g := grant("/a")
	g.FederatesWith = []string{"peer.example"}
	b.Decide(granted(g))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+socket))
	must(t, err)
	defer client.Close()
	peer.JWTKeyID = "nobody's"
	token := peer.JWT(map[string]any{"sub": "spiffe://peer.example/x", "aud": "reports", "exp": time.Now().Add(time.Minute).Unix()})
	for range 3 {
		if _, err := client.ValidateJWTSVID(ctx, token, "reports"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	}
	if n := b.Calls("RefreshBundle"); n != 1 {
		t.Errorf("the broker was asked %d times", n)
	}
}
