package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/store"
)

const deny = "kind: Deny\nname: incident\nmatch: [{node.name: n1}]\nspiffe_ids: [/web]\n"

// A watch is a node's open stream.
type watch struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[api.WatchRequest, api.WatchResponse]
}

func (n *node) watch(t testing.TB) (watch, *api.WatchResponse) {
	t.Helper()
	return n.watchFor(t, 2*time.Minute)
}

// watchFor is a watch that ends after that long at the latest.
func (n *node) watchFor(t testing.TB, long time.Duration) (watch, *api.WatchResponse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	t.Cleanup(cancel)
	stream, err := n.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}}); err != nil {
		t.Fatal(err)
	}
	w := watch{t, stream}
	return w, w.next()
}

func (w watch) next() *api.WatchResponse {
	w.t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// until reads on to the first message that is wanted.
func (w watch) until(wanted func(*api.WatchResponse) bool) *api.WatchResponse {
	w.t.Helper()
	for {
		if m := w.next(); wanted(m) {
			return m
		}
	}
}

func changed(m *api.WatchResponse) bool { return len(m.GetChanges()) > 0 }

func setOf(uid string) []byte {
	sum := api.WorkloadDigest(process(uid))
	return sum[:]
}

// serve joins n1, opens its stream and issues to the process of uid 33.
func (e *env) serve() (*node, watch) {
	e.t.Helper()
	e.apply(web)
	n := e.join("n1")
	w, _ := n.watch(e.t)
	if got, _, err := n.issue(e.t.Context(), e.t, "33"); err != nil || len(got.GetSvids()) != 1 {
		e.t.Fatal(got, err)
	}
	return n, w
}

func TestAWatchBeginsWithEverything(t *testing.T) {
	e := newEnv(t)
	_, root := foreignSVID(t, "spiffe://partner.example/a")
	e.peers.set("https://partner.example/bundle", bundleOf(t, root))
	e.apply(peer)
	e.apply(strings.Replace(web, "workload.unix.uid: 33", "workload.unix.uid: 33, workload.unix.sha256: abc", 1))
	n := e.join("n1")
	w, first := n.watch(t)
	own, _ := e.authority.Document()
	got := map[string][]byte{}
	for _, b := range first.GetBundles() {
		got[b.GetTrustDomain()] = b.GetDocument()
	}
	if len(got) != 2 || !bytes.Equal(got["example.org"], own) || !bytes.Equal(got["partner.example"], bundleOf(t, root)) {
		t.Errorf("bundles %s", got)
	}
	if !first.GetWantedSet() || !slices.Contains(first.GetWantedFacts(), "workload.unix.sha256") {
		t.Errorf("wanted facts %v", first.GetWantedFacts())
	}
	head := e.audit.Head()
	if first.GetRevision() == 0 || first.GetPolicyRevision() == 0 || !bytes.Equal(first.GetAuditHead(), head.Hash[:]) {
		t.Errorf("revisions %d, %d, head %x", first.GetRevision(), first.GetPolicyRevision(), first.GetAuditHead())
	}

	e.apply(web) // the hash is wanted no more
	if m := w.until((*api.WatchResponse).GetWantedSet); slices.Contains(m.GetWantedFacts(), "workload.unix.sha256") {
		t.Errorf("still wanted: %v", m.GetWantedFacts())
	}
	_, other := foreignSVID(t, "spiffe://partner.example/a")
	e.peers.set("https://partner.example/bundle", bundleOf(t, root, other))
	if err := e.config.Peers.Refresh(t.Context(), partner); err != nil {
		t.Fatal(err)
	}
	m := w.until(func(m *api.WatchResponse) bool { return len(m.GetBundles()) > 0 })
	if len(m.GetBundles()) != 1 || !bytes.Equal(m.GetBundles()[0].GetDocument(), bundleOf(t, root, other)) {
		t.Errorf("bundles %v", m.GetBundles())
	}
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Peer", Name: "partner.example"}); err != nil {
		t.Fatal(err)
	}
	m = w.until(func(m *api.WatchResponse) bool { return len(m.GetRemoved()) > 0 })
	if !slices.Equal(m.GetRemoved(), []string{"partner.example"}) {
		t.Errorf("removed %v", m.GetRemoved())
	}
}

func TestChangesOfPolicyReachAnOpenStream(t *testing.T) {
	e := newEnv(t)
	n, w := e.serve()
	want := func(what string, erase bool) {
		t.Helper()
		m := w.until(changed)
		if len(m.GetChanges()) != 1 || m.GetChanges()[0].GetErase() != erase || !bytes.Equal(m.GetChanges()[0].GetSet(), setOf("33")) {
			t.Fatalf("%s: %v", what, m.GetChanges())
		}
	}
	again := func() {
		t.Helper()
		if got, _, err := n.issue(t.Context(), t, "33"); err != nil || len(got.GetSvids()) != 1 {
			t.Fatal(got, err)
		}
	}
	e.apply(web + "x509: {ttl: 2m}\n")
	want("a change", false)
	again()
	e.apply(deny)
	want("a Deny", true)
	if got, _, err := n.issue(t.Context(), t, "33"); err != nil || got.GetDenial() == nil {
		t.Errorf("under a Deny: %v, %v", got, err)
	}
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Deny", Name: "incident"}); err != nil {
		t.Fatal(err)
	}
	again()
	e.apply("kind: Target\nname: elsewhere\ncloud: {aud: a}\n") // nothing to do with it
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	want("a removal", true)
}

