package server_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/kubernetes"
	"github.com/credence-id/credence/broker/join/kubernetes/clustertest"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const forWorkloads = "credence://example.org/workload"

// withClusters lets pods join, and show proofs of their workloads.
func withClusters(e *env) { e.clusters = map[uint64]*kubernetes.Cluster{} }

// cluster is the method of a rule.
func (e *env) cluster(revision uint64, s *kubernetes.Settings) (join.Method, error) {
	e.building.Lock()
	defer e.building.Unlock()
	if c := e.clusters[revision]; c != nil {
		return c, nil
	}
	c, err := kubernetes.New(kubernetes.Config{
		Settings: s, Audience: "credence://example.org/join", Spend: e.store.SpendEvidenceFor, Now: e.now,
		Spent: func(err error) bool { return errors.Is(err, broker.ErrSpent) },
	})
	e.clusters[revision] = c
	return c, err
}

func (e *env) pod(ctx context.Context, rules []join.Rule, cluster string, token []byte) (server.Pod, error) {
	p, err := kubernetes.PodOf(ctx, rules, cluster, e.methodOf, token, forWorkloads)
	return server.Pod(p), err
}

// The agent's pod, and one beside it on its machine.
var (
	agentPod = clustertest.Pod{
		Namespace: "credence", Account: "agent", AccountUID: "11111111-1111-4111-8111-111111111111",
		Name: "agent-x7k2p", UID: "22222222-2222-4222-8222-222222222222", Node: "machine-1", NodeUID: "33333333-3333-4333-8333-333333333333",
	}
	shopPod = clustertest.Pod{
		Namespace: "shop", Account: "checkout", AccountUID: "44444444-4444-4444-8444-444444444444",
		Name: "checkout-0", UID: "55555555-5555-4555-8555-555555555555", Node: "machine-1", NodeUID: "33333333-3333-4333-8333-333333333333",
	}
)

// A shop is a broker, a cluster, and an agent in it.
type shop struct {
	*env
	*clustertest.Cluster
	agent *node
}

func newShop(t *testing.T, changes ...func(*env)) *shop {
	t.Helper()
	s := &shop{env: newEnv(t, append(changes, withClusters)...)}
	s.Cluster = clustertest.New(t, "prod", s.now)
	s.Start(agentPod)
	s.Start(shopPod)
	s.apply(s.rule("prod", "prod") + `---
kind: Identity
name: any
spiffe_id: /any
match: [{node.kubernetes.cluster: prod, workload.kubernetes.namespace: shop}, {node.name: n1, workload.kubernetes.namespace: shop}]
jwt: {audiences: [orders]}
---
kind: Identity
name: proven
spiffe_id: /proven
match: [{node.kubernetes.cluster: prod, workload.kubernetes.proven: "true"}, {node.name: n1, workload.kubernetes.proven: "true"}]
jwt: {audiences: [orders]}
---
kind: Deny
name: unproven
match: [{workload.kubernetes.proven: "no", node.kubernetes.cluster: prod}]
reason: holds where it is not known
`)
	s.agent = s.joinPod(agentPod)
	return s
}

func (s *shop) rule(name, cluster string) string {
	return fmt.Sprintf("kind: JoinRule\nname: %s\nkubernetes: {cluster: %s, token_review: {url: %q, ca: %q, token_file: %s}}\nallow: [{node.kubernetes.namespace: credence}]\n",
		name, cluster, s.URL, s.CA, s.TokenFile)
}

