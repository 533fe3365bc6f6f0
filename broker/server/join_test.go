package server_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/token"
)

const fakeRule = "kind: JoinRule\nname: r1\nfake: {}\nallow: [{node.fake.owner: acme}]\n"

// method is a join method that a test makes up.
type method func(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error)

func (m method) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	return m(ctx, evidence, ask)
}

func with(m method) func(*env) {
	return func(e *env) { e.method = func(join.Rule) join.Method { return m } }
}

// proof is what the fake method proves of a node.
func proof(name, owner string) (join.Proof, error) {
	f, err := identity.NewFacts("node.fake", map[string][]string{"node.fake.owner": {owner}})
	return join.Proof{Name: name, Facts: f, DurableKey: name}, err
}

func (e *env) try(start *api.JoinRequest_Start, answers ...[]byte) error {
	e.t.Helper()
	if start.PublicKey == nil {
		start.PublicKey = spki(e.t, newKey(e.t).Public())
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), 20*time.Second)
	defer cancel()
	_, err := joinOnce(ctx, e.stranger(), start, answers...)
	return err
}

// Regression: SPIRE 1.14.6 join token
func TestATokenLetsOneNodeInOnce(t *testing.T) {
	e := newEnv(t)
	text := e.token("n1")
	key := newKey(t)
	start := &api.JoinRequest_Start{Method: "token", Evidence: []byte(text), PublicKey: spki(t, key.Public()), AgentVersion: "v1"}
	got, err := joinOnce(t.Context(), e.stranger(), start)
	if err != nil {
		t.Fatal(err)
	}
	document, _ := e.authority.Document()
	if got.GetNodeId() != "spiffe://example.org/credence/node/n1" || string(got.GetBundle()) != string(document) {
		t.Errorf("it got %s and %s", got.GetNodeId(), got.GetBundle())
	}
	leaf := parse(t, got.GetChain())[0]
	if !key.PublicKey.Equal(leaf.PublicKey) || leaf.URIs[0].String() != got.GetNodeId() {
		t.Errorf("its SVID is of %v", leaf.URIs)
	}
	nodes, err := e.admin().ListNodes(t.Context(), &api.ListNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 || nodes.GetNodes()[0].GetFacts()["node.token.site"].GetValues()[0] != "a" {
		t.Errorf("nodes %v, %v", nodes, err)
	}

	other := "cjt_" + strings.Repeat("A", 43)
	var said []string
	for _, evidence := range []string{text, other, "cjt_short", "x"} {
		message := wantCode(t, e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(evidence)}), codes.Unauthenticated)
		wantSilence(t, message, "spent", "token", "such", "expired", evidence, "n1")
		before, id, ok := strings.Cut(message, "quote ")
		if id, _, _ = strings.Cut(id, " "); !ok || !strings.Contains(e.log.String(), "quote="+id) {
			t.Errorf("%q quotes nothing that stands in the log", message)
		}
		said = append(said, before)
	}
	for _, s := range said[1:] {
		if s != said[0] {
			t.Errorf("a spent token is told apart from an unknown one: %q, %q", said[0], s)
		}
	}
	if !strings.Contains(e.log.String(), "already spent") || !strings.Contains(e.log.String(), "no such token") {
		t.Error("the operator's log does not say why")
	}
}

func TestAnExpiredTokenIsRefused(t *testing.T) {
	e := newEnv(t)
	text := e.token("n1")
	e.ahead.Store(int64(token.DefaultTTL + time.Second))
	wantCode(t, e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(text)}), codes.Unauthenticated)
}

