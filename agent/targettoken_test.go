package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/exchangers"
)

func mustToken(t *testing.T, a *running, target string, toFile bool) agent.JWTSVID {
	t.Helper()
	svid, _, err := a.TargetToken(t.Context(), process(t), target, toFile)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestTokensForATarget(t *testing.T) {
	t.Parallel()
	clock := &clock{}
	b, a := started(t, func(c *agent.Config) { c.Now = clock.Now })
	b.Grant(grant("/none"), targeting("/a", 1, "orders", "stock"))
	first, target, err := a.TargetToken(t.Context(), process(t), "orders", false)
	if err != nil || first.ID.Path() != "/a" || first.Token == "" || target.Name != "orders" || string(target.Settings) != "{}" {
		t.Fatalf("%v of %v: %v", first, target, err)
	}
	if diff := cmp.Diff(first, mustToken(t, a, "orders", false), ids); diff != "" {
		t.Errorf("asked for again: %s", diff)
	}
	file := mustToken(t, a, "orders", true)
	for name, other := range map[string]agent.JWTSVID{"to a file": file, "of another target": mustToken(t, a, "stock", false)} {
		if other.Token == first.Token {
			t.Errorf("the token %s is the same", name)
		}
	}
	if all := mustAudience(t, a); all == first.Token {
		t.Error("a target's token was served for an audience")
	}
	clock.pass(3 * time.Minute) // past half of its life
	if mustToken(t, a, "orders", false).Token == first.Token {
		t.Error("a token is served beyond half of its life though the broker is there")
	}
	b.Before("IssueJWT", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
	if mustToken(t, a, "orders", true).Token != file.Token {
		t.Error("without the broker, the one that is held is not served")
	}
	if _, _, err := a.TargetToken(t.Context(), process(t), "nowhere", false); !errors.Is(err, agent.ErrDenied) || !strings.Contains(err.Error(), "orders, stock") {
		t.Errorf("a target that is not listed: %v", err)
	}
}

// mustAudience asks for an audience that is nobody's, with an identity that
// may have any.
func mustAudience(t *testing.T, a *running) string {
	t.Helper()
	svids, err := a.JWT(t.Context(), process(t), []string{"target:orders"}, spiffeid.ID{})
	if err != nil {
		return ""
	}
	return svids[0].Token
}

func TestATargetsTokenGoesWithItsGrant(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(targeting("/a", 1, "orders"))
	first := mustToken(t, a, "orders", true)
	b.Push(change(digest(uid("1000")), true))
	b.Await("it is heeded", func() bool { return b.Acknowledged() == 9 })
	if mustToken(t, a, "orders", true).Token == first.Token {
		t.Error("an erased token is served")
	}
	b.Grant(grant("/a"))
	b.Push(change(digest(uid("1000")), true))
	b.Await("the target is not listed any more", func() bool {
		_, _, err := a.TargetToken(t.Context(), process(t), "orders", true)
		return errors.Is(err, agent.ErrDenied)
	})
}

// challenged is a cloud whose resources challenge.
type challenged struct {
	*cloud
	claims chan string
}

func (c challenged) Answer(ctx context.Context, svids exchangers.SVIDs, claims string) (exchangers.Credential, error) {
	c.claims <- claims
	return c.Exchange(ctx, svids)
}

func TestAClaimsChallengeIsAnswered(t *testing.T) {
	t.Parallel()
	c := challenged{&cloud{}, make(chan string, 8)}
	b, a := started(t, func(cfg *agent.Config) {
		cfg.Exchanger = func(agent.Target) (exchangers.Exchanger, error) { return c, nil }
	})
	b.Grant(targeting("/a", 1, "orders"))
	if got := credential(t, a, "orders"); got != "secret-1" {
		t.Fatal(got)
	}
	const claims = `{"access_token":{"nbf":{"essential":true,"value":"1"}}}`
	got, err := a.Exchange(t.Context(), process(t), "orders", claims)
	if err != nil || got.Bearer.Token.Reveal() != "secret-2" || <-c.claims != claims || got.ID.Path() != "/a" {
		t.Fatalf("%v, %v", got, err)
	}
	if got := credential(t, a, "orders"); got != "secret-2" {
		t.Errorf("the next caller gets %s: the resource refuses it", got)
	}
	if _, err := a.Exchange(t.Context(), process(t), "stock", claims); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("at a target that is not listed: %v", err)
	}
}
