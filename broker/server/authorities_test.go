package server_test

import (
	"context"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
)

func (e *env) authorities() api.AuthoritiesClient {
	return api.NewAuthoritiesClient(e.adminConn())
}

// recorded are the codes of the acts on authorities that are in the record.
func (e *env) recorded() (codes []string) {
	e.t.Helper()
	for r, err := range audit.Tail(e.t.Context(), e.auditDir(), 1000) {
		if err != nil {
			e.t.Fatal(err)
		}
		if r.Kind == "authority" {
			word := " done"
			if !r.OK {
				word = " failed"
			}
			codes = append(codes, r.Code+word)
		}
	}
	return codes
}

// states are the states of a plan's steps, by name.
func states(p *api.RootPlan) map[string]string {
	m := map[string]string{}
	for _, s := range p.GetSteps() {
		m[s.GetName()] = s.GetState()
	}
	return m
}

// acknowledge answers every message, as an agent does that takes up what it is
// told, until the stream ends.
func (w watch) acknowledge() {
	go func() {
		for {
			m, err := w.stream.Recv()
			if err != nil {
				return
			}
			_ = w.stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: m.GetRevision()}})
		}
	}()
}

func root(e *env, state string) *api.AuthorityInfo {
	e.t.Helper()
	r, err := e.admin().ListAuthorities(e.t.Context(), &api.ListAuthoritiesRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	for _, a := range r.GetAuthorities() {
		if a.GetUse() == "root" && a.GetState() == state {
			return a
		}
	}
	return &api.AuthorityInfo{}
}

// A root is replaced in steps, each of which waits for those who must know.
func TestReplaceRoot(t *testing.T) {
	e := newEnv(t, func(e *env) { e.polled = true })
	n, w := e.serve()
	advance := func(r *api.AdvanceRootRequest) *api.RootPlan {
		t.Helper()
		p, err := e.authorities().AdvanceRoot(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	is := func(p *api.RootPlan, want map[string]string) {
		t.Helper()
		got := states(p)
		for name, state := range want {
			if got[name] != state {
				t.Errorf("%s is %q, want %q: %v", name, got[name], state, p.GetSteps())
			}
		}
	}
	await := func(name, state string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); states(advance(&api.AdvanceRootRequest{Look: true}))[name] != state; {
			if time.Now().After(end) {
				t.Fatalf("%s is never %s: %v", name, state, advance(&api.AdvanceRootRequest{Look: true}))
			}
		}
	}
	is(advance(&api.AdvanceRootRequest{Look: true}), map[string]string{"publish": "next", "drop": "later"})
	if root(e, "published").GetId() != "" {
		t.Fatal("to look published a root")
	}
	first := root(e, "active").GetId()
	is(advance(&api.AdvanceRootRequest{Resign: true}), map[string]string{"publish": "done", "agents": "waits", "peers": "waits", "activate": "later"})
	next := root(e, "published").GetId()

	// An agent holds it once it said so, and peers after three hints.
	w.acknowledge()
	await("agents", "done")
	is(advance(&api.AdvanceRootRequest{Resign: true}), map[string]string{"agents": "done", "peers": "waits", "activate": "later"})
	is(advance(&api.AdvanceRootRequest{Look: true, Now: true}), map[string]string{"agents": "done", "peers": "done", "activate": "next"})
	e.ahead.Add(int64(901 * time.Second))
	p := advance(&api.AdvanceRootRequest{Resign: true})
	is(p, map[string]string{"peers": "done", "activate": "done", "re-sign": "waits", "drop": "later"})
	if got := root(e, "active").GetId(); got != next || root(e, "old").GetId() != first {
		t.Errorf("%s signs, want %s", got, next)
	}

	// What stood under the old one is asked for again, and then it leaves.
	if _, _, err := n.issue(t.Context(), t, "33"); err != nil {
		t.Fatal(err)
	}
	is(advance(&api.AdvanceRootRequest{Resign: true}), map[string]string{"re-sign": "waits"}) // the node's own
	key := newKey(t)
	if _, err := n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, key.Public())}); err != nil {
		t.Fatal(err)
	}
	e.ahead.Add(int64(6 * time.Second))
	await("re-sign", "done")
	if p = advance(&api.AdvanceRootRequest{Resign: true}); !p.GetDone() || root(e, "revoked").GetId() != first {
		t.Errorf("not dropped: %v", p)
	}
	want := "root.publish done, root.activate done, root.drop done"
	if got := strings.Join(e.recorded(), ", "); got != want {
		t.Errorf("recorded %s, want %s", got, want)
	}
}

