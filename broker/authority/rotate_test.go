package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

const hour, day = time.Hour, 24 * time.Hour

// states are the IDs of the published JWT keys of alg by state.
func states(a *authority.Authority, alg string) map[authority.State]string {
	m := map[authority.State]string{}
	for _, s := range a.List() {
		if s.Use == authority.JWTKey && s.Alg == alg && s.State != authority.Revoked {
			m[s.State] = s.ID
		}
	}
	return m
}

func kids(a *authority.Authority, alg string) (ids []string) {
	for _, k := range a.Bundle().JWTKeys {
		if k.Alg == alg {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// Decision 7, on a clock: the first key signs at once, the standby after its
// lead and the first one's life, and the first is removed a day later.
func TestJWTKeysRotate(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	for _, alg := range []string{"ES256", "RS256"} {
		first := states(a, alg)
		if len(first) != 2 || first[authority.Active] == "" || first[authority.Published] == "" {
			t.Fatalf("%s: first keys %v", alg, first)
		}
		signedBy(t, e, a, alg, first[authority.Active])
	}
	one, two := states(a, "ES256")[authority.Active], states(a, "ES256")[authority.Published]

	e.clock.set(start.Add(7*day - time.Second))
	e.tick(a)
	signedBy(t, e, a, "ES256", one)

	e.clock.set(start.Add(7 * day))
	e.tick(a)
	s := states(a, "ES256")
	three := s[authority.Published]
	if s[authority.Active] != two || s[authority.Old] != one || three == one || three == two || three == "" {
		t.Fatalf("after a week: %v, were active %s, standby %s", s, one, two)
	}
	if got := kids(a, "ES256"); len(got) != 3 {
		t.Errorf("published: %v", got)
	}
	signedBy(t, e, a, "ES256", two)

	e.clock.set(start.Add(8*day - time.Second))
	e.tick(a)
	if got := kids(a, "ES256"); !slices.Contains(got, one) {
		t.Error("the old key was removed within a day of its last use")
	}
	e.clock.set(start.Add(8 * day))
	e.tick(a)
	if got := kids(a, "ES256"); slices.Contains(got, one) || len(got) != 2 {
		t.Errorf("published a day later: %v", got)
	}
}

func signedBy(t *testing.T, e *env, a *authority.Authority, alg, kid string) {
	t.Helper()
	token, err := a.SignJWT(t.Context(), jwtGrant(t, alg, e.clock.now(), "a"))
	if errors.Is(err, errSave) { // the caller asks again
		token, err = a.SignJWT(t.Context(), jwtGrant(t, alg, e.clock.now(), "a"))
	}
	if err != nil {
		t.Fatal(err)
	}
	header, _ := parts(t, token)
	if header["kid"] != kid {
		t.Errorf("%s signed by %v, want %s", alg, header["kid"], kid)
	}
	if !slices.Contains(kids(a, alg), kid) {
		t.Errorf("%s is not in the bundle", kid)
	}
}

// A standby made late waits its lead, whatever the active key's age.
func TestStandbyWaitsItsLead(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	one := states(a, "ES256")[authority.Active]
	e.clock.set(start.Add(30 * day)) // the broker was down
	a = e.open()
	two := states(a, "ES256")[authority.Active]
	if two == one {
		t.Fatal("the standby, long published, did not take over")
	}
	e.lives.JWTKey = day // a shorter life than the key was made for
	e.lives.Keep = hour
	three := states(a, "ES256")[authority.Published]
	e.clock.set(start.Add(31*day + time.Second - time.Millisecond))
	a = e.open()
	e.tick(a)
	signedBy(t, e, a, "ES256", two)
	e.clock.set(start.Add(37 * day))
	e.tick(a)
	signedBy(t, e, a, "ES256", three)
	four := states(a, "ES256")[authority.Published]
	e.clock.set(start.Add(38 * day)) // a second short of its lead
	e.tick(a)
	signedBy(t, e, a, "ES256", three)
	e.clock.set(start.Add(38*day + time.Second))
	e.tick(a)
	signedBy(t, e, a, "ES256", four)
}

// What the old key signed outlives Keep: it stays as long.
func TestOldKeyStaysForItsTokens(t *testing.T) {
	e := newEnv(t)
	e.lives.Keep, e.lives.MaxJWT = time.Second, hour
	a := e.open()
	one := states(a, "ES256")[authority.Active]
	e.clock.set(start.Add(7*day - time.Second))
	i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256", TTL: hour}}
	if _, err := a.SignJWT(t.Context(), grant(t, i, identity.Request{Audiences: []string{"a"}, Time: e.clock.now()})); err != nil {
		t.Fatal(err)
	}
	e.clock.set(start.Add(7 * day))
	e.tick(a)
	e.clock.set(start.Add(7*day + hour - time.Second))
	e.tick(a)
	if !slices.Contains(kids(a, "ES256"), one) {
		t.Error("removed while a token of it may live")
	}
	e.clock.set(start.Add(7*day + 2*hour))
	e.tick(a)
	if slices.Contains(kids(a, "ES256"), one) {
		t.Error("never removed")
	}
}

// An SVID leaves only when the record covers its expiry.
func TestLastExpiryIsRaisedFirst(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	key := newKey(t)
	last := func(use authority.Use, state authority.State) time.Time {
		for _, r := range e.records.rows {
			if r.Use == use && r.State == state {
				return r.LastExpiry
			}
		}
		t.Fatalf("no %s", use)
		return time.Time{}
	}
	saves := e.records.saves
	for i := range 20 * 6 {
		now := start.Add(time.Duration(i) * 10 * time.Minute)
		e.clock.set(now)
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), now, hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if got := last(authority.Issuing, authority.Active); got.Before(chain[0].NotAfter) {
			t.Fatalf("SVID ends at %s, the record says %s", chain[0].NotAfter, got)
		}
		if _, err := a.SignJWT(t.Context(), jwtGrant(t, "ES256", now, "a")); err != nil {
			t.Fatal(err)
		}
		if got := last(authority.JWTKey, authority.Active); got.Before(now.Add(4 * time.Minute)) {
			t.Fatalf("token ends after %s", got)
		}
	}
	if n := e.records.saves - saves; n < 30 || n > 42 {
		t.Errorf("%d saves in 20 hours, want one an hour and key", n)
	}
	// What cannot be made durable is not signed; and the next is, again.
	e.clock.set(start.Add(30 * hour))
	e.records.failAt = e.records.saves + 1
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), hour), key.Public()); !errors.Is(err, errSave) {
		t.Errorf("signed without a record: %v", err)
	}
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), hour), key.Public()); err != nil {
		t.Error(err)
	}
}

