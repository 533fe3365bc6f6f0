package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/federation"
)

func TestOverview(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.apply(identityOf("web"))
	e.join("n1")
	o := e.server.Overview()
	if len(o.Unready) > 0 || len(o.Hung) > 0 || o.Identities != 1 || o.Revision == 0 || o.Counts.Nodes != 1 || o.Counts.FirstEnds.IsZero() ||
		o.OwnEnds.IsZero() || o.Issuing.ID == "" || !o.Issuing.NotAfter.After(o.OwnEnds) || len(o.Authorities) == 0 || len(o.CRLs) == 0 ||
		o.Audit.Head.Sequence == 0 || o.Audit.Free <= 0 || !o.BehindSince.IsZero() {
		t.Errorf("%+v", o)
	}
}

func identityOf(name string) string {
	return "kind: Identity\nname: " + name + "\nspiffe_id: /" + name + "\nmatch: [{node.name: n1}]\n"
}

// Ready is false when nothing can be issued or recorded, or policy is not in
// force, and nothing else makes it so.
func TestReadiness(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	good, now := e.server.Overview(), e.now()
	away := broker.Contact{Away: true, Since: now.Add(-time.Hour), Error: "no such host"}
	for _, c := range []struct {
		what   string
		change func(*server.Overview)
		want   string // part of why; empty: it is ready
	}{
		{"all is well", func(*server.Overview) {}, ""},
		{"no issuing CA", func(o *server.Overview) { o.Issuing.ID = "" }, "no CA is installed"},
		{"no SVID of its own", func(o *server.Overview) { o.OwnEnds = time.Time{} }, "no CA is installed"},
		{"the CA ended", func(o *server.Overview) { o.Issuing.NotAfter = now.Add(-time.Second) }, "ended at"},
		{"the CA ends, its renewal failed", func(o *server.Overview) {
			o.Issuing.ActivatedAt, o.Issuing.NotAfter, o.Issuing.Problem = now.Add(-80*time.Hour), now.Add(20*time.Hour), "the root's key is away"
		}, "is not renewed: the root's key is away"},
		{"the CA ends, nothing failed", func(o *server.Overview) {
			o.Issuing.ActivatedAt, o.Issuing.NotAfter = now.Add(-80*time.Hour), now.Add(20*time.Hour)
		}, ""},
		{"its renewal failed, there is time", func(o *server.Overview) {
			o.Issuing.ActivatedAt, o.Issuing.NotAfter, o.Issuing.Problem = now.Add(-70*time.Hour), now.Add(30*time.Hour), "the root's key is away"
		}, ""},
		{"nothing can be recorded", func(o *server.Overview) {
			o.Audit = audit.Stats{FailingSince: now.Add(-time.Minute), Error: "no space left on device"}
		}, "no space left"},
		{"policy is behind", func(o *server.Overview) { o.BehindSince = now.Add(-time.Minute) }, "not in force since"},
		{"an apply is under way", func(o *server.Overview) { o.BehindSince = now.Add(-time.Second) }, ""},
		{"the store is away", func(o *server.Overview) { o.Store = away }, ""},
		{"the store is away since an apply", func(o *server.Overview) { o.Store, o.BehindSince = away, now.Add(-time.Minute) }, ""},
	} {
		o := good
		c.change(&o)
		why := strings.Join(e.server.UnreadyFor(o), "; ")
		if c.want == "" && why != "" || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q", c.what, why)
		}
	}
}

func TestLiveness(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		what string
		beat time.Time
		hung bool
	}{{"just now", now, false}, {"not yet", time.UnixMilli(0), false}, {"long ago", now.Add(-time.Minute), true}} {
		if why := server.Hung(c.beat, now); (len(why) > 0) != c.hung {
			t.Errorf("%s: %v", c.what, why)
		}
	}
}