// Forced past what waits, it says what breaks.
func TestForceRoot(t *testing.T) {
	e := newEnv(t, func(e *env) { e.polled = true })
	n, _ := e.serve()
	if _, _, err := n.issue(t.Context(), t, "33"); err != nil {
		t.Fatal(err)
	}
	p, err := e.authorities().AdvanceRoot(t.Context(), &api.AdvanceRootRequest{Force: true, Resign: true})
	if err != nil || !p.GetDone() {
		t.Fatal(p, err)
	}
	text := strings.Join(p.GetLines(), "\n")
	for _, want := range []string{"on 1 connected nodes refuse", "peers refuse our SVIDs until", "SVIDs under the old root are refused"} {
		if !strings.Contains(text, want) {
			t.Errorf("it doesn't say %q:\n%s", want, text)
		}
	}
}

func TestRollback(t *testing.T) {
	e := newEnv(t)
	c := e.authorities()
	_, err := c.RollbackRoot(t.Context(), &api.RollbackRootRequest{})
	wantCode(t, err, codes.FailedPrecondition)
	first := root(e, "active").GetId()
	if _, err = c.AdvanceRoot(t.Context(), &api.AdvanceRootRequest{Resign: true}); err != nil { // nobody is to learn it: it signs
		t.Fatal(err)
	}
	if root(e, "active").GetId() == first {
		t.Fatal("the new root does not sign")
	}
	r, err := c.RollbackRoot(t.Context(), &api.RollbackRootRequest{Reason: "not ready"})
	if err != nil || root(e, "active").GetId() != first {
		t.Fatal(r, err)
	}
	if n := e.join("n2"); n.id == "" {
		t.Error("nobody joins under the root of before")
	}
}

// Acts that are refused say why and, recorded, change nothing.
func TestActsRefuse(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	c, ctx := e.authorities(), t.Context()
	call := func(_ any, err error) error { return err }
	junk := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("junk")})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for name, row := range map[string]struct {
		err  error
		code codes.Code
		want string
	}{
		"rotate nothing":       {call(c.Rotate(ctx, &api.RotateRequest{})), codes.InvalidArgument, "issuing, or jwt"},
		"rotate a root":        {call(c.Rotate(ctx, &api.RotateRequest{What: "root"})), codes.InvalidArgument, "steps"},
		"rotate HS256":         {call(c.Rotate(ctx, &api.RotateRequest{What: "jwt", Alg: "HS256"})), codes.InvalidArgument, "RS256"},
		"issuing with an alg":  {call(c.Replace(ctx, &api.ReplaceRequest{What: "issuing", Alg: "ES256"})), codes.InvalidArgument, "neither"},
		"a broker's JWT key":   {call(c.Replace(ctx, &api.ReplaceRequest{What: "jwt", Broker: "b2"})), codes.InvalidArgument, "one broker's"},
		"a reason too long":    {call(c.Replace(ctx, &api.ReplaceRequest{What: "issuing", Reason: strings.Repeat("x", 513)})), codes.InvalidArgument, "at most 512"},
		"confirm without root": {call(c.AdvanceRoot(ctx, &api.AdvanceRootRequest{Confirm: []string{"cloud"}})), codes.InvalidArgument, "no root is being replaced"},
		"no chain":             {call(c.Install(ctx, &api.InstallRequest{})), codes.InvalidArgument, "no PEM certificate"},
		"no certificate":       {call(c.Install(ctx, &api.InstallRequest{Chain: junk})), codes.InvalidArgument, "certificate 1"},
		"a key":                {call(c.Install(ctx, &api.InstallRequest{Chain: key})), codes.InvalidArgument, "PRIVATE KEY"},
		"too much":             {call(c.Install(ctx, &api.InstallRequest{Chain: make([]byte, 256<<10+1)})), codes.InvalidArgument, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, row.err, row.code)
			if row.err != nil && !strings.Contains(row.err.Error(), row.want) {
				t.Errorf("%v, want %q", row.err, row.want)
			}
		})
	}
	if got := e.recorded(); len(got) > 0 {
		t.Errorf("recorded %v", got)
	}
	_, err := c.Replace(ctx, &api.ReplaceRequest{What: "issuing", Broker: "b9"}) // which only the authority can tell
	if wantCode(t, err, codes.FailedPrecondition); err != nil && !strings.Contains(err.Error(), "b9") {
		t.Errorf("a broker unheard of: %v", err)
	}
}

