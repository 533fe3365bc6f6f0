package agent_test

import (
	"errors"
	"testing"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker/api"
)

// An agent explains what it would do for a process, and what a broker tells it
// where that is nothing.
func TestExplain(t *testing.T) {
	t.Parallel()
	b, a := started(t, func(c *agent.Config) { c.Attestors["workload.docker"] = &facts{err: errors.New("it hangs")} })
	explain := func(audience, target string) agent.Explained {
		t.Helper()
		var audiences []string
		if audience != "" {
			audiences = []string{audience}
		}
		got, err := a.Explain(t.Context(), process(t), audiences, target)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	code := func(e agent.Explained) string {
		if e.Refusal == nil {
			return ""
		}
		return agent.InfoFor(e.Refusal).GetReason()
	}
	got := explain("", "")
	if code(got) != agent.AttestorFailed || len(got.Near) != 1 || got.Near[0].GetIdentity() != "near" || len(got.Unknown) != 1 {
		t.Errorf("denied: %+v", got)
	}
	if why := got.Why(true)["workload.docker"]; why != "it hangs" {
		t.Errorf("the operator is told %q", why)
	}
	if why := got.Why(false)["workload.docker"]; why == "it hangs" || why == "" {
		t.Errorf("the workload is told %q", why)
	}
	b.Grant(grant("/a"))
	if got = explain("", ""); code(got) != "" || len(got.SVIDs) != 1 || len(got.Near) != 0 {
		t.Errorf("granted: %+v", got)
	}
	if got = explain("orders", ""); code(got) != agent.AudienceNotListed || len(got.SVIDs) != 1 {
		t.Errorf("an audience: %+v", got)
	}
	if got = explain("", "gcp"); code(got) != agent.TargetNotListed {
		t.Errorf("a target: %+v", got)
	}
	if _, err := a.Explain(t.Context(), process(t), []string{"a"}, "b"); err == nil {
		t.Error("audiences and a target were taken together")
	}
	b.Grant()
	b.Push(&api.WatchResponse{Revision: 2, Changes: []*api.Change{{Erase: true}}})
	b.Await("the erasure", func() bool { return b.Acknowledged() >= 2 })
	b.Stop()
	if got = explain("", ""); code(got) != agent.BrokerUnreachable || len(got.Near) != 0 {
		t.Errorf("the broker is away: %+v", got)
	}
}