func TestMalformedJoinsAreRefused(t *testing.T) {
	e := newEnv(t, with(func(context.Context, []byte, join.Challenge) (join.Proof, error) { return proof("n", "acme") }))
	e.apply(fakeRule)
	good := spki(t, newKey(t).Public())
	for name, c := range map[string]struct {
		start *api.JoinRequest_Start
		code  codes.Code
		says  string
	}{
		"no evidence":       {&api.JoinRequest_Start{Method: "fake"}, codes.InvalidArgument, "evidence of 0 bytes"},
		"too much evidence": {&api.JoinRequest_Start{Method: "fake", Evidence: make([]byte, broker.MaxEvidence+1)}, codes.InvalidArgument, "16385"},
		"no method":         {&api.JoinRequest_Start{Evidence: []byte("x")}, codes.PermissionDenied, "denied"},
		"unknown method":    {&api.JoinRequest_Start{Method: "tpm", Evidence: []byte("x")}, codes.PermissionDenied, "denied"},
		"unknown rule":      {&api.JoinRequest_Start{Method: "fake", Rule: "r2", Evidence: []byte("x")}, codes.PermissionDenied, "denied"},
		"a rule for a token": {
			&api.JoinRequest_Start{Method: "token", Rule: "r1", Evidence: []byte(e.token("n"))}, codes.InvalidArgument, "needs no rule",
		},
		"no key":         {&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x"), PublicKey: []byte{}}, codes.InvalidArgument, "public key of 0 bytes"},
		"a key of waste": {&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x"), PublicKey: []byte("waste")}, codes.InvalidArgument, "public key"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.start.PublicKey == nil {
				c.start.PublicKey = good
			}
			_, err := joinOnce(t.Context(), e.stranger(), c.start)
			if text := wantCode(t, err, c.code); !strings.Contains(text, c.says) {
				t.Errorf("it says %q", text)
			} else {
				wantSilence(t, text, "r1", "rules for", "acme")
			}
		})
	}
}

