package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/server"
)

const (
	target = "kind: Target\nname: t1\ncloud:\n  aud: sts\n"
	peer   = "kind: Peer\nname: partner.example\nurl: https://partner.example/bundle\nhttps_web: {}\n"
	linked = "kind: Identity\nname: linked\nspiffe_id: /linked\nmatch:\n  - node.name: n1\nfederates_with:\n  - partner.example\ntargets:\n  - t1\n"
)

func (e *env) tryApply(r *api.ApplyRequest) (*api.ApplyResponse, error) {
	e.t.Helper()
	return e.admin().Apply(e.t.Context(), r)
}

func (e *env) stands() []string {
	e.t.Helper()
	r, err := e.admin().Get(e.t.Context(), &api.GetRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	all := []string{}
	for _, one := range r.GetResources() {
		all = append(all, one.GetKind()+" "+one.GetName())
	}
	return all
}

func (e *env) wantStands(want ...string) {
	e.t.Helper()
	if d := cmp.Diff(append([]string{}, want...), e.stands()); d != "" {
		e.t.Errorf("what stands: %s", d)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	e := newEnv(t)
	for name, c := range map[string]struct{ yaml, says string }{
		"the second is malformed":    {web + "---\nkind: Deny\n", "test.yaml:7:1: name: is missing"},
		"the second names no target": {web + "---\n" + linked, `test.yaml:15:5: Identity linked: targets[0]: there is no Target "t1"`},
		"a Peer that is ours":        {web + "---\nkind: Peer\nname: example.org\nurl: https://example.org/b\nhttps_web: {}\n", "test.yaml:7:1: Peer example.org: peer example.org"},
		"a method that is not built": {web + "---\nkind: JoinRule\nname: r\ntpm: {}\nallow: [{node.tpm.ek: a}]\n", `"tpm" is neither a field of a JoinRule nor a join method that this program has (fake, kubernetes)`},
		"a flow that is not built":   {web + "---\nkind: Target\nname: t\noauth: {}\n", `"oauth" is neither a field of a Target nor a flow that this program has (cloud, mtls)`},
		"a reserved path":            {strings.ReplaceAll(web, "/web", "/credence/broker"), "/credence/"},
		"nothing":                    {"", "no resource"},
		"too much":                   {strings.Repeat("#", 4<<20+1), "apply them in parts"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(c.yaml), File: "test.yaml"})
			if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, c.says) {
				t.Errorf("it says %q", text)
			}
			e.wantStands()
		})
	}
	for _, r := range e.records() {
		if r.Kind == "apply" {
			t.Errorf("what was refused stands in the record: %+v", r)
		}
	}
}

func TestGetGivesBackWhatApplyTakes(t *testing.T) {
	e := newEnv(t)
	first := e.apply(strings.Join([]string{web, target, peer, linked, fakeRule, "kind: Deny\nname: d1\nmatch: [{node.name: bad}]\n"}, "---\n"))
	for _, a := range first.GetApplied() {
		if a.GetAction() != "created" || len(a.GetBefore()) > 0 {
			t.Errorf("%s %s was %s", a.GetKind(), a.GetName(), a.GetAction())
		}
	}
	get := func() (text []byte, revision uint64) {
		r, err := e.admin().Get(t.Context(), &api.GetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range r.GetResources() {
			text = append(append(text, "---\n"...), one.GetYaml()...)
			revision = max(revision, one.GetRevision())
			if one.GetOwner() != "default" || one.GetActor() != fmt.Sprintf("uid:%d", os.Getuid()) || one.GetWrittenAt() == 0 {
				t.Errorf("%s %s is of %s, by %s", one.GetKind(), one.GetName(), one.GetOwner(), one.GetActor())
			}
		}
		return text, revision
	}
	text, revision := get()
	second := e.apply(string(text))
	for _, a := range second.GetApplied() {
		if a.GetAction() != "unchanged" || !bytes.Equal(a.GetBefore(), a.GetAfter()) {
			t.Errorf("%s %s was %s: %s", a.GetKind(), a.GetName(), a.GetAction(), cmp.Diff(string(a.GetBefore()), string(a.GetAfter())))
		}
	}
	again, same := get()
	if d := cmp.Diff(string(text), string(again)); d != "" || same != revision || second.GetRevision() != revision {
		t.Errorf("revisions %d, %d and %d; %s", revision, same, second.GetRevision(), d)
	}
	one, err := e.admin().Get(t.Context(), &api.GetRequest{Kind: "identity", Name: "web"})
	if err != nil || len(one.GetResources()) != 1 {
		t.Errorf("get identity web: %v, %v", one, err)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	e := newEnv(t)
	e.apply(target)
	r, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(web + "---\n" + strings.Replace(target, "sts", "other", 1)), DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, a := range r.GetApplied() {
		actions = append(actions, a.GetName()+" "+a.GetAction())
	}
	if d := cmp.Diff([]string{"web created", "t1 changed"}, actions); d != "" {
		t.Error(d)
	}
	e.wantStands("Target t1")
	if d := cmp.Diff([]string{"apply ", "admin Apply", "admin Get"}, spoken(e.records())); d != "" {
		t.Error(d)
	}
	_, err = e.tryApply(&api.ApplyRequest{Yaml: []byte(linked), DryRun: true})
	wantCode(t, err, codes.InvalidArgument)
}

// Regression: CVE-2026-40264
func TestAnOwnerTouchesOnlyItsOwn(t *testing.T) {
	e := newEnv(t)
	e.apply(target)
	other := strings.Replace(target, "sts", "other", 1)
	_, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(other), Owner: "ci"})
	if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, `belongs to owner "default"`) {
		t.Error(text)
	}
	_, err = e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Target", Name: "t1", Owner: "ci"})
	wantCode(t, err, codes.InvalidArgument)
	for _, owner := range []string{"a b", "../x", strings.Repeat("a", 64)} {
		_, err = e.tryApply(&api.ApplyRequest{Yaml: []byte(web), Owner: owner})
		wantCode(t, err, codes.InvalidArgument)
		_, err = e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Target", Name: "t1", Owner: owner})
		wantCode(t, err, codes.InvalidArgument)
	}
	e.wantStands("Target t1")
}

