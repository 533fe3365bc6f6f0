package agent_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

var web = agent.Output{Name: "web", UID: 33}

func webFacts() map[string][]string {
	return map[string][]string{"workload.output.name": {"web"}, "workload.unix.uid": {"33"}}
}

// A delivery is an output's view in a test.
type delivery struct {
	*agent.Delivery
	t *testing.T
}

func (r *running) output(t *testing.T, o agent.Output) *delivery {
	t.Helper()
	d, err := r.Output(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return &delivery{d, t}
}

func (d *delivery) try(wait time.Duration) (agent.Update, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), wait)
	defer cancel()
	return d.Next(ctx)
}

func (d *delivery) next() agent.Update {
	d.t.Helper()
	u, err := d.try(10 * time.Second)
	if err != nil {
		d.t.Fatal(err)
	}
	return u
}

func (d *delivery) quiet() {
	d.t.Helper()
	if u, err := d.try(50 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		d.t.Fatalf("told without a change: %v %v", paths(u), err)
	}
}

// An output is decided on its name and uid, nothing else, and nothing of it is
// unknown, though an attestor of processes fails.
func TestAnOutputIsItsNameAndUID(t *testing.T) {
	t.Parallel()
	b, a := started(t, func(cfg *agent.Config) {
		cfg.Attestors["workload.docker"] = &facts{err: errors.New("no docker here")}
	})
	asked := make(chan *api.Workload, 8)
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		asked <- w
		return []agenttest.Grant{grant("/web")}
	})
	if diff := cmp.Diff([]string{"/web"}, paths(a.output(t, web).next())); diff != "" {
		t.Error(diff)
	}
	want := &api.Workload{Facts: map[string]*api.Values{"workload.output.name": {Values: []string{"web"}}, "workload.unix.uid": {Values: []string{"33"}}}}
	if diff := cmp.Diff(want, <-asked, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestOutputNames(t *testing.T) {
	t.Parallel()
	for o, good := range map[agent.Output]bool{
		{"web", 33}: true, {"a", 0}: true, {"a_b-9", 65534}: true,
		{"", 33}: false, {"Web", 33}: false, {"-a", 33}: false, {"a-", 33}: false, {"a.b", 33}: false, {"../a", 33}: false,
		{strings.Repeat("a", 64), 33}: false, {"web", 1<<32 - 1}: false,
	} {
		if err := o.Check(); (err == nil) != good {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// No attestor can make a process pass for an output.
func TestNoAttestorProvesAnOutput(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"workload.output", "workload"} {
		b, a := started(t, func(cfg *agent.Config) {
			cfg.Attestors = map[string]agent.Attestor{prefix: &facts{all: webFacts()}}
			if prefix == "workload.output" {
				cfg.Attestors[prefix] = &facts{all: map[string][]string{"workload.output.name": {"web"}}}
			}
		})
		b.Grant(grant("/web"))
		if u, err := a.view(t).try(5 * time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an attestor of %s: %v %v", prefix, paths(u), err)
		}
	}
}

func TestOutputIsToldOfChanges(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(agenttest.Grant{Identity: "web", Path: "/web", FederatesWith: []string{"peer.example"}})
	d := a.output(t, web)
	d.next()
	d.quiet()
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("peer.example", peer.Document())
	if u := d.next(); u.Bundles[peer.TrustDomain] == nil {
		t.Error("the peer's bundle is not told")
	}
	// What it may ask for is told too, though the SVID stays.
	b.Grant(agenttest.Grant{Identity: "web", Path: "/web", FederatesWith: []string{"peer.example"}, Targets: []*api.Target{{Name: "t", Revision: 1}}})
	b.Push(change(digest(webFacts()), false))
	if u := d.next(); len(u.SVIDs[0].Targets) != 1 {
		t.Errorf("targets: %v", u.SVIDs[0].Targets)
	}
	d.quiet()
}

// A denial and an erasure are told, once each, the erasure before the broker
// answers; then a grant is told by itself.
func TestOutputIsToldToErase(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/web"))
	d := a.output(t, web)
	d.next()
	entered, release := b.Hold("IssueX509")
	b.Grant()
	b.Push(change(digest(webFacts()), true))
	if _, err := d.try(10 * time.Second); !errors.Is(err, agent.ErrDenied) || !strings.Contains(err.Error(), "withdrawn") {
		t.Fatalf("erased: %v", err)
	}
	if _, err := d.JWT(t.Context(), []string{"a"}, spiffeid.ID{}); err == nil {
		t.Error("a JWT-SVID after the erasure")
	}
	<-entered
	d.quiet()
	release()
	var denied *agent.Denied
	if _, err := d.try(10 * time.Second); !errors.As(err, &denied) || denied.Record != agenttest.Record {
		t.Fatalf("denied: %v", err)
	}
	d.quiet()
	b.Before("IssueX509", nil)
	b.Grant(grant("/other")) // nobody tells: it asks
	if diff := cmp.Diff([]string{"/other"}, paths(d.next())); diff != "" {
		t.Error(diff)
	}
}

func TestAnEvictionErasesOutputs(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/web"))
	d := a.output(t, web)
	d.next()
	b.EndWatch(status.Error(codes.PermissionDenied, "evicted"))
	if err := a.ended(); !errors.Is(err, agent.ErrFatal) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as the agent's end does to all that runs beside it
	if _, err := d.Next(ctx); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
	if _, err := d.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("told twice: %v", err)
	}
}

// An agent that stops withdraws nothing.
func TestAStopErasesNoOutput(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/web"))
	d := a.output(t, web)
	d.next()
	a.end()
	if _, err := d.try(100 * time.Millisecond); errors.Is(err, agent.ErrDenied) || err == nil {
		t.Errorf("got %v", err)
	}
}

func TestOutputWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	b, a := started(t, func(cfg *agent.Config) { cfg.Patience = 50 * time.Millisecond })
	b.Grant(grant("/web"))
	b.Before("IssueX509", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
	d := a.output(t, web)
	if _, err := d.try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	b.Before("IssueX509", nil)
	d.next()
}

func TestOutputTokens(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	asked := make(chan *api.IssueJWTRequest, 8)
	b.OnJWT(func(r *api.IssueJWTRequest) { asked <- r })
	b.Grant(agenttest.Grant{Identity: "web", Path: "/web", Audiences: []string{"orders"}, Targets: []*api.Target{{Name: "aws", Revision: 1, Provider: "aws_web_identity"}}})
	d := a.output(t, web)
	u := d.next()
	j, err := d.JWT(t.Context(), []string{"orders"}, u.SVIDs[0].ID)
	if err != nil || j.ID != u.SVIDs[0].ID || j.Token == "" {
		t.Fatal(j.ID, err)
	}
	<-asked
	token, target, err := d.TargetToken(t.Context(), "aws", true)
	if err != nil || token.Token == "" || target.Flow != "aws_web_identity" {
		t.Fatal(target, err)
	}
	want := &api.IssueJWTRequest{Workload: &api.Workload{Facts: map[string]*api.Values{}}, Target: "aws", ToFile: true, SpiffeId: u.SVIDs[0].ID.String()}
	for name, values := range webFacts() {
		want.Workload.Facts[name] = &api.Values{Values: slices.Clone(values)}
	}
	if diff := cmp.Diff(want, <-asked, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if _, _, err := d.TargetToken(t.Context(), "gcp", true); !errors.Is(err, agent.ErrDenied) || !strings.Contains(err.Error(), "output web") {
		t.Errorf("a target that is not listed: %v", err)
	}
	if _, err := d.Exchange(t.Context(), "gcp", ""); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("a target that is not listed: %v", err)
	}
}
