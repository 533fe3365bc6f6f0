package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
)

// withRoles gives roles to people who log in.
func withRoles(e *env) {
	withLogin(e)
	for _, r := range []struct {
		id, role string
		paths    []string
	}{
		{"/people/root", "admin", nil}, {"/people/shopkeeper", "operator", []string{"/shop/**", "/people/*"}}, {"/people/auditor", "auditor", nil}, {"/ci/deployer", "operator", []string{"/shop/**"}},
	} {
		role, err := server.NewRole(td, "spiffe://example.org"+r.id, r.role, r.paths)
		if err != nil {
			e.t.Fatal(err)
		}
		e.roles = append(e.roles, role)
	}
}

// staff are Identities of people, by one group each.
func staff(names ...string) string {
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf("kind: Identity\nname: %[1]s\nspiffe_id: /people/%[1]s\nmatch: [{user.groups: %[1]s}]\n", name))
	}
	return strings.Join(all, "---\n")
}

// somebody logs in as one of the staff, and returns how they call.
func (e *env) somebody(name string) *grpc.ClientConn { return e.dial(e.loggedIn(name)) }

func (e *env) loggedIn(name string) *tls.Certificate {
	e.t.Helper()
	key := newKey(e.t)
	got, err := e.people().Login(e.t.Context(), &api.LoginRequest{
		IdToken: e.idToken(key.Public(), map[string]any{"groups": []string{name}, "email": nil}), PublicKey: spki(e.t, key.Public()),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: got.GetSvids()[0].GetChain(), PrivateKey: key}
}

func newRolesEnv(t *testing.T) *env {
	e := newEnv(t, withRoles)
	e.apply(staff("root", "shopkeeper", "auditor", "nobody") + `---
kind: Identity
name: bank
spiffe_id: /bank/teller
match: [{node.name: n1, workload.unix.uid: 44}]
---
kind: Deny
name: all
match: [{node.name: n9}]
---
kind: Deny
name: shop
match: [{node.name: n9}]
spiffe_ids: ["/shop/*"]
`)
	return e
}

// every RPC that operators have.
func everyRPC() (all []string) {
	for _, d := range []grpc.ServiceDesc{api.Admin_ServiceDesc, api.Authorities_ServiceDesc} {
		for _, m := range d.Methods {
			all = append(all, "/"+d.ServiceName+"/"+m.MethodName)
		}
		for _, m := range d.Streams {
			all = append(all, "/"+d.ServiceName+"/"+m.StreamName)
		}
	}
	return all
}

// Every RPC has a least role, and nothing else has.
func TestEveryRPCHasARole(t *testing.T) {
	every := everyRPC()
	if len(every) < 30 {
		t.Fatalf("only %d RPCs are found", len(every))
	}
	for _, method := range every {
		if role := server.Least[method]; !slices.Contains([]string{"auditor", "operator", "admin", "socket"}, role) {
			t.Errorf("%s has the least role %q: say in broker/server/roles.go who may call it", method, role)
		}
	}
	for method := range server.Least {
		if !slices.Contains(every, method) {
			t.Errorf("%s is no RPC", method)
		}
	}
	for _, method := range []string{
		"/credence.broker.v1.Admin/New", "/credence.broker.v1.Node/Join", "",
		api.Authorities_ExportRoot_FullMethodName, api.Authorities_RemoveRootKey_FullMethodName, // a root key leaves by the admin socket
		api.Admin_TruncateAudit_FullMethodName, // and the record
	} {
		if (server.Role{Name: "admin"}).May(method) {
			t.Errorf("an admin may call %q", method)
		}
	}
}

// rpc calls a method with an empty message, and says whether the caller may.
func rpc(t *testing.T, conn *grpc.ClientConn, method string) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if slices.ContainsFunc(api.Admin_ServiceDesc.Streams, func(d grpc.StreamDesc) bool { return d.StreamName == path.Base(method) }) {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err == nil {
			err = errors.Join(stream.SendMsg(&api.TailAuditRequest{Last: 1}), stream.CloseSend())
		}
		if err == nil {
			err = stream.RecvMsg(&api.AuditRecord{})
		}
		return status.Code(err)
	}
	return status.Code(conn.Invoke(ctx, method, &api.StatusRequest{}, &api.StatusResponse{}))
}

