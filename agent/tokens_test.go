package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
)

func jwt(t *testing.T, a *running, id spiffeid.ID, audiences ...string) ([]agent.JWTSVID, error) {
	t.Helper()
	return a.JWT(t.Context(), process(t), audiences, id)
}

func mustJWT(t *testing.T, a *running, audiences ...string) []agent.JWTSVID {
	t.Helper()
	svids, err := jwt(t, a, spiffeid.ID{}, audiences...)
	if err != nil {
		t.Fatal(err)
	}
	return svids
}

var ids = cmpopts.EquateComparable(spiffeid.ID{})

func listed(path string) agenttest.Grant {
	g := grant(path)
	g.Audiences = []string{"**"}
	return g
}

func TestJWTSVIDs(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"), listed("/b"), grant("/none"))
	all := mustJWT(t, a, "reports")
	if len(all) != 2 || all[0].ID.Path() != "/a" || all[1].ID.Path() != "/b" {
		t.Errorf("of all identities: %v", all)
	}
	one, err := jwt(t, a, spiffeid.RequireFromPath(b.TrustDomain, "/b"), "reports")
	if err != nil || len(one) != 1 || one[0].ID.Path() != "/b" {
		t.Errorf("of one identity: %v %v", one, err)
	}
	_, err = jwt(t, a, spiffeid.RequireFromPath(b.TrustDomain, "/none"), "reports")
	var denied *agent.Denied
	if !errors.As(err, &denied) || denied.Record != agenttest.Record {
		t.Errorf("of one without audiences: %v, want ErrDenied with a record", err)
	}
	_, err = jwt(t, a, spiffeid.RequireFromPath(b.TrustDomain, "/stranger"), "reports")
	if !errors.Is(err, agent.ErrDenied) {
		t.Errorf("of somebody else: %v, want ErrDenied", err)
	}
}

// Regression: SPIRE #4309
func TestJWTSVIDsAreKept(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"))
	first := mustJWT(t, a, "x", "y")
	if diff := cmp.Diff(first, mustJWT(t, a, "x", "y"), ids); diff != "" {
		t.Errorf("asked for again: %s", diff)
	}
	if cmp.Equal(first, mustJWT(t, a, "x\x00y"), ids) || cmp.Equal(first, mustJWT(t, a, "y", "x"), ids) {
		t.Error("a token for other audiences was served")
	}
	b.Push(change(digest(uid("1000")), false))
	b.Await("it is heeded", func() bool { return b.Acknowledged() == 9 })
	if cmp.Equal(first, mustJWT(t, a, "x", "y"), ids) {
		t.Error("a token from before a change was served")
	}
}

// What is evidence at a token endpoint is used once: no two callers get the same.
func TestSingleUseJWTSVIDsAreNotKept(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"))
	first := mustJWT(t, a, agenttest.Once)
	if cmp.Equal(first, mustJWT(t, a, agenttest.Once), ids) {
		t.Error("one token was served twice")
	}
	b.Before("IssueJWT", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
	if _, err := jwt(t, a, spiffeid.ID{}, agenttest.Once); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("without a broker: %v", err)
	}
}

func TestJWTSVIDsOutliveTheBroker(t *testing.T) {
	t.Parallel()
	clock := &clock{}
	b, a := started(t, func(c *agent.Config) { c.Now = clock.Now })
	b.Grant(listed("/a"))
	held := mustJWT(t, a, "x")
	clock.pass(3 * time.Minute) // past half of its life
	b.Before("IssueJWT", func(context.Context) error { return status.Error(codes.Unavailable, "the broker is away") })
	if diff := cmp.Diff(held, mustJWT(t, a, "x"), ids); diff != "" {
		t.Errorf("the held one is not served: %s", diff)
	}
	if _, err := jwt(t, a, spiffeid.ID{}, "other"); !errors.Is(err, agent.ErrUnavailable) || !strings.Contains(err.Error(), "the broker is away") {
		t.Errorf("for another audience: %v", err)
	}
	clock.pass(3 * time.Minute)
	if _, err := jwt(t, a, spiffeid.ID{}, "x"); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("after its end: %v", err)
	}
}

// Regression: SPIRE #6501
func TestAJWTSVIDIsNotServedAfterAnErasure(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(listed("/a"))
	asked, release := b.Hold("IssueJWT")
	answer := make(chan error, 1)
	p := process(t)
	go func() {
		_, err := a.JWT(t.Context(), p, []string{"x"}, spiffeid.ID{})
		answer <- err
	}()
	<-asked
	b.Push(change(digest(uid("1000")), true))
	b.Await("it is heeded", func() bool { return b.Acknowledged() == 9 })
	release()
	<-answer // which the broker decided on after the erasure
	b.Before("IssueJWT", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
	if got, err := jwt(t, a, spiffeid.ID{}, "x"); err == nil {
		t.Errorf("an answer asked for before an erasure was kept: %v", got)
	}
}