func TestWhatIsNamedIsNotDeleted(t *testing.T) {
	e := newEnv(t)
	e.apply(strings.Join([]string{target, peer, linked}, "---\n"))
	remove := func(kind, name string) error {
		_, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: kind, Name: name})
		return err
	}
	for kind, name := range map[string]string{"Target": "t1", "peer": "partner.example"} {
		if text := wantCode(t, remove(kind, name), codes.InvalidArgument); !strings.Contains(text, "Identity linked") {
			t.Error(text)
		}
	}
	wantCode(t, remove("Identity", "nobody"), codes.NotFound)
	wantCode(t, remove("Nothing", "nobody"), codes.NotFound)
	e.wantStands("Identity linked", "Peer partner.example", "Target t1")
	for _, one := range [][2]string{{"Identity", "linked"}, {"Target", "t1"}, {"peer", "partner.example"}} {
		if err := remove(one[0], one[1]); err != nil {
			t.Error(err)
		}
	}
	e.wantStands()
	wantCode(t, remove("Target", "t1"), codes.NotFound)
}

func TestTokensAreBoundedAndKeptAsAHash(t *testing.T) {
	e := newEnv(t)
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint("l", i)] = "a"
	}
	for name, r := range map[string]*api.CreateTokenRequest{
		"no node":           {},
		"a node of a path":  {Node: "a/b"},
		"a node of dots":    {Node: ".."},
		"a long node":       {Node: strings.Repeat("a", 64)},
		"a life before now": {Node: "n", Ttl: -1},
		"a long life":       {Node: "n", Ttl: 3601},
		"an endless life":   {Node: "n", Ttl: 1 << 62},
		"17 labels":         {Node: "n", Labels: many},
		"an empty label":    {Node: "n", Labels: map[string]string{"a": ""}},
		"a label of braces": {Node: "n", Labels: map[string]string{"{a}": "b"}},
		"a long label":      {Node: "n", Labels: map[string]string{"a": strings.Repeat("b", 257)}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.admin().CreateToken(t.Context(), r)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
	if n := len(e.records()); n != 0 {
		t.Errorf("%d records of what was refused", n)
	}
	r, err := e.admin().CreateToken(t.Context(), &api.CreateTokenRequest{Node: "n1", Ttl: 3600})
	if err != nil {
		t.Fatal(err)
	}
	if r.GetCaPin() != e.authority.Pin() || r.GetAgentsAddress() != e.config.AgentsAddress || r.GetTrustDomain() != "example.org" || r.GetExpires() == 0 {
		t.Errorf("what goes into agent.yaml: %v", r)
	}
	e.join("n2") // one that is spent
	e.close()
	secret := []byte(strings.TrimPrefix(r.GetToken(), "cjt_"))
	err = filepath.WalkDir(e.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, secret) {
			t.Errorf("the token stands in %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	wantSilence(t, e.log.String(), string(secret), "cjt_")
}

func TestWhatCannotBeRecordedIsNotDone(t *testing.T) {
	e := newEnv(t)
	e.apply(target)
	n := e.join("n1")
	if err := e.audit.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(web)}); err == nil || !strings.Contains(err.Error(), "recording") {
		t.Errorf("apply: %v", err)
	}
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Target", Name: "t1"}); err == nil {
		t.Error("a delete without a record")
	}
	if r, err := e.admin().CreateToken(t.Context(), &api.CreateTokenRequest{Node: "n1"}); err == nil {
		t.Errorf("a token without a record: %v", r)
	}
	if n := e.server.Overview().Identities; n != 0 {
		t.Errorf("%d identities are in force", n)
	}
	rows, _, err := e.store.Resources(t.Context())
	if err != nil || len(rows) != 1 {
		t.Errorf("the store holds %v, %v", rows, err)
	}
	// An eviction is done first: it only takes away.
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: n.id}); err == nil || !strings.Contains(err.Error(), "it is out") {
		t.Errorf("eviction: %v", err)
	}
	wantRefusals(t, n, true)
}