// Each role may what its own table says; those without one, agents among them, may
// nothing.
func TestRoles(t *testing.T) {
	e := newRolesEnv(t)
	node := e.join("n1")
	acts := []string{ // those that would do something on an empty message are left to their own tests
		api.Authorities_MakeCSR_FullMethodName, api.Authorities_AdvanceRoot_FullMethodName, api.Authorities_RollbackRoot_FullMethodName,
	}
	for name, caller := range map[string]struct {
		conn  *grpc.ClientConn
		roles []string
	}{
		"admin":           {e.somebody("root"), []string{"auditor", "operator", "admin"}},
		"operator":        {e.somebody("shopkeeper"), []string{"auditor", "operator"}},
		"auditor":         {e.somebody("auditor"), []string{"auditor"}},
		"without a role":  {e.somebody("nobody"), nil},
		"a node":          {e.dial(node.cert), nil},
		"without an SVID": {e.dial(nil), nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, method := range everyRPC() {
				may := slices.Contains(caller.roles, server.Least[method])
				if may && slices.Contains(acts, method) {
					continue
				}
				switch code := rpc(t, caller.conn, method); {
				case code == codes.ResourceExhausted:
					t.Fatalf("%s: asked too often", method)
				case may == (code == codes.PermissionDenied || code == codes.Unauthenticated):
					t.Errorf("%s: %s", method, code)
				}
			}
			e.ahead.Add(int64(10 * time.Second)) // the callers' allowances fill again
		})
	}
	recorded := map[string]bool{}
	e.close()
	for _, r := range e.records() {
		if r.Kind == "admin" {
			recorded[fmt.Sprint(r.Actor, " ", r.OK, " ", r.Code)] = true
		}
	}
	for _, want := range []string{
		"spiffe://example.org/people/auditor true Get", "spiffe://example.org/people/auditor false role", "spiffe://example.org/people/nobody false no_role",
		"spiffe://example.org/people/root true ListNodes", node.id + " false no_role",
	} {
		if !recorded[want] {
			t.Errorf("not recorded: %s", want)
		}
	}
}

