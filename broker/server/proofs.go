package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Proofs of workloads: how long what was said of one counts, and how many are
// verified. A node has some hundreds of pods, and asks for all at once after a
// restart.
const (
	proofLife              = time.Minute
	refusedProofLife       = 10 * time.Second // of a pod, say, that the API server doesn't know yet
	proofTime              = 5 * time.Second  // for all of one call: an agent waits for ten
	proofsAtOnce           = 32
	maxVerdicts            = 8192
	proofBurst, proofsRate = 512, 20 // a node
)

const factsKubernetes = "workload." + api.ProofKubernetes

// A Pod is what a proof of a pod's workload is bound to.
type Pod struct {
	Namespace, ServiceAccount, Name, UID string
	Node, NodeUID                        string // empty: it names none
	Ends                                 time.Time
}

// proofs verifies what workloads show that were attested as a pod's, and alone
// says that they are proven.
type proofs struct {
	verify func(ctx context.Context, rules []join.Rule, cluster string, token []byte) (Pod, error)
	asked  *limits
	slots  chan struct{}
	now    func() time.Time
	log    *slog.Logger

	mu    sync.Mutex // guards all, and the verdicts' times
	all   map[proofKey]*verdict
	swept time.Time
}

func newProofs(cfg *Config) *proofs {
	return &proofs{
		verify: cfg.Proofs, asked: newLimits(proofBurst, proofsRate, cfg.Now), slots: make(chan struct{}, proofsAtOnce),
		now: cfg.Now, log: cfg.Log, all: make(map[proofKey]*verdict),
	}
}

// A proofKey is a proof under one policy: a rule that is changed counts at once.
type proofKey struct {
	revision uint64
	cluster  string
	digest   [sha256.Size]byte
}

// A verdict is what was said of a proof.
type verdict struct {
	done chan struct{} // closed once pod and err are there
	pod  Pod
	err  error
	told sync.Once // that a workload whose it is not showed it

	// Guarded by proofs.mu.
	judged      bool
	from, until time.Time
}

// shown is a proof, and the workload that it is to prove.
type shown struct {
	workload *broker.Workload
	token    []byte
}

// shows is what a workload shows, if anything.
func shows(w *broker.Workload, m *api.Workload) []shown {
	if token, ok := m.GetProofs()[api.ProofKubernetes]; ok {
		return []shown{{w, token}}
	}
	return nil
}

// checkProofs holds a workload to what agents may say of proofs.
func checkProofs(m *api.Workload) error {
	for name := range m.GetFacts() {
		if name == api.FactProven || strings.HasPrefix(name, api.FactProven+".") {
			return fmt.Errorf("%w: %s is the broker's own to say, once it verified the proof", broker.ErrRequest, name)
		}
	}
	for name, p := range m.GetProofs() {
		if name != api.ProofKubernetes {
			return fmt.Errorf("%w: proofs of %.80q are not taken: of %s they are", broker.ErrRequest, name, api.ProofKubernetes)
		}
		if len(p) == 0 || len(p) > api.MaxProof {
			return fmt.Errorf("%w: a proof of %d bytes: 1 to %d are taken", broker.ErrRequest, len(p), api.MaxProof)
		}
	}
	return nil
}

// prove adds to each workload that it is proven, where its proof says so, or that
// this is unknown, where nobody could judge it. A node that is in no cluster shows
// its workloads' proofs in vain.
func (p *proofs) prove(ctx context.Context, node broker.Node, policy *broker.Policy, all ...shown) error {
	cluster := node.Facts.Get("node.kubernetes.cluster")
	if len(all) == 0 || len(cluster) != 1 || p.verify == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	errs := make([]error, len(all))
	var judging sync.WaitGroup
	for n, one := range all {
		judging.Go(func() { errs[n] = p.judge(ctx, node, policy, cluster[0], one) })
	}
	judging.Wait()
	return errors.Join(errs...)
}

