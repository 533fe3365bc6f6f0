package agent_test

import (
	"errors"
	"testing"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/exchangers"
)

// A try is made as the caller, past what is held, and reported as any exchange.
func TestTry(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	credential(t, a, "aws")
	got, id, err := a.Try(t.Context(), process(t), "aws")
	if err != nil || got.RequestID != "q-2" || id.Path() != "/a" {
		t.Errorf("%v as %s, %v", got, id, err)
	}
	b.Await("both are reported", func() bool { return len(b.Reports()) == 2 })
	if held := credential(t, a, "aws"); held != "secret-2" {
		t.Errorf("%s is held", held)
	}
	if _, _, err := a.Try(t.Context(), process(t), "gcp"); !errors.Is(err, agent.ErrDenied) || sky.exchanges() != 2 {
		t.Errorf("a target that is not listed: %v, after %d exchanges", err, sky.exchanges())
	}
}

func TestTryTellsTheRefusal(t *testing.T) {
	t.Parallel()
	sky := &cloud{refuse: &exchangers.Error{Provider: "aws", Status: 403, Code: "AccessDenied", Class: exchangers.Config, Reason: "trust_policy"}}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	_, id, err := a.Try(t.Context(), process(t), "aws")
	var refusal *exchangers.Error
	if !errors.As(err, &refusal) || refusal.Reason != "trust_policy" || id.Path() != "/a" {
		t.Errorf("as %s: %v", id, err)
	}
}
