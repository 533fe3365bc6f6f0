package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
)

func factsOf(all map[string]string) map[string]*api.Values {
	facts := make(map[string]*api.Values, len(all))
	for name, value := range all {
		facts[name] = &api.Values{Values: []string{value}}
	}
	return facts
}

// Where nobody is to be asked about, it is told who could get an Identity, or
// what can be got on a node.
func TestExplainTellsWhoCanGetWhat(t *testing.T) {
	e := newEnv(t)
	e.apply(web + "---\nkind: Identity\nname: none\nspiffe_id: /none\nmatch: [{node.name: n9}]\n")
	n := e.join("n1")
	for _, row := range []struct {
		name    string
		r       *api.ExplainRequest
		granted bool
		code    string
		says    string
	}{
		{"an identity", &api.ExplainRequest{Reach: true, Identity: "web"}, true, "granted", "nodes " + n.id},
		{"an identity of no node", &api.ExplainRequest{Reach: true, Identity: "none"}, false, "no_identity", "none that stands"},
		{"a node", &api.ExplainRequest{Reach: true, Node: "n1"}, true, "granted", `needs workload.unix.uid: "33"`},
		{"facts of a node that there is not", &api.ExplainRequest{Facts: factsOf(map[string]string{"node.name": "n1", "workload.unix.uid": "33"})}, true, "granted", "/web"},
		{"one identity", &api.ExplainRequest{Identity: "none", Node: "n1", Facts: factsOf(map[string]string{"workload.unix.uid": "33"})}, false, "no_identity", "node.name wants"},
		{"why it is unknown", &api.ExplainRequest{Node: "n1", Unknown: []string{"workload.unix"}, Why: map[string]string{"workload.unix": "it hangs"}}, false, "attestor_failed", "it hangs"},
	} {
		got, err := e.admin().Explain(t.Context(), row.r)
		if err != nil || got.GetGranted() != row.granted || got.GetCode() != row.code || !strings.Contains(got.GetText(), row.says) {
			t.Errorf("%s: %v, %v", row.name, got, err)
		}
	}
	for name, r := range map[string]*api.ExplainRequest{
		"both":      {Reach: true, Node: "n1", Identity: "web"},
		"neither":   {Reach: true},
		"facts too": {Reach: true, Node: "n1", Facts: factsOf(map[string]string{"workload.unix.uid": "33"})},
	} {
		_, err := e.admin().Explain(t.Context(), r)
		if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, "one identity or one node") {
			t.Errorf("%s: %s", name, text)
		}
	}
	for _, r := range []*api.ExplainRequest{{Reach: true, Identity: "wen"}, {Reach: true, Node: "n2"}, {Identity: "wen", Node: "n1"}} {
		_, err := e.admin().Explain(t.Context(), r)
		wantCode(t, err, codes.NotFound)
	}
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n1"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*api.ExplainRequest{{Reach: true, Node: "n1"}, {Node: "n1", Facts: process("33").GetFacts()}} {
		got, err := e.admin().Explain(t.Context(), r)
		if err != nil || got.GetGranted() || got.GetCode() != "node_evicted" || !strings.Contains(got.GetText(), "was evicted at") {
			t.Errorf("evicted: %v, %v", got, err)
		}
	}
}

