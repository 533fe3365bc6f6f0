package agent_test

import (
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker/api"
)

// TestCutoffsAgainstIssueTimes makes tokens as the authority does, whose iat
// lies back by a minute or half of a short life, in whole seconds: every one
// issued before the cut-off is refused, every one from the next whole second on
// is taken.
func TestCutoffsAgainstIssueTimes(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	id := spiffeid.RequireFromPath(td, "/w")
	start := time.Unix(1_800_000_000, 0)
	for _, life := range []time.Duration{time.Hour, 5 * time.Minute, 2 * time.Minute, 90 * time.Second, 61 * time.Second, time.Minute} {
		for offset := time.Duration(0); offset < 2*time.Second; offset += 50 * time.Millisecond {
			before := start.Add(offset)
			c, err := agent.NewCutoffs(td, []*api.Cutoff{{Kind: "id", Value: id.String(), Before: before.UnixMilli()}})
			if err != nil {
				t.Fatal(err)
			}
			for at := before.Add(-1500 * time.Millisecond); at.Before(before.Add(3500 * time.Millisecond)); at = at.Add(10 * time.Millisecond) {
				iat := at.Add(-min(time.Minute, life/2)).Truncate(time.Second)
				err := c.Check(id, "k", iat, iat.Add(life))
				good := before.Add(time.Second - 1).Truncate(time.Second)
				if life%(2*time.Second) != 0 && life < 2*time.Minute {
					good = good.Add(time.Second) // half of an odd life
				}
				if at.Before(before) && err == nil {
					t.Fatalf("of %s, issued %s before the cut-off: accepted", life, before.Sub(at))
				}
				if !at.Before(good) && err != nil {
					t.Fatalf("of %s, issued %s after the cut-off at %s: %v", life, at.Sub(before), before, err)
				}
			}
		}
	}
}

func TestCutoffsThatCannotBeObeyed(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for name, bad := range map[string][]*api.Cutoff{
		"another kind": {{Kind: "moon", Value: "x", Before: 1}},
		"no kind":      {{Value: "x", Before: 1}},
		"no value":     {{Kind: "authority", Before: 1}},
		"no time":      {{Kind: "authority", Value: "x"}},
		"no ID":        {{Kind: "id", Value: "x", Before: 1}},
		"too many":     make([]*api.Cutoff, 1<<14+1),
	} {
		if _, err := agent.NewCutoffs(td, bad); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	var unknown *agent.Cutoffs
	if err := unknown.Check(spiffeid.RequireFromPath(td, "/w"), "k", time.Now(), time.Now()); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("before the broker has said: %v", err)
	}
	later, err := agent.NewCutoffs(td, []*api.Cutoff{{Kind: "authority", Value: "k", Before: 2e12}, {Kind: "authority", Value: "k", Before: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := later.Check(spiffeid.RequireFromPath(td, "/w"), "k", time.Unix(1e9, 0), time.Unix(1e9, 0)); err == nil {
		t.Error("the earlier of two cut-offs undoes the later")
	}
}
