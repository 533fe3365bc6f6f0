package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/caller"
)

// attestTime is how long attestors may take: a runtime that hangs must not keep
// a workload from what it gets without it.
const attestTime = 3 * time.Second

// maxProving is how many processes are attested at once. More share the machine
// so that none would be done in attestTime: those wait, and their time begins
// when it is their turn.
const maxProving = 256

// An Attestation is what this node proved of a process.
type Attestation struct {
	Facts   map[string][]string
	Unknown []string
	Failed  []Failure         // attestors: all under their prefixes is unknown
	Proofs  map[string][]byte `json:"-"` // by attestor, as it had them to show: secrets
}

// Attest proves facts about a process, afresh, its attestors side by side. One
// that fails, or takes longer than three seconds, leaves its prefix unknown.
func (a *Agent) Attest(ctx context.Context, p *caller.Process) (Attestation, error) {
	found, err := a.inTurn(ctx, p)
	if err != nil {
		return Attestation{}, err
	}
	out := Attestation{Facts: make(map[string][]string)}
	for _, f := range found {
		if f.err != nil {
			a.cfg.Log.WarnContext(ctx, "attestor failed", "attestor", f.prefix, "pid", p.PID(), "error", f.err)
			out.Unknown, out.Failed = append(out.Unknown, f.prefix), append(out.Failed, Failure{f.prefix, f.err})
			continue
		}
		for name, values := range f.facts {
			if !strings.HasPrefix(name, f.prefix+".") || strings.HasPrefix(name, outputPrefix) {
				return Attestation{}, fmt.Errorf("attestor %s proved %q, which is not its own", f.prefix, name)
			}
			out.Facts[name] = values
		}
		out.Unknown = append(out.Unknown, f.unknown...)
		out.show(f)
		if f.unproven != nil {
			a.cfg.Log.WarnContext(ctx, "proof of a workload not read", "attestor", f.prefix, "pid", p.PID(), "error", f.unproven)
		}
	}
	slices.Sort(out.Unknown)
	// Attesting took a while: it must still be the same process.
	if err := p.Check(); err != nil {
		a.reports.refused(nil, notTheSame, "")
		return Attestation{}, errChanged()
	}
	return out, nil
}

// finding is one attestor's answer.
type finding struct {
	prefix  string
	facts   map[string][]string
	unknown []string
	err     error

	proof    []byte // that it has, of the facts
	unproven error  // why that is not known
}

// inTurn is attestAll when there is room for it.
func (a *Agent) inTurn(ctx context.Context, p *caller.Process) ([]finding, error) {
	select {
	case a.proving <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-a.proving }()
	return a.attestAll(ctx, p), nil
}

func (a *Agent) attestAll(ctx context.Context, p *caller.Process) []finding {
	ctx, cancel := context.WithTimeout(ctx, attestTime)
	defer cancel()
	wanted := *a.wanted.Load()
	var found []finding
	for _, prefix := range slices.Sorted(maps.Keys(a.cfg.Attestors)) {
		found = append(found, finding{prefix: prefix})
	}
	ask := func(f *finding) {
		began := a.cfg.Now()
		f.facts, f.unknown, f.err = a.cfg.Attestors[f.prefix].Attest(ctx, p, func(name string) bool { return wanted[name] })
		if prover, ok := a.cfg.Attestors[f.prefix].(Prover); ok && f.err == nil && len(f.facts) > 0 {
			f.proof, f.unproven = prover.Prove(ctx, p)
		}
		a.observe(Event{What: EventAttested, Subject: strings.TrimPrefix(f.prefix, "workload."), Outcome: outcomeOf(f.err), Took: a.cfg.Now().Sub(began)})
	}
	var others sync.WaitGroup
	for n := range found {
		if n == len(found)-1 {
			ask(&found[n]) // the last one here: most agents have one alone
			break
		}
		others.Go(func() { ask(&found[n]) })
	}
	others.Wait()
	return found
}
