package agent_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// lending is an agent one of whose workloads has what b granted on uid 1000
// and path /bin/a, and whose broker is then away.
func lending(t *testing.T, attestor *facts, grants ...agenttest.Grant) (*agenttest.Broker, *running) {
	t.Helper()
	attestor.set(map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.path": {"/bin/a"}})
	b, a := started(t, func(c *agent.Config) {
		c.Attestors = map[string]agent.Attestor{"workload.unix": attestor}
		c.Patience = time.Second
	})
	b.Grant(grants...)
	a.view(t).next()
	b.Stop()
	return b, a
}

func TestBrokerAwayEqualCallersAreServed(t *testing.T) {
	t.Parallel()
	byUID, byPath, notRoot := grant("/by-uid"), grant("/by-path"), grant("/no-gid")
	byPath.Depends = []string{"workload.unix.uid", "workload.unix.path", "node.name"}
	notRoot.Depends = []string{"workload.unix.uid", "workload.unix.gid"} // absent when it was decided
	for name, test := range map[string]struct {
		facts   map[string][]string
		unknown []string
		want    []string
	}{
		"the same facts":                      {facts: map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.path": {"/bin/a"}}, want: []string{"/by-uid", "/by-path", "/no-gid"}},
		"another path":                        {facts: map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.path": {"/bin/b"}}, want: []string{"/by-uid", "/no-gid"}},
		"a fact that nobody reads":            {facts: map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.path": {"/bin/a"}, "workload.unix.user": {"ana"}}, want: []string{"/by-path", "/by-uid", "/no-gid"}},
		"a fact where there was none":         {facts: map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.gid": {"0"}}, want: []string{"/by-uid"}},
		"a fact unknown where there was none": {facts: uid("1000"), unknown: []string{"workload.unix.gid"}, want: []string{"/by-uid"}},
		"a fact too many":                     {facts: map[string][]string{"workload.unix.uid": {"1000", "0"}}},
		"another uid":                         {facts: uid("0")},
		"all unknown":                         {unknown: []string{"workload.unix"}},
		"nothing":                             {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			attestor := &facts{}
			_, a := lending(t, attestor, byUID, byPath, notRoot)
			attestor.set(test.facts, test.unknown...)
			v := a.view(t)
			u, err := v.try(10 * time.Second)
			if len(test.want) == 0 {
				if !errors.Is(err, agent.ErrUnavailable) {
					t.Errorf("got %v %v, want ErrUnavailable", paths(u), err)
				}
				return
			}
			if diff := cmp.Diff(test.want, paths(u)); diff != "" || err != nil {
				t.Errorf("%s %v", diff, err)
			}
		})
	}
}

func TestHintsOfWhatIsLentAreUnique(t *testing.T) {
	t.Parallel()
	attestor := &facts{}
	a1, b1 := grant("/a"), grant("/b")
	a1.Hint, b1.Hint = "main", "main"
	_, a := lending(t, attestor, a1, b1)
	attestor.set(uid("1000"))
	u := a.view(t).next()
	if u.SVIDs[0].Hint != "main" || u.SVIDs[1].Hint != "" {
		t.Errorf("hints %q and %q", u.SVIDs[0].Hint, u.SVIDs[1].Hint)
	}
}

func TestTheBrokersAnswerReplacesWhatWasLent(t *testing.T) {
	t.Parallel()
	attestor := &facts{}
	b, a := lending(t, attestor, grant("/a"))
	attestor.set(uid("1000"))
	v := a.view(t)
	v.next()
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		if w.GetFacts()["workload.unix.path"] == nil {
			return []agenttest.Grant{grant("/a"), grant("/z")}
		}
		return []agenttest.Grant{grant("/a")}
	})
	b.Start()
	if diff := cmp.Diff([]string{"/a", "/z"}, paths(v.next())); diff != "" {
		t.Error(diff)
	}
}

func TestAnErasureReachesWhatWasLent(t *testing.T) {
	t.Parallel()
	attestor := &facts{}
	lender := map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.path": {"/bin/a"}}
	attestor.set(lender)
	b, a := started(t, func(c *agent.Config) {
		c.Attestors = map[string]agent.Attestor{"workload.unix": attestor}
	})
	b.Grant(grant("/a"))
	a.view(t).next()
	// The broker's Watch goes on, but it answers no other call.
	_, release := b.Hold("IssueX509")
	defer release()
	attestor.set(uid("1000"))
	v := a.view(t)
	v.next()
	b.Push(change(digest(lender), true))
	if u, err := v.try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("got %v %v, want ErrUnavailable", paths(u), err)
	}
}