func TestAdministrativeActsStandInTheRecord(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.join("n1")
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n1", Reason: "lost"}); err != nil {
		t.Fatal(err)
	}
	_, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "nobody"})
	wantCode(t, err, codes.NotFound)
	_, err = e.admin().AllowNode(t.Context(), &api.AllowNodeRequest{Id: "nobody"})
	wantCode(t, err, codes.NotFound)
	if _, err := e.admin().AllowNode(t.Context(), &api.AllowNodeRequest{Id: "n1", Reason: "found"}); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, r := range e.records() {
		kinds = append(kinds, r.Kind)
		if r.Kind != "join" && r.Actor != fmt.Sprintf("uid:%d", os.Getuid()) {
			t.Errorf("%s was done by %q", r.Kind, r.Actor)
		}
	}
	if d := cmp.Diff([]string{"apply", "token", "join", "delete", "evict", "allow"}, kinds); d != "" {
		t.Error(d)
	}
}

func TestExplainSaysWhyAndWhatIsMissing(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	explain := func(r *api.ExplainRequest) *api.ExplainResponse {
		t.Helper()
		got, err := e.admin().Explain(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, id := range []string{n.id, "n1"} {
		if got := explain(&api.ExplainRequest{Node: id, Facts: process("33").GetFacts()}); !got.GetGranted() || !strings.Contains(got.GetText(), "/web") || !json.Valid(got.GetJson()) {
			t.Errorf("explained: %v", got)
		}
	}
	if got := explain(&api.ExplainRequest{Node: "n1", Facts: process("34").GetFacts()}); got.GetGranted() || !strings.Contains(got.GetText(), "workload.unix.uid") {
		t.Errorf("the nearest miss: %v", got)
	}
	_, err := e.admin().Explain(t.Context(), &api.ExplainRequest{Node: "n2"})
	wantCode(t, err, codes.NotFound)
	// A node that joined says by itself what it is.
	_, err = e.admin().Explain(t.Context(), &api.ExplainRequest{Node: "n1", Facts: map[string]*api.Values{"node.name": {Values: []string{"n1"}}}})
	wantCode(t, err, codes.InvalidArgument)
}

func TestBundlesAreShown(t *testing.T) {
	e := newEnv(t)
	for _, name := range []string{"", "example.org"} {
		r, err := e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: name})
		own, _ := e.authority.Document()
		if err != nil || r.GetTrustDomain() != "example.org" || !bytes.Equal(r.GetDocument(), own) {
			t.Errorf("our own: %v, %v", r, err)
		}
	}
	_, err := e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: "partner.example"})
	wantCode(t, err, codes.NotFound)
	_, err = e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: "spiffe://x/y"})
	wantCode(t, err, codes.InvalidArgument)

	applied := e.apply(peer) // nobody answers there yet
	if w := strings.Join(applied.GetWarnings(), "\n"); !strings.Contains(w, "nobody answers") {
		t.Errorf("warnings: %s", w)
	}
	r, err := e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: "partner.example"})
	if err != nil || len(r.GetDocument()) > 0 || !strings.Contains(r.GetLastError(), "nobody answers") {
		t.Errorf("a peer that was not reached: %v, %v", r, err)
	}
	_, root := foreignSVID(t, "spiffe://partner.example/a")
	e.peers.set("https://partner.example/bundle", bundleOf(t, root))
	if err := e.config.Peers.Refresh(t.Context(), partner); err != nil {
		t.Fatal(err)
	}
	r, err = e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: "partner.example"})
	if err != nil || !bytes.Equal(r.GetDocument(), bundleOf(t, root)) || r.GetConfirmedAt() == 0 || r.GetLastError() != "" {
		t.Errorf("a peer: %v, %v", r, err)
	}
}

