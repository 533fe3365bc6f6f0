package agent_test

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// crowd attests each caller as another process, unless it is told whom.
type crowd struct {
	seen atomic.Int64
	only atomic.Pointer[string]
}

func (c *crowd) Attest(context.Context, *caller.Process, func(string) bool) (map[string][]string, []string, error) {
	if one := c.only.Load(); one != nil {
		return uid(*one), nil, nil
	}
	return uid(strconv.FormatInt(c.seen.Add(1)-1, 10)), nil, nil
}

// Twice as many processes as may be held come and go, and fifty stay: what is held,
// renewed and kept is of these, and of as many others as may come back.
func TestTheDeadAreNeitherRenewedNorKept(t *testing.T) {
	const alive, callers, mostHeld, mostHeap = 50, 64, 4096, 75 << 20
	clock, crowd := &clock{}, &crowd{}
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 10 * time.Hour
	b.Start()
	var asked [seen]atomic.Int32 // how often about each
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		n, err := strconv.Atoi(w.GetFacts()["workload.unix.uid"].GetValues()[0])
		if err != nil {
			t.Error(err)
			return nil
		}
		asked[n].Add(1)
		g := agenttest.Grant{Identity: "dead", Path: "/dead", Audiences: []string{"**"}, Cheap: true}
		if n < alive {
			g = agenttest.Grant{Identity: "live", Path: "/live/" + strconv.Itoa(n), Audiences: []string{"orders"}}
		}
		g.TTL, g.JWTTTL = 10*time.Hour, 10*time.Hour
		return []agenttest.Grant{g}
	})
	cfg := config(t, b)
	cfg.Attestors, cfg.Now, cfg.Log, cfg.Patience = map[string]agent.Attestor{"workload.unix": crowd}, clock.Now, nil, time.Minute
	a := run(t, cfg).ready()
	for range alive {
		a.view(t).next()
	}

	var coming sync.WaitGroup
	p := process(t)
	for range callers {
		coming.Go(func() {
			for crowd.seen.Load() < seen-callers {
				if err := visit(t.Context(), a.Agent, p, crowd.seen.Load()%8 == 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	coming.Wait()
	if n := crowd.seen.Load(); n < seen-callers || n > seen {
		t.Errorf("%d processes came", n)
	}
	if n := a.Status().Sets; n > mostHeld || n < alive {
		t.Errorf("%d sets of facts are held", n)
	}
	if n := a.Tokens(); n > mostHeld {
		t.Errorf("%d tokens are held", n)
	}
	if n := inUse(); n > mostHeap {
		t.Errorf("%d MiB are in use", n>>20)
	}

	madeAhead(t, a, "orders")
	var before [seen]int32
	for n := range before {
		before[n] = asked[n].Load()
	}
	clock.pass(6 * time.Hour)
	b.Push(change(digest(uid("nobody's")), false)) // it goes round
	eventually(t, "the living are renewed", func() bool {
		for n := range alive {
			if asked[n].Load() == before[n] {
				return false
			}
		}
		return true
	})
	eventually(t, "the dead have left", func() bool { return a.Status().Sets == alive && a.Tokens() <= alive })
	for n := alive; n < seen; n++ {
		if asked[n].Load() != before[n] {
			t.Fatalf("the dead process %d was asked about again", n)
		}
	}
	a.end()
	b.Stop()
	held := run(t, cfg).Status().Held
	for _, h := range held {
		if !strings.HasPrefix(h.ID.Path(), "/live/") {
			t.Errorf("%s is kept for a restart", h.ID)
		}
	}
	if len(held) != alive {
		t.Errorf("%d SVIDs are kept for a restart, want %d", len(held), alive)
	}
}

// visit is a process that comes, gets what it is granted, and ends.
func visit(ctx context.Context, a *agent.Agent, p *caller.Process, jwt bool) error {
	if jwt {
		got, err := a.JWT(ctx, p, []string{"orders"}, spiffeid.ID{})
		if err == nil && len(got) != 1 {
			err = errors.New("no token")
		}
		return err
	}
	i := a.Identities(p)
	defer i.Close()
	u, err := i.Next(ctx)
	if err == nil && len(u.SVIDs) != 1 {
		err = errors.New("no SVID")
	}
	return err
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
