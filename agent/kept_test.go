package agent_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
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

const sealedFile = "svids.sealed"

// survivor is an agent whose workload of uid 1000 got what is granted, and whose
// broker is then away; it has ended, and left on disk what it left.
type survivor struct {
	*agenttest.Broker
	cfg      agent.Config
	attestor *facts
	had      agent.Update
}

func ended(t *testing.T, grants ...agenttest.Grant) *survivor {
	t.Helper()
	s := &survivor{Broker: agenttest.NewBroker(t, domain).Start(), attestor: &facts{all: uid("1000")}}
	s.cfg = config(t, s.Broker)
	s.cfg.Attestors = map[string]agent.Attestor{"workload.unix": s.attestor}
	s.Grant(grants...)
	a := run(t, s.cfg).ready()
	s.had = a.view(t).next()
	a.end()
	s.Stop()
	return s
}

// again starts it anew, and asks as a process with these facts.
func (s *survivor) again(t *testing.T, all map[string][]string) (agent.Update, error) {
	t.Helper()
	s.attestor.set(all)
	a := run(t, s.cfg)
	defer a.end()
	return a.view(t).try(10 * time.Second)
}

func TestRestartWithoutTheBroker(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	began := time.Now()
	u, err := s.again(t, uid("1000"))
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("it took %s", d)
	}
	was, is := s.had.SVIDs[0], u.SVIDs[0]
	if !is.Certificates[0].Equal(was.Certificates[0]) || !bytes.Equal(is.KeyDER, was.KeyDER) || is.Identity != was.Identity {
		t.Errorf("another SVID: %s", is.ID)
	}
	if u, err := s.again(t, uid("1001")); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("another uid: %v %v", paths(u), err)
	}
	if u, err := s.again(t, uid("1000")); err != nil || len(u.SVIDs) != 1 {
		t.Errorf("the third start: %v %v", paths(u), err)
	}
}

// What an earlier run served ends when it ends, and no second later.
func TestKeptIsNotServedLonger(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	s.cfg.Now = func() time.Time { return s.had.SVIDs[0].Certificates[0].NotAfter }
	if u, err := s.again(t, uid("1000")); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("%v %v", paths(u), err)
	}
	// Nor where it ends while the agent runs.
	s = ended(t, grant("/a"))
	var late atomic.Bool
	s.cfg.Now = func() time.Time {
		if late.Load() {
			return s.had.SVIDs[0].Certificates[0].NotAfter
		}
		return time.Now()
	}
	a := run(t, s.cfg)
	a.view(t).next()
	late.Store(true)
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("%v %v", paths(u), err)
	}
}

func TestPeersSurvive(t *testing.T) {
	t.Parallel()
	s := &survivor{Broker: agenttest.NewBroker(t, domain).Start(), attestor: &facts{all: uid("1000")}}
	document, err := agenttest.NewBroker(t, "partner.example").Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	s.AddBundle("partner.example", document)
	s.cfg = config(t, s.Broker)
	s.cfg.Attestors = map[string]agent.Attestor{"workload.unix": s.attestor}
	g := grant("/a")
	g.FederatesWith = []string{"partner.example"}
	s.Grant(g)
	a := run(t, s.cfg).ready()
	s.had = a.view(t).next()
	a.end()
	s.Stop()
	u, err := s.again(t, uid("1000"))
	if err != nil {
		t.Fatal(err)
	}
	if td := spiffeid.RequireTrustDomainFromString("partner.example"); u.Bundles[td] == nil || s.had.Bundles[td] == nil {
		t.Errorf("bundles %v, had %v", u.Bundles, s.had.Bundles)
	}
}

