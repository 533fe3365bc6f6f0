package agent_test

import (
	"container/heap"
	"testing"
	"time"

	"github.com/credence-id/credence/agent"
)

// A try is one agent's next contact.
type try struct {
	at    time.Duration
	pause *agent.Pause
}

type tries []try

func (t tries) Len() int           { return len(t) }
func (t tries) Less(i, j int) bool { return t[i].at < t[j].at }
func (t tries) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *tries) Push(x any)        { *t = append(*t, x.(try)) }
func (t *tries) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

// herd plays 5,000 agents that start, or lose their broker, in one moment, by
// the agent's own pauses, against a broker that takes so many contacts a second
// and is away at first: the most contacts in a second, and when all were served.
func herd(perSecond int, away time.Duration) (peak int, over time.Duration) {
	const spread = 5 * time.Second
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var due tries
	for range 5000 {
		heap.Push(&due, try{agent.SpreadOver(start, spread), &agent.Pause{}})
	}
	came, served := make(map[int]int), make(map[int]int)
	for len(due) > 0 {
		t := heap.Pop(&due).(try)
		second := int(t.at / time.Second)
		if t.at >= away {
			came[second]++
			peak = max(peak, came[second])
			if served[second] < perSecond {
				served[second]++
				over = max(over, t.at)
				continue
			}
		}
		t.at += t.pause.Longer(start.Add(t.at), spread)
		heap.Push(&due, t)
	}
	return peak, over
}

func TestAHerdOfAgentsIsSpread(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		perSecond int
		away      time.Duration
		peak      int
		over      time.Duration
	}{
		{"all at once", 2000, 0, 1500, 6 * time.Second},
		{"a broker that is slower than they come", 500, 0, 3500, 40 * time.Second},
		{"a broker that was away for a minute", 2000, time.Minute, 2000, 75 * time.Second},
	} {
		peak, over := herd(test.perSecond, test.away)
		t.Logf("%s: at most %d contacts in a second, all served after %s", test.name, peak, over.Round(100*time.Millisecond))
		if peak > test.peak || over > test.over {
			t.Errorf("%s: %d in a second and %s, want %d and %s at most", test.name, peak, over, test.peak, test.over)
		}
	}
}

// Those who got SVIDs in one moment don't renew them in one.
func TestRenewalsAreSpread(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at, peak := make(map[int]int), 0
	for range 5000 {
		second := int(agent.HalfLife(now, now.Add(time.Hour)).Sub(now) / time.Second)
		if second < 24*60 || second > 30*60 {
			t.Fatalf("renewed after %d s of an hour", second)
		}
		at[second]++
		peak = max(peak, at[second])
	}
	t.Logf("at most %d renewals in a second", peak)
	if peak > 50 {
		t.Errorf("%d renewals in a second", peak)
	}
}

// A timer's clock stands still while the machine is suspended: what is due then
// is known by the other.
func TestWhatIsDueGoesByTheWallClock(t *testing.T) {
	t.Parallel()
	if due := agent.HalfLife(time.Now(), time.Now().Add(time.Hour)); due != due.Round(0) {
		t.Errorf("due at %s", due)
	}
}