func TestIssuingCARenewsAtHalf(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	a := e.open()
	key := newKey(t)
	ca := func() *x509.Certificate {
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: e.clock.now()}
		opts.Roots.AddCert(a.Bundle().X509Authorities[0])
		opts.Intermediates.AddCert(chain[1])
		if _, err := chain[0].Verify(opts); err != nil {
			t.Fatal(err)
		}
		return chain[1]
	}
	document := a.Bundle().Document
	first := ca()
	e.clock.set(start.Add(35 * hour))
	e.tick(a)
	if !ca().Equal(first) {
		t.Error("renewed before half of its life")
	}
	e.clock.set(start.Add(36 * hour))
	e.tick(a)
	second := ca()
	if second.Equal(first) || !second.NotAfter.Equal(e.clock.now().Add(72*hour)) {
		t.Errorf("at half: ends %s", second.NotAfter)
	}
	if string(second.RawSubject) == string(first.RawSubject) {
		t.Error("two issuing CAs have one name")
	}
	if string(a.Bundle().Document) != string(document) {
		t.Error("an issuing CA changed the bundle")
	}
	e.clock.set(start.Add(72 * hour))
	e.tick(a)
	counts := map[authority.State]int{}
	for _, s := range a.List() {
		if s.Use == authority.Issuing {
			counts[s.State]++
		}
	}
	want := map[authority.State]int{authority.Active: 1, authority.Old: 1, authority.Revoked: 1}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Error(diff)
	}
}

// Near the root's end its issuing CA ends with it, and is not made anew for
// nothing.
func TestIssuingCAEndsWithTheRoot(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	e.lives.Root = 100 * hour
	a := e.open()
	e.clock.set(start.Add(60 * hour))
	e.tick(a)
	saves := e.records.saves
	for _, s := range a.List() {
		if s.State == authority.Active && s.NotAfter.After(start.Add(100*hour)) {
			t.Errorf("%s ends at %s, after the root", s.Use, s.NotAfter)
		}
	}
	e.clock.set(start.Add(90 * hour))
	e.tick(a)
	if n := e.records.saves - saves; n > 2 { // the first CA retires, the second promises more
		t.Errorf("%d saves", n)
	}
	e.clock.set(start.Add(100 * hour))
	if _, err := a.Tick(t.Context()); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("after the root's end: %v", err)
	}
}

// Each broker has its own issuing CA under the shared root.
func TestBrokersShareTheRoot(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	one := e.open()
	cfg := e.config()
	cfg.Broker = "b2"
	two, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if one.Pin() != two.Pin() || string(one.Bundle().Document) != string(two.Bundle().Document) {
		t.Error("two roots")
	}
	key := newKey(t)
	var cas []string
	for _, a := range []*authority.Authority{one, two} {
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		cas = append(cas, chain[1].Subject.String())
	}
	if cas[0] == cas[1] {
		t.Error("one issuing CA for both")
	}
}

// A save may fail before or after it was kept, at any point of a trust
// domain's first weeks. Nothing that was signed or published may be lost, and
// the next start, or the next tick, goes on.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	for _, kept := range []bool{false, true} {
		for _, reopen := range []bool{false, true} {
			for n := 1; ; n++ {
				name := fmt.Sprintf("save %d, kept %v, reopen %v", n, kept, reopen)
				if done := saveFails(t, name, n, kept, reopen); done {
					if n < 8 {
						t.Errorf("only %d saves", n)
					}
					break
				}
			}
		}
	}
}

