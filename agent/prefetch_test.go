package agent_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// asked notes which JWT-SVIDs a broker is asked for: uid and audiences.
type asked struct {
	mu  sync.Mutex
	all []string
}

func (k *asked) of(b *agenttest.Broker) *asked {
	b.OnJWT(func(r *api.IssueJWTRequest) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.all = append(k.all, r.GetWorkload().GetFacts()["workload.unix.uid"].GetValues()[0]+" "+strings.Join(r.GetAudiences(), ","))
	})
	return k
}

func (k *asked) times(what string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.all {
		if one == what {
			n++
		}
	}
	return n
}

// grantOf is of an identity that lists these audiences, "NAME=USE" with a use.
func grantOf(path string, audiences ...string) agenttest.Grant {
	g := grant(path)
	for _, a := range audiences {
		name, use, _ := strings.Cut(a, "=")
		g.Audiences = append(g.Audiences, name)
		if use != "" {
			if g.Uses == nil {
				g.Uses = map[string]string{}
			}
			g.Uses[name] = use
		}
	}
	return g
}

func noJWT(b *agenttest.Broker) {
	b.Before("IssueJWT", func(context.Context) error { return status.Error(codes.Unavailable, "the broker is away") })
}

// madeAhead waits until all these were asked for, and their answers are held: the
// agent asks for one after the other.
func madeAhead(t *testing.T, a *running, audiences ...string) {
	t.Helper()
	eventually(t, "tokens are made ahead", func() bool {
		ends := map[string]bool{}
		for _, h := range a.Status().Held {
			for _, j := range h.JWT {
				ends[j.Audience] = !j.Ends.IsZero()
			}
		}
		for _, audience := range audiences {
			if !ends[audience] {
				return false
			}
		}
		return true
	})
}

func TestListedAudiencesAreServedWithoutTheBroker(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	k := new(asked).of(b)
	b.Grant(grantOf("/a", "orders", "pay=single_use", "books=audited", "re*", "**", "new=by_moonlight"), grantOf("/b", "orders"))
	a.view(t).next() // nobody asks for a token
	madeAhead(t, a, "orders", "books")
	noJWT(b)
	all := mustJWT(t, a, "orders")
	if len(all) != 2 || all[0].ID.Path() != "/a" || all[1].ID.Path() != "/b" {
		t.Errorf("for orders: %v", all)
	}
	one, err := jwt(t, a, spiffeid.RequireFromPath(b.TrustDomain, "/b"), "orders")
	if err != nil || len(one) != 1 || one[0].Token != all[1].Token {
		t.Errorf("of /b: %v %v", one, err)
	}
	mustJWT(t, a, "books")
	_, err = jwt(t, a, spiffeid.ID{}, "pay")
	if u := new(agent.Unavailable); !errors.As(err, &u) || !strings.Contains(err.Error(), `"pay"`) || !strings.Contains(err.Error(), "single_use") || !strings.Contains(err.Error(), "away") {
		t.Errorf("for pay: %v", err)
	}
	if _, err := jwt(t, a, spiffeid.ID{}, "orders", "books"); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("for two at once: %v", err)
	}
	for what, want := range map[string]int{"1000 orders": 1, "1000 books": 1, "1000 pay": 0, "1000 re*": 0, "1000 **": 0, "1000 new": 0} {
		if n := k.times(what); n != want {
			t.Errorf("asked for %s: %d times, want %d", what, n, want)
		}
	}
}

// What lives is renewed though nobody asks.
func TestTokensMadeAheadAreRenewed(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	k := new(asked).of(b)
	g := grantOf("/a", "orders")
	g.JWTTTL = 4 * time.Second
	b.Grant(g)
	a.view(t).next()
	eventually(t, "it is asked for again and again", func() bool { return k.times("1000 orders") >= 3 })
}

// A process that has gone leaves nothing that is renewed or kept.
func TestTokensOfTheDeadAreDropped(t *testing.T) {
	t.Parallel()
	attestor, clock := &facts{all: uid("1000")}, &clock{}
	b, a := started(t, func(c *agent.Config) {
		c.Attestors, c.Now = map[string]agent.Attestor{"workload.unix": attestor}, clock.Now
	})
	k := new(asked).of(b)
	g := grantOf("/a", "orders")
	g.JWTTTL = time.Hour
	b.Grant(g)
	v := a.view(t)
	v.next()
	madeAhead(t, a, "orders")
	v.Close()
	clock.pass(6 * time.Minute)
	attestor.set(uid("1001"))
	a.view(t).next() // it lives on
	eventually(t, "the other's is made", func() bool { return k.times("1001 orders") > 0 })
	eventually(t, "those of the dead are dropped", func() bool { return a.Tokens() == 1 })
	clock.pass(30 * time.Minute)
	attestor.set(uid("1001"))
	mustJWT(t, a, "orders") // it notices the time
	eventually(t, "the living one's is renewed", func() bool { return k.times("1001 orders") > 1 })
	if n := k.times("1000 orders"); n != 1 {
		t.Errorf("the dead one's was asked for %d times", n)
	}
}