// What was erased is off the disk before anything else, and comes back by no
// restart.
func TestErasedIsNotKept(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	b.Grant(grant("/a"))
	a := run(t, cfg).ready()
	v := a.view(t)
	v.next()
	b.Grant()
	b.Push(&api.WatchResponse{Changes: []*api.Change{{Set: digest(uid("1000")), Erase: true}}})
	if _, err := v.try(10 * time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("after the denial: %v", err)
	}
	a.end()
	if _, err := os.Stat(filepath.Join(cfg.Data, sealedFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", sealedFile, err)
	}
}

// A node that was evicted while its agent was down serves nothing after it hears.
func TestEvictedWhileAway(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	s.Before("Watch", func(context.Context) error { return status.Error(codes.PermissionDenied, "this node has been evicted") })
	s.Start()
	if err := run(t, s.cfg).ended(); !errors.Is(err, agent.ErrFatal) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Data, sealedFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", sealedFile, err)
	}
}

func TestEvictedKeepsNothing(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	b.Grant(grant("/a"))
	a := run(t, cfg).ready()
	a.view(t).next()
	b.EndWatch(status.Error(codes.PermissionDenied, "this node has been evicted"))
	if err := a.ended(); !errors.Is(err, agent.ErrFatal) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, sealedFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", sealedFile, err)
	}
}

// Once the broker was heard, nobody is served by what an earlier run was told.
func TestKeptEndsWithTheBrokersWord(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	s.Start()
	s.attestor.set(uid("7"))
	s.Grant()
	a := run(t, s.cfg).ready()
	if _, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("uid 7: %v", err)
	}
	s.Stop()
	s.attestor.set(uid("1000"))
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("uid 1000, whom the broker was not asked about since: %v %v", paths(u), err)
	}
}

func TestForeignKept(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	path := filepath.Join(s.cfg.Data, sealedFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if bytes.Contains(good, s.had.SVIDs[0].KeyDER) || bytes.Contains(good, []byte("spiffe_id")) {
		t.Error("it is not sealed")
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, text := range map[string][]byte{"a flipped bit": flipped, "half of it": good[:len(good)/2], "nothing": nil, "something else": []byte("{}")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if u, err := s.again(t, uid("1000")); !errors.Is(err, agent.ErrUnavailable) {
			t.Errorf("%s: %v %v", name, paths(u), err)
		}
	}
	// The seal is of one agent: another's directory opens with another key.
	other := ended(t, grant("/b"))
	if err := os.WriteFile(filepath.Join(other.cfg.Data, sealedFile), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := other.again(t, uid("1000")); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("another agent's: %v %v", paths(u), err)
	}
}

// The broker's answer after a restart replaces what is lent, and a certificate
// that it grants still is not signed again.
func TestTheBrokerComesBackAfterARestart(t *testing.T) {
	t.Parallel()
	s := ended(t, grant("/a"))
	s.attestor.set(uid("1000"))
	a := run(t, s.cfg)
	v := a.view(t)
	if got := v.next(); !got.SVIDs[0].Certificates[0].Equal(s.had.SVIDs[0].Certificates[0]) {
		t.Fatal("another SVID")
	}
	s.Grant(grant("/a"), grant("/b"))
	s.Start()
	got := v.next()
	if diff := cmp.Diff([]string{"/a", "/b"}, paths(got)); diff != "" {
		t.Fatal(diff)
	}
	if !got.SVIDs[0].Certificates[0].Equal(s.had.SVIDs[0].Certificates[0]) {
		t.Error("it was signed again")
	}
}

// Without a keyring the key is in a file that nobody else reads, and one that
// somebody else could have read or written is refused.
func TestPlainKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "svids.key")
	first, err := agent.PlainKey(path)
	if err != nil || len(first) != 32 {
		t.Fatal(first, err)
	}
	if again, err := agent.PlainKey(path); err != nil || !bytes.Equal(first, again) {
		t.Errorf("another key at the next start: %v", err)
	}
	for name, spoil := range map[string]func() error{
		"readable": func() error { return os.Chmod(path, 0o640) },
		"short":    func() error { return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, first[:31], 0o600)) },
		"a link":   func() error { return errors.Join(os.Rename(path, path+".1"), os.Symlink(path+".1", path)) },
	} {
		if err := os.WriteFile(path, first, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.PlainKey(path); err == nil {
			t.Errorf("%s: it passes", name)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
