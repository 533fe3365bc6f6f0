package agent_test

import (
	"testing"
	"time"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"), grant("/b"))
	a := run(t, s.cfg)
	before := a.Status()
	if before.Connected || !before.Heard.IsZero() || before.Node == "" || before.NodeEnds.IsZero() || len(before.Held) != 2 || before.Held[0].Workloads != 0 || !before.Held[0].Lent {
		t.Errorf("while the broker is away: %+v", before)
	}
	a.view(t).next()
	if got := a.Status().Held; len(got) != 2 || got[0].Workloads != 1 || !got[0].Lent || !got[0].Ends.Equal(s.had.SVIDs[0].Certificates[0].NotAfter) {
		t.Errorf("lent: %+v", got)
	}
	s.Start()
	a.ready()
	late, look := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer look.Stop()
	for a.Status().Held[0].Lent { // the broker's answer rings no bell of ours
		select {
		case <-look.C:
		case <-late:
			t.Fatal("what is lent is not replaced")
		}
	}
	if got := a.Status(); !got.Connected || time.Since(got.Heard) > time.Minute || got.Trouble != "" {
		t.Errorf("with the broker: %+v", got)
	}
}