func TestPrefetchHoldsUpNoX509SVID(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1000")}
	b, a := started(t, func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	b.Grant(grantOf("/a", "x", "y", "z"))
	asking, release := b.Hold("IssueJWT")
	defer release()
	a.view(t).next()
	<-asking
	for _, who := range []string{"1001", "1002", "1003"} {
		attestor.set(uid(who))
		a.view(t).next()
	}
	select {
	case <-asking:
		t.Error("two tokens are asked for at once")
	default:
	}
}

// What a decision is found to be after a silence is what counts: a token of an
// audience that is listed no more is not served, though no message told of it.
func TestTokensFallWithTheDecision(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grantOf("/a", "orders"))
	v := a.view(t)
	v.next()
	madeAhead(t, a, "orders")
	first := mustJWT(t, a, "orders")
	noJWT(b)
	b.EndWatch(status.Error(codes.Unavailable, "restarting"))
	b.Await("it watches again", func() bool { return b.Calls("Watch") > 1 })
	if diff := cmp.Diff(first, mustJWT(t, a, "orders"), ids); diff != "" {
		t.Errorf("after a silence without a change: %s", diff)
	}
	b.Grant(grantOf("/a", "others"))
	b.EndWatch(status.Error(codes.Unavailable, "restarting"))
	eventually(t, "it is served no more", func() bool {
		_, err := jwt(t, a, spiffeid.ID{}, "orders")
		return errors.Is(err, agent.ErrUnavailable)
	})
}

// A use that the SVIDs tell holds though the token's answer says nothing of it,
// and one that is not known is the strictest.
func TestTheStricterWordOfTheBrokerCounts(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grantOf("/a", "pay=single_use", "new=by_moonlight", "books=audited"))
	a.view(t).next()
	b.Grant(grantOf("/a", "pay", "new", "books")) // of which nobody tells
	for _, audience := range []string{"pay", "new"} {
		if cmp.Equal(mustJWT(t, a, audience), mustJWT(t, a, audience), ids) {
			t.Errorf("%s: one token was served twice", audience)
		}
	}
	mustJWT(t, a, "books")
	b.Await("it is reported", func() bool { return len(b.HandOuts()) == 1 })
}

// One workload's audiences push out nobody's tokens but its own.
func TestTokensPushOutNoOthers(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1")}
	b, a := started(t, func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	k := new(asked).of(b)
	b.Grant(listed("/a"))
	mustJWT(t, a, "mine")
	attestor.set(uid("2"))
	for n := range 80 {
		mustJWT(t, a, strings.Repeat("x", n+1))
	}
	if n := a.Tokens(); n != 64+1 {
		t.Errorf("%d tokens are kept", n)
	}
	mustJWT(t, a, strings.Repeat("x", 80))
	mustJWT(t, a, "x")
	attestor.set(uid("1"))
	mustJWT(t, a, "mine")
	for what, want := range map[string]int{"1 mine": 1, "2 " + strings.Repeat("x", 80): 1, "2 x": 2} {
		if n := k.times(what); n != want {
			t.Errorf("asked for %.10s: %d times, want %d", what, n, want)
		}
	}
}

func TestTokensAtTheCap(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1")}
	b, a := started(t, func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	k := new(asked).of(b)
	b.Grant(listed("/a"))
	mustJWT(t, a, "mine")
	a.FillTokens(time.Hour)
	attestor.set(uid("2"))
	for range 2 {
		mustJWT(t, a, "yours") // handed out, not kept
	}
	attestor.set(uid("1"))
	mustJWT(t, a, "mine")
	if k.times("2 yours") != 2 || k.times("1 mine") != 1 || a.Tokens() != 4096 {
		t.Errorf("asked %v, and %d are kept", k.all, a.Tokens())
	}
	// What was made ahead leaves room, and what has ended makes it.
	a.FillTokens(-time.Second)
	attestor.set(uid("2"))
	for range 2 {
		mustJWT(t, a, "yours")
	}
	if k.times("2 yours") != 3 {
		t.Errorf("asked %v", k.all)
	}
}

func TestNoFileHoldsWhatIsUsedOnce(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	k := new(asked).of(b)
	b.Grant(grantOf("/a", "orders", "pay=single_use", agenttest.Once))
	d, err := a.Output(agent.Output{Name: "web", UID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u, err := d.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := u.SVIDs[0].ID
	if _, err := d.JWT(t.Context(), []string{"orders"}, id); err != nil {
		t.Error(err)
	}
	for _, audience := range []string{"pay", agenttest.Once} {
		denied := new(agent.Denied)
		if got, err := d.JWT(t.Context(), []string{audience}, id); !errors.As(err, &denied) || denied.Code != agent.AudienceSingleUse {
			t.Errorf("%s: %v %v", audience, got, err)
		}
	}
	if n := k.times("1000 pay"); n != 0 {
		t.Errorf("%d were made for nobody", n)
	}
}