func (s *shop) joinPod(p clustertest.Pod) *node {
	s.t.Helper()
	key := newKey(s.t)
	got, err := joinOnce(s.t.Context(), s.stranger(), &api.JoinRequest_Start{
		Method: "kubernetes", Rule: "prod", Evidence: []byte(s.Cluster.Token(p, "credence://example.org/join")), PublicKey: spki(s.t, key.Public()),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.node(got, key)
}

// of is what an agent attests of a process of a pod.
func of(p clustertest.Pod, token string) *api.Workload {
	w := &api.Workload{Facts: map[string]*api.Values{}}
	for name, value := range map[string]string{"namespace": p.Namespace, "service_account": p.Account, "pod": p.Name, "pod_uid": p.UID} {
		w.Facts["workload.kubernetes."+name] = &api.Values{Values: []string{value}}
	}
	if token != "" {
		w.Proofs = map[string][]byte{"kubernetes": []byte(token)}
	}
	return w
}

// ids are what workloads get on a node, each its own.
func (s *shop) ids(n *node, all ...*api.Workload) (got [][]string) {
	s.t.Helper()
	r := &api.IssueX509Request{}
	for _, w := range all {
		r.Items = append(r.Items, &api.IssueX509Request_Item{Workload: w, PublicKeys: [][]byte{spki(s.t, newKey(s.t).Public()), spki(s.t, newKey(s.t).Public())}})
	}
	answer, err := n.IssueX509(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, result := range answer.GetResults() {
		ids := []string{}
		for _, v := range result.GetSvids() {
			ids = append(ids, strings.TrimPrefix(v.GetSpiffeId(), "spiffe://example.org"))
		}
		got = append(got, ids)
	}
	return got
}

// What a workload gets by what became of its proof.
var (
	isProven  = []string{"/any", "/proven"}
	isAbsent  = []string{"/any"}
	isUnknown = []string{}
	nothing   = []string{} // it is not of the shop either
)

func TestProofs(t *testing.T) {
	changed := func(change func(*clustertest.Pod)) clustertest.Pod {
		p := shopPod
		change(&p)
		return p
	}
	s := newShop(t)
	elsewhere := clustertest.New(t, "staging", s.now)
	elsewhere.Rotate("prod-1", issuertest.NewRSA(2048))
	started := func(p clustertest.Pod) string { s.Start(p); return s.Cluster.Token(p, forWorkloads) }
	other := changed(func(p *clustertest.Pod) { p.Name, p.UID = "checkout-1", "66666666-6666-4666-8666-666666666666" })
	claims := func(with map[string]any) string {
		return s.Sign(issuertest.With(s.Claims(shopPod, forWorkloads), with))
	}
	later := changed(func(p *clustertest.Pod) { p.UID = "77777777-7777-4777-8777-777777777777" })
	for name, row := range map[string]struct {
		workload *api.Workload
		want     []string
	}{
		"an honest one":         {of(shopPod, s.Cluster.Token(shopPod, forWorkloads)), isProven},
		"none":                  {of(shopPod, ""), isAbsent},
		"waste":                 {of(shopPod, "waste"), isAbsent},
		"a token for joins":     {of(shopPod, s.Cluster.Token(shopPod, "credence://example.org/join")), isAbsent},
		"for the API server":    {of(shopPod, s.Cluster.Token(shopPod, "https://kubernetes.default.svc")), isAbsent},
		"for another domain":    {of(shopPod, s.Cluster.Token(shopPod, "credence://example.com/workload")), isAbsent},
		"for several":           {of(shopPod, claims(map[string]any{"aud": []string{forWorkloads, "x"}})), isAbsent},
		"another pod's":         {of(shopPod, started(other)), isAbsent},
		"a later pod's":         {of(shopPod, started(later)), isAbsent},
		"another namespace's":   {of(changed(func(p *clustertest.Pod) { p.Namespace = "till" }), s.Cluster.Token(shopPod, forWorkloads)), nothing},
		"another account's":     {of(changed(func(p *clustertest.Pod) { p.Account = "admin" }), s.Cluster.Token(shopPod, forWorkloads)), isAbsent},
		"of another name":       {of(changed(func(p *clustertest.Pod) { p.Name = "admin-0" }), s.Cluster.Token(shopPod, forWorkloads)), isAbsent},
		"of another machine":    {of(shopPod, started(changed(func(p *clustertest.Pod) { p.Node = "machine-2" }))), isAbsent},
		"of a machine's later":  {of(shopPod, started(changed(func(p *clustertest.Pod) { p.NodeUID = agentPod.UID }))), isAbsent},
		"of no machine":         {of(shopPod, started(changed(func(p *clustertest.Pod) { p.Node, p.NodeUID = "", "" }))), isProven},
		"bound to no pod":       {of(shopPod, started(changed(func(p *clustertest.Pod) { p.Name, p.UID = "", "" }))), isAbsent},
		"ended":                 {of(shopPod, claims(map[string]any{"exp": s.now().Add(-2 * time.Minute).Unix()})), isAbsent},
		"too old":               {of(shopPod, claims(map[string]any{"iat": s.now().Add(-2 * time.Hour).Unix()})), isAbsent},
		"another cluster's":     {of(shopPod, elsewhere.Sign(issuertest.With(elsewhere.Claims(shopPod, forWorkloads), map[string]any{"iss": s.Issuer}))), isAbsent},
		"of one who has no pod": {&api.Workload{Facts: map[string]*api.Values{"workload.kubernetes.namespace": {Values: []string{"shop"}}}, Proofs: of(shopPod, s.Cluster.Token(shopPod, forWorkloads)).Proofs}, isAbsent},
		"of one not known":      {unknownPod(of(shopPod, s.Cluster.Token(shopPod, forWorkloads)), "workload.kubernetes.proven"), isUnknown},
		"of a pod that is over": {of(later, func() string {
			p := later
			p.UID = "88888888-8888-4888-8888-888888888888"
			return s.Cluster.Token(p, forWorkloads)
		}()), isAbsent},
		"of two facts of a kind": {twice(of(shopPod, s.Cluster.Token(shopPod, forWorkloads))), isAbsent},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff([][]string{row.want}, s.ids(s.agent, row.workload)); d != "" {
				t.Error(d)
			}
		})
	}
	for _, w := range []string{"audience", "it is of another"} {
		if line := s.log.line(w); !strings.Contains(line, "level=WARN") || !strings.Contains(line, s.agent.id) {
			t.Errorf("the operator is not told %q", w)
		}
	}
	if token := string(of(shopPod, s.Cluster.Token(shopPod, forWorkloads)).Proofs["kubernetes"]); strings.Contains(s.log.String(), token[:strings.LastIndexByte(token, '.')]) {
		t.Error("the log holds a token")
	}
}

func unknownPod(w *api.Workload, names ...string) *api.Workload {
	w.Unknown = names
	return w
}

func twice(w *api.Workload) *api.Workload {
	uids := w.Facts["workload.kubernetes.pod_uid"]
	uids.Values = append(uids.Values, "66666666-6666-4666-8666-666666666666")
	return w
}

// A workload's token lets no node in.
func TestAProofIsNoEvidence(t *testing.T) {
	s := newShop(t)
	if err := s.try(&api.JoinRequest_Start{Method: "kubernetes", Rule: "prod", Evidence: []byte(s.Cluster.Token(agentPod, forWorkloads))}); err == nil {
		t.Error("a node joined by it")
	}
}

// A node that joined by another method is of no cluster, and one whose cluster no
// rule names any more proves nothing either.
func TestProofsWithoutACluster(t *testing.T) {
	s := newShop(t)
	w := of(shopPod, s.Cluster.Token(shopPod, forWorkloads))
	if d := cmp.Diff([][]string{isAbsent}, s.ids(s.join("n1"), w)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, w)); d != "" {
		t.Error(d)
	}
	s.apply(s.rule("prod", "other"))
	if d := cmp.Diff([][]string{isAbsent}, s.ids(s.agent, w)); d != "" {
		t.Errorf("after its cluster's rule is gone: %s", d)
	}
	s.apply(s.rule("prod", "other") + "---\n" + s.rule("again", "prod"))
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, w)); d != "" {
		t.Errorf("by another rule of its cluster: %s", d)
	}
}

