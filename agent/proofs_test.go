package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// proving is an attestor whose workloads show what the test wants.
type proving struct {
	facts
	proofs sync.Mutex // guards what follows
	proof  string
	failed error
}

func (p *proving) Prove(context.Context, *caller.Process) ([]byte, error) {
	p.proofs.Lock()
	defer p.proofs.Unlock()
	return []byte(p.proof), p.failed
}

func (p *proving) show(proof string, err error) {
	p.proofs.Lock()
	defer p.proofs.Unlock()
	p.proof, p.failed = proof, err
}

// podFacts are those of a process of a pod.
var podFacts = map[string][]string{"workload.kubernetes.pod": {"checkout-0"}}

// questions are the workloads that the broker is asked about.
type questions struct {
	mu  sync.Mutex // guards all
	all []*api.Workload
}

func (a *questions) note(w *api.Workload) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, w)
}

func (a *questions) last() *api.Workload {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) == 0 {
		return &api.Workload{}
	}
	return a.all[len(a.all)-1]
}

// ofPods is an agent of pods' processes, and what its broker is asked. Who shows
// "good" gets /proven, and everybody /any.
func ofPods(t *testing.T, change ...func(*agent.Config)) (*agenttest.Broker, *running, *proving, *questions) {
	t.Helper()
	p, seen := &proving{}, &questions{}
	p.set(podFacts)
	b, a := started(t, append([]func(*agent.Config){func(c *agent.Config) {
		c.Attestors = map[string]agent.Attestor{"workload.kubernetes": p}
	}}, change...)...)
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		seen.note(w)
		anybody, proven := grant("/any"), grant("/proven")
		anybody.Depends, proven.Depends = []string{"workload.kubernetes.pod"}, []string{"workload.kubernetes.proven"}
		anybody.Audiences = []string{"orders"}
		proven.Audiences = anybody.Audiences
		switch proof := string(w.GetProofs()["kubernetes"]); {
		case proof == "good.alone":
			return []agenttest.Grant{proven}
		case strings.HasPrefix(proof, "good"):
			return []agenttest.Grant{anybody, proven}
		}
		return []agenttest.Grant{anybody}
	})
	return b, a, p, seen
}

func TestAProofIsHandedOn(t *testing.T) {
	t.Parallel()
	b, a, p, seen := ofPods(t)
	for _, test := range []struct {
		proof   string
		err     error
		want    []string
		unknown []string
	}{
		{"good.1", nil, []string{"/any", "/proven"}, nil},
		{"", nil, []string{"/any"}, nil},
		{"bad", errors.New("it is no regular file"), []string{"/any"}, []string{"workload.kubernetes.proven"}},
	} {
		p.show(test.proof, test.err)
		if d := cmp.Diff(test.want, paths(a.view(t).next())); d != "" {
			t.Errorf("%q: %s", test.proof, d)
		}
		w := seen.last()
		if d := cmp.Diff(test.unknown, w.GetUnknown()); d != "" {
			t.Errorf("%q: unknown %s", test.proof, d)
		}
		if len(w.GetProofs()) != 0 != (test.proof != "" && test.err == nil) {
			t.Errorf("%q: %v is shown", test.proof, w.GetProofs())
		}
	}
	p.show("good.1", nil)
	var shown []string
	b.OnJWT(func(r *api.IssueJWTRequest) { shown = append(shown, string(r.GetWorkload().GetProofs()["kubernetes"])) })
	if _, err := a.JWTOnce(t.Context(), process(t), []string{"orders"}, spiffeid.ID{}, time.Minute); err != nil || !slices.Equal(shown, []string{"good.1"}) {
		t.Errorf("for a token %q is shown: %v", shown, err)
	}
	p.set(nil) // it is in no pod
	before := len(seen.all)
	a.view(t).next()
	if w := seen.last(); len(seen.all) == before || len(w.GetProofs()) != 0 {
		t.Errorf("of a process in no pod %v is shown", w.GetProofs())
	}
}