func TestTheRecordIsTailedAndVerified(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.apply(target)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	read := func(r *api.TailAuditRequest, want int) (names []string) {
		t.Helper()
		stream, err := e.admin().TailAudit(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for len(names) < want {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var record audit.Record
			if err := json.Unmarshal(m.GetJson(), &record); err != nil {
				t.Fatal(err)
			}
			if names = append(names, record.Detail["name"]); len(names) == 1 && r.GetFollow() {
				e.apply(peer)
			}
		}
		if r.GetFollow() {
			return names
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("after the last: %v", err)
		}
		return names
	}
	if d := cmp.Diff([]string{"t1"}, read(&api.TailAuditRequest{Last: 1}, 1)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"web", "t1"}, read(&api.TailAuditRequest{Last: 1 << 31}, 2)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"t1", "partner.example"}, read(&api.TailAuditRequest{Last: 1, Follow: true}, 2)); d != "" {
		t.Error(d)
	}
	v, err := e.admin().VerifyAudit(ctx, &api.VerifyAuditRequest{})
	head := e.audit.Head()
	if err != nil || v.GetProblem() != "" || v.GetRecords() != head.Sequence || v.GetSequence() != head.Sequence || !bytes.Equal(v.GetHead(), head.Hash[:]) {
		t.Errorf("verified: %v, %v", v, err)
	}
	files, err := filepath.Glob(filepath.Join(e.auditDir(), "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], bytes.Replace(text, []byte(`"name":"web"`), []byte(`"name":"wob"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := e.admin().VerifyAudit(ctx, &api.VerifyAuditRequest{}); err != nil || v.GetProblem() == "" {
		t.Errorf("a changed record: %v, %v", v, err)
	}
}

func TestAFollowerDoesNotHoldUpTheEnd(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	stream, err := e.admin().TailAudit(t.Context(), &api.TailAuditRequest{Last: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	e.close()
	if took := time.Since(begun); took > 1500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}

func TestConcurrentAppliesAreOneAfterAnother(t *testing.T) {
	e := newEnv(t)
	client := e.admin()
	var applying sync.WaitGroup
	for i := range 16 {
		applying.Go(func() {
			yaml := fmt.Sprintf("kind: Target\nname: t%d\ncloud: {aud: a}\n---\nkind: Target\nname: shared\ncloud: {aud: a%d}\n", i, i)
			if _, err := client.Apply(t.Context(), &api.ApplyRequest{Yaml: []byte(yaml)}); err != nil {
				t.Error(err)
			}
		})
	}
	applying.Wait()
	if n := len(e.stands()); n != 17 {
		t.Errorf("%d resources stand", n)
	}
}

func TestTheBrokerComesBackWithWhatItHeld(t *testing.T) {
	e := newEnv(t)
	e.apply(strings.Join([]string{web, target, peer}, "---\n"))
	n := e.join("n1")
	pin := e.authority.Pin()
	e.close()
	e.listen()
	e.open()
	e.run()
	e.wantStands("Identity web", "Peer partner.example", "Target t1")
	if e.authority.Pin() != pin {
		t.Error("the anchor is another one")
	}
	again := api.NewNodeClient(e.dial(n.cert))
	n.NodeClient = again
	if got, _, err := n.issue(t.Context(), t, "33"); err != nil || len(got.GetSvids()) != 1 {
		t.Errorf("it got %v, %v", got, err)
	}
	s, err := e.admin().Status(t.Context(), &api.StatusRequest{})
	if err != nil || s.GetIdentities() != 1 || s.GetNodes() != 1 || s.GetProblem() != "" || s.GetIssuer() != e.issuer || s.GetRevision() == 0 {
		t.Errorf("status %v, %v", s, err)
	}
	if a, err := e.admin().ListAuthorities(t.Context(), &api.ListAuthoritiesRequest{}); err != nil || len(a.GetAuthorities()) < 2 {
		t.Errorf("authorities %v, %v", a, err)
	}
}

// Regression: Dex #4927
func TestAServerIsNotMadeWithADoorOpen(t *testing.T) {
	e := newEnv(t)
	open := e.config
	open.AdminCredentials = nil
	if _, err := server.New(t.Context(), open); err == nil || !strings.Contains(err.Error(), "AdminCredentials") {
		t.Errorf("a server whose admin socket lets everybody in: %v", err)
	}
	bare := e.config
	bare.WebCertificate = nil
	s, err := server.New(t.Context(), bare)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), server.Listeners{Agents: e.listeners.Agents, Admin: e.listeners.Admin, Web: e.listeners.Web}); err == nil {
		t.Error("a web listener without a certificate was served")
	}
}
