package server_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/federation"
)

// settings are those that e was opened with.
func (e *env) settings() server.Settings {
	p := e.config.Policy
	return server.Settings{Roles: e.roles, Login: e.login, DNSSuffixes: p.DNSSuffixes, Subjects: p.Subjects, MinTTL: p.MinTTL, Limits: e.limits}
}

// A role counts from the reload that gives it to that which takes it away, also for
// a call that is open; and so does a provider.
func TestReloadRoles(t *testing.T) {
	e := newEnv(t, withRoles)
	e.apply(staff("auditor"))
	conn := e.somebody("auditor")
	all := e.settings()
	without := all
	without.Roles = nil
	reload := func(s server.Settings) {
		t.Helper()
		if err := e.server.Reload(t.Context(), "test", []string{"roles"}, s); err != nil {
			t.Fatal(err)
		}
	}
	status := api.Admin_Status_FullMethodName
	if code := rpc(t, conn, status); code != codes.OK {
		t.Fatal(code)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Nothing comes on it any more: neither what reloads nor what is asked is an apply.
	tail, err := api.NewAdminClient(conn).TailAudit(ctx, &api.TailAuditRequest{Last: 1, Follow: true, Filter: &api.AuditFilter{Kind: "apply"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tail.Recv(); err != nil {
		t.Fatal(err)
	}
	reload(without)
	if code := rpc(t, conn, status); code != codes.Unimplemented {
		t.Errorf("without roles: %s", code)
	}
	_, err = tail.Recv()
	wantCode(t, err, codes.PermissionDenied)
	reload(all)
	if code := rpc(t, conn, status); code != codes.OK {
		t.Errorf("with roles again: %s", code)
	}
	without = all
	without.Login = nil
	reload(without)
	_, err = e.people().LoginInfo(t.Context(), &api.LoginInfoRequest{})
	wantCode(t, err, codes.Unimplemented)
	twice := all
	twice.Roles = append(twice.Roles, twice.Roles[0])
	if err := e.server.Reload(t.Context(), "test", nil, twice); err == nil {
		t.Error("two roles of one ID are taken")
	}
	e.close()
	n := 0
	for _, r := range e.records() {
		if r.Kind == "reload" && r.Actor == "test" && r.Detail["changed"] == "roles" && r.OK {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d reloads are recorded", n)
	}
}

// What stands is held against the settings before they count, and decided anew by
// them after.
func TestReloadPolicy(t *testing.T) {
	e := newEnv(t)
	web := "kind: Identity\nname: web\nspiffe_id: /web\nmatch: [{node.name: n1, workload.unix.uid: 1}]\nx509: {dns_names: [web.example.org]}\n"
	e.apply(web)
	narrow := e.settings()
	narrow.DNSSuffixes = []string{"other.example"}
	err := e.server.Reload(t.Context(), "test", []string{"dns_suffixes"}, narrow)
	if err == nil || !strings.Contains(err.Error(), "Identity web") || !strings.Contains(err.Error(), "web.example.org") {
		t.Errorf("got %v, want the identity and its name", err)
	}
	e.apply(strings.ReplaceAll(web, "web", "web2")) // by what stood before
	for _, name := range []string{"web", "web2"} {
		if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.server.Reload(t.Context(), "test", []string{"dns_suffixes"}, narrow); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin().Apply(t.Context(), &api.ApplyRequest{Yaml: []byte(web), File: "web.yaml"}); err == nil {
		t.Error("a name is taken that no suffix permits")
	}
	e.apply(strings.ReplaceAll(web, "web.example.org", "web.other.example"))
}

// A reload that cannot be recorded changes nothing.
func TestReloadIsRecordedFirst(t *testing.T) {
	e := newEnv(t, withRoles)
	e.apply(staff("auditor"))
	conn := e.somebody("auditor")
	without := e.settings()
	without.Roles = nil
	e.audit.Close()
	if err := e.server.Reload(t.Context(), "test", []string{"roles"}, without); err == nil {
		t.Error("it is done without a record")
	}
	if code := rpc(t, conn, api.Admin_Status_FullMethodName); code == codes.PermissionDenied {
		t.Error("the roles are gone")
	}
}

// Settings that are taken over while the policy cannot follow are not refused.
func TestReloadThatComesIntoForceLater(t *testing.T) {
	e := newEnv(t)
	wider := e.settings()
	wider.DNSSuffixes = []string{"example.org", "other.example"}
	gone := federation.Peer{TrustDomain: partner, URL: "https://partner.example/bundle", HTTPSWeb: &federation.HTTPSWeb{}}
	if err := e.config.Peers.SetPeers(t.Context(), []federation.Peer{gone}); err != nil {
		t.Fatal(err)
	}
	e.store.Close() // so that what is stored of it cannot be deleted
	if err := e.server.Reload(t.Context(), "test", []string{"dns_suffixes"}, wider); !errors.Is(err, server.ErrNotInForce) {
		t.Errorf("got %v", err)
	}
}