// Where nobody can judge a proof, it is unknown: a Deny on it holds. That is not
// remembered.
func TestAProofThatCannotBeJudged(t *testing.T) {
	s := newShop(t)
	w := of(shopPod, s.Cluster.Token(shopPod, forWorkloads))
	s.Instead(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	if d := cmp.Diff([][]string{isUnknown, isAbsent}, s.ids(s.agent, w, of(shopPod, ""))); d != "" {
		t.Error(d)
	}
	s.Instead(nil)
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, w)); d != "" {
		t.Error(d)
	}
}

// Two hundred workloads of a pod are one question, whose answer stands for a minute.
func TestProofsAreJudgedOnceAMinute(t *testing.T) {
	s := newShop(t)
	token := s.Cluster.Token(shopPod, forWorkloads)
	before := s.Reviews()
	var calls sync.WaitGroup
	for call := range 4 {
		calls.Go(func() {
			r := &api.IssueX509Request{}
			for n := range 50 {
				w := of(shopPod, token)
				w.Facts["workload.unix.uid"] = &api.Values{Values: []string{fmt.Sprint(call, n)}}
				r.Items = append(r.Items, &api.IssueX509Request_Item{Workload: w})
			}
			if answer, err := s.agent.IssueX509(t.Context(), r); err != nil || answer.GetResults()[49].GetKeysNeeded() != 2 {
				t.Errorf("%v, %v", answer, err)
			}
		})
	}
	calls.Wait()
	if n := s.Reviews() - before; n != 1 {
		t.Errorf("%d reviews", n)
	}
	s.End(shopPod)
	s.ahead.Store(int64(50 * time.Second))
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, of(shopPod, token))); d != "" {
		t.Error(d)
	}
	s.ahead.Store(int64(61 * time.Second))
	if d := cmp.Diff([][]string{isAbsent}, s.ids(s.agent, of(shopPod, token))); d != "" {
		t.Errorf("a minute after the pod's end: %s", d)
	}
	s.Start(shopPod)
	s.ahead.Store(int64(72 * time.Second))
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, of(shopPod, token))); d != "" {
		t.Errorf("a refusal stands for ten seconds: %s", d)
	}
}