// A token that was replaced is read again while somebody who has it is there, and
// makes no other set.
func TestTheNextProofIsShown(t *testing.T) {
	t.Parallel()
	c := new(clock)
	b, a, p, seen := ofPods(t, func(cfg *agent.Config) { cfg.Now = c.Now })
	p.show("good.1", nil)
	v := a.view(t)
	v.next()
	again := func() {
		t.Helper()
		n := b.Calls("IssueX509")
		b.Push(change(nil, false))
		b.Await("another question", func() bool { return b.Calls("IssueX509") > n })
	}
	p.show("good.2", nil)
	c.pass(time.Minute)
	again()
	if got := string(seen.last().GetProofs()["kubernetes"]); got != "good.2" {
		t.Errorf("with a stream open %s is shown", got)
	}
	p.show("good.3", nil)
	if _, err := a.JWT(t.Context(), process(t), []string{"orders"}, spiffeid.ID{}); err != nil {
		t.Fatal(err)
	}
	again()
	if got := string(seen.last().GetProofs()["kubernetes"]); got != "good.3" {
		t.Errorf("after a call %s is shown", got)
	}
	p.show("", errors.New("gone"))
	c.pass(time.Minute)
	again()
	if got := string(seen.last().GetProofs()["kubernetes"]); got != "good.3" {
		t.Errorf("when it can't be read %s is shown", got)
	}
	v.Close()
	p.show("good.4", nil)
	c.pass(time.Minute)
	again()
	if got := string(seen.last().GetProofs()["kubernetes"]); got != "good.3" {
		t.Errorf("when nobody is there %s is shown", got)
	}
}

// What rests on a proof is lent to nobody, and a restart has nothing of it: neither
// SVID nor token.
func TestWhatIsProvenIsNotLent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	b, a, p, _ := ofPods(t, func(c *agent.Config) { c.Data, c.Seal = dir, agent.SealPlain })
	p.show("good.1", nil)
	v := a.view(t)
	if d := cmp.Diff([]string{"/any", "/proven"}, paths(v.next())); d != "" {
		t.Fatal(d)
	}
	if got, err := a.JWT(t.Context(), process(t), []string{"orders"}, spiffeid.ID{}); err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	b.Stop()
	for _, proof := range []string{"", "good.1"} {
		p.set(map[string][]string{"workload.kubernetes.pod": {"checkout-0"}, "workload.kubernetes.container": {"other" + proof}})
		p.show(proof, nil)
		if d := cmp.Diff([]string{"/any"}, paths(a.view(t).next())); d != "" {
			t.Errorf("lent to one who shows %q: %s", proof, d)
		}
	}
	a.end()
	if _, err := os.Stat(filepath.Join(dir, "svids.sealed")); err != nil {
		t.Fatal(err)
	}
	p.set(podFacts)
	cfg := config(t, b)
	cfg.Data, cfg.Seal, cfg.Attestors = dir, agent.SealPlain, map[string]agent.Attestor{"workload.kubernetes": p}
	next := run(t, cfg)
	<-next.Joined()
	if n := next.Tokens(); n != 0 {
		t.Errorf("after a restart there are %d answers with tokens", n)
	}
	if d := cmp.Diff([]string{"/any"}, paths(next.view(t).next())); d != "" {
		t.Errorf("after a restart: %s", d)
	}
	if got, err := next.JWT(t.Context(), process(t), []string{"orders"}, spiffeid.ID{}); err == nil && len(got) > 1 {
		t.Errorf("after a restart there are tokens of %s", fmt.Sprint(got))
	}
}

// Where all rests on a proof, nothing is on disk.
func TestWhatIsProvenIsNotKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	_, a, p, _ := ofPods(t, func(c *agent.Config) { c.Data, c.Seal = dir, agent.SealPlain })
	p.show("good.alone", nil)
	if d := cmp.Diff([]string{"/proven"}, paths(a.view(t).next())); d != "" {
		t.Fatal(d)
	}
	a.end()
	if _, err := os.Stat(filepath.Join(dir, "svids.sealed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is kept: %v", err)
	}
}
