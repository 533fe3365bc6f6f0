package agent_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// withdrawals are the ways in which what was granted ends before its time.
var withdrawals = map[string]func(*agenttest.Broker){
	"a deny": func(b *agenttest.Broker) {
		b.Grant()
		b.Push(erasing(true))
	},
	"a deny that the broker finds when it is asked again": func(b *agenttest.Broker) {
		b.Grant()
		b.Push(erasing(false))
	},
	"the identity is removed, and another one stays": func(b *agenttest.Broker) {
		b.Grant(grant("/b"))
		b.Push(erasing(true))
	},
	"an erasure, after which the broker says nothing": func(b *agenttest.Broker) {
		for _, method := range []string{"IssueX509", "IssueJWT"} {
			b.Before(method, func(context.Context) error { return status.Error(codes.Unavailable, "away") })
		}
		b.Push(erasing(true))
	},
	"the node is evicted": func(b *agenttest.Broker) {
		evicted := status.Error(codes.PermissionDenied, "this node has been evicted")
		for _, method := range []string{"IssueX509", "IssueJWT", "Watch"} {
			b.Before(method, func(context.Context) error { return evicted })
		}
		b.EndWatch(evicted)
	},
}

// erasing is of a process and of an output.
func erasing(erase bool) *api.WatchResponse {
	return &api.WatchResponse{Revision: 9, Changes: []*api.Change{{Set: digest(uid("1000")), Erase: erase}, {Set: digest(webFacts()), Erase: erase}}}
}

// Whatever ends a grant, no surface gives anything of it any more, and nothing
// of it is held or kept.
func TestWhatIsWithdrawnIsServedNowhere(t *testing.T) {
	t.Parallel()
	for name, withdraw := range withdrawals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.NewBroker(t, domain).Start()
			cfg := config(t, b)
			exchanging(&cloud{})(&cfg)
			g := grantOf("/a", "orders", "books=audited")
			g.Targets = targeting("/a", 1, "aws", "gcp").Targets
			b.Grant(g)
			a := run(t, cfg).ready()
			v, d := a.view(t), a.output(t, web)
			v.next()
			d.next()
			all := surfaces(t, a, d)
			for surface, serves := range all {
				if !serves() {
					t.Errorf("%s: nothing is had though it is granted", surface)
				}
			}
			madeAhead(t, a, "orders", "books")

			withdraw(b)
			for stream, next := range map[string]func(time.Duration) (agent.Update, error){"stream": v.try, "output": d.try} {
				u, err := next(10 * time.Second)
				for err == nil && slices.Contains(paths(u), "/a") {
					u, err = next(10 * time.Second)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the open %s is told nothing", stream)
				}
			}
			var asking sync.WaitGroup
			for surface, serves := range all {
				asking.Go(func() {
					if serves() {
						t.Errorf("%s gives what was withdrawn", surface)
					}
				})
			}
			asking.Wait()
			eventually(t, "nothing of it is held", func() bool {
				st := a.Status()
				return !slices.ContainsFunc(st.Held, ofA) && len(st.Sessions) == 0 && a.Tokens() == 0
			})

			a.end()
			b.Stop()
			later, err := agent.New(cfg) // what a restart would serve
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close(later)
			if held := later.Status().Held; slices.ContainsFunc(held, ofA) || later.Tokens() > 0 {
				t.Errorf("kept for a restart: %v, %d tokens", held, later.Tokens())
			}
		})
	}
}

func ofA(h agent.Holding) bool { return h.ID.Path() == "/a" }

// surfaces are all ways to what is granted as /a; each says whether it gave some.
func surfaces(t *testing.T, a *running, d *delivery) map[string]func() bool {
	p, ctx, id := process(t), t.Context(), spiffeid.RequireFromPath(a.TrustDomain(), "/a")
	token := func(audience string) func() bool {
		return func() bool { _, err := a.JWT(ctx, p, []string{audience}, id); return err == nil }
	}
	return map[string]func() bool{
		"a new stream": func() bool {
			i := a.Identities(p)
			defer i.Close()
			u, err := i.Next(ctx)
			return err == nil && slices.Contains(paths(u), "/a")
		},
		"a one-shot SVID": func() bool {
			u, err := a.X509Once(ctx, p, time.Minute)
			return err == nil && slices.Contains(paths(u), "/a")
		},
		"a token made ahead": token("orders"),
		"an audited token":   token("books"),
		"a credential":       func() bool { _, err := a.Credential(ctx, p, "aws"); return err == nil },
		"an SDK's token":     func() bool { _, _, err := a.TargetToken(ctx, p, "gcp", false); return err == nil },
		"an SDK's file":      func() bool { _, _, err := a.TargetToken(ctx, p, "gcp", true); return err == nil },
		"an output's token":  func() bool { _, err := d.JWT(ctx, []string{"orders"}, id); return err == nil },
		"an output's credential": func() bool {
			_, err := d.Exchange(ctx, "aws", "")
			return err == nil
		},
		"an output's file": func() bool { _, _, err := d.TargetToken(ctx, "gcp", true); return err == nil },
	}
}
