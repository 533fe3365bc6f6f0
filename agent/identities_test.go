package agent_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation/federationtest"
)

func TestGranted(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"), grant("/b"))
	u := a.view(t).next()
	if diff := cmp.Diff([]string{"/a", "/b"}, paths(u)); diff != "" {
		t.Error(diff)
	}
	for _, v := range u.SVIDs {
		if leaf := v.Certificates[0]; leaf.URIs[0].String() != v.ID.String() || !cmp.Equal(v.Key.Public(), leaf.PublicKey) {
			t.Errorf("the SVID of %s is %s, for another key", v.ID, leaf.URIs[0])
		}
	}
}

func TestMoreIdentitiesThanSpareKeysComeWhole(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	var all []agenttest.Grant
	var want []string
	for n := range 6 {
		all = append(all, grant(fmt.Sprintf("/w%d", n)))
		want = append(want, fmt.Sprintf("/w%d", n))
	}
	b.Grant(all...)
	v := a.view(t)
	if diff := cmp.Diff(want, paths(v.next())); diff != "" {
		t.Errorf("the first update is not whole: %s", diff)
	}
	v.quiet()
}

func TestDenied(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	_, err := a.view(t).try(5 * time.Second)
	var denied *agent.Denied
	if !errors.As(err, &denied) || denied.Record != agenttest.Record || !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "credence explain") {
		t.Errorf("no way out: %v", err)
	}
	// A denial is never served from memory.
	b.Grant(grant("/a"))
	a.view(t).next()
}

func TestADenialAskedForBeforeTheCallerCameIsNotTold(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	deciding, decided := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.Decide(func(*api.Workload) []agenttest.Grant {
		grants := []agenttest.Grant{grant("/a")}
		once.Do(func() { // under the policy of before
			close(deciding)
			<-decided
			grants = nil
		})
		return grants
	})
	first := make(chan error, 1)
	v := a.view(t)
	go func() { _, err := v.Next(t.Context()); first <- err }()
	<-deciding
	late := a.view(t)
	late.quiet() // it has come, and waits
	close(decided)
	if err := <-first; !errors.Is(err, agent.ErrDenied) {
		t.Errorf("who came before got %v, want ErrDenied", err)
	}
	late.next()
}

func TestEraseEndsOpenStreams(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	b.Grant()
	b.Push(change(digest(uid("1000")), true))
	if _, err := v.try(5 * time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
}

func TestEraseLeavesWhatElseIsGranted(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"), grant("/b"))
	v := a.view(t)
	v.next()
	b.Grant(grant("/b"))
	b.Push(change(digest(uid("1000")), true))
	if diff := cmp.Diff([]string{"/b"}, paths(v.next())); diff != "" {
		t.Error(diff)
	}
}

func TestEraseWhileTheBrokerIsAskedAndAway(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	asked, release := b.Hold("IssueX509")
	b.Push(change(nil, false)) // an ask on its way, which will be granted
	<-asked
	erasure := change(nil, true)
	erasure.Revision = 10
	b.Push(erasure)
	b.Await("the erasure is acknowledged", func() bool { return b.Acknowledged() == 10 })
	// The answer that comes now was asked for before the erasure; later ones
	// fail.
	b.Before("IssueX509", func(context.Context) error { return status.Error(codes.Unavailable, "away") })
	release()
	if u, err := v.try(5 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("an erased identity came back: %v %v", paths(u), err)
	}
}

func TestADenialFromBeforeAChangeEndsNoStream(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	deciding, decided := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.Decide(func(*api.Workload) []agenttest.Grant {
		grants := []agenttest.Grant{grant("/b")}
		once.Do(func() { // under the policy of before
			close(deciding)
			<-decided
			grants = nil
		})
		return grants
	})
	b.Push(change(nil, false))
	<-deciding
	again := change(nil, false)
	again.Revision = 10
	b.Push(again)
	b.Await("the second change is heeded", func() bool { return b.Acknowledged() == 10 })
	close(decided)
	if diff := cmp.Diff([]string{"/b"}, paths(v.next())); diff != "" {
		t.Error(diff)
	}
}

func TestAChangeIsPushed(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	b.Push(change(digest(uid("1000")), false))
	v.quiet() // decided again, and the same
	g := grant("/a")
	g.Hint = "main"
	b.Grant(g)
	start := time.Now()
	b.Push(change(digest(uid("1000")), false))
	if u := v.next(); u.SVIDs[0].Hint != "main" {
		t.Errorf("got %q", u.SVIDs[0].Hint)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %s", d)
	}
	// An erasure of other facts is not ours.
	b.Push(change(digest(uid("7")), true))
	v.quiet()
}

func TestSVIDsAreRenewedAtHalfOfTheirLife(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	short := grant("/a")
	short.TTL = 2 * time.Second
	b.Grant(short, grant("/b"))
	v := a.view(t)
	u := v.next()
	start := time.Now()
	next := v.next()
	if d := time.Since(start); d > 1900*time.Millisecond {
		t.Errorf("renewed after %s of 2 s", d)
	}
	if next.SVIDs[0].Certificates[0].Equal(u.SVIDs[0].Certificates[0]) {
		t.Error("the short one was not renewed")
	}
	if !next.SVIDs[1].Certificates[0].Equal(u.SVIDs[1].Certificates[0]) {
		t.Error("the long one was signed again")
	}
	if diff := cmp.Diff(paths(u), paths(next)); diff != "" {
		t.Errorf("the order changed: %s", diff)
	}
}

// A caller that comes now and then, and holds no stream, has its SVID renewed in time
// too: not only when it has ended, and the broker may be away.
func TestWhoComesAgainHasItsSVIDRenewed(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	short := grant("/a")
	short.TTL = 4 * time.Second
	b.Grant(short)
	visit := func() {
		v := a.view(t)
		defer v.Close()
		v.next()
	}
	visit()
	asked := b.Calls("IssueX509")
	<-time.After(2200 * time.Millisecond)
	visit() // what it has is good still
	b.Await("it is asked about", func() bool { return b.Calls("IssueX509") > asked })
}

func TestExpiredSVIDsAreNotServed(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	short := grant("/a")
	short.TTL = 2 * time.Second
	b.Grant(short)
	v := a.view(t)
	v.next()
	b.Stop()
	// An open stream is told nothing, and stays.
	if u, err := v.try(4 * time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v %v, want nothing", paths(u), err)
	}
	if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("a new caller got %v %v, want ErrUnavailable", paths(u), err)
	}
	b.Grant(grant("/b"))
	b.Start()
	if got := paths(v.next()); len(got) != 1 || got[0] != "/b" {
		t.Errorf("the same stream, with the broker back: %v", got)
	}
}

