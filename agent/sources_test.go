package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// clock is ahead of the real one.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// cloud is a provider: its credentials are numbered.
type cloud struct {
	mu     sync.Mutex
	n      int
	shown  []string
	refuse error
	wait   chan struct{}
	jwt    bool
	life   time.Duration // 0: an hour
}

func (c *cloud) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	c.mu.Lock()
	wait, jwt := c.wait, c.jwt
	c.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return exchangers.Credential{}, ctx.Err()
		}
	}
	shown, err := show(ctx, svids, jwt)
	if err != nil {
		return exchangers.Credential{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.shown = append(c.shown, shown)
	if c.refuse != nil {
		return exchangers.Credential{}, c.refuse
	}
	return exchangers.Credential{
		Expires: time.Now().Add(max(c.life, time.Hour)), RequestID: fmt.Sprintf("q-%d", c.n),
		Bearer: &exchangers.Bearer{Token: exchangers.NewSecret(fmt.Sprintf("secret-%d", c.n))},
	}, nil
}

func show(ctx context.Context, svids exchangers.SVIDs, jwt bool) (string, error) {
	if jwt {
		return svids.JWT(ctx)
	}
	svid, err := svids.X509(ctx)
	if err != nil {
		return "", err
	}
	return svid.ID.String(), nil
}

func (c *cloud) exchanges() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func exchanging(c *cloud) func(*agent.Config) {
	return func(cfg *agent.Config) {
		cfg.Exchanger = func(agent.Target) (exchangers.Exchanger, error) { return c, nil }
	}
}

func targeting(path string, revision uint64, names ...string) agenttest.Grant {
	g := grant(path)
	for _, name := range names {
		g.Targets = append(g.Targets, &api.Target{Name: name, Revision: revision, Provider: "aws_roles_anywhere", Settings: []byte("{}")})
	}
	return g
}

func credential(t *testing.T, a *running, target string) string {
	t.Helper()
	c, err := a.Credential(t.Context(), process(t), target)
	if err != nil {
		t.Fatal(err)
	}
	return c.Bearer.Token.Reveal()
}

// Regression: CVE-2025-11621
func TestOneSessionForAnIdentityAndTarget(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1000")}
	sky := &cloud{}
	b, a := started(t, exchanging(sky), func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	first := credential(t, a, "aws")
	attestor.set(uid("1001")) // another workload, the same SPIFFE ID
	if got := credential(t, a, "aws"); got != first {
		t.Errorf("another session: %q after %q", got, first)
	}
	if got := credential(t, a, "gcp"); got == first {
		t.Error("two targets share a session")
	}
	b.Await("each exchange is reported", func() bool { return len(b.Reports()) == 2 })
	a.end()
	got := b.Reports()
	for n, want := range []*api.Exchange{
		{SpiffeId: "spiffe://example.org/a", Target: "aws", Ok: true, RequestId: "q-1", Identity: "a"},
		{SpiffeId: "spiffe://example.org/a", Target: "gcp", Ok: true, RequestId: "q-2", Identity: "a"},
	} {
		r := got[n]
		if r.GetId() == "" || r.GetTime() == 0 || r.GetExpires() == 0 {
			t.Errorf("report %d lacks something: %v", n, r)
		}
		if diff := cmp.Diff([]any{want.GetSpiffeId(), want.GetTarget(), want.GetOk(), want.GetRequestId(), want.GetIdentity()},
			[]any{r.GetSpiffeId(), r.GetTarget(), r.GetOk(), r.GetRequestId(), r.GetIdentity()}); diff != "" {
			t.Errorf("report %d: %s", n, diff)
		}
	}
}

func TestATargetThatIsNotListed(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	_, err := a.Credential(t.Context(), process(t), "gcp")
	if !errors.Is(err, agent.ErrDenied) || !strings.Contains(err.Error(), "it lists: aws") {
		t.Errorf("got %v", err)
	}
	b.Grant()
	b.Push(change(nil, true))
	b.Await("it is heeded", func() bool { return b.Acknowledged() == 9 })
	if _, err := a.Credential(t.Context(), process(t), "aws"); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("without an identity: %v", err)
	}
	if sky.exchanges() != 0 {
		t.Error("something was exchanged")
	}
}

// Regression: CVE-2025-11621
func TestSessionsEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		grant agenttest.Grant
		push  *api.WatchResponse
	}{
		"at an erasure":                          {targeting("/a", 1, "aws"), change(digest(uid("1000")), true)},
		"at an erasure of everything":            {targeting("/a", 1, "aws"), change(nil, true)},
		"when the target's revision changes":     {targeting("/a", 2, "aws"), change(digest(uid("1000")), false)},
		"when another identity lists the target": {targeting("/b", 1, "aws"), change(digest(uid("1000")), false)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sky := &cloud{}
			b, a := started(t, exchanging(sky))
			b.Grant(targeting("/a", 1, "aws"))
			v := a.view(t)
			v.next()
			credential(t, a, "aws")
			b.Grant(test.grant)
			asked := b.Calls("IssueX509")
			b.Push(test.push)
			b.Await("it is asked again", func() bool { return b.Calls("IssueX509") > asked })
			v.next()
			if got := credential(t, a, "aws"); got != "secret-2" {
				t.Errorf("got %q: the session of before", got)
			}
		})
	}
}

