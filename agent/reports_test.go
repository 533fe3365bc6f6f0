package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/exchangers"
)

// spooled is what lies on the node's disk of reports.
func spooled(t *testing.T, data string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(data, "spool", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, name := range all {
		more, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, more...)
	}
	return string(text)
}

// overfull lays out a spool that takes no more.
func overfull(t *testing.T, data string) {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: filepath.Join(data, "spool"), Max: spool.MinMax})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	record := `{"exchanges":[{"target":"` + strings.Repeat("x", 200) + `"}]}`
	for n := 0; s.Append(t.Context(), []byte(record)) == nil; n++ {
		if n > 10000 {
			t.Fatal("it is never full")
		}
	}
}

// eventually looks again and again, for what no message tells of.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.After(30*time.Second)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func away(b *agenttest.Broker) {
	b.Before("Report", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
}

func TestAnExchangeIsOnDiskBeforeItsCredentialIsHandedOut(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	var data string
	b, a := started(t, exchanging(sky), func(c *agent.Config) { data = c.Data })
	away(b)
	b.Grant(targeting("/a", 1, "aws"))
	credential(t, a, "aws")
	if text := spooled(t, data); !strings.Contains(text, `q-1`) || strings.Contains(text, "secret-1") {
		t.Errorf("on disk: %s", text)
	}
	sky.mu.Lock()
	sky.refuse = &exchangers.Error{Provider: "aws", Status: 403, Code: "AccessDenied", Class: exchangers.Config, RequestID: "q-no"}
	sky.mu.Unlock()
	b.Grant(targeting("/a", 2, "aws"))
	b.Push(change(digest(uid("1000")), true))
	eventually(t, "a refusal is on disk too", func() bool {
		_, err := a.Credential(t.Context(), process(t), "aws")
		return err != nil && strings.Contains(spooled(t, data), "q-no")
	})
}

func TestAFullSpoolThatDropsHandsOutAndCounts(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	away(b)
	cfg := config(t, b)
	exchanging(&cloud{})(&cfg)
	cfg.Spool = agent.Spool{Max: spool.MinMax}
	overfull(t, cfg.Data)
	b.Grant(targeting("/a", 1, "aws"))
	a := run(t, cfg).ready()
	credential(t, a, "aws")
	if st := a.Spooled(); !st.Full || st.Lost != 2 || st.Untold != 2 {
		t.Errorf("%+v", st)
	}
	a.end() // the count outlives the agent
	b.Before("Report", nil)
	a = run(t, cfg).ready()
	b.Await("the gap is reported", func() bool { return len(b.Gaps()) > 0 })
	if g := b.Gaps()[0]; len(b.Gaps()) != 1 || g.GetLost() != 2 || g.GetTotal() != 2 || g.GetWhy() != "full" || g.GetSince() == 0 || g.GetId() == "" {
		t.Errorf("gaps: %v", b.Gaps())
	}
	eventually(t, "nothing waits", func() bool { return a.Spooled().Backlog == 0 })
	if st := a.Spooled(); st.Untold != 0 || st.Full {
		t.Errorf("%+v", st)
	}
}

func TestAFullSpoolThatStopsAsksNoProvider(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	away(b)
	cfg := config(t, b)
	sky := &cloud{}
	exchanging(sky)(&cfg)
	cfg.Spool = agent.Spool{Max: spool.MinMax, Stop: true}
	overfull(t, cfg.Data)
	b.Grant(targeting("/a", 1, "aws"))
	a := run(t, cfg).ready()
	_, err := a.Credential(t.Context(), process(t), "aws")
	if !errors.Is(err, agent.ErrUnavailable) || !errors.Is(err, spool.ErrFull) || !strings.Contains(err.Error(), "spool.full: stop") {
		t.Errorf("got %v", err)
	}
	if sky.exchanges() != 0 {
		t.Error("the provider was asked")
	}
	b.Before("Report", nil)
	a.end()
	a = run(t, cfg).ready() // it would try anew within 15 s
	eventually(t, "the broker has them", func() bool { return a.Spooled().Backlog == 0 })
	eventually(t, "it goes on", func() bool { _, err := a.Credential(t.Context(), process(t), "aws"); return err == nil })
}

