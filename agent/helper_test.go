package agent_test

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// Tests here wait far more than they compute: more of them run at once than
// there are processors, unless -parallel says how many. Fuzzing reads the same
// flag as its number of processes.
func TestMain(m *testing.M) {
	if !slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzz") }) {
		_ = flag.Set("test.parallel", "8")
	}
	goleak.VerifyTestMain(m)
}

const domain = "example.org"

// facts is an attestor that says what the test wants.
type facts struct {
	mu      sync.Mutex
	all     map[string][]string
	unknown []string
	err     error
	wanted  bool // was workload.unix.sha256, when it was last asked
}

func (f *facts) Attest(_ context.Context, _ *caller.Process, wanted func(string) bool) (map[string][]string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = wanted("workload.unix.sha256")
	return f.all, f.unknown, f.err
}

func (f *facts) set(all map[string][]string, unknown ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all, f.unknown = all, unknown
}

func (f *facts) sawWanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted
}

func uid(n string) map[string][]string { return map[string][]string{"workload.unix.uid": {n}} }

// config is of an agent that joins b by its pin.
func config(t *testing.T, b *agenttest.Broker) agent.Config {
	t.Helper()
	return agent.Config{
		TrustDomain: b.TrustDomain, Broker: []string{b.Address()}, CAPins: []string{b.Pin()},
		Join: agent.Join{Method: "token", Evidence: func(context.Context) ([]byte, error) { return []byte("token-1"), nil }},
		Data: filepath.Join(t.TempDir(), "data"), Patience: time.Second,
		Attestors: map[string]agent.Attestor{"workload.unix": &facts{all: uid("1000")}},
		// What it logs is searched for secrets.
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// A running agent.
type running struct {
	*agent.Agent
	t    *testing.T
	end  func()
	done chan struct{}
	err  error
}

func run(t *testing.T, cfg agent.Config) *running {
	t.Helper()
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Agent: a, t: t, done: make(chan struct{})}
	go func() {
		r.err = a.Run(ctx)
		close(r.done)
	}()
	r.end = func() { cancel(); <-r.done }
	t.Cleanup(r.end)
	return r
}

func (r *running) ready() *running {
	r.t.Helper()
	select {
	case <-r.Ready():
	case <-r.done:
		r.t.Fatalf("the agent ended: %v", r.err)
	case <-time.After(10 * time.Second):
		r.t.Fatal("the agent is not ready")
	}
	return r
}

// ended waits for the agent's own end.
func (r *running) ended() error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		r.t.Fatal("the agent goes on")
	}
	return r.err
}

// process is this one.
func process(t *testing.T) *caller.Process {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("callers can be told on Linux only")
	}
	p, err := caller.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A view is one caller's stream.
type view struct {
	*agent.Identities
	t *testing.T
}

func (r *running) view(t *testing.T) *view {
	t.Helper()
	v := &view{r.Identities(process(t)), t}
	t.Cleanup(v.Close)
	return v
}

func (v *view) next() agent.Update {
	v.t.Helper()
	u, err := v.try(10 * time.Second)
	if err != nil {
		v.t.Fatal(err)
	}
	return u
}

func (v *view) try(d time.Duration) (agent.Update, error) {
	ctx, cancel := context.WithTimeout(v.t.Context(), d)
	defer cancel()
	return v.Next(ctx)
}

// quiet fails if there is something to tell.
func (v *view) quiet() {
	v.t.Helper()
	if u, err := v.try(50 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		v.t.Fatalf("an update without a change: %v %v", paths(u), err)
	}
}

func paths(u agent.Update) []string {
	var all []string
	for _, v := range u.SVIDs {
		all = append(all, v.ID.Path())
	}
	return all
}

// started is a broker and an agent that serves.
func started(t *testing.T, change ...func(*agent.Config)) (*agenttest.Broker, *running) {
	t.Helper()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	for _, f := range change {
		f(&cfg)
	}
	return b, run(t, cfg).ready()
}

func grant(path string) agenttest.Grant { return agenttest.Grant{Identity: path[1:], Path: path} }

// digest names a set of facts on the wire.
func digest(all map[string][]string, unknown ...string) []byte {
	w := &api.Workload{Facts: map[string]*api.Values{}, Unknown: unknown}
	for name, values := range all {
		w.Facts[name] = &api.Values{Values: values}
	}
	sum := api.WorkloadDigest(w)
	return sum[:]
}

func change(set []byte, erase bool) *api.WatchResponse {
	return &api.WatchResponse{Revision: 9, Changes: []*api.Change{{Set: set, Erase: erase}}}
}
