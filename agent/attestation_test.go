package agent_test

import (
	"context"
	"errors"
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

// crowded is an attestor that answers once release is closed.
type crowded struct{ entered, release chan struct{} }

func (c crowded) Attest(context.Context, *caller.Process, func(string) bool) (map[string][]string, []string, error) {
	select {
	case c.entered <- struct{}{}:
	case <-c.release:
	}
	<-c.release
	return map[string][]string{"workload.unix.uid": {"1000"}}, nil, nil
}

// Of a crowd each is attested in its turn: who waits for it uses up none of the
// time that attestors have, and may leave.
func TestACrowdIsAttestedInTurn(t *testing.T) {
	t.Parallel()
	c := crowded{make(chan struct{}), make(chan struct{})}
	_, a := started(t, func(cfg *agent.Config) { cfg.Attestors = map[string]agent.Attestor{"workload.unix": c} })
	p := process(t)
	var all sync.WaitGroup
	for range agent.MaxProving {
		all.Go(func() {
			if _, err := a.Attest(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	for range agent.MaxProving {
		<-c.entered
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	asked := make(chan error, 1)
	go func() {
		_, err := a.Attest(gone, p)
		asked <- err
	}()
	select {
	case err := <-asked:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("who left its turn: %v", err)
		}
	case <-c.entered:
		t.Error("one more was attested")
	}
	close(c.release)
	all.Wait()
	if _, err := a.Attest(t.Context(), p); err != nil {
		t.Errorf("after them: %v", err)
	}
}