func TestARulesAllowDecidesWhoJoins(t *testing.T) {
	owner := "acme"
	e := newEnv(t, with(func(context.Context, []byte, join.Challenge) (join.Proof, error) { return proof("n1", owner) }))
	e.apply(fakeRule)
	if err := e.try(&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	owner = "eve"
	text := wantCode(t, e.try(&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x")}), codes.PermissionDenied)
	wantSilence(t, text, "r1", "rule", "eve")
}

func TestChallengesAreAskedUpToFourTimes(t *testing.T) {
	var rounds atomic.Int32
	e := newEnv(t, with(func(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
		for i := range int(rounds.Load()) {
			answer, err := ask(ctx, fmt.Appendf(nil, "challenge %d", i))
			if err != nil {
				return join.Proof{}, err
			}
			if string(answer) != fmt.Sprint(i) {
				return join.Proof{}, join.ErrEvidence
			}
		}
		return proof("n1", "acme")
	}))
	e.apply(fakeRule)
	answers := [][]byte{[]byte("0"), []byte("1"), []byte("2"), []byte("3"), []byte("4"), []byte("5")}
	try := func(n int32, answers ...[]byte) error {
		rounds.Store(n)
		return e.try(&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x")}, answers...)
	}
	if err := try(4, answers...); err != nil {
		t.Errorf("four rounds: %v", err)
	}
	if text := wantCode(t, try(5, answers...), codes.InvalidArgument); !strings.Contains(text, "more than 4 rounds") {
		t.Errorf("five rounds: %s", text)
	}
	wantCode(t, try(2, answers[0], []byte("no")), codes.Unauthenticated)
	wantCode(t, try(1, make([]byte, broker.MaxEvidence+1)), codes.InvalidArgument)
	wantCode(t, try(1, []byte{}), codes.InvalidArgument)
}

func TestStatusesForStrangers(t *testing.T) {
	var failure error
	e := newEnv(t, with(func(context.Context, []byte, join.Challenge) (join.Proof, error) { return join.Proof{}, failure }))
	e.apply(fakeRule)
	const inside = "10.0.0.7"
	for name, c := range map[string]struct {
		err   error
		code  codes.Code
		says  string
		quote bool
	}{
		"evidence":         {join.ErrEvidence, codes.Unauthenticated, "the evidence was refused", true},
		"denied":           {identity.ErrDenied, codes.PermissionDenied, "denied", true},
		"spent":            {broker.ErrSpent, codes.FailedPrecondition, "already spent", true},
		"conflict":         {broker.ErrConflict, codes.FailedPrecondition, "conflict", true},
		"not found":        {broker.ErrNotFound, codes.NotFound, "not found", true},
		"no record":        {audit.ErrUnavailable, codes.Unavailable, "cannot record", true},
		"no room":          {audit.ErrFull, codes.Unavailable, "cannot record", true},
		"no such record":   {audit.ErrRefused, codes.InvalidArgument, "takes no such event", true},
		"too slow":         {context.DeadlineExceeded, codes.DeadlineExceeded, "failed", true},
		"cancelled":        {context.Canceled, codes.Canceled, "cancelled", false},
		"anything else":    {errors.New("dialling"), codes.Internal, "the broker failed", true},
		"another's status": {status.Error(codes.NotFound, "no key"), codes.Internal, "the broker failed", true},
	} {
		t.Run(name, func(t *testing.T) {
			failure = fmt.Errorf("asking %s: %w", inside, c.err)
			text := wantCode(t, e.try(&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x")}), c.code)
			wantSilence(t, text, inside, "asking", "dialling", "no key")
			if !strings.Contains(text, c.says) {
				t.Errorf("it says %q", text)
			}
			_, id, quoted := strings.Cut(text, "; quote ")
			id, _, _ = strings.Cut(id, " ")
			if quoted != c.quote || quoted && !strings.Contains(e.log.String(), "quote="+id) {
				t.Errorf("%q, and the log says %s", text, e.log)
			}
		})
	}
	t.Run("bad request", func(t *testing.T) { // what the caller may mend itself
		failure = fmt.Errorf("%w: seven bytes too many", broker.ErrRequest)
		text := wantCode(t, e.try(&api.JoinRequest_Start{Method: "fake", Evidence: []byte("x")}), codes.InvalidArgument)
		if !strings.Contains(text, "seven bytes too many") {
			t.Error(text)
		}
	})
	if !strings.Contains(e.log.String(), inside) {
		t.Error("the log does not say why")
	}
}

func TestAStalledStrangerIsCutOff(t *testing.T) {
	e := newEnv(t, with(func(ctx context.Context, _ []byte, ask join.Challenge) (join.Proof, error) {
		_, err := ask(ctx, []byte("challenge"))
		return join.Proof{}, err
	}), func(e *env) { e.joinStart, e.joinTime = 100*time.Millisecond, 200*time.Millisecond })
	e.apply(fakeRule)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	t.Run("before the start", func(t *testing.T) {
		silent, err := e.stranger().Join(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, err = silent.Recv()
		wantCode(t, err, codes.DeadlineExceeded)
	})
	t.Run("with an answer to nothing", func(t *testing.T) {
		stream, err := e.stranger().Join(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Answer{Answer: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantCode(t, err, codes.InvalidArgument)
	})
	t.Run("after a challenge", func(t *testing.T) {
		stream, err := e.stranger().Join(ctx)
		if err != nil {
			t.Fatal(err)
		}
		start := &api.JoinRequest_Start{Method: "fake", Evidence: []byte("x"), PublicKey: spki(t, newKey(t).Public())}
		if err := stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Start_{Start: start}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantCode(t, err, codes.DeadlineExceeded)
	})
	if ctx.Err() != nil {
		t.Error("it was the client that gave up")
	}
}

func TestStrangersFillNoRecord(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	ask := func(context.Context, []byte) ([]byte, error) { return nil, errors.New("nobody is there") }
	key := newKey(t)
	for i := range 100_000 {
		r := broker.JoinRequest{Method: "token", Evidence: fmt.Appendf(nil, "cjt_%d", i), PublicKey: key.Public(), Ask: ask}
		if i%3 == 0 {
			r.Method = fmt.Sprint("method", i)
		}
		if i%7 == 0 {
			r.Rule = fmt.Sprint("rule", i)
		}
		if _, err := e.broker.Join(t.Context(), r); err == nil {
			t.Fatal("a stranger was let in")
		}
	}
	for range 100 { // and some over the wire
		if err := e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte("cjt_x")}); status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	got, _, err := n.issue(t.Context(), t, "33")
	if err != nil || len(got.GetSvids()) != 1 {
		t.Errorf("issuance came to harm: %v, %v", got, err)
	}
	e.close()
	if size := sizeOf(t, e.auditDir()); size >= 1<<20 {
		t.Errorf("the record has %d bytes", size)
	}
	counted := uint64(0)
	for _, r := range e.records() {
		if r.Kind == "join.refused" {
			counted += r.Count
		}
	}
	if counted != 100_100 {
		t.Errorf("%d were counted", counted)
	}
}

func sizeOf(t *testing.T, dir string) (size int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(path)
		size += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}
