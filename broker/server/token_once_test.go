package server_test

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// A token is evidence once: of many at the same time for one, and after a restart
// for nobody.
func TestEvidenceIsSpent(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	f := newForeign(t)
	e.apply(e.exchanging())
	e.believe(f)
	n := e.join("n1")
	anonymous := e.claims("/billing/x")
	delete(anonymous, "jti")
	kept := f.token(t, e.claims("/billing/x"))
	for name, subject := range map[string]string{
		"ours": n.evidence(t, e.endpoint()), "a peer's": kept, "a peer's without jti": f.token(t, anonymous),
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			got := map[int]int{}
			var all sync.WaitGroup
			for range 12 {
				all.Go(func() {
					r := e.ask(asking(subject, "audience", "orders"))
					mu.Lock()
					defer mu.Unlock()
					got[r.status]++
				})
			}
			all.Wait()
			if d := cmp.Diff(map[int]int{200: 1, 400: 11}, got); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("signed anew with the same jti", func(t *testing.T) {
		claims := said(t, kept)
		claims["exp"] = claims["exp"].(float64) + 1
		if got := e.ask(asking(f.token(t, claims), "audience", "orders")); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		e.restart()
		e.believe(f)
		if got := e.ask(asking(kept, "audience", "orders")); got.status != 400 || got.Error != "invalid_request" {
			t.Errorf("%+v", got)
		}
		if got := e.ask(asking(f.token(t, e.claims("/billing/x")), "audience", "orders")); got.status != 200 {
			t.Errorf("another: %+v", got)
		}
	})
	t.Run("what was denied is not spent", func(t *testing.T) {
		subject := n.evidence(t, e.endpoint())
		if got := e.ask(asking(subject, "audience", "nobody listed it")); got.Error != "invalid_target" {
			t.Errorf("%+v", got)
		}
		if got := e.ask(asking(subject, "audience", "orders")); got.status != 200 {
			t.Errorf("%+v", got)
		}
	})
	spent := 0
	for _, r := range e.kind("deny") {
		if r.Code == "spent" {
			spent++
		}
	}
	if spent == 0 {
		t.Error("a replay stands in no record")
	}
}

// restart closes the broker, and opens it over the same data at the same
// addresses.
func (e *env) restart() {
	e.t.Helper()
	e.close()
	var err error
	for _, l := range []*net.Listener{&e.listeners.Agents, &e.listeners.SPIFFE, &e.listeners.Web} {
		if *l, err = net.Listen("tcp", (*l).Addr().String()); err != nil {
			e.t.Fatal(err)
		}
	}
	if e.listeners.Admin, err = caller.Listen(filepath.Join(e.dir, "admin.sock"), 0o666); err != nil {
		e.t.Fatal(err)
	}
	e.open()
	e.run()
	e.ready()
}

// What no longer stands when evidence is shown holds, by token and by TLS.
func TestEvidenceThatStandsNoMore(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	row := func(name string, change func(*node), code string) { // each on a node and an identity of its own
		t.Run(name, func(t *testing.T) {
			e.apply(webOn(e, "33"))
			n := e.join("n1")
			subject, cert := n.evidence(t, e.endpoint()), n.svid(t)
			c := api.NewExchangeClient(e.dial(cert))
			ask := &api.ExchangeTokenRequest{Audiences: []string{"orders"}}
			if _, err := c.Exchange(t.Context(), ask); err != nil {
				t.Fatal(err)
			}
			change(n)
			got := e.ask(asking(subject, "audience", "orders"))
			_, err := c.Exchange(t.Context(), ask)
			if code == "" {
				if got.status != 200 || err != nil {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			want, status := "invalid_request", codes.Unauthenticated
			if code == "denied" {
				want, status = "invalid_target", codes.PermissionDenied
			}
			wantCode(t, err, status)
			if got.status != 400 || got.Token != "" || got.Error != want {
				t.Errorf("%+v", got)
			}
			found := false // repetitions are counted in the first
			for _, r := range e.kind("deny") {
				found = found || r.Code == code && r.Detail["evidence"] == "spiffe://example.org/web" && r.Reason != ""
			}
			if !found {
				t.Error("no record")
			}
		})
	}
	deny := func(match string) func(*node) {
		return func(*node) { e.apply("kind: Deny\nname: d\nmatch: [{" + match + "}]\n") }
	}
	revoke := func(kind, value string) func(*node) {
		return func(*node) {
			if _, err := api.NewAuthoritiesClient(e.adminConn()).Revoke(t.Context(), &api.RevokeRequest{Kind: kind, Value: value}); err != nil {
				t.Fatal(err)
			}
		}
	}
	row("as it was", func(*node) {}, "")
	row("a deny on another node", deny("node.name: n2"), "")
	row("a deny on the node", deny("node.name: n1"), "denied")
	e.remove("Deny", "d")
	row("a deny on the process, which is not known", deny("workload.unix.uid: 1"), "denied")
	e.remove("Deny", "d")
	row("the identity changed", func(*node) { e.apply(webOn(e, "34")) }, "denied")
	row("the identity is gone", func(*node) { e.remove("Identity", "web") }, "denied")
	row("its ID is revoked", revoke("id", "spiffe://example.org/web"), "revoked")
	row("its identity is revoked", revoke("identity", "web"), "revoked")
	row("its node is revoked", revoke("node", "spiffe://example.org/credence/node/n1"), "revoked")
	row("its node is out", func(n *node) {
		if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: n.id}); err != nil {
			t.Fatal(err)
		}
	}, "revoked")
}

// webOn is the Identity of a uid of n1.
func webOn(e *env, uid string) string {
	return "kind: Identity\nname: web\nspiffe_id: /web\nmatch: [{node.name: n1, workload.unix.uid: " + uid + "}]\njwt: {audiences: [orders, \"" + e.endpoint() + "\"]}\n"
}

func (e *env) remove(kind, name string) {
	e.t.Helper()
	if _, err := e.admin().Delete(e.t.Context(), &api.DeleteRequest{Kind: kind, Name: name}); err != nil {
		e.t.Fatal(err)
	}
}
