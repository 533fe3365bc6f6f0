package server_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/server"
)

// What each record of a kind must say. Each issuance path ends in one record that
// has the serial number or jti of what was released.
var mustSay = map[string]func(audit.Record) bool{
	"token": func(r audit.Record) bool { return r.Actor != "" && r.Detail["node"] != "" && !r.NotAfter.IsZero() },
	"join": func(r audit.Record) bool {
		return signed(r) && r.Node == r.SPIFFEID && r.Facts["node.name"] != nil && r.Detail["method"] != ""
	},
	"renew":      func(r audit.Record) bool { return signed(r) && r.Node == r.SPIFFEID && r.Facts["node.name"] != nil },
	"issue.x509": func(r audit.Record) bool { return granted(r) },
	"issue.jwt":  func(r audit.Record) bool { return granted(r) && len(r.Audiences) > 0 },
	"deny": func(r audit.Record) bool {
		return !r.OK && r.Code != "" && r.Detail["asked"] != "" && r.Detail["policy"] != ""
	},
	"login":  func(r audit.Record) bool { return r.Facts["user.sub"] != nil && r.Facts["user.issuer"] != nil },
	"apply":  func(r audit.Record) bool { return r.Actor != "" && r.Detail["name"] != "" },
	"delete": func(r audit.Record) bool { return r.Actor != "" && r.Detail["name"] != "" },
	"exchange": func(r audit.Record) bool {
		return r.Node != "" && r.SPIFFEID != "" && r.Target != "" && r.Detail["request_id"] != ""
	},
	"refusal": func(r audit.Record) bool { return r.Node != "" && r.Code != "" && r.Facts != nil },
	"handout": func(r audit.Record) bool {
		return r.Node != "" && r.Serial != "" && r.Digest != "" && len(r.Audiences) > 0
	},
	"report.gap": func(r audit.Record) bool { return r.Node != "" && r.Count > 0 },
	"evict":      func(r audit.Record) bool { return r.Node != "" && r.Actor != "" && r.Reason != "" },
	"allow":      func(r audit.Record) bool { return r.Node != "" && r.Actor != "" },
	"revoke":     func(r audit.Record) bool { return r.Actor != "" && r.Detail["value"] != "" && r.Detail["before"] != "" },
	"admin": func(r audit.Record) bool {
		return r.Actor != "" && r.Code != "" && (!r.OK || r.Serial != "" || strings.HasPrefix(r.Actor, "uid:"))
	},
	"authority": func(r audit.Record) bool { return r.Actor != "" && r.Code != "" },

	server.RecordAuthority: func(r audit.Record) bool {
		return r.Authority != "" && r.Code != "" && r.Actor != "" && r.Detail["use"] != ""
	},
	server.RecordPeer: func(r audit.Record) bool { return r.Code != "" && r.Digest != "" && r.Detail["trust_domain"] != "" },
}

// signed says of a record that it has all of what was signed.
func signed(r audit.Record) bool {
	return r.OK && r.SPIFFEID != "" && r.Serial != "" && r.Authority != "" && len(r.Digest) == 64 && !r.Issued.IsZero() && !r.NotAfter.IsZero()
}

// granted says of an SVID's record that it has who it is for as well.
func granted(r audit.Record) bool {
	who := r.Detail["node_svid"] != "" && r.Node != "" || r.Detail["evidence"] != "" || r.Facts["user.groups"] != nil
	return signed(r) && r.Identity != "" && r.Revision != 0 && len(r.Facts) > 0 && who
}