func TestAnEvictionEndsTheStream(t *testing.T) {
	e := newEnv(t)
	n, w := e.serve()
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: n.id}); err != nil {
		t.Fatal(err)
	}
	m := w.until(changed)
	if len(m.GetChanges()) != 1 || !m.GetChanges()[0].GetErase() || len(m.GetChanges()[0].GetSet()) > 0 {
		t.Errorf("changes %v", m.GetChanges())
	}
	_, err := w.stream.Recv()
	wantCode(t, err, codes.PermissionDenied)
}

func TestANodeWatchesAFewTimesAtMost(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	for range 8 {
		n.watch(t)
	}
	stream, err := n.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, err, codes.ResourceExhausted)
	e.join("n2").watch(t) // another node is not held to it
}

func TestAWatchBeginsWithSince(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	stream, err := n.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: 1}}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, err, codes.InvalidArgument)
}

func TestAcknowledgementsAreListed(t *testing.T) {
	e := newEnv(t)
	n, w := e.serve()
	if err := w.stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: 7}}); err != nil {
		t.Fatal(err)
	}
	admin := e.admin()
	for late := time.Now().Add(time.Minute); ; {
		r, err := admin.ListNodes(t.Context(), &api.ListNodesRequest{Id: n.id})
		if err != nil || len(r.GetNodes()) != 1 || !r.GetNodes()[0].GetConnected() {
			t.Fatal(r, err)
		}
		if r.GetNodes()[0].GetAcknowledged() == 7 {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("what it acknowledged is not listed: %v", r)
		}
	}
	if r, err := e.admin().ListNodes(t.Context(), &api.ListNodesRequest{Id: "other"}); err != nil || len(r.GetNodes()) > 0 {
		t.Errorf("another: %v, %v", r, err)
	}
}

func TestErasuresAreNeverPaced(t *testing.T) {
	e := newEnv(t)
	e.apply(strings.Replace(web, "33", `"*"`, 1))
	n := e.join("n1")
	w, _ := n.watch(t)
	const sets = 320
	for from := 0; from < sets; from += 64 {
		r := &api.IssueX509Request{}
		for i := range 64 {
			r.Items = append(r.Items, &api.IssueX509Request_Item{Workload: process(fmt.Sprint(from + i))})
		}
		if _, err := n.IssueX509(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	e.apply(strings.Replace(web, "33", `"*"`, 1) + "hint: other\n")
	if m := w.until(changed); len(m.GetChanges()) > sets/10 {
		t.Errorf("%d renewals at once", len(m.GetChanges()))
	}
	e.apply(deny)
	m := w.until(func(m *api.WatchResponse) bool { return slices.ContainsFunc(m.GetChanges(), (*api.Change).GetErase) })
	erased := 0
	for i, c := range m.GetChanges() {
		if c.GetErase() {
			erased++
			if i >= erased {
				t.Fatal("an erasure stands behind a renewal")
			}
		}
	}
	if erased != sets {
		t.Errorf("%d were erased at once", erased)
	}
}

// Another writer got in between: what it wrote comes into force, though the
// apply that met it failed.
func TestAConflictIsMended(t *testing.T) {
	e := newEnv(t)
	_, w := e.serve()
	_, last, err := e.store.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.store.Apply(t.Context(), last, store.Act{Actor: "another"}, []store.Change{{Kind: "Deny", Name: "incident", Owner: "default", Body: []byte(deny)}}); err != nil {
		t.Fatal(err)
	}
	_, err = e.tryApply(&api.ApplyRequest{Yaml: []byte(target)})
	wantCode(t, err, codes.FailedPrecondition)
	if m := w.until(changed); !m.GetChanges()[0].GetErase() { // by itself
		t.Errorf("changes %v", m.GetChanges())
	}
	e.apply(target)
	e.wantStands("Deny incident", "Identity web", "Target t1")
	var acts []string
	for _, r := range e.records() {
		if r.Detail["name"] == "t1" {
			acts = append(acts, fmt.Sprint(r.Kind, " ", r.OK))
		}
	}
	if want := []string{"apply true", "apply false", "apply true"}; !slices.Equal(acts, want) {
		t.Errorf("recorded: %v, wanted %v", acts, want)
	}
}

// The operator hung up after the act was recorded.
func TestWhatIsRecordedIsDoneThoughTheCallerLeft(t *testing.T) {
	e := newEnv(t)
	_, w := e.serve()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	e.leaving.Store(&hangUp)
	_, err := e.admin().Apply(ctx, &api.ApplyRequest{Yaml: []byte(deny)})
	wantCode(t, err, codes.Canceled)
	if m := w.until(changed); !m.GetChanges()[0].GetErase() {
		t.Errorf("changes %v", m.GetChanges())
	}
	e.wantStands("Deny incident", "Identity web")
}

func TestStreamsEndWithTheBroker(t *testing.T) {
	e := newEnv(t)
	_, w := e.serve()
	begun := time.Now()
	e.close()
	if took := time.Since(begun); took > 1500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
	for {
		if _, err := w.stream.Recv(); err != nil {
			wantCode(t, err, codes.Unavailable)
			return
		}
	}
}
