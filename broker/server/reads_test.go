package server_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/server"
)

// spoken is the kind and code of each record.
func spoken(records []audit.Record) (all []string) {
	for _, r := range records {
		all = append(all, r.Kind+" "+r.Code)
	}
	return all
}

// reads are the records of what operators read, each with what was asked for.
func (e *env) reads() (all []string) {
	for _, r := range e.records() {
		if r.Kind == "admin" {
			text := r.Actor + " " + r.Code
			for _, name := range slices.Sorted(maps.Keys(r.Detail)) {
				text += " " + name + "=" + r.Detail[name]
			}
			all = append(all, text)
		}
	}
	return all
}

// Each RPC that is served at the admin socket either records what it does or is
// recorded as a call.
func TestWhatIsReadAtTheSocketIsRecorded(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.join("n1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, a := e.admin(), e.authorities()
	drain := func(stream interface {
		Recv() (*api.AuditRecord, error)
	}, err error) {
		t.Helper()
		for err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	for _, do := range []func(){
		func() { _, _ = c.Status(ctx, &api.StatusRequest{}) },
		func() { _, _ = c.Get(ctx, &api.GetRequest{Kind: "Identity", Name: "web"}) },
		func() { _, _ = c.Get(ctx, &api.GetRequest{Kind: "Identity", Name: "web"}) }, // counted
		func() { _, _ = c.Get(ctx, &api.GetRequest{Kind: "Identity", Name: strings.Repeat("x", 300)}) },
		func() { _, _ = c.ListNodes(ctx, &api.ListNodesRequest{Id: "n1"}) },
		func() {
			_, _ = c.Explain(ctx, &api.ExplainRequest{Node: "n1", Identity: "web", Facts: process("33").GetFacts()})
		},
		func() { _, _ = c.HashFact(ctx, &api.HashFactRequest{Name: "user.email", Value: "ana@example.org"}) },
		func() { _, _ = c.InspectTarget(ctx, &api.InspectTargetRequest{Target: "t1"}) },
		func() { _, _ = c.ListRevisions(ctx, &api.ListRevisionsRequest{Revision: 1}) },
		func() { _, _ = a.ListIssued(ctx, &api.ListIssuedRequest{Identity: "web"}) },
		func() { _, _ = c.CheckPeer(ctx, &api.CheckPeerRequest{TrustDomain: "partner.example"}) },
		func() { drain(c.QueryAudit(ctx, &api.QueryAuditRequest{Filter: &api.AuditFilter{Sequence: 2}})) },
		func() {
			for range 3 { // whenever it is asked
				drain(c.QueryAudit(ctx, &api.QueryAuditRequest{Filter: &api.AuditFilter{Node: "n1", Since: time.Now().UnixNano()}, Below: e.audit.Head().Sequence}))
			}
		},
		func() { drain(c.TailAudit(ctx, &api.TailAuditRequest{Last: 5})) },
		func() { drain(c.ExportAudit(ctx, &api.ExportAuditRequest{})) },
		func() { _, _ = e.tryApply(&api.ApplyRequest{Yaml: []byte(web), Owner: "shop", DryRun: true}) },
		func() { _, _ = c.Rollback(ctx, &api.RollbackRequest{Revision: 1, DryRun: true}) },
		func() { _, _ = a.AdvanceRoot(ctx, &api.AdvanceRootRequest{Look: true}) },
		// These say themselves what they do.
		func() { _, _ = c.Delete(ctx, &api.DeleteRequest{Kind: "Identity", Name: "web"}) },
		func() { _, _ = c.CreateToken(ctx, &api.CreateTokenRequest{Node: "n2"}) },
	} {
		do()
	}
	me := "uid:" + strconv.Itoa(os.Getuid()) + " "
	want := []string{
		me + "Status", me + "Get kind=Identity name=web", me + "Get kind=Identity name=" + strings.Repeat("x", 256), me + "ListNodes node=n1",
		me + "Explain identity=web node=n1", me + "HashFact fact=user.email", me + "InspectTarget target=t1", me + "ListRevisions revision=1",
		me + "ListIssued identity=web", me + "CheckPeer trust_domain=partner.example", me + "QueryAudit record=2", me + "QueryAudit node=n1",
		me + "TailAudit", me + "ExportAudit", me + "Apply owner=shop plan=true", me + "Rollback plan=true revision=1", me + "AdvanceRoot plan=true",
	}
	if d := cmp.Diff(want, e.reads()); d != "" {
		t.Error(d)
	}
	for method := range server.RecordsItself {
		if !slices.Contains(everyRPC(), method) {
			t.Errorf("%s is not served", method)
		}
		if server.Least[method] == server.Auditor {
			t.Errorf("%s is a read: it must be recorded", method)
		}
	}
}

// Who watches a broker does not fill its record: one at once, and a count.
func TestRepeatedReadsAreCounted(t *testing.T) {
	e := newEnv(t, withRoles)
	e.apply(staff("root"))
	remote := api.NewAdminClient(e.somebody("root"))
	before := len(e.records())
	for range 20 {
		for _, c := range []api.AdminClient{e.admin(), remote} {
			if _, err := c.Status(t.Context(), &api.StatusRequest{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := e.records()[before:]
	if d := cmp.Diff([]string{"admin Status", "admin Status"}, spoken(all)); d != "" {
		t.Fatal(d)
	}
	e.close()
	counts := e.records()[before+2:]
	if len(counts) != 2 {
		t.Fatalf("%+v", counts)
	}
	for i, r := range counts {
		if first := all[i]; r.Kind != "admin" || !r.OK || r.Count != 19 || r.Actor != first.Actor || r.Serial != first.Serial || r.Detail["repeats"] != first.Ref().ID() {
			t.Errorf("%+v repeats %+v", r, first)
		}
	}
}

// A tail tells of what was, and not of itself; who follows is not told of it either.
func TestATailDoesNotFeedItself(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.apply(target)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 3 {
		tail, err := e.admin().TailAudit(ctx, &api.TailAuditRequest{Last: 1})
		if d := cmp.Diff([]string{"apply t1"}, kindsOf(received(t, tail, err, -1))); d != "" {
			t.Error(d)
		}
	}
	followed, err := e.admin().TailAudit(ctx, &api.TailAuditRequest{Last: 2, Follow: true})
	if d := cmp.Diff([]string{"apply web", "apply t1"}, kindsOf(received(t, followed, err, 2))); d != "" {
		t.Error(d)
	}
	e.apply(peer)
	if d := cmp.Diff([]string{"apply partner.example"}, kindsOf(received(t, followed, nil, 1))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"apply ", "apply ", "admin TailAudit", "apply "}, spoken(e.records())); d != "" {
		t.Error(d)
	}
}

// While nothing can be recorded nothing is read, but how the broker does and what
// is public; and that is counted once something can be.
func TestReadsWithoutARecord(t *testing.T) {
	e := newEnv(t, withRoles)
	e.apply(staff("root"))
	remote := api.NewAdminClient(e.somebody("root"))
	files, err := filepath.Glob(filepath.Join(e.auditDir(), "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Rename(files[0], files[0]+".away"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []api.AdminClient{e.admin(), remote} {
		got, err := c.Get(t.Context(), &api.GetRequest{})
		wantCode(t, err, codes.Unavailable)
		if got != nil || !strings.Contains(err.Error(), "credence status") {
			t.Errorf("%v, %v", got, err)
		}
		tail, err := c.TailAudit(t.Context(), &api.TailAuditRequest{Last: 1})
		if err == nil {
			_, err = tail.Recv()
		}
		wantCode(t, err, codes.Unavailable)
		if _, err := c.Status(t.Context(), &api.StatusRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := c.VerifyAudit(t.Context(), &api.VerifyAuditRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := c.ListAuthorities(t.Context(), &api.ListAuthoritiesRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := c.ShowBundle(t.Context(), &api.ShowBundleRequest{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := e.authorities().ListCRLs(t.Context(), &api.ListCRLsRequest{}); err != nil {
		t.Error(err)
	}
	if err := os.Rename(files[0]+".away", files[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin().Get(t.Context(), &api.GetRequest{}); err != nil {
		t.Error(err)
	}
	e.close()
	counted := map[string]string{}
	for _, r := range e.records() {
		if r.Kind == "admin.unrecorded" {
			for what, n := range r.Detail {
				counted[what] += n
			}
		}
	}
	me := "uid:" + strconv.Itoa(os.Getuid()) + " "
	root := "spiffe://example.org/people/root "
	want := map[string]string{
		me + "Status": "1", me + "VerifyAudit": "1", me + "ListAuthorities": "1", me + "ShowBundle": "1", me + "ListCRLs": "1",
		root + "Status": "1", root + "VerifyAudit": "1", root + "ListAuthorities": "1", root + "ShowBundle": "1",
	}
	if d := cmp.Diff(want, counted); d != "" {
		t.Error(d)
	}
}

// A disk that stands still keeps nobody from seeing that it does.
func TestADiskThatStandsStill(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.apply(web)
	still := make(chan struct{})
	move := sync.OnceFunc(func() { close(still) })
	t.Cleanup(move)
	e.recording.Store(new(func() { <-still }))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if r, err := e.admin().Status(ctx, &api.StatusRequest{}); err != nil || r.GetTrustDomain() == "" {
		t.Errorf("%v, %v", r, err)
	}
	impatient, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if got, err := e.admin().Get(impatient, &api.GetRequest{}); err == nil {
		t.Errorf("it was read: %v", got)
	}
	move()
	e.close()
	if all := e.records(); !slices.ContainsFunc(all, func(r audit.Record) bool {
		return r.Kind == "admin.unrecorded" && r.Detail["uid:"+strconv.Itoa(os.Getuid())+" Status"] == "1"
	}) {
		t.Errorf("not counted: %v", spoken(all))
	}
}

// spares notes what is recorded that may wait while the disk is full.
type spares struct {
	broker.Recorder
	mu sync.Mutex
	of map[string]bool
}

func (s *spares) Append(ctx context.Context, events ...audit.Event) ([]audit.Ref, error) {
	s.mu.Lock()
	for _, e := range events {
		s.of[e.Code] = e.Spare
	}
	s.mu.Unlock()
	return s.Recorder.Append(ctx, events...)
}

// Of the room that is left on a full disk for what is granted, reads take nothing.
func TestReadsLeaveTheReserve(t *testing.T) {
	noted := &spares{of: map[string]bool{}}
	e := newEnv(t, func(e *env) {
		e.recorder = func(r broker.Recorder) broker.Recorder { noted.Recorder = r; return noted }
	})
	if _, err := e.admin().Get(t.Context(), &api.GetRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(web), DryRun: true}); err != nil {
		t.Fatal(err)
	}
	noted.mu.Lock()
	defer noted.mu.Unlock()
	if d := cmp.Diff(map[string]bool{"Get": true, "Apply": false}, noted.of); d != "" {
		t.Error(d)
	}
}