// What cannot be recorded is not read either from elsewhere.
func TestReadsAreRecordedFirst(t *testing.T) {
	e := newRolesEnv(t)
	c := api.NewAdminClient(e.somebody("auditor"))
	if _, err := c.Get(t.Context(), &api.GetRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := e.audit.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(t.Context(), &api.GetRequest{Kind: "Peer"})
	wantCode(t, err, codes.Internal)
	if got != nil {
		t.Errorf("they read %v", got)
	}
}

// Without roles in broker.yaml nobody administers but at the socket.
func TestNoRoles(t *testing.T) {
	e := newEnv(t, withLogin)
	e.apply(staff("root"))
	_, err := api.NewAdminClient(e.somebody("root")).Status(t.Context(), &api.StatusRequest{})
	wantCode(t, err, codes.Unimplemented)
}

// An operator changes Identities and Denies whose every ID, as they are and as
// they will be, lies under their paths; an admin is named in what they do.
func TestOperatorsKeepToTheirPaths(t *testing.T) {
	e := newRolesEnv(t)
	c := api.NewAdminClient(e.somebody("shopkeeper"))
	id := func(name, path, match string) string {
		return fmt.Sprintf("kind: Identity\nname: %s\nspiffe_id: %s\nmatch: [{%s}]\n", name, path, match)
	}
	const match = "node.name: n1, workload.unix.uid: 33"
	apply := func(yaml string, change ...func(*api.ApplyRequest)) error {
		r := &api.ApplyRequest{Yaml: []byte(yaml), File: "x.yaml"}
		for _, f := range change {
			f(r)
		}
		_, err := c.Apply(t.Context(), r)
		e.ahead.Add(int64(time.Second))
		return err
	}
	for name, yaml := range map[string]string{
		"an Identity":             id("web", "/shop/web", match),
		"a template":              id("any", "/shop/{workload.unix.user}", match),
		"a changed one":           id("web", "/shop/web2", match),
		"a Deny":                  "kind: Deny\nname: shop\nmatch: [{node.name: n8}]\nspiffe_ids: [\"/shop/**\"]\n",
		"a person without a role": id("sam", "/people/sam", "user.groups: sam"),
	} {
		if err := apply(yaml); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, yaml := range map[string]string{
		"another path":                       id("x", "/bank/web", match),
		"a path that begins so":              id("x", "/shopping/web", match),
		"a path above":                       id("x", "/shop", match),
		"a template that leads out":          id("x", "/{workload.unix.user}/web", match),
		"a template of several segments out": id("x", "/{workload.docker.image | path}", match),
		"one that moves out":                 id("web", "/bank/web", match),
		"one that moves in":                  id("bank", "/shop/bank", match),
		"one of their own, on any node":      "kind: Identity\nname: x\nspiffe_id: /shop/x\nmatch: [{workload.unix.uid: 33, any_node: true}]\n",
		"the ID of an admin":                 id("x", "/people/root", "user.groups: shopkeeper"),
		"their own ID":                       id("x", "/people/shopkeeper", "user.groups: friend"),
		"a template that gives an admin's":   id("x", "/people/{user.sub}", "user.groups: friend"),
		"the Identity of an admin":           id("root", "/people/other", "user.groups: root"),
		"a Deny of all":                      "kind: Deny\nname: x\nmatch: [{node.name: n8}]\n",
		"a Deny of others too":               "kind: Deny\nname: x\nmatch: [{node.name: n8}]\nspiffe_ids: [\"/shop/x\", \"/bank/**\"]\n",
		"a Deny of all that is narrowed":     "kind: Deny\nname: all\nmatch: [{node.name: n8}]\nspiffe_ids: [\"/shop/**\"]\n",
		"a JoinRule":                         "kind: JoinRule\nname: x\nfake: {}\nallow: [{node.fake.x: y}]\n",
		"a Target":                           "kind: Target\nname: x\ncloud: {aud: x}\n",
		"a Peer":                             "kind: Peer\nname: peer.example\nurl: https://peer.example/bundle\nhttps_web: {}\n",
		"one that may and one that may not":  id("y", "/shop/y", match) + "---\n" + id("x", "/bank/x", match),
	} {
		for _, dry := range []bool{true, false} {
			if err := apply(yaml, func(r *api.ApplyRequest) { r.DryRun = dry }); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s, dry: %v: %v", name, dry, err)
			}
		}
	}
	// A Peer that stands as they have it is no change, and is not fetched for them.
	e.apply(webPeer)
	got, err := c.Apply(t.Context(), &api.ApplyRequest{Yaml: []byte(webPeer), File: "x.yaml"})
	if err != nil || got.GetApplied()[0].GetAction() != "unchanged" || len(got.GetWarnings()) > 0 {
		t.Errorf("a Peer that stands: %v, %v", got, err)
	}
	// Nor by the other ways to write.
	e.apply("kind: Identity\nname: mine\nspiffe_id: /bank/mine\nmatch: [{" + match + "}]\n")
	e.mustApply(&api.ApplyRequest{Yaml: []byte(id("others", "/shop/others", match)), Owner: "bankers"})
	if err := apply(id("others", "/shop/others", "node.name: n2"), func(r *api.ApplyRequest) { r.TakeOver = true }); status.Code(err) != codes.PermissionDenied {
		t.Errorf("taking over: %v", err)
	}
	if err := apply(id("web", "/shop/web2", match), func(r *api.ApplyRequest) { r.Prune, r.Yes = true, true }); status.Code(err) != codes.PermissionDenied {
		t.Errorf("pruning: %v", err)
	}
	revisions, err := c.ListRevisions(t.Context(), &api.ListRevisionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first := revisions.GetRevisions()[len(revisions.GetRevisions())-1].GetRevision()
	_, err = c.Rollback(t.Context(), &api.RollbackRequest{Revision: first, Yes: true})
	wantCode(t, err, codes.PermissionDenied)
	for _, yaml := range []string{"kind: Deny\nname: x\nmatch: [{node.name: n1}]\n", "kind: Deny\nname: x\nmatch: [{node.name: n1}]\nspiffe_ids: [\"/bank/**\"]\n"} {
		if err := apply(yaml, func(r *api.ApplyRequest) { r.Here = true }); status.Code(err) != codes.PermissionDenied {
			t.Errorf("denying here: %v", err)
		}
	}
	for kind, name := range map[string]string{"Identity": "bank", "Deny": "all"} {
		_, err := c.Delete(t.Context(), &api.DeleteRequest{Kind: kind, Name: name})
		wantCode(t, err, codes.PermissionDenied)
	}
	if _, err := c.Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "web"}); err != nil {
		t.Errorf("deleting one of theirs: %v", err)
	}
	// What was refused is not there, and what was done has a name.
	stand, err := e.admin().Get(t.Context(), &api.GetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range stand.GetResources() {
		if r.GetName() == "x" || r.GetName() == "y" || r.GetName() == "web" {
			t.Errorf("%s %s stands", r.GetKind(), r.GetName())
		}
		if r.GetName() == "any" && r.GetActor() != "spiffe://example.org/people/shopkeeper" {
			t.Errorf("it is of %s", r.GetActor())
		}
	}
	e.close()
	seen := map[string]bool{}
	for _, r := range e.records() {
		if r.Actor == "spiffe://example.org/people/shopkeeper" {
			seen[fmt.Sprint(r.Kind, r.OK)] = true
		}
	}
	if !seen["applytrue"] || !seen["deletetrue"] || !seen["adminfalse"] {
		t.Errorf("recorded: %v", seen)
	}
}

// Who is revoked or evicted, or whose Identity has changed, has no role from that
// moment on, on open streams too.
func TestARoleIsLostAtOnce(t *testing.T) {
	for name, lose := range map[string]func(e *env, n *node){
		"revoked": func(e *env, _ *node) {
			_, err := api.NewAuthoritiesClient(e.adminConn()).Revoke(e.t.Context(), &api.RevokeRequest{Kind: "id", Value: "spiffe://example.org/ci/deployer"})
			if err != nil {
				e.t.Fatal(err)
			}
		},
		"its node is evicted": func(e *env, n *node) {
			if _, err := e.admin().EvictNode(e.t.Context(), &api.EvictNodeRequest{Id: n.id}); err != nil {
				e.t.Fatal(err)
			}
		},
		"its Identity has changed": func(e *env, _ *node) {
			e.apply("kind: Identity\nname: deployer\nspiffe_id: /ci/deployer\nmatch: [{node.name: n1, workload.unix.uid: 34}]\n")
		},
		"a Deny":       func(e *env, _ *node) { e.apply("kind: Deny\nname: leaked\nmatch: [{node.name: n1}]\n") },
		"it has ended": func(e *env, _ *node) { e.ahead.Add(int64(2 * time.Hour)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, withRoles)
			e.apply("kind: Identity\nname: deployer\nspiffe_id: /ci/deployer\nmatch: [{node.name: n1, workload.unix.uid: 33}]\n")
			n := e.join("n1")
			got, key, err := n.issue(t.Context(), t, "33")
			if err != nil {
				t.Fatal(err)
			}
			c := api.NewAdminClient(e.dial(&tls.Certificate{Certificate: got.GetSvids()[0].GetChain(), PrivateKey: key}))
			if _, err := c.Status(t.Context(), &api.StatusRequest{}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			tail, err := c.TailAudit(ctx, &api.TailAuditRequest{Last: 1, Follow: true})
			if err == nil {
				_, err = tail.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			lose(e, n)
			_, err = c.Status(t.Context(), &api.StatusRequest{})
			if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
				t.Errorf("%v", err)
			}
			e.token("n2") // a record, for whoever follows
			for err = nil; err == nil; {
				var got *api.AuditRecord
				if got, err = tail.Recv(); strings.Contains(string(got.GetJson()), `"n2"`) {
					t.Fatalf("they still read: %s", got.GetJson())
				}
			}
			wantCode(t, err, codes.Unauthenticated)
		})
	}
}

func TestNewRole(t *testing.T) {
	for name, r := range map[string]struct {
		id, role string
		paths    []string
	}{
		"another trust domain":   {"spiffe://example.com/ana", "admin", nil},
		"a node":                 {"spiffe://example.org/credence/node/n1", "admin", nil},
		"the broker":             {"spiffe://example.org/credence/broker", "admin", nil},
		"the trust domain":       {"spiffe://example.org", "admin", nil},
		"a pattern":              {"spiffe://example.org/people/*", "admin", nil},
		"no ID":                  {"", "admin", nil},
		"another role":           {"spiffe://example.org/ana", "root", nil},
		"no role":                {"spiffe://example.org/ana", "", nil},
		"an operator of nothing": {"spiffe://example.org/ana", "operator", nil},
		"an admin of paths":      {"spiffe://example.org/ana", "admin", []string{"/shop/**"}},
		"a path that is none":    {"spiffe://example.org/ana", "operator", []string{"shop"}},
		"an ID that is long":     {"spiffe://example.org/" + strings.Repeat("a", 300), "admin", nil},
	} {
		if _, err := server.NewRole(td, r.id, r.role, r.paths); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
