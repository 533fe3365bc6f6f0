package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
)

// byFile has an agent join by what a file holds.
func byFile(t *testing.T, cfg *agent.Config) (file string, put func(token string)) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "agent.token")
	put = func(token string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".new", []byte(token), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	put("token-1")
	cfg.Join.File = file
	cfg.Join.Evidence = func(context.Context) ([]byte, error) { return os.ReadFile(file) }
	return file, put
}

// needs waits until the agent says what a person has to do, or nothing.
func (r *running) needs(what string) {
	r.t.Helper()
	eventually(r.t, "it needs "+what, func() bool { return r.Status().Needs == what })
}

// A machine that slept for longer than its node's SVID lives joins again in
// place: nothing is started anew, and streams that were open go on.
func TestRejoinAfterASuspension(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Grant(grant("/a"))
	clock := &clock{}
	cfg := config(t, b)
	cfg.Now = clock.Now
	file, put := byFile(t, &cfg)
	a := run(t, cfg).ready()
	v, d := a.view(t), a.output(t, web)
	v.next()
	d.next()
	clock.pass(2 * time.Hour) // what the SVIDs live is one
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("after what it has ended: %v %v", paths(u), err)
	}
	a.needs("credence token create --node n1 -o token > " + file)
	if s := a.Status(); s.Connected || !strings.Contains(s.Trouble, "spent") {
		t.Errorf("%+v", s)
	}
	if n := len(b.Joins()); n != 2 {
		t.Errorf("a spent token was shown %d times more", n-1)
	}
	v.quiet() // it waits
	long := grant("/b")
	long.TTL = 10 * time.Hour
	b.Grant(long)
	b.Admit("token-2", 10*time.Hour)
	put("token-2")
	if got := paths(v.next()); len(got) != 1 || got[0] != "/b" {
		t.Errorf("the stream that stayed open: %v", got)
	}
	if u := d.next(); len(u.SVIDs) != 1 || u.SVIDs[0].ID.Path() != "/b" {
		t.Errorf("the output: %v", paths(u))
	}
	a.needs("")
	if n := len(b.Joins()); n != 3 {
		t.Errorf("%d joins", n)
	}
}

// What does not end while a node cannot join is served on.
func TestWhatIsValidIsServedWithoutANode(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	long := grant("/a")
	long.TTL = 10 * time.Hour
	b.Grant(long)
	clock := &clock{}
	cfg := config(t, b)
	cfg.Now = clock.Now
	byFile(t, &cfg)
	a := run(t, cfg).ready()
	had := a.view(t).next()
	clock.pass(2 * time.Hour)
	eventually(t, "it cannot join", func() bool { return a.Status().Needs != "" })
	if u := a.view(t).next(); !u.SVIDs[0].Certificates[0].Equal(had.SVIDs[0].Certificates[0]) {
		t.Error("another SVID")
	}
	a.end()
	// Nor does a restart end it.
	a = run(t, cfg)
	if u := a.view(t).next(); !u.SVIDs[0].Certificates[0].Equal(had.SVIDs[0].Certificates[0]) {
		t.Error("another SVID after a restart")
	}
	eventually(t, "it says so again", func() bool { return a.Status().Needs != "" })
}

// A broker that disowns a node whose SVID has not ended revoked, evicted or lost
// it: unless it joins again, nothing is served.
func TestADisownedNode(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Grant(grant("/a"))
	cfg := config(t, b)
	file, put := byFile(t, &cfg)
	a := run(t, cfg).ready()
	v := a.view(t)
	v.next()
	if err := os.Remove(file); err != nil { // as a careful operator does
		t.Fatal(err)
	}
	b.Forget()
	b.EndWatch(status.Error(codes.Unavailable, "restarting"))
	a.needs("credence token create --node n1 -o token > " + file)
	if u, err := v.try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("an open stream: %v %v", paths(u), err)
	}
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("a new one: %v %v", paths(u), err)
	}
	if held := a.Status().Held; len(held) != 0 {
		t.Errorf("it holds %v", held)
	}
	eventually(t, "the kept file is gone", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Data, sealedFile))
		return errors.Is(err, os.ErrNotExist)
	})
	b.Admit("token-2", time.Hour)
	put("token-2")
	a.needs("")
	a.view(t).next()
}

// A node that the broker refuses to take back because it was evicted ends, and
// leaves nothing.
func TestEvictedWhileItSlept(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	long := grant("/a")
	long.TTL = 10 * time.Hour
	b.Grant(long)
	clock := &clock{}
	cfg := config(t, b)
	cfg.Now = clock.Now
	a := run(t, cfg).ready()
	v := a.view(t)
	v.next()
	b.Before("Join", func(context.Context) error { return status.Error(codes.FailedPrecondition, "conflict") })
	clock.pass(2 * time.Hour)
	if err := a.ended(); !errors.Is(err, agent.ErrFatal) || !strings.Contains(err.Error(), "evicted") {
		t.Errorf("got %v", err)
	}
	if _, err := v.try(time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("an open stream: %v", err)
	}
	for _, name := range []string{sealedFile, "node.pem"} {
		if _, err := os.Stat(filepath.Join(cfg.Data, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A node that comes back as another keeps nothing of what the first was granted.
func TestAnotherNode(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	long := grant("/a")
	long.TTL = 10 * time.Hour
	b.Grant(long)
	clock := &clock{}
	cfg := config(t, b)
	cfg.Now = clock.Now
	_, put := byFile(t, &cfg)
	a := run(t, cfg).ready()
	v := a.view(t)
	v.next()
	entered, release := b.Hold("IssueX509")
	defer release()
	b.Name("n2")
	b.Admit("token-2", 10*time.Hour)
	put("token-2")
	clock.pass(2 * time.Hour)
	<-entered
	b.Await("it joined as another", func() bool { return len(b.Joins()) == 2 })
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("before the broker told what the new node gets: %v %v", paths(u), err)
	}
	release()
	if u := a.view(t).next(); u.SVIDs[0].ID.Path() != "/a" {
		t.Errorf("%v", paths(u))
	}
}
