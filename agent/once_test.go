package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

func left(u agent.Update) time.Duration { return time.Until(u.SVIDs[0].Certificates[0].NotAfter) }

// One-shot SVIDs are each call's own: of the life asked for, and none is kept
// for another caller, nor takes the place of what is kept.
func TestX509Once(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"), grant("/b"), grant("/c")) // more than an ordinary ask has keys for
	kept := a.view(t).next()
	asked := b.Calls("IssueX509")
	one, err := a.X509Once(t.Context(), process(t), 12*time.Minute)
	if err != nil || len(one.SVIDs) != 3 || len(one.Bundles) != 1 {
		t.Fatalf("%v %v", one, err)
	}
	if left(one) > 12*time.Minute+time.Second || left(one) < 11*time.Minute {
		t.Errorf("it lives %s", left(one))
	}
	two, err := a.X509Once(t.Context(), process(t), 12*time.Minute)
	if err != nil || two.SVIDs[0].Certificates[0].Equal(one.SVIDs[0].Certificates[0]) || two.SVIDs[0].Key == one.SVIDs[0].Key {
		t.Errorf("one was given twice: %v", err)
	}
	if n := b.Calls("IssueX509") - asked; n != 2 {
		t.Errorf("the broker was asked %d times", n)
	}
	if again := a.view(t).next(); !again.SVIDs[0].Certificates[0].Equal(kept.SVIDs[0].Certificates[0]) {
		t.Error("a one-shot SVID, or another, is served to the Workload API")
	}
}

// Where nothing else was asked for, nothing is on disk, and nothing is lent while
// the broker is away.
func TestOnceIsKeptNowhere(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	b, a := started(t, func(c *agent.Config) { c.Data = data })
	b.Grant(listed("/a"))
	if _, err := a.X509Once(t.Context(), process(t), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := a.JWTOnce(t.Context(), process(t), []string{"x"}, spiffeid.ID{}, time.Minute); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	if _, err := a.X509Once(t.Context(), process(t), time.Minute); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("without a broker: %v", err)
	}
	if _, err := a.JWTOnce(t.Context(), process(t), []string{"x"}, spiffeid.ID{}, time.Minute); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("without a broker: %v", err)
	}
	if _, err := jwt(t, a, spiffeid.ID{}, "x"); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("a token is kept: %v", err)
	}
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("an SVID is kept: %v %v", paths(u), err)
	}
	a.end()
	if _, err := os.Stat(filepath.Join(data, "svids.sealed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is kept on disk: %v", err)
	}
}

func TestJWTOnce(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"), listed("/b"))
	kept := mustJWT(t, a, "x")
	one, err := a.JWTOnce(t.Context(), process(t), []string{"x"}, spiffeid.RequireFromPath(b.TrustDomain, "/b"), 2*time.Minute)
	if err != nil || len(one) != 1 || one[0].ID.Path() != "/b" || time.Until(one[0].Expires) > 2*time.Minute+time.Second {
		t.Fatalf("%v %v", one, err)
	}
	if again := mustJWT(t, a, "x"); again[0].Token != kept[0].Token || again[1].Token == one[0].Token {
		t.Error("a one-shot token is served, or took the place of one that is")
	}
}

// The cap is named, and what the broker gives beyond what was asked for, as one
// that doesn't know of it would, is not handed out.
func TestOnceRefused(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	short, deaf := listed("/a"), listed("/a")
	short.TTL, deaf.Deaf = 10*time.Minute, true
	x509 := func(d time.Duration) error { _, err := a.X509Once(t.Context(), process(t), d); return err }
	token := func(d time.Duration) error {
		_, err := a.JWTOnce(t.Context(), process(t), []string{"x"}, spiffeid.ID{}, d)
		return err
	}
	denial := func(err error) agent.Denied {
		var d *agent.Denied
		if !errors.As(err, &d) {
			t.Errorf("%v: want a denial", err)
			return agent.Denied{}
		}
		return *d
	}
	b.Grant(short)
	for want, err := range map[string]error{
		"a life of 12m0s is asked for, and the identity gives at most 10m0s": x509(12 * time.Minute),
		"a life of 6m0s is asked for, and the identity gives at most 5m0s":   token(6 * time.Minute),
	} {
		if d := denial(err); d.Code != agent.LifeRefused || d.Reason != want || d.Meta["most"] == "" || d.Record != agenttest.Record {
			t.Errorf("%+v", d)
		}
	}
	b.Grant()
	for _, err := range []error{x509(time.Minute), token(time.Minute)} {
		if d := denial(err); d.Code == agent.LifeRefused || d.Record != agenttest.Record {
			t.Errorf("nothing is granted: %+v", d)
		}
	}
	b.Grant(deaf)
	for _, err := range []error{x509(time.Minute), token(time.Minute)} {
		if !errors.Is(err, agent.ErrUnavailable) {
			t.Errorf("it lives longer than was asked for: %v", err)
		}
	}
	many := make([]agenttest.Grant, 9)
	for n := range many {
		many[n] = grant("/" + string(rune('a'+n)))
	}
	b.Grant(many...)
	if d := denial(x509(time.Minute)); d.Code != agent.RequestRefused {
		t.Errorf("more identities than keys: %+v", d)
	}
}

// An agent that has not joined waits for it, and one that was evicted gives
// nothing.
func TestOnceNeedsANode(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Grant(grant("/a"))
	entered, release := b.Hold("Join")
	a := run(t, config(t, b))
	<-entered
	if _, err := a.X509Once(t.Context(), process(t), time.Minute); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("before it has joined: %v", err)
	}
	release()
	a.ready()
	if _, err := a.X509Once(t.Context(), process(t), time.Minute); err != nil {
		t.Error(err)
	}
	a.end()
	if _, err := a.X509Once(t.Context(), process(t), time.Minute); err == nil {
		t.Error("an agent that has ended gives one")
	}
}

// A process that is not the one any more that called gets nothing.
func TestOnceForTheCallerOnly(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"))
	for _, token := range []bool{false, true} {
		p := process(t)
		b.Decide(func(*api.Workload) []agenttest.Grant {
			p.Close() // from now on it cannot be told
			return []agenttest.Grant{listed("/a")}
		})
		var err error
		if token {
			_, err = a.JWTOnce(t.Context(), p, []string{"x"}, spiffeid.ID{}, time.Minute)
		} else {
			_, err = a.X509Once(t.Context(), p, time.Minute)
		}
		if !errors.Is(err, agent.ErrDenied) {
			t.Errorf("a token, %t: %v", token, err)
		}
	}
}
