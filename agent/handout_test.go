package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/spool"
)

func TestEachHandOutOfAnAuditedTokenIsReported(t *testing.T) {
	t.Parallel()
	var data string
	b, a := started(t, func(c *agent.Config) { data = c.Data })
	away(b)
	b.Grant(grantOf("/a", "orders", "books=audited"))
	first := mustJWT(t, a, "books")
	if text := spooled(t, data); strings.Count(text, "handOuts") != 1 || strings.Contains(text, first[0].Token) {
		t.Errorf("on disk: %s", text)
	}
	for range 2 {
		if diff := cmp.Diff(first, mustJWT(t, a, "books"), ids); diff != "" {
			t.Errorf("it is not kept: %s", diff)
		}
	}
	mustJWT(t, a, "orders")
	mustJWT(t, a, "orders", "books") // the strictest of both
	b.Before("Report", nil)
	a.view(t).next()
	a.Wake()
	b.Await("all are reported", func() bool { return len(b.HandOuts()) == 4 })
	h, sum := b.HandOuts()[1], sha256.Sum256([]byte(first[0].Token))
	if h.GetSpiffeId() != first[0].ID.String() || h.GetIdentity() != "a" || !slices.Equal(h.GetAudiences(), []string{"books"}) || h.GetTokenId() == "" ||
		!bytes.Equal(h.GetDigest(), sum[:]) || h.GetExpires() != first[0].Expires.Unix() || !bytes.Equal(h.GetSet(), digest(uid("1000"))) ||
		h.GetFacts()["workload.unix.uid"].GetValues()[0] != "1000" || h.GetId() == "" || h.GetTime() == 0 {
		t.Errorf("reported: %v", h)
	}
	if got := b.HandOuts()[3].GetAudiences(); !slices.Equal(got, []string{"orders", "books"}) {
		t.Errorf("reported: %v", got)
	}
}

// Whatever spool.full says.
func TestWhatCannotBeReportedIsNotHandedOut(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	away(b)
	cfg := config(t, b)
	cfg.Spool = agent.Spool{Max: spool.MinMax}
	k := new(asked).of(b)
	b.Grant(grantOf("/a", "orders", "books=audited", "re*=audited"))
	a := run(t, cfg).ready()
	mustJWT(t, a, "books")
	for _, size := range []int{20 << 10, 100} {
		for agent.Fill(a.Agent, bytes.Repeat([]byte("x"), size)) == nil {
		}
	}
	lost := a.Spooled().Lost // the fillers
	for _, audiences := range [][]string{{"books"}, {"orders", "books"}} {
		got, err := jwt(t, a, spiffeid.ID{}, audiences...)
		if u := new(agent.Unavailable); !errors.As(err, &u) || u.Code != agent.AgentUnavailable || !strings.Contains(err.Error(), "audited") {
			t.Errorf("%v: %v %v", audiences, got, err)
		}
	}
	mustJWT(t, a, "orders")
	if n := a.Spooled().Lost - lost; n != 0 {
		t.Errorf("%d reports were lost of what was handed to nobody", n)
	}
	if n := k.times("1000 orders,books"); n != 0 {
		t.Errorf("%d were made for nobody", n)
	}
}

// A caller who has changed gets nothing; an output's tokens are reported too.
func TestOutputsAreAudited(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grantOf("/a", "books=audited"))
	d, err := a.Output(agent.Output{Name: "web", UID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u, err := d.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := d.JWT(context.WithoutCancel(t.Context()), []string{"books"}, u.SVIDs[0].ID); err != nil {
			t.Fatal(err)
		}
	}
	b.Await("both are reported", func() bool { return len(b.HandOuts()) == 2 })
}