// What cannot be recorded is not done.
func TestUnrecordedActIsNotDone(t *testing.T) {
	e := newEnv(t)
	before := e.authority.List()
	if err := e.audit.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.authorities().Rotate(t.Context(), &api.RotateRequest{What: "issuing"}); err == nil {
		t.Error("rotated without a record")
	}
	if after := e.authority.List(); len(after) != len(before) {
		t.Errorf("%d authorities, before %d", len(after), len(before))
	}
}

// An operator who hangs up leaves nothing half done.
func TestActOutlivesItsCaller(t *testing.T) {
	e := newEnv(t)
	ctx, cancel := context.WithCancel(t.Context())
	e.leaving.Store(&cancel)
	if _, err := e.authorities().Rotate(ctx, &api.RotateRequest{What: "issuing"}); err == nil {
		t.Error("nobody has hung up")
	}
	e.close() // waits for calls under way
	if got := strings.Join(e.recorded(), ", "); got != "rotate.issuing done" {
		t.Errorf("recorded %s", got)
	}
	issuing := 0
	for _, a := range e.authority.List() {
		if a.Use == "x509" {
			issuing++
		}
	}
	if issuing != 2 {
		t.Errorf("%d issuing CAs", issuing)
	}
}

// A place says what it has; only keys of ours, and only where it is awaited.
func TestConfirmPublished(t *testing.T) {
	e := newEnv(t, withIssuer, func(e *env) { e.places = []string{"s3://bucket"} })
	e.ready()
	var id string
	for _, st := range e.authority.List() {
		if st.Use == authority.JWTKey && st.State == authority.Published {
			id = st.ID
		}
	}
	confirm := func(place string, keys ...string) (bool, error) {
		r, err := e.authorities().ConfirmPublished(t.Context(), &api.ConfirmPublishedRequest{Place: place, Keys: keys})
		return r.GetAwaited(), err
	}
	if awaited, err := confirm("gs://bucket", id); awaited || err != nil {
		t.Errorf("a place that nobody waits for: %v, %v", awaited, err)
	}
	_, err := confirm("s3://bucket", id, "another's")
	wantCode(t, err, codes.InvalidArgument)
	if have, err := e.store.Places(t.Context(), id); err != nil || len(have) > 0 {
		t.Errorf("kept %v (%v)", have, err)
	}
	if awaited, err := confirm("s3://bucket", id); !awaited || err != nil {
		t.Errorf("%v, %v", awaited, err)
	}
	if have, err := e.store.Places(t.Context(), id); err != nil || have["s3://bucket"].IsZero() {
		t.Errorf("kept %v (%v)", have, err)
	}
}