// No answer stands for longer than its token.
func TestAProofEndsWithItsToken(t *testing.T) {
	s := newShop(t)
	now := s.now()
	token := s.Sign(issuertest.With(s.Claims(shopPod, forWorkloads), map[string]any{"exp": now.Add(20 * time.Second).Unix()}))
	if d := cmp.Diff([][]string{isProven}, s.ids(s.agent, of(shopPod, token))); d != "" {
		t.Fatal(d)
	}
	s.Spoil(func(status map[string]any) { delete(status, "authenticated") })
	s.ahead.Store(int64(30 * time.Second))
	if d := cmp.Diff([][]string{isAbsent}, s.ids(s.agent, of(shopPod, token))); d != "" {
		t.Error(d)
	}
}

// A node that floods us has what it shows judged no more.
func TestTooManyProofs(t *testing.T) {
	s := newShop(t)
	for call := range 16 {
		r := &api.IssueX509Request{}
		for n := range 64 {
			r.Items = append(r.Items, &api.IssueX509Request_Item{Workload: of(shopPod, fmt.Sprint("waste", call, ".", n))})
		}
		if _, err := s.agent.IssueX509(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if s.log.line("too many proofs") == "" {
		t.Error("1,024 are judged")
	}
}

// A JWT-SVID and an explanation are decided on the same.
func TestProofsOfTokens(t *testing.T) {
	s := newShop(t, withIssuer)
	s.ready()
	for name, row := range map[string]struct {
		w    *api.Workload
		want int
	}{
		"proven": {of(shopPod, s.Cluster.Token(shopPod, forWorkloads)), 2},
		"absent": {of(shopPod, s.Cluster.Token(shopPod, "x")), 1},
	} {
		r, err := s.agent.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: row.w, Audiences: []string{"orders"}})
		if err != nil || len(r.GetSvids()) != row.want {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	s.apply("kind: Deny\nname: unproven\nmatch: [{workload.kubernetes.proven: \"true\", node.kubernetes.cluster: prod}]\n")
	for name, row := range map[string]struct {
		w    *api.Workload
		want bool
	}{
		"proven": {of(shopPod, s.Cluster.Token(shopPod, forWorkloads)), false},
		"absent": {of(shopPod, s.Cluster.Token(shopPod, "x")), true},
	} {
		if r, err := s.agent.Explain(t.Context(), &api.NodeExplainRequest{Workload: row.w}); err != nil || r.GetGranted() != row.want {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}