func TestTheBrokerBackAfterAwhile(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Stop()
	if _, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	b.Start()
	b.Grant(grant("/a"))
	start := time.Now()
	a.view(t).next()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("the caller waited for %s", d)
	}
	b.Await("the stream is open again", func() bool { return b.Watching() == 1 })
}

func TestASlowBrokerDoesNotHoldUpWhoHasSomething(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	a.view(t).next()
	asked, release := b.Hold("IssueX509")
	defer release()
	b.Push(change(nil, false))
	<-asked
	start := time.Now()
	a.view(t).next()
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestOneBadWorkloadDoesNotSpoilTheOthers(t *testing.T) {
	t.Parallel()
	attestor := &turns{all: []map[string][]string{{"workload.unix.uid": {"1"}, "workload.test.malformed": {"x"}}, uid("2")}}
	b := agenttest.NewBroker(t, domain).Start()
	b.Grant(grant("/a"))
	cfg := config(t, b)
	cfg.Attestors = map[string]agent.Attestor{"workload": attestor}
	b.Stop() // so that both are asked about at once
	a := run(t, cfg)
	errs := make(chan error, 2)
	for range 2 {
		v := a.view(t)
		go func() { _, err := v.Next(t.Context()); errs <- err }()
	}
	b.Start()
	var denied, granted int
	for range 2 {
		switch err := <-errs; {
		case err == nil:
			granted++
		case errors.Is(err, agent.ErrDenied) && strings.Contains(err.Error(), "a fact that no broker takes"):
			denied++
		default:
			t.Error(err)
		}
	}
	if denied != 1 || granted != 1 {
		t.Errorf("%d denied, %d granted", denied, granted)
	}
}

// turns attests the first process so, the second so.
type turns struct {
	mu  sync.Mutex
	all []map[string][]string
}

func (f *turns) Attest(context.Context, *caller.Process, func(string) bool) (map[string][]string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.all[0]
	f.all = append(f.all[1:], now)
	return now, nil, nil
}

// respell is a certificate for the key of der's, of another shape.
func respell(id string, edit func(*x509.Certificate)) func(*testing.T, *agenttest.Broker, []byte) []byte {
	return func(t *testing.T, b *agenttest.Broker, der []byte) []byte {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Error(err)
			return nil
		}
		return (&federationtest.CA{Cert: b.Root, Key: b.Key, Now: time.Now()}).LeafFor(t, leaf.PublicKey, edit, id)
	}
}