func (p *proofs) judge(ctx context.Context, node broker.Node, policy *broker.Policy, cluster string, one shown) error {
	v, err := p.of(ctx, node, policy, proofKey{policy.Revision, cluster, sha256.Sum256(one.token)}, one.token)
	switch {
	case errors.Is(err, join.ErrEvidence):
		return nil
	case err != nil:
		one.workload.Unknown = append(slices.Clone(one.workload.Unknown), api.FactProven)
		return nil
	}
	if err := v.pod.fits(node.Facts, one.workload.Facts); err != nil {
		v.told.Do(func() { p.refused(ctx, node, err) })
		return nil
	}
	proven, err := identity.NewFacts(factsKubernetes, map[string][]string{api.FactProven: {"true"}})
	if err != nil {
		return err
	}
	if one.workload.Facts, err = one.workload.Facts.Join(proven); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	return nil
}

func (p *proofs) refused(ctx context.Context, node broker.Node, err error) {
	p.log.WarnContext(ctx, "proof of a workload not taken", "node", node.ID, "error", err)
}

// fits holds a proof against the pod that the node attested, and the machine that
// the node proved to be on.
func (t Pod) fits(node, workload identity.Facts) error {
	for _, f := range []struct {
		of         identity.Facts
		name, want string
		maybe      bool
	}{
		{of: workload, name: factsKubernetes + ".namespace", want: t.Namespace},
		{of: workload, name: factsKubernetes + ".service_account", want: t.ServiceAccount},
		{of: workload, name: factsKubernetes + ".pod", want: t.Name},
		{of: workload, name: factsKubernetes + ".pod_uid", want: t.UID},
		{of: node, name: "node.kubernetes.node", want: t.Node, maybe: true},
		{of: node, name: "node.kubernetes.node_uid", want: t.NodeUID, maybe: true},
	} {
		if f.maybe && f.want == "" {
			continue // clusters before Kubernetes 1.29 don't say
		}
		if got := f.of.Get(f.name); f.want == "" || len(got) != 1 || got[0] != f.want {
			return fmt.Errorf("it is of another: %s is %q, and it says %q", f.name, got, f.want)
		}
	}
	return nil
}

// of is what is said of a proof: once a minute, however many show it at once. An
// error is the verdict's, or says that there is none.
func (p *proofs) of(ctx context.Context, node broker.Node, policy *broker.Policy, k proofKey, token []byte) (*verdict, error) {
	now := p.now()
	p.mu.Lock()
	if v := p.all[k]; v != nil && (!v.judged || !now.Before(v.from) && now.Before(v.until)) {
		p.mu.Unlock()
		select {
		case <-v.done:
			return v, v.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if _, ok := p.asked.take(node.ID); !ok {
		p.mu.Unlock()
		err := errors.New("the node shows too many proofs: for a moment no more are judged")
		p.refused(ctx, node, err)
		return nil, err
	}
	v := &verdict{done: make(chan struct{})}
	p.keep(k, v, now)
	p.mu.Unlock()
	v.pod, v.err = p.judged(ctx, policy.Rules, k.cluster, token)
	if v.err != nil {
		p.refused(ctx, node, v.err)
	}
	p.mu.Lock()
	v.judged, v.from, v.until = true, now, now
	switch {
	case v.err == nil:
		if v.until = now.Add(proofLife); v.pod.Ends.Before(v.until) {
			v.until = v.pod.Ends
		}
	case errors.Is(v.err, join.ErrEvidence):
		v.until = now.Add(refusedProofLife)
	}
	p.mu.Unlock()
	close(v.done)
	return v, v.err
}

// judged verifies a proof when it is its turn. It goes on if the first who asked
// hangs up: others wait for it too.
func (p *proofs) judged(ctx context.Context, rules []join.Rule, cluster string, token []byte) (Pod, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return Pod{}, ctx.Err()
	}
	return p.verify(ctx, rules, cluster, token)
}

// keep remembers a verdict, unless there are too many. It must be called with mu
// held.
func (p *proofs) keep(k proofKey, v *verdict, now time.Time) {
	if now.Sub(p.swept).Abs() >= refusedProofLife {
		p.swept = now
		for k, v := range p.all {
			if v.judged && (now.Before(v.from) || !now.Before(v.until)) {
				delete(p.all, k)
			}
		}
	}
	if len(p.all) < maxVerdicts {
		p.all[k] = v
	}
}
