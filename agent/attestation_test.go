package agent_test

import (
	"context"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// meeting is an attestor that answers once another is asked too.
type meeting struct {
	fact  string
	group *sync.WaitGroup
}

func (m meeting) Attest(context.Context, *caller.Process, func(string) bool) (map[string][]string, []string, error) {
	m.group.Done()
	m.group.Wait()
	return map[string][]string{m.fact: {"x"}}, nil, nil
}

func TestAttestorsSideBySide(t *testing.T) {
	t.Parallel()
	var both sync.WaitGroup
	both.Add(2)
	_, a := started(t, func(c *agent.Config) {
		c.Attestors = map[string]agent.Attestor{"workload.unix": meeting{"workload.unix.uid", &both}, "workload.docker": meeting{"workload.docker.id", &both}}
	})
	got, err := a.Attest(t.Context(), process(t))
	want := agent.Attestation{Facts: map[string][]string{"workload.unix.uid": {"x"}, "workload.docker.id": {"x"}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(diff, err)
	}
}

// hanging is an attestor whose runtime doesn't answer.
type hanging struct{}

func (hanging) Attest(ctx context.Context, _ *caller.Process, _ func(string) bool) (map[string][]string, []string, error) {
	<-ctx.Done()
	return nil, nil, ctx.Err()
}

// A runtime that hangs costs its own facts, and the time that attestors have.
func TestAHangingAttestor(t *testing.T) {
	t.Parallel()
	_, a := started(t, func(c *agent.Config) { c.Attestors["workload.docker"] = hanging{} })
	got, err := a.Attest(t.Context(), process(t))
	want := agent.Attestation{Facts: uid("1000"), Unknown: []string{"workload.docker"}, Failed: []agent.Failure{{Attestor: "workload.docker", Err: context.DeadlineExceeded}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); err != nil || diff != "" {
		t.Error(diff, err)
	}
}
