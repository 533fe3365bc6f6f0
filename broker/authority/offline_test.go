package authority_test

import (
	"context"
	"crypto"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// A gate is a source of keys that can be away, or not answer.
type gate struct {
	authority.Keys
	mu      sync.Mutex
	away    error
	stuck   chan struct{} // closed when it answers again; nil: it answers
	waiting chan struct{} // told of each call that waits
}

func (g *gate) String() string { return "gate" }

func (g *gate) set(away error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.away = away
}

// hang has calls wait until release.
func (g *gate) hang() (waiting <-chan struct{}, release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stuck, g.waiting = make(chan struct{}), make(chan struct{}, 64)
	return g.waiting, sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.stuck)
		g.stuck = nil
	})
}

func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	away, stuck, waiting := g.away, g.stuck, g.waiting
	g.mu.Unlock()
	if stuck != nil {
		waiting <- struct{}{}
		select {
		case <-stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return away
}

func (g *gate) Create(ctx context.Context, alg string) (string, crypto.Signer, error) {
	if err := g.pass(ctx); err != nil {
		return "", nil, err
	}
	ref, key, err := g.Keys.Create(ctx, alg)
	return ref, gatedKey{key, g}, err
}

func (g *gate) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if err := g.pass(ctx); err != nil {
		return nil, err
	}
	key, err := g.Keys.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return gatedKey{key, g}, nil
}

type gatedKey struct {
	crypto.Signer
	gate *gate
}

func (k gatedKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.gate.pass(context.Background()); err != nil {
		return nil, err
	}
	return k.Signer.Sign(random, digest, opts)
}

// With the root's source away everything goes on that needs no root, List says
// what waits for it, and it is done when the root is back.
func TestRootOffline(t *testing.T) {
	e := newEnv(t)
	root := &gate{Keys: newEnv(t).keys}
	e.change = func(c *authority.Config) { c.RootKeys = root }
	e.openReady()
	root.set(errors.New("root_keys.pkcs11: no token labelled credence is there: plug it in"))
	a := e.open() // a start needs no root either
	e.tick(a)

	e.clock.set(start.Add(40 * hour)) // past half of the issuing CA's life
	if _, err := a.Tick(t.Context()); err == nil || !strings.Contains(err.Error(), "plug it in") || !strings.Contains(err.Error(), "(root P256)") {
		t.Errorf("renewing without the root: %v", err)
	}
	signs(t, e, a)
	before := statusOf(t, a, authority.Issuing)
	if before.State != authority.Active || !strings.Contains(before.Problem, "plug it in") || !slices.ContainsFunc(before.Waits, func(w string) bool { return strings.Contains(w, "key of root") }) {
		t.Errorf("the issuing CA: problem %q, waits for %q", before.Problem, before.Waits)
	}
	if st := statusOf(t, a, authority.Root); st.KeySource != "gate" || !strings.Contains(st.Problem, "plug it in") {
		t.Errorf("the root, in %s: problem %q; want that its CRL waits", st.KeySource, st.Problem)
	}
	if _, err := a.RotateIssuing(t.Context()); err == nil || !strings.Contains(err.Error(), "plug it in") {
		t.Errorf("rotating the issuing CA by hand: %v", err)
	}

	root.set(nil)
	e.tick(a)
	signs(t, e, a)
	after := statusOf(t, a, authority.Issuing)
	if after.ID == before.ID || after.Problem != "" || statusOf(t, a, authority.Root).Problem != "" {
		t.Errorf("with the root back: CA %s, then %s; problems %q, %q", before.ID, after.ID, after.Problem, statusOf(t, a, authority.Root).Problem)
	}
}

// statusOf is the active authority of a use.
func statusOf(t *testing.T, a *authority.Authority, use authority.Use) authority.Status {
	t.Helper()
	for _, s := range a.List() {
		if s.Use == use && s.State == authority.Active {
			return s
		}
	}
	t.Fatalf("no active %s", use)
	return authority.Status{}
}

// signs signs one SVID of each kind.
func signs(t *testing.T, e *env, a *authority.Authority) {
	t.Helper()
	key := newKey(t)
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), time.Hour), key.Public()); err != nil {
		t.Error(err)
	}
	for _, alg := range []string{"ES256", "RS256"} {
		if _, err := a.SignJWT(t.Context(), jwtGrant(t, alg, e.clock.now(), "a")); err != nil {
			t.Error(err)
		}
	}
}

// While a key source doesn't answer, who needs nothing of it waits for
// nothing: neither readers, nor signatures by keys elsewhere, nor what they
// make durable. And who waits for another's act can leave.
func TestHangingSource(t *testing.T) {
	e := newEnv(t)
	root := &gate{Keys: newEnv(t).keys}
	e.change = func(c *authority.Config) { c.RootKeys = root }
	a := e.openReady()
	e.clock.set(start.Add(40 * hour)) // an issuing CA is due, and promises of the last days are used up
	waiting, release := root.hang()
	defer release()
	ended := make(chan error, 1)
	go func() { _, err := a.Tick(context.Background()); ended <- err }()
	<-waiting

	if len(a.Bundle().Document) == 0 || len(a.List()) == 0 || len(a.OIDCKeys()) == 0 || a.Pin() == "" {
		t.Error("something can't be read")
	}
	saves := e.records.saves
	signs(t, e, a)
	if e.records.saves == saves {
		t.Error("signing made nothing durable: the test is not one")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.PublishRoot(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the act that hangs: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the renewal did not wait: %v", err)
	default:
	}
	release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A key that only another broker had open is opened with no lock held: here
// one that turns up when the records are read again.
func TestHangingOpen(t *testing.T) {
	e := newEnv(t)
	source := &gate{Keys: e.keys}
	e.keys = source
	a := e.openReady()
	other := e.config()
	other.Broker = "b2"
	b, err := authority.Open(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	e.records.failAt = e.records.saves + 1
	e.clock.set(start.Add(7 * day))
	if _, err := a.Tick(t.Context()); !errors.Is(err, errSave) {
		t.Fatal(err)
	}
	e.tick(b) // makes JWT keys that a hasn't seen
	waiting, release := source.hang()
	defer release()
	ended := make(chan error, 1)
	go func() { _, err := a.Tick(context.Background()); ended <- err }()
	<-waiting
	if len(a.Bundle().Document) == 0 || len(a.List()) == 0 {
		t.Error("something can't be read")
	}
	key := newKey(t)
	left, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.SignX509(left, nodeGrant(t, key.Public(), e.clock.now(), time.Hour), key.Public()); err == nil {
		t.Error("signed by a source that does not answer")
	}
	release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	signs(t, e, a)
}
