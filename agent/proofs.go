package agent

import (
	"context"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/api"
)

const (
	proofAge    = 30 * time.Second // of what the broker is shown, while one that has it is there to be asked
	proofTime   = 500 * time.Millisecond
	proofAsked  = 3 // of those that are there
	workloadDot = "workload."
)

// showing is what the workloads of a set have to prove its facts. The set stands for
// all of them, and what the broker verifies is of the facts: which of them showed
// it does not matter, so the latest that is there counts. sets.mu guards it.
type showing struct {
	proofs map[string][]byte
	read   time.Time
	open   map[*Identities]struct{} // of processes that can be asked again
}

// show takes what one has to show. It must be called with sets.mu held.
func (s *showing) show(w *api.Workload, now time.Time) {
	if len(w.GetProofs()) > 0 {
		s.proofs, s.read = w.GetProofs(), now
	}
}

// show notes what an attestor found to be shown. What could not be read is unknown:
// it might have proven the facts.
func (t *Attestation) show(f finding) {
	if f.unproven != nil {
		name := f.prefix + ".proven"
		t.Unknown, t.Failed = append(t.Unknown, name), append(t.Failed, Failure{name, f.unproven})
		return
	}
	if len(f.proof) > 0 {
		if t.Proofs == nil {
			t.Proofs = make(map[string][]byte)
		}
		t.Proofs[strings.TrimPrefix(f.prefix, workloadDot)] = f.proof
	}
}

// attend notes that a process of a set can be asked again, until leave.
func (s *sets) attend(st *set, i *Identities) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(st.proofs) == 0 {
		return
	}
	if st.open == nil {
		st.open = make(map[*Identities]struct{})
	}
	st.open[i] = struct{}{}
}

func (s *sets) leave(st *set, i *Identities) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(st.open, i)
}

// asks is a set's workload as the broker is asked about it, with the proof that a
// process of it has now, if one is there still: a token is replaced while a stream
// is open.
func (a *Agent) asks(ctx context.Context, st *set) *api.Workload {
	now := a.cfg.Now()
	var open []*Identities
	a.sets.mu.Lock()
	if len(st.proofs) > 0 && now.Sub(st.read).Abs() >= proofAge {
		st.read = now
		for i := range st.open {
			if open = append(open, i); len(open) == proofAsked {
				break
			}
		}
	}
	a.sets.mu.Unlock()
	for _, i := range open {
		if found := a.again(ctx, i); len(found) > 0 {
			a.sets.mu.Lock()
			st.proofs = found
			a.sets.mu.Unlock()
			break
		}
	}
	a.sets.mu.Lock()
	defer a.sets.mu.Unlock()
	if len(st.proofs) == 0 {
		return st.workload
	}
	return &api.Workload{Facts: st.workload.GetFacts(), Unknown: st.workload.GetUnknown(), Proofs: st.proofs}
}

// again is what a process shows now, of the attestors of which it showed something.
func (a *Agent) again(ctx context.Context, i *Identities) map[string][]byte {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	found := make(map[string][]byte)
	for prefix, attestor := range a.cfg.Attestors {
		prover, ok := attestor.(Prover)
		if !ok {
			continue
		}
		proof, err := prover.Prove(ctx, i.proc)
		if err != nil {
			a.cfg.Log.DebugContext(ctx, "proof of a workload not read", "attestor", prefix, "pid", i.proc.PID(), "error", err)
		} else if len(proof) > 0 {
			found[strings.TrimPrefix(prefix, workloadDot)] = proof
		}
	}
	return found
}

// isProof says whether what was decided rests on a proof. That is the workload's
// that showed it, while it shows it: it is neither lent to others nor kept for a
// restart.
func isProof(depends map[string]*api.Values) bool {
	_, ok := depends[api.FactProven]
	return ok
}
