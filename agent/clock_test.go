package agent_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
)

// journal is a log that is read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), what)
}

// A clock that is set forward has everything due looked at: the node's SVID and
// the workloads' are renewed though no timer of theirs has fired.
func TestTheClockIsSetForward(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 10 * time.Hour
	b.Start()
	g := grant("/a")
	g.TTL = 9 * time.Hour
	b.Grant(g)
	clock, log := &clock{}, &journal{}
	cfg := config(t, b)
	cfg.Now, cfg.Log = clock.Now, slog.New(slog.NewTextHandler(log, nil))
	a := run(t, cfg).ready()
	v := a.view(t)
	first := v.next().SVIDs[0].Certificates[0]
	clock.pass(6 * time.Hour) // more than half of either, and none has ended
	b.Await("the node renews", func() bool { return b.Calls("Renew") == 1 })
	if next := v.next().SVIDs[0].Certificates[0]; next.Equal(first) {
		t.Error("it was not renewed")
	}
	if n := log.count("the clock jumped"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}

// An SVID ends no later because the clock was set back.
func TestTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 10 * time.Hour
	b.Start()
	b.Grant(grant("/a")) // for an hour
	clock, log := &clock{}, &journal{}
	cfg := config(t, b)
	cfg.Now, cfg.Log = clock.Now, slog.New(slog.NewTextHandler(log, nil))
	a := run(t, cfg).ready()
	a.view(t).next()
	b.Stop()
	clock.pass(-50 * time.Minute)
	eventually(t, "the jump is noticed", func() bool { return log.count("the clock jumped") == 1 })
	a.view(t).next() // ten minutes are left of it
	clock.pass(61 * time.Minute)
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("an hour after it was issued: %v %v", paths(u), err)
	}
}

// A clock that is wrong is told as that, with how much at least.
func TestAWrongClock(t *testing.T) {
	t.Parallel()
	for by, says := range map[time.Duration]string{
		25 * time.Hour:  "likely wrong, by 5h", // the fake's certificate lives for 20
		-12 * time.Hour: "likely wrong, by 11h5",
	} {
		b := agenttest.NewBroker(t, domain).Start()
		cfg := config(t, b)
		cfg.Now = func() time.Time { return time.Now().Add(by) }
		err := run(t, cfg).ended()
		if !errors.Is(err, agent.ErrFatal) || strings.Count(err.Error(), says) != 1 || !strings.Contains(err.Error(), map[bool]string{true: "(ahead)", false: "(behind)"}[by > 0]) {
			t.Errorf("%s: %v, want %q", by, err, says)
		}
	}
}