// Who has just lost an Identity is told which, and how: for a while.
func TestExplainKnowsWhatStoodAMomentAgo(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.join("n1")
	ask := func() *api.ExplainResponse {
		t.Helper()
		got, err := e.admin().Explain(t.Context(), &api.ExplainRequest{Node: "n1", Facts: process("33").GetFacts()})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	e.apply(strings.Replace(web, "uid: 33", "uid: 34", 1))
	if got := ask(); got.GetCode() != "identity_changed" || !strings.Contains(got.GetText(), "Identity web gave it spiffe://example.org/web until it was changed") {
		t.Errorf("changed: %v", got)
	}
	e.apply(web)
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got.GetCode() != "identity_deleted" || !strings.Contains(got.GetText(), "until it was deleted") {
		t.Errorf("deleted: %v", got)
	}
	_, err := e.admin().Explain(t.Context(), &api.ExplainRequest{Reach: true, Identity: "web"})
	if text := wantCode(t, err, codes.NotFound); !strings.Contains(text, "it was deleted") {
		t.Error(text)
	}
	e.ahead.Add(int64(time.Hour))
	if got := ask(); got.GetCode() != "no_identity" {
		t.Errorf("later: %v", got)
	}
}

// A node is told names of facts of its own Identities, and nothing else: no
// value, no Deny, no Identity of another node. What it asks stands in the record,
// and it may not ask often.
func TestWhatANodeIsTold(t *testing.T) {
	e := newEnv(t)
	e.apply(`kind: Identity
name: web
spiffe_id: /web
match: [{node.name: n1, workload.unix.uid: "s3cret"}]
---
kind: Identity
name: other-s3cret
spiffe_id: /other
match: [{node.name: n2, workload.unix.uid: 33}]
---
kind: Identity
name: denied-s3cret
spiffe_id: /denied
match: [{node.name: n1, workload.unix.gid: 33}]
---
kind: Identity
name: lists
spiffe_id: /lists
match: [{node.name: n1, workload.unix.uid: 44}]
jwt: {audiences: [s3cret]}
---
kind: Deny
name: deny-s3cret
match: [{node.name: n1}]
spiffe_ids: ["/denied"]
reason: s3cret
`)
	n := e.join("n1")
	ask := func(r *api.NodeExplainRequest) (*api.NodeExplainResponse, error) {
		t.Helper()
		got, err := n.Explain(t.Context(), r)
		if text := fmt.Sprint(got, err); strings.Contains(text, "s3cret") {
			t.Errorf("it tells %s", text)
		}
		return got, err
	}
	got, err := ask(&api.NodeExplainRequest{Workload: process("33")})
	if err != nil || got.GetGranted() || got.GetDenial().GetCode() != "denied" || !strings.HasPrefix(got.GetDenial().GetRecord(), "r-") {
		t.Fatal(got, err)
	}
	want := []*api.NodeExplainResponse_Near{{Identity: "lists", Missing: []string{"workload.unix.uid"}}, {Identity: "web", Missing: []string{"workload.unix.uid"}}}
	if len(got.GetNear()) != 2 || !proto.Equal(want[0], got.GetNear()[0]) || !proto.Equal(want[1], got.GetNear()[1]) {
		t.Errorf("near: %v", got.GetNear())
	}
	got, err = ask(&api.NodeExplainRequest{Workload: process("44"), Audiences: []string{"orders"}})
	if err != nil || got.GetDenial().GetCode() != "no_issuer" || got.GetNear()[0].GetCode() != "no_issuer" {
		t.Error(got, err)
	}
	if got, err = ask(&api.NodeExplainRequest{Workload: process("44")}); err != nil || !got.GetGranted() || got.GetDenial() != nil || len(got.GetNear()) > 0 {
		t.Error(got, err)
	}
	for range 20 {
		if _, err = ask(&api.NodeExplainRequest{Workload: process("33")}); err != nil {
			break
		}
	}
	wantCode(t, err, codes.ResourceExhausted)
	_, err = e.stranger().Explain(t.Context(), &api.NodeExplainRequest{Workload: process("33")})
	wantCode(t, err, codes.Unauthenticated)
	e.close()
	asked := 0
	for _, r := range e.records() {
		if r.Kind == "deny" && r.Detail["asked"] == "explain" {
			asked++
		}
	}
	if asked < 2 {
		t.Errorf("%d records of what the node asked", asked)
	}
	if strings.Contains(e.log.String(), "s3cret") {
		t.Errorf("the log tells of it:\n%s", e.log.String())
	}
}

// Facts may be secret: what a node sends of its workloads, good or bad, is not
// in the log at the level that is on by default.
func TestNoFactIsLogged(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	for _, value := range []string{"label-s3cret", "s3cret\x00", strings.Repeat("s3cret", 20000)} {
		w := process("33")
		w.Facts["workload.docker.labels.owner"] = &api.Values{Values: []string{value}}
		_, _ = n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: w}}})
		_, _ = n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: w, Audiences: []string{"none"}})
		_, _ = n.Explain(t.Context(), &api.NodeExplainRequest{Workload: w, Target: "none"})
	}
	e.close()
	if text := e.log.String(); strings.Contains(text, "s3cret") {
		t.Errorf("the log tells of facts:\n%.2000s", text)
	}
}