func TestUnusableAnswersAreNotServed(t *testing.T) {
	t.Parallel()
	const id = "spiffe://example.org/a"
	ill := map[string]func(*testing.T, *agenttest.Broker, []byte) []byte{
		"XC-32 no path":             respell("spiffe://example.org", nil),
		"XC-38 empty fragment":      respell(id+"#", nil),
		"XC-54 a CA":                respell(id, func(c *x509.Certificate) { c.IsCA = true }),
		"XC-60 no digitalSignature": respell(id, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
	}
	for name, spoil := range map[string]func(*api.X509SVID){
		"another trust domain":            func(m *api.X509SVID) { m.SpiffeId = "spiffe://other.example/a" },
		"another name":                    func(m *api.X509SVID) { m.SpiffeId = "spiffe://example.org/admin" },
		"XC-88 a key that we hold, wrong": func(m *api.X509SVID) { m.PublicKey = 1 },
		"a key that we don't hold":        func(m *api.X509SVID) { m.PublicKey = 1<<32 - 1 },
		"what we should hold":             func(m *api.X509SVID) { m.Chain = nil },
		"no certificate":                  func(m *api.X509SVID) { m.Chain = [][]byte{[]byte("x")} },
		"a long chain": func(m *api.X509SVID) {
			for range 8 {
				m.Chain = append(m.Chain, m.Chain[0])
			}
		},
		"already ended": nil, "XC-32 no path": nil, "XC-38 empty fragment": nil, "XC-54 a CA": nil, "XC-60 no digitalSignature": nil,
		"XC-90 PEM where DER is wanted": func(m *api.X509SVID) {
			m.Chain[0] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Chain[0]})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, a := started(t, func(c *agent.Config) { c.Patience = 500 * time.Millisecond })
			g := grant("/a")
			g.Spoil = spoil
			switch edit, ok := ill[name]; {
			case ok:
				g.Spoil = func(m *api.X509SVID) { m.Chain[0] = edit(t, b, m.Chain[0]) }
			case spoil == nil:
				g.TTL = -time.Second
			}
			b.Grant(g)
			if u, err := a.view(t).try(10 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
				t.Errorf("got %v %v, want ErrUnavailable", paths(u), err)
			}
			if n := b.Calls("IssueX509"); n > 10 {
				t.Errorf("the broker was asked %d times within half a second", n)
			}
		})
	}
}

func TestCostlyFactsAreMadeWhenWanted(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1000"), unknown: []string{"workload.unix.sha256"}}
	b, a := started(t, func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		if slices.Contains(w.GetUnknown(), "workload.unix.sha256") {
			return []agenttest.Grant{grant("/unknown")}
		}
		return []agenttest.Grant{grant("/known")}
	})
	v := a.view(t)
	if got := paths(v.next()); got[0] != "/unknown" || attestor.sawWanted() {
		t.Errorf("got %v", got)
	}
	attestor.set(map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.sha256": {"ab"}})
	b.Push(&api.WatchResponse{WantedSet: true, WantedFacts: []string{"workload.unix.sha256"}})
	if got := paths(v.next()); got[0] != "/known" || !attestor.sawWanted() {
		t.Errorf("after it is wanted: %v", got)
	}
}

func TestAttestorsSpeakForThemselvesOnly(t *testing.T) {
	t.Parallel()
	_, a := started(t, func(c *agent.Config) {
		c.Attestors["workload.docker"] = &facts{all: uid("0")}
	})
	if _, err := a.Attest(t.Context(), process(t)); err == nil || !strings.Contains(err.Error(), "not its own") {
		t.Errorf("got %v", err)
	}
}

func TestAFailedAttestorLeavesItsFactsUnknown(t *testing.T) {
	t.Parallel()
	_, a := started(t, func(c *agent.Config) {
		c.Attestors["workload.docker"] = &facts{err: errors.New("the daemon is away")}
	})
	got, err := a.Attest(t.Context(), process(t))
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Attestation{Facts: uid("1000"), Unknown: []string{"workload.docker"}, Failed: []agent.Failure{{Attestor: "workload.docker", Err: cmpopts.AnyError}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyTheFreshProcessIsServed(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	p := process(t)
	v := a.Identities(p)
	defer v.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Next(t.Context()); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("a process that is gone: %v, want ErrDenied", err)
	}
}