func TestASessionThatNothingChangedStays(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	v := a.view(t)
	v.next()
	credential(t, a, "aws")
	g := targeting("/a", 1, "aws", "gcp")
	b.Grant(g)
	b.Push(change(digest(uid("1000")), false))
	v.next()
	if got := credential(t, a, "aws"); got != "secret-1" {
		t.Errorf("got %q", got)
	}
}

func TestAnExchangeUnderWayAtAnErasureReachesNobody(t *testing.T) {
	t.Parallel()
	sky := &cloud{wait: make(chan struct{})}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	p := process(t)
	v := a.view(t)
	v.next()
	got := make(chan error, 1)
	go func() { _, err := a.Credential(t.Context(), p, "aws"); got <- err }()
	v.quiet() // the exchange is on its way, or will find nothing
	b.Grant()
	b.Push(change(nil, true))
	if err := <-got; !errors.Is(err, agent.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
	close(sky.wait)
	a.end() // which waits for the exchange
}

func TestTheTokenThatIsExchangedIsForTheTarget(t *testing.T) {
	t.Parallel()
	sky := &cloud{jwt: true}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "gcp"))
	credential(t, a, "gcp")
	if b.Calls("IssueJWT") != 1 || strings.Count(sky.shown[0], ".") != 2 {
		t.Errorf("shown: %v", sky.shown)
	}
}

func TestRefusalsAreReported(t *testing.T) {
	t.Parallel()
	sky := &cloud{refuse: &exchangers.Error{Provider: "aws", Status: 403, Code: "Access\xffDenied", Class: exchangers.Config, RequestID: "q-9"}}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws"))
	_, err := a.Credential(t.Context(), process(t), "aws")
	var refusal *exchangers.Error
	if !errors.As(err, &refusal) {
		t.Errorf("got %v", err)
	}
	b.Await("it is reported", func() bool { return len(b.Reports()) == 1 })
	if r := b.Reports()[0]; r.GetOk() || r.GetClass() != "config" || r.GetRequestId() != "q-9" {
		t.Errorf("reported: %v", r)
	}
}

func TestReportsWaitForTheBroker(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	exchanging(sky)(&cfg)
	b.Grant(targeting("/a", 1, "aws"))
	b.Before("Report", func(context.Context) error { return status.Error(codes.Unavailable, "full") })
	a := run(t, cfg).ready()
	credential(t, a, "aws")
	b.Await("it was tried", func() bool { return b.Calls("Report") > 0 })
	a.end()
	if len(b.Reports()) != 0 {
		t.Fatal("reported already")
	}
	b.Before("Report", nil)
	run(t, cfg).ready()
	b.Await("it is reported after a restart", func() bool { return len(b.Reports()) == 1 })
}

func TestReportsThatTheBrokerNeverTakesDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	sky := &cloud{}
	b, a := started(t, exchanging(sky))
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	b.Before("Report", func(context.Context) error { return status.Error(codes.InvalidArgument, "malformed") })
	credential(t, a, "aws")
	b.Await("it was tried", func() bool { return b.Calls("Report") > 0 })
	b.Before("Report", nil)
	credential(t, a, "gcp")
	b.Await("the other is reported", func() bool { return len(b.Reports()) > 0 })
}

func TestSessionsThatNobodyAsksForEnd(t *testing.T) {
	t.Parallel()
	sky := &cloud{life: 10 * time.Hour}
	clock := &clock{}
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 10 * time.Hour
	b.Start()
	cfg := config(t, b)
	exchanging(sky)(&cfg)
	cfg.Now = clock.Now
	a := run(t, cfg).ready()
	g := targeting("/a", 1, "aws")
	g.TTL = 10 * time.Hour
	b.Grant(g)
	credential(t, a, "aws")
	clock.pass(2 * time.Hour)
	asked := b.Calls("IssueX509")
	b.Push(change(nil, false))
	b.Await("the agent went round", func() bool { return b.Calls("IssueX509") > asked })
	if got := credential(t, a, "aws"); got != "secret-2" {
		t.Errorf("got %q", got)
	}
}