func TestACachedCredentialIsServedWhateverTheSpoolDoes(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	away(b)
	cfg := config(t, b)
	exchanging(&cloud{})(&cfg)
	cfg.Spool = agent.Spool{Max: spool.MinMax, Stop: true}
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	a := run(t, cfg).ready()
	first := credential(t, a, "aws")
	for _, size := range []int{3000, 300} { // what is left holds none of an exchange's
		for record := bytes.Repeat([]byte("x"), size); agent.Fill(a.Agent, record) == nil; {
		}
	}
	if _, err := a.Credential(t.Context(), process(t), "gcp"); !errors.Is(err, spool.ErrFull) {
		t.Errorf("a new exchange: %v", err)
	}
	if got := credential(t, a, "aws"); got != first {
		t.Errorf("got %q after %q", got, first)
	}
}

func TestARefusalOnTheNodeIsReportedOnceWithItsRepeats(t *testing.T) {
	t.Parallel()
	clock := &clock{}
	b, a := started(t, exchanging(&cloud{}), func(c *agent.Config) { c.Now = clock.Now })
	b.Grant(targeting("/a", 1, "aws"))
	p := process(t)
	for range 7 {
		if _, err := a.Credential(t.Context(), p, "gcp"); !errors.Is(err, agent.ErrDenied) {
			t.Fatal(err)
		}
	}
	b.Await("the first is reported", func() bool { return len(b.Refusals()) == 1 })
	r := b.Refusals()[0]
	if r.GetCode() != "target_not_listed" || r.GetTarget() != "gcp" || r.GetCount() != 1 || r.GetFacts()["workload.unix.uid"].GetValues()[0] != "1000" || r.GetId() == "" {
		t.Errorf("reported: %v", r)
	}
	clock.pass(6 * time.Minute)
	credential(t, a, "aws") // it wakes the reports
	b.Await("the others are reported as one", func() bool { return len(b.Refusals()) == 2 })
	if r := b.Refusals()[1]; r.GetCount() != 6 || r.GetTarget() != "gcp" {
		t.Errorf("reported: %v", r)
	}
	b.Await("the exchange is reported", func() bool { return len(b.Reports()) == 1 })
}

func TestManyDifferentRefusalsFillNothing(t *testing.T) {
	t.Parallel()
	b, a := started(t, exchanging(&cloud{}))
	away(b)
	b.Grant(targeting("/a", 1, "aws"))
	p := process(t)
	for n := range 1100 {
		if _, err := a.Credential(t.Context(), p, fmt.Sprint("t", n)); !errors.Is(err, agent.ErrDenied) {
			t.Fatal(err)
		}
	}
	a.end()
	if st := a.Spooled(); st.Backlog > 1024+2 || st.Backlog < 1000 || st.Lost > 1 {
		t.Errorf("%+v", st)
	}
}

func TestAReportThatTheBrokerRefusesIsToldAsLost(t *testing.T) {
	t.Parallel()
	b, a := started(t, exchanging(&cloud{}))
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	b.Before("Report", func(context.Context) error { return status.Error(codes.InvalidArgument, "malformed") })
	credential(t, a, "aws")
	// Neither it nor the gap that tells of it is sent for ever.
	eventually(t, "both are given up", func() bool { st := a.Spooled(); return st.Lost == 1 && st.Untold == 0 && st.Backlog == 0 })
	if n := b.Calls("Report"); n > 4 {
		t.Errorf("%d calls", n)
	}
	b.Before("Report", nil)
	credential(t, a, "gcp")
	b.Await("the next one is reported", func() bool { return len(b.Reports()) == 1 })
	if st := a.Spooled(); st.Lost != 1 {
		t.Errorf("%+v", st)
	}
}

// The numbers of reports go on over restarts: the broker knows what it has.
func TestReportsKeepTheirNamesOverARestart(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	exchanging(&cloud{})(&cfg)
	b.Grant(targeting("/a", 1, "aws"))
	seen := map[string]bool{}
	for n := range 3 {
		a := run(t, cfg).ready()
		credential(t, a, "aws")
		// One whose answer was lost comes again, under the same name.
		b.Await("it is reported", func() bool {
			for _, r := range b.Reports() {
				seen[r.GetId()] = true
			}
			return len(seen) == n+1
		})
		a.end()
		if id := fmt.Sprintf("%s-%d", b.Reports()[0].GetId()[:16], n+1); !seen[id] {
			t.Errorf("report %d is not %s: %v", n, id, seen)
		}
	}
	if len(seen) != 3 {
		t.Errorf("names: %v", seen)
	}
}