// TestEachDecisionIsOneRecord goes through the ways in which somebody gets, or is
// refused, something, or changes it.
func TestEachDecisionIsOneRecord(t *testing.T) {
	e := newEnv(t, withIssuer, withRoles, func(e *env) { e.recordAll = true })
	e.ready()
	f := newForeign(t)
	var n *node
	var svid, jti string
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := e.audit.Head().Sequence
	since := func() (new []audit.Record) {
		for _, r := range e.records() {
			if r.Sequence > seen {
				new = append(new, r)
			}
		}
		seen += uint64(len(new))
		return new
	}
	var all []audit.Record
	for _, step := range []struct {
		path string
		do   func()
		want string
	}{
		{"apply", func() { e.apply(e.exchanging()) }, "apply apply apply"},
		{"a peer's bundle", func() { e.believe(f) }, "admin peer.bundle"},
		{"a join", func() { n = e.join("n1") }, "token join"},
		{"a renewal", func() {
			key := newKey(t)
			got, err := n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, key.Public())})
			must(err)
			n = e.node(got, key)
		}, "renew"},
		{"an X509-SVID", func() {
			got, _, err := n.issue(t.Context(), t, "33")
			must(err)
			svid = hex.EncodeToString(parse(t, got.GetSvids()[0].GetChain())[0].SerialNumber.Bytes())
		}, "issue.x509"},
		{"a JWT-SVID", func() { jti = said(t, n.evidence(t, "orders"))["jti"].(string) }, "issue.jwt"},
		{"a denial", func() { _, _, err := n.issue(t.Context(), t, "34"); must(err) }, "deny"},
		{"the token endpoint", func() {
			if got := e.ask(asking(n.evidence(t, e.endpoint()), "audience", "orders")); got.status != 200 {
				t.Fatalf("%+v", got)
			}
		}, "issue.jwt issue.jwt"},
		{"of a peer", func() {
			if got := e.ask(asking(f.token(t, e.claims("/billing/x")), "audience", "orders")); got.status != 200 {
				t.Fatalf("%+v", got)
			}
		}, "issue.jwt"},
		{"the token endpoint refuses", func() {
			if got := e.ask(asking(n.evidence(t, e.endpoint()), "audience", "nobody")); got.status == 200 {
				t.Fatalf("%+v", got)
			}
		}, "issue.jwt deny"},
		{"reports", func() {
			_, err := n.Report(t.Context(), &api.ReportRequest{
				Exchanges: []*api.Exchange{{Id: reportID(1), SpiffeId: "spiffe://example.org/web", Target: "t", Ok: true, RequestId: "request-1", Shown: []string{jti, svid}}},
				Refusals:  []*api.Refusal{{Id: reportID(2), Code: "gone", Facts: process("1").GetFacts()}},
				HandOuts:  []*api.HandOut{handOut(3)},
				Gaps:      []*api.Gap{{Id: reportID(4), Lost: 12, Why: "full", Since: 1, Total: 13}},
			})
			must(err)
		}, "exchange refusal handout report.gap"},
		{"a login", func() { e.apply(staff("auditor")); e.loggedIn("auditor") }, "apply login issue.x509"},
		{"a read from elsewhere", func() {
			c := api.NewAdminClient(e.somebody("auditor"))
			_, err := c.ListNodes(t.Context(), &api.ListNodesRequest{})
			must(err)
			if _, err := c.EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n1"}); err == nil {
				t.Fatal("an auditor evicts")
			}
		}, "login issue.x509 admin admin"},
		{"a read at the socket", func() { _, err := e.admin().ListNodes(t.Context(), &api.ListNodesRequest{}); must(err) }, "admin"},
		{"a rotation", func() {
			_, err := e.authorities().Rotate(t.Context(), &api.RotateRequest{What: "issuing"})
			must(err)
		}, "authority authority.state authority.state"},
		{"a revocation", func() { e.revoke("identity", "web") }, "revoke"},
		{"an eviction", func() {
			_, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n1", Reason: "stolen"})
			must(err)
			_, err = e.admin().AllowNode(t.Context(), &api.AllowNodeRequest{Id: "n1"})
			must(err)
		}, "evict allow"},
		{"a deletion", func() {
			_, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "billing"})
			must(err)
		}, "delete"},
	} {
		step.do()
		var kinds []string
		for _, r := range since() {
			all, kinds = append(all, r), append(kinds, r.Kind)
		}
		if d := cmp.Diff(step.want, strings.Join(kinds, " ")); d != "" {
			t.Errorf("%s: %s", step.path, d)
		}
	}
	for _, r := range all {
		if say := mustSay[r.Kind]; say == nil || !say(r) {
			t.Errorf("not all of it is said in %+v", r)
		}
	}
	// What was released, what it stood on, and what a cloud gave for it find each
	// other.
	by := func(kind, serial string) audit.Record {
		t.Helper()
		i := slices.IndexFunc(all, func(r audit.Record) bool { return r.Kind == kind && r.Serial == serial })
		if i < 0 {
			t.Fatalf("no %s has the serial %s", kind, serial)
		}
		return all[i]
	}
	if r := by("renew", by("issue.x509", svid).Detail["node_svid"]); r.Facts["node.name"][0] != "n1" {
		t.Errorf("its node's SVID is of %v", r.Facts)
	}
	if r := by("exchange", by("issue.jwt", jti).Serial); r.Detail["request_id"] != "request-1" || r.Detail["shown"] != jti+" "+svid {
		t.Errorf("what it was exchanged for: %+v", r)
	}
	for kind := range mustSay {
		if !slices.ContainsFunc(all, func(r audit.Record) bool { return r.Kind == kind }) {
			t.Errorf("no %s was recorded", kind)
		}
	}
	// What the clock does has the clock for its actor: here, the first keys.
	first := e.records()[0]
	if first.Kind != server.RecordAuthority || first.Actor != "clock" {
		t.Errorf("the first record is %+v", first)
	}
	for _, r := range all {
		if r.Kind == server.RecordAuthority && !strings.HasPrefix(r.Actor, "uid:") {
			t.Errorf("an operator's act was %q's: %+v", r.Actor, r)
		}
	}
}