func saveFails(t *testing.T, name string, n int, kept, reopen bool) (done bool) {
	e := newEnv(t)
	e.keys = &memoryKeys{}
	e.records.failAt, e.records.keptFirst = n, kept
	e.records.check = threeAtMost
	var a *authority.Authority
	var err error
	failed := 0
	for _, at := range []time.Duration{0, time.Second, 36 * hour, 7 * day, 8 * day, 14 * day} {
		e.clock.set(start.Add(at))
		for try := 0; ; try++ {
			if a == nil {
				a, err = authority.Open(t.Context(), e.config())
			}
			if err == nil {
				_, err = a.Tick(t.Context())
			}
			if err == nil {
				break
			}
			if failed++; !errors.Is(err, errSave) || failed > 1 {
				t.Fatalf("%s, at %s: %v", name, at, err)
			}
			if reopen {
				a = nil
			}
			err = nil
		}
		checkSound(t, name, e, a)
	}
	return e.records.saves < n
}

func threeAtMost(rows map[string]authority.Record) error {
	published := map[string]int{}
	for _, r := range rows {
		if r.Use == authority.JWTKey && r.State != authority.Revoked {
			if published[r.Alg]++; published[r.Alg] > 3 {
				return fmt.Errorf("more than three keys of %s", r.Alg)
			}
		}
	}
	return nil
}

// checkSound signs with everything, and compares memory with the store.
func checkSound(t *testing.T, name string, e *env, a *authority.Authority) {
	t.Helper()
	key := newKey(t)
	now := e.clock.now()
	_, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), now, hour), key.Public())
	if errors.Is(err, errSave) {
		_, err = a.SignX509(t.Context(), nodeGrant(t, key.Public(), now, hour), key.Public())
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, alg := range []string{"ES256", "RS256"} {
		signedBy(t, e, a, alg, states(a, alg)[authority.Active])
		if states(a, alg)[authority.Published] == "" {
			t.Errorf("%s: no standby of %s", name, alg)
		}
	}
	again := e.open()
	if string(again.Bundle().Document) != string(a.Bundle().Document) || again.Pin() != a.Pin() {
		t.Fatalf("%s: a start serves another bundle than the one before:\n%s\n%s", name, a.Bundle().Document, again.Bundle().Document)
	}
	last := authority.Publication{}
	for _, p := range e.records.history {
		same := string(p.Digest) == string(last.Digest)
		if p.Sequence < last.Sequence || same != (p.Sequence == last.Sequence) {
			t.Fatalf("%s: sequence %d after %d, same content: %v", name, p.Sequence, last.Sequence, same)
		}
		last = p
	}
}

// Run keeps everything valid for weeks without anybody's help.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.keys = &memoryKeys{}
		cfg := e.config()
		cfg.Now = time.Now
		a, err := authority.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		if err := a.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		key := newKey(t)
		for range 20 * 4 {
			<-time.After(6 * hour)
			synctest.Wait()
			chain, err := a.SignX509(ctx, nodeGrant(t, key.Public(), time.Now(), hour), key.Public())
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(chain[1].NotAfter); left < 35*hour {
				t.Fatalf("issuing CA ends in %s", left)
			}
			token, err := a.SignJWT(ctx, jwtGrant(t, "ES256", time.Now(), "a"))
			if err != nil {
				t.Fatal(err)
			}
			header, _ := parts(t, token)
			seen[header["kid"].(string)] = true
		}
		if len(seen) != 3 {
			t.Errorf("%d keys signed in 20 days, want 3", len(seen))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A failing store is tried again, and what does not need it goes on.
func TestRunRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		e.issuer = ""
		cfg := e.config()
		cfg.Now = time.Now
		a, err := authority.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		e.records.mu.Lock()
		e.records.failAt = e.records.saves + 1
		e.records.mu.Unlock()
		<-time.After(36*hour + time.Minute)
		synctest.Wait()
		key := newKey(t)
		chain, err := a.SignX509(ctx, nodeGrant(t, key.Public(), time.Now(), hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(chain[1].NotAfter); left < 71*hour {
			t.Errorf("not renewed after a failed save: ends in %s", left)
		}
		cancel()
		<-ended
	})
}

// Signing goes on while keys change hands; -race watches.
func TestSignWhileRotating(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	key := newKey(t)
	for _, at := range []time.Duration{0, 36 * hour, 72 * hour, 7 * day, 8 * day, 14 * day} {
		now := start.Add(at)
		e.clock.set(now)
		var g errgroup.Group
		g.Go(func() error { _, err := a.Tick(t.Context()); return err })
		for range 4 {
			g.Go(func() error {
				if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), now, hour), key.Public()); err != nil && at <= 72*hour {
					return err
				}
				token, err := a.SignJWT(t.Context(), jwtGrant(t, "ES256", now, "a"))
				if err != nil {
					return err
				}
				header, _ := parts(t, token)
				if !slices.Contains(kids(a, "ES256"), header["kid"].(string)) {
					return fmt.Errorf("signed by %s, which is not published", header["kid"])
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Errorf("after %s: %v", at, err)
		}
	}
}