// A record that cannot be written makes the broker unready, and it finds out by
// itself that it can be again: who is unready is asked for nothing.
func TestARecordThatComesBack(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.apply(identityOf("web"))
	files, err := filepath.Glob(filepath.Join(e.auditDir(), "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Rename(files[0], files[0]+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.audit.Append(t.Context(), audit.Event{Kind: "test"}); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatal(err)
	}
	if why := strings.Join(e.server.Unready(), "; "); !strings.Contains(why, "nothing can be recorded since") {
		t.Errorf("%q", why)
	}
	if err := os.Rename(files[0]+".away", files[0]); err != nil {
		t.Fatal(err)
	}
	e.server.TryRecord(t.Context())
	if why := e.server.Unready(); len(why) > 0 {
		t.Errorf("%q", why)
	}
	all := e.records()
	if last := all[len(all)-1]; last.Kind != "record.resumed" || last.Detail["since"] == "" {
		t.Errorf("%+v", last)
	}
}

// While the store is away the broker is ready, and says so.
func TestReadyWithoutTheStore(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.store.Close()
	for e.broker.StoreContact().Error == "" { // it is asked every second
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nobody asks the store")
		}
	}
	if why := e.server.Unready(); len(why) > 0 {
		t.Errorf("%q", why)
	}
	r, err := e.admin().Status(t.Context(), &api.StatusRequest{})
	if err != nil || !r.GetStore().GetAway() || len(r.GetProblems()) == 0 || !strings.Contains(r.GetProblems()[0], "the database is away since") || len(r.GetAuthorities()) == 0 {
		t.Errorf("%v %v", r, err)
	}
	if notes := strings.Join(e.server.Notes(), "; "); !strings.Contains(notes, "the database is away since") {
		t.Errorf("%q", notes)
	}
}

// Who scrapes over TLS shows an SVID of ours that is named and counts.
func TestScrapeTLS(t *testing.T) {
	t.Parallel()
	e := newRolesEnv(t)
	good, other := e.loggedIn("root"), e.loggedIn("nobody")
	foreign, _ := foreignSVID(t, "spiffe://example.org/people/root")
	allow := []spiffeid.ID{spiffeid.RequireFromString("spiffe://example.org/people/root")}
	l, err := tls.Listen("tcp", "127.0.0.1:0", e.server.ScrapeTLS(allow))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	try := func(show *tls.Certificate) error {
		accepted := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				defer c.Close()
				err = c.(*tls.Conn).HandshakeContext(context.WithoutCancel(t.Context()))
			}
			accepted <- err
		}()
		config := &tls.Config{InsecureSkipVerify: true} // whose listener it is, is not the question
		if show != nil {
			config.Certificates = []tls.Certificate{*show}
		}
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		_ = tls.Client(raw, config).HandshakeContext(t.Context())
		return <-accepted
	}
	for _, c := range []struct {
		what string
		show *tls.Certificate
		good bool
	}{{"named", good, true}, {"not named", other, false}, {"no certificate", nil, false}, {"of another CA", foreign, false}} {
		if err := try(c.show); (err == nil) != c.good {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := e.broker.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutID, Value: allow[0].String()}); err != nil {
		t.Fatal(err)
	}
	if err := try(good); err == nil {
		t.Error("a revoked SVID is taken")
	}
}

// Status tells the worst first, each once, with a way out.
func TestStatusTellsTheWorstFirst(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	o := e.server.Overview()
	if all := e.server.ProblemsFor(o); len(all) > 0 {
		t.Fatal(all)
	}
	now := e.now()
	o.Notes = []string{"the disk is full soon"}
	o.Unready = []string{"the issuing CA ends and is not renewed: the root's key is away"}
	o.Counts.Overdue, o.Counts.Unsaved, o.Counts.Indexed = 3, 2, 0
	o.Counts.Record = 1 << 20
	o.Authorities[0].Problem = "the root's key is away"
	o.Peers = []federation.Status{{TrustDomain: td, State: federation.Stale}, {TrustDomain: td, State: federation.Fresh}}
	o.BehindSince = now
	all := e.server.ProblemsFor(o)
	wants := []string{"the issuing CA", "the disk", "2 revocations", "issuance index", "3 nodes", "peer example.org is stale"}
	if len(all) != len(wants) {
		t.Fatalf("%q", all)
	}
	for i, want := range wants {
		if !strings.Contains(all[i], want) {
			t.Errorf("%d: %q, want %s", i, all[i], want)
		}
	}
}
