package agent_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// ahead is a clock that is put forward.
type ahead struct{ by atomic.Int64 }

func (a *ahead) now() time.Time        { return time.Now().Add(time.Duration(a.by.Load())) }
func (a *ahead) put(by time.Duration)  { a.by.Store(int64(by)) }
func (a *ahead) use(cfg *agent.Config) { cfg.Now = a.now }

// until looks until words are as wanted: where want is empty, none, else some
// with it.
func until(t *testing.T, what string, look func() []string, want string) {
	t.Helper()
	late, again := time.After(15*time.Second), time.NewTicker(2*time.Millisecond)
	defer again.Stop()
	for {
		words := strings.Join(look(), "; ")
		if want == "" && words == "" || want != "" && strings.Contains(words, want) {
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("%s: %q, want %q", what, words, want)
		}
	}
}

var ill = func(context.Context) error { return status.Error(codes.Unavailable, "the broker is ill") }

func TestUnreadyBeforeTheFirstJoin(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Before("Join", ill)
	a := run(t, config(t, b))
	until(t, "the broker is ill", a.Unready, "has not joined: the last try to get one failed")
	if words := a.Hung(); words != nil {
		t.Errorf("not live: %v", words)
	}
	b.Before("Join", nil)
	a.ready()
	until(t, "joined", a.Unready, "")
}

func TestUnreadyWhenANodeIsNotRenewed(t *testing.T) {
	t.Parallel()
	clock := &ahead{}
	b, a := started(t, clock.use)
	revoke := func() { // it is renewed at once
		b.Revoke(&api.Cutoff{Kind: "authority", Value: a.NodeSigner(), Before: time.Now().UnixMilli()})
	}
	clock.put(50 * time.Minute)
	if words := a.Unready(); words != nil {
		t.Fatalf("little life alone makes it unready: %v", words)
	}
	clock.put(0)
	b.Before("Renew", ill)
	revoke()
	b.Await("it renews", func() bool { return b.Calls("Renew") > 0 })
	clock.put(40 * time.Minute)
	for range 10 {
		if words := a.Unready(); words != nil {
			t.Fatalf("with a third of its life left: %v", words)
		}
	}
	clock.put(50 * time.Minute)
	until(t, "less than a quarter", a.Unready, "the node's SVID ends at")
	until(t, "less than a quarter", a.Unready, "the broker is ill")
	b.Before("Renew", nil)
	revoke()
	until(t, "renewed", a.Unready, "")
	clock.put(2 * time.Hour)
	until(t, "over", a.Unready, "the node's SVID ended at")
}

func TestUnreadyWhenAWorkloadIsNotRenewed(t *testing.T) {
	t.Parallel()
	clock := &ahead{}
	b, a := started(t, clock.use)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	b.Before("IssueX509", ill)
	asked := b.Calls("IssueX509")
	b.Push(change(digest(uid("1000")), false))
	b.Await("it asks again", func() bool { return b.Calls("IssueX509") > asked })
	clock.put(40 * time.Minute)
	if words := a.Unready(); words != nil {
		t.Fatalf("with a third of its life left: %v", words)
	}
	clock.put(50 * time.Minute)
	until(t, "less than a quarter", a.Unready, "the SVID of spiffe://example.org/a ends at")
	v.Close()
	until(t, "nobody has it", a.Unready, "")
	v = a.view(t)
	v.next()
	until(t, "somebody has it again", a.Unready, "spiffe://example.org/a")
	b.Before("IssueX509", nil)
	until(t, "renewed", a.Unready, "")
}

// A loop that hangs says so; a broker that is away is no hang.
func TestHung(t *testing.T) {
	t.Parallel()
	clock, stuck := &ahead{}, make(chan struct{})
	h := &blocking{Handler: slog.DiscardHandler, in: make(chan struct{}, 1), until: stuck}
	b, a := started(t, clock.use, func(c *agent.Config) { c.Log = slog.New(h) })
	b.Stop()
	clock.put(10 * time.Minute)
	until(t, "the broker is away", a.Hung, "") // what was under way has ended
	clock.put(10*time.Minute + 119*time.Second)
	until(t, "the broker is away", a.Hung, "")
	h.on.Store(true)
	<-h.in
	clock.put(20 * time.Minute)
	until(t, "a loop hangs", a.Hung, "following the broker hangs for")
	if words := a.Unready(); words != nil {
		t.Errorf("with most of its life left: %v", words)
	}
	close(stuck)
	until(t, "it goes on", a.Hung, "")
}

// blocking hangs who logs, once.
type blocking struct {
	slog.Handler
	on    atomic.Bool
	in    chan struct{}
	until chan struct{}
}

func (h *blocking) Enabled(context.Context, slog.Level) bool { return true }

func (h *blocking) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "not connected") && h.on.CompareAndSwap(true, false) {
		h.in <- struct{}{}
		<-h.until
	}
	return nil
}

// What is counted is what happened.
func TestObserve(t *testing.T) {
	t.Parallel()
	seen := make(chan agent.Event, 1000)
	b, a := started(t, func(c *agent.Config) { c.Observe = func(e agent.Event) { seen <- e } })
	b.Grant(grant("/a"))
	a.view(t).next()
	b.Grant()
	if _, err := a.view(t).try(time.Second); err == nil {
		t.Log("held") // the set is held: nothing is asked
	}
	a.Agent.Attest(t.Context(), process(t))
	a.end()
	close(seen)
	got := map[string]int{}
	for e := range seen {
		if e.What == agent.EventAttested && (e.Subject != "unix" || e.Took < 0) {
			t.Errorf("%+v", e)
		}
		got[e.What+" "+e.Outcome]++
	}
	for what, least := range map[string]int{"node ok": 1, "watched ok": 1, "svids ok": 1, "called OK": 1, "attested ok": 3} {
		if got[what] < least {
			t.Errorf("%s: %d times, want %d: %v", what, got[what], least, got)
		}
	}
}

// Brokers that take calls and don't answer are no hang either, though one after
// the other they take longer than a loop may.
func TestSilentBrokersAreNoHang(t *testing.T) {
	t.Parallel()
	clock := &ahead{}
	b := agenttest.NewBroker(t, domain).Start()
	entered, leave := make(chan struct{}, 8), make(chan struct{})
	b.Before("Join", func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case <-leave:
		case <-ctx.Done():
		}
		return status.Error(codes.Unavailable, "the broker is ill")
	})
	cfg := config(t, b)
	clock.use(&cfg)
	_, port, _ := net.SplitHostPort(b.Address())
	cfg.Broker = []string{b.Address(), "localhost:" + port, "[::ffff:127.0.0.1]:" + port}
	a := run(t, cfg)
	for n := range 2 * len(cfg.Broker) { // there is a pause after the first round
		select {
		case <-entered:
		case <-time.After(10 * time.Second):
			t.Fatalf("broker %d is not asked", n)
		}
		clock.put(time.Duration(n+1) * 90 * time.Second) // as if each took so long
		if words := a.Hung(); words != nil {
			t.Errorf("at broker %d: %v", n, words)
		}
		leave <- struct{}{}
	}
}
