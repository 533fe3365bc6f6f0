package agent_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/broker/api"
)

// survivorJWT is a survivor whose workload had tokens made ahead for orders and
// books; it asked for one of pay and of any.
type survivorJWT struct {
	*survivor
	orders []agent.JWTSVID
}

func endedJWT(t *testing.T) *survivorJWT {
	t.Helper()
	s := &survivor{Broker: agenttest.NewBroker(t, domain).Start(), attestor: &facts{all: uid("1000")}}
	s.cfg = config(t, s.Broker)
	s.cfg.Attestors = map[string]agent.Attestor{"workload.unix": s.attestor}
	s.Grant(grantOf("/a", "orders", "books=audited", "pay=single_use", "**"))
	a := run(t, s.cfg).ready()
	a.view(t).next()
	madeAhead(t, a, "orders", "books")
	mustJWT(t, a, "pay")
	mustJWT(t, a, "any")
	orders := mustJWT(t, a, "orders")
	a.end()
	s.Stop()
	return &survivorJWT{s, orders}
}

// try starts it anew, and asks as a process with these facts.
func (s *survivorJWT) try(t *testing.T, all map[string][]string, audience string) ([]agent.JWTSVID, error) {
	t.Helper()
	s.attestor.set(all)
	a := run(t, s.cfg)
	defer a.end()
	return jwt(t, a, spiffeid.ID{}, audience)
}

func TestTokensSurviveARestart(t *testing.T) {
	t.Parallel()
	s := endedJWT(t)
	text, err := os.ReadFile(filepath.Join(s.cfg.Data, sealedFile))
	if err != nil || bytes.Contains(text, []byte(s.orders[0].Token)) {
		t.Errorf("it is not sealed: %v", err)
	}
	more := maps.Clone(uid("1000"))
	more["workload.unix.path"] = []string{"/bin/other"} // on which nothing was decided
	for _, row := range []struct {
		name, audience string
		facts          map[string][]string
		had            bool
	}{
		{"equal facts", "orders", uid("1000"), true},
		{"equal in what it was decided on", "orders", more, true},
		{"audited", "books", uid("1000"), true},
		{"asked for before", "any", uid("1000"), true},
		{"a fact of another value", "orders", uid("1001"), false},
		{"used once", "pay", uid("1000"), false},
		{"never made", "other", uid("1000"), false},
	} {
		got, err := s.try(t, row.facts, row.audience)
		if had := err == nil; had != row.had || err != nil && !errors.Is(err, agent.ErrUnavailable) {
			t.Errorf("%s: %v %v", row.name, got, err)
		}
		if row.audience == "orders" && row.had && cmp.Diff(s.orders, got, ids) != "" {
			t.Errorf("%s: another token: %v", row.name, got)
		}
	}
	s.attestor.set(map[string][]string{}, "workload.unix.uid")
	a := run(t, s.cfg)
	if got, err := jwt(t, a, spiffeid.ID{}, "orders"); err == nil {
		t.Errorf("with an unknown fact: %v", got)
	}
	a.end()
	s.cfg.Now = func() time.Time { return s.orders[0].Expires }
	if got, err := s.try(t, uid("1000"), "orders"); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("when it ends: %v %v", got, err)
	}
}

// What is audited is lent after a restart only where that can be reported.
func TestAuditedTokensOfAnEarlierRun(t *testing.T) {
	t.Parallel()
	s := endedJWT(t)
	s.cfg.Spool = agent.Spool{Max: spool.MinMax}
	overfull(t, s.cfg.Data)
	if got, err := s.try(t, uid("1000"), "books"); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("%v %v", got, err)
	}
	if got, err := s.try(t, uid("1000"), "orders"); err != nil {
		t.Errorf("%v %v", got, err)
	}
}

// What was erased, or is to be decided anew, comes back by no restart.
func TestErasedTokensAreNotKept(t *testing.T) {
	t.Parallel()
	for name, erase := range map[string]bool{"erased": true, "to be asked again": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.NewBroker(t, domain).Start()
			cfg := config(t, b)
			b.Grant(grantOf("/a", "orders"))
			size := func() int64 {
				info, err := os.Stat(filepath.Join(cfg.Data, sealedFile))
				if err != nil {
					return 0
				}
				return info.Size()
			}
			noJWT(b)
			a := run(t, cfg).ready()
			v := a.view(t)
			v.next()
			eventually(t, "the X509-SVID is on disk", func() bool { return size() > 0 })
			bare := size() + 300 // no token is as short
			b.Before("IssueJWT", nil)
			madeAhead(t, a, "orders")
			eventually(t, "the token is on disk", func() bool { return size() > bare })
			noJWT(b)
			b.Push(change(digest(uid("1000")), erase))
			eventually(t, "it is off the disk", func() bool { return b.Calls("IssueX509") > 1 && size() > 0 && size() < bare })
			a.end()
			b.Stop()
			a = run(t, cfg)
			if got, err := jwt(t, a, spiffeid.ID{}, "orders"); !errors.Is(err, agent.ErrUnavailable) {
				t.Errorf("%v %v", got, err)
			}
			if u, err := a.view(t).try(10 * time.Second); err != nil {
				t.Errorf("the X509-SVID: %v %v", u, err)
			}
		})
	}
}

// Once the broker is heard, what an earlier run held is served only where the
// broker confirms all that it rests on; then it isn't made anew.
func TestKeptTokensAreConfirmed(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change func(*survivorJWT)
		had    bool
	}{
		"nothing changed": {func(*survivorJWT) {}, true},
		"the audience has another use": {func(s *survivorJWT) {
			s.Grant(grantOf("/a", "orders=single_use", "books=audited", "pay=single_use", "**"))
		}, false},
		"the token's key is revoked": {func(s *survivorJWT) {
			s.Revoke(&api.Cutoff{Kind: "authority", Value: s.JWTKeyID, Before: time.Now().Add(time.Hour).UnixMilli()})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := endedJWT(t)
			k := new(asked).of(s.Broker)
			row.change(s)
			noJWT(s.Broker)
			s.Start()
			a := run(t, s.cfg).ready()
			v := a.view(t)
			v.next()
			calls := s.Calls("IssueJWT")
			if row.had {
				madeAhead(t, a, "orders", "books")
				if diff := cmp.Diff(s.orders, mustJWT(t, a, "orders"), ids); diff != "" {
					t.Error(diff)
				}
				if n := s.Calls("IssueJWT"); n != calls {
					t.Errorf("%d calls", n-calls)
				}
				return
			}
			if got, err := jwt(t, a, spiffeid.ID{}, "orders"); !errors.Is(err, agent.ErrUnavailable) {
				t.Errorf("%v %v, asked %v", got, err, k.all)
			}
		})
	}
}

// Eviction takes everything, also of an earlier run.
func TestEvictionErasesTokens(t *testing.T) {
	t.Parallel()
	s := endedJWT(t)
	s.Before("Watch", func(context.Context) error { return status.Error(codes.PermissionDenied, "this node has been evicted") })
	s.Start()
	a := run(t, s.cfg)
	if err := a.ended(); !errors.Is(err, agent.ErrFatal) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Data, sealedFile)); !errors.Is(err, os.ErrNotExist) || a.Tokens() != 0 {
		t.Errorf("%d tokens; %s: %v", a.Tokens(), sealedFile, err)
	}
}
