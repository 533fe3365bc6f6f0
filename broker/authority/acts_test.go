package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// checkStep is what may never be durable: an active issuing chain that the
// bundle published before does not verify, an active JWT key that goes without
// another taking its place, two active roots.
func checkStep(before, after map[string]authority.Record) error {
	roots := func(rows map[string]authority.Record) (pool *x509.CertPool, active int) {
		pool = x509.NewCertPool()
		for _, r := range rows {
			if r.Use != authority.Root || r.State == authority.Revoked || r.State == authority.Prepared {
				continue
			}
			c, err := x509.ParseCertificate(r.Chain[0])
			if err != nil {
				continue
			}
			pool.AddCert(c)
			if r.State == authority.Active {
				active++
			}
		}
		return pool, active
	}
	last, _ := roots(before)
	next, active := roots(after)
	if active > 1 {
		return errors.New("two active roots")
	}
	for _, r := range after {
		if r.State != authority.Active || r.Use != authority.Issuing && r.Use != authority.Domain {
			continue
		}
		for name, pool := range map[string]*x509.CertPool{"before": last, "after": next} {
			if err := verifies(r, pool); err != nil {
				return fmt.Errorf("active %s %s against the bundle %s: %w", r.Use, r.ID, name, err)
			}
		}
	}
	for _, r := range before {
		if r.State == authority.Active && r.Use != authority.Root && r.Use != authority.Domain && !hasActive(after, r) {
			return fmt.Errorf("no active %s %s is left", r.Use, r.Alg)
		}
	}
	return threeAtMost(after)
}

func verifies(r authority.Record, roots *x509.CertPool) error {
	below := x509.NewCertPool()
	var first *x509.Certificate
	for i, der := range r.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if i == 0 {
			first = c
		}
		below.AddCert(c)
	}
	_, err := first.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: below, CurrentTime: first.NotBefore.Add(time.Minute), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// hasActive says whether something does what r did; CAs that sign leaves
// themselves take an issuing CA's place.
func hasActive(rows map[string]authority.Record, r authority.Record) bool {
	for _, o := range rows {
		if o.State == authority.Active && (o.Use == r.Use && o.Alg == r.Alg || r.Use == authority.Issuing && (o.Use == authority.Domain || o.Use == authority.Root && o.KeyRef != "")) {
			return true
		}
	}
	return false
}

// An act is one thing that an operator does, from a state that setup brings
// about.
type act struct {
	name   string
	config func(*env)
	setup  func(*env, *authority.Authority)
	do     func(*env, *authority.Authority) error
	done   func(*env, *authority.Authority) error
}

func acts(t *testing.T) []act {
	root := func(a *authority.Authority, state authority.State) string { return of(a, authority.Root, state).ID }
	publish := func(e *env, a *authority.Authority) { e.need(a.PublishRoot(e.t.Context())) }
	activate := func(e *env, a *authority.Authority) {
		publish(e, a)
		e.need(a.ActivateRoot(e.t.Context(), root(a, authority.Published)))
	}
	byHand := func(e *env) {
		e.change = func(c *authority.Config) { c.UpstreamName, c.SharedRoot = "csr", "dedicated" }
	}
	shared := func(e *env) { e.change = func(c *authority.Config) { c.SharedRoot = "shared" } }
	ours := func(e *env) { e.change = func(c *authority.Config) { c.UpstreamName, c.Anchor = "csr", "ours" } }
	corporate := newPKI(t, "Corporate Root", nil, nil)
	install := func(pathLen int) func(*env, *authority.Authority) error {
		return func(e *env, a *authority.Authority) error {
			csr, _, err := a.CSR(e.t.Context(), false)
			if err != nil {
				return err
			}
			if e.chain == nil {
				e.chain = corporate.grant(csr, 1000*day, e.clock.now(), func(c *x509.Certificate) {
					c.MaxPathLen, c.MaxPathLenZero = pathLen, pathLen == 0
				})
			}
			_, err = a.Install(e.t.Context(), e.chain)
			return err
		}
	}
	upstream := func(e *env) {
		e.change = func(c *authority.Config) {
			up := *corporate
			up.now = e.clock.now
			c.Upstream, c.UpstreamName, c.SharedRoot = &up, "vault", "dedicated"
		}
	}
	isActive := func(subject string) func(*env, *authority.Authority) error {
		return func(e *env, a *authority.Authority) error {
			if st := of(a, authority.Root, authority.Active); st.Subject != subject {
				return fmt.Errorf("the active root is %q", st.Subject)
			}
			return nil
		}
	}
	corporateActive := isActive("CN=Corporate Root,O=Acme")
	return []act{
		{name: "rotate issuing", do: func(e *env, a *authority.Authority) error { _, err := a.RotateIssuing(e.t.Context()); return err }},
		{name: "replace issuing", do: func(e *env, a *authority.Authority) error {
			_, err := a.ReplaceIssuing(e.t.Context(), "lost")
			return err
		}, done: func(e *env, a *authority.Authority) error {
			bad := of(a, authority.Issuing, authority.Revoked)
			return onList(e, a, root(a, authority.Active), e.records.rows[bad.ID].Chain[0])
		}},
		{name: "rotate jwt before its lead", do: func(e *env, a *authority.Authority) error {
			if _, err := a.RotateJWT(e.t.Context(), "ES256"); e.clock.now().Equal(start) && !errors.Is(err, authority.ErrNotYet) {
				return fmt.Errorf("error %w, want not yet", err)
			}
			e.clock.set(start.Add(day + time.Second))
			_, err := a.Tick(e.t.Context())
			return err
		}, done: func(_ *env, a *authority.Authority) error {
			if states(a, "ES256")[authority.Old] == "" {
				return errors.New("the standby did not take over")
			}
			return nil
		}},
		{name: "rotate jwt", setup: func(e *env, a *authority.Authority) { e.clock.set(start.Add(day + time.Second)) },
			do: func(e *env, a *authority.Authority) error {
				_, err := a.RotateJWT(e.t.Context(), "ES256")
				if errors.Is(err, authority.ErrNotYet) && states(a, "ES256")[authority.Old] != "" {
					return nil // it was done before
				}
				return err
			}},
		{name: "replace jwt", do: func(e *env, a *authority.Authority) error {
			_, err := a.ReplaceJWT(e.t.Context(), "ES256", "lost")
			return err
		}, done: func(e *env, a *authority.Authority) error {
			if len(kids(a, "ES256")) != 2 {
				return fmt.Errorf("published %v", kids(a, "ES256"))
			}
			return nil
		}},
		{name: "publish root", do: func(e *env, a *authority.Authority) error { _, err := a.PublishRoot(e.t.Context()); return err }},
		{name: "activate root", setup: publish, do: func(e *env, a *authority.Authority) error {
			id := root(a, authority.Published)
			if id == "" {
				id = root(a, authority.Active)
			}
			_, err := a.ActivateRoot(e.t.Context(), id)
			return err
		}},
		{name: "drop root", setup: func(e *env, a *authority.Authority) { activate(e, a); e.clock.set(start.Add(4 * hour)) },
			do: drop(false), done: oneRoot},
		{name: "drop root by force", setup: activate, do: drop(true), done: oneRoot},
		{name: "roll back a published root", setup: publish, do: rollback, done: oneRoot},
		{name: "roll back an active root", setup: activate, do: rollback, done: func(e *env, a *authority.Authority) error {
			e.clock.set(start.Add(5 * hour))
			if _, err := a.Tick(e.t.Context()); errors.Is(err, errSave) {
				e.tick(a)
			}
			return oneRoot(e, a)
		}},
		{name: "request", do: func(e *env, a *authority.Authority) error { _, _, err := a.CSR(e.t.Context(), false); return err }},
		{name: "request again", setup: func(e *env, a *authority.Authority) { csrOf(e.t, a, false) },
			do: func(e *env, a *authority.Authority) error { _, _, err := a.CSR(e.t.Context(), true); return err }},
		{name: "first install", config: byHand, do: install(1), done: corporateActive},
		{name: "first install of path length 0", config: byHand, do: install(0), done: corporateActive},
		{name: "first install under anchor ours", config: ours, do: install(1)},
		{name: "first install of path length 0 under anchor ours", config: ours, do: install(0)},
		{name: "install beside our own root", config: shared, do: func(e *env, a *authority.Authority) error {
			if err := install(1)(e, a); err != nil {
				return err
			}
			if id := root(a, authority.Published); id != "" {
				_, err := a.ActivateRoot(e.t.Context(), id)
				return err
			}
			return nil
		}, done: corporateActive},
		{name: "install of path length 0 beside our own root, and back", config: shared, do: func(e *env, a *authority.Authority) error {
			if of(a, authority.Root, authority.Old).ID == "" {
				if err := install(0)(e, a); err != nil {
					return err
				}
				if id := root(a, authority.Published); id != "" {
					if _, err := a.ActivateRoot(e.t.Context(), id); err != nil {
						return err
					}
				}
			}
			return rollback(e, a)
		}, done: func(e *env, a *authority.Authority) error {
			if st := of(a, authority.Root, authority.Active); !st.Self {
				return fmt.Errorf("the active root is %q", st.Subject)
			}
			return nil
		}},
		{name: "revoke", do: func(e *env, a *authority.Authority) error {
			return a.Revoke(e.t.Context(), []authority.Revocation{{
				Serial: big.NewInt(77), Issuer: of(a, authority.Issuing, authority.Active).ID, NotAfter: e.clock.now().Add(hour),
			}})
		}, done: func(e *env, a *authority.Authority) error {
			return onListSerial(a, of(a, authority.Issuing, authority.Active).ID, big.NewInt(77))
		}},
		{name: "an upstream from the start", config: upstream, do: func(e *env, a *authority.Authority) error { return nil }, done: corporateActive},
		{name: "an upstream later", do: func(e *env, a *authority.Authority) error {
			upstream(e)
			for _, at := range []time.Duration{time.Second, 14 * time.Minute, 16 * time.Minute, 32 * time.Minute, 48 * time.Minute} {
				e.clock.set(start.Add(at))
				b, err := authority.Open(e.t.Context(), e.config())
				if err != nil {
					return err
				}
				if _, err := b.Tick(e.t.Context()); err != nil {
					return err
				}
			}
			return nil
		}, done: corporateActive},
	}
}

func drop(force bool) func(*env, *authority.Authority) error {
	return func(e *env, a *authority.Authority) error {
		id := of(a, authority.Root, authority.Old).ID
		if id == "" {
			id = of(a, authority.Root, authority.Revoked).ID
		}
		_, err := a.DropRoot(e.t.Context(), id, force)
		return err
	}
}

func rollback(e *env, a *authority.Authority) error {
	_, err := a.RollbackRoot(e.t.Context())
	if errors.Is(err, authority.ErrNothing) {
		return nil // it was done before
	}
	return err
}

func oneRoot(_ *env, a *authority.Authority) error {
	if n := len(a.Bundle().X509Authorities); n != 1 {
		return fmt.Errorf("%d roots are published", n)
	}
	return nil
}

// of is the last of a use and state.
func of(a *authority.Authority, use authority.Use, state authority.State) (found authority.Status) {
	for _, s := range a.List() {
		if s.Use == use && s.State == state {
			found = s
		}
	}
	return found
}

func (e *env) need(_ authority.Status, err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func onList(_ *env, a *authority.Authority, issuer string, der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	return onListSerial(a, issuer, c.SerialNumber)
}

func onListSerial(a *authority.Authority, issuer string, serial *big.Int) error {
	for _, l := range a.CRLs() {
		list, err := x509.ParseRevocationList(l.DER)
		if err != nil {
			return err
		}
		for _, entry := range list.RevokedCertificateEntries {
			if l.Issuer == issuer && entry.SerialNumber.Cmp(serial) == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("%x is on no list of %s", serial, issuer)
}

// Every write of every act fails in turn, before or after it was kept; the
// process goes on or is started anew; the operator asks again.
func TestActsFail(t *testing.T) {
	for _, test := range acts(t) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			saves, listSaves := fault{act: test}.run(t) // nothing fails
			for _, kept := range []bool{false, true} {
				for _, reopen := range []bool{false, true} {
					for n := range saves {
						fault{test, n + 1, false, kept, reopen}.run(t)
					}
					for n := range listSaves {
						fault{test, n + 1, true, kept, reopen}.run(t)
					}
				}
			}
		})
	}
}

type fault struct {
	act
	n                   int
	lists, kept, reopen bool
}

// run returns how many writes there were.
func (f fault) run(t *testing.T) (wrote, wroteLists int) {
	name := fmt.Sprintf("write %d, of lists %v, kept %v, reopen %v", f.n, f.lists, f.kept, f.reopen)
	e := newEnv(t)
	e.keys = &memoryKeys{}
	e.records.step = checkStep
	if !strings.Contains(f.name, "jwt") && f.name != "rotate issuing" && f.name != "activate root" { // time
		e.issuer = ""
	}
	var a *authority.Authority
	if f.config == nil {
		a = e.open()
		if f.setup != nil {
			f.setup(e, a)
		}
	} else {
		f.config(e)
	}
	saves, listSaves := e.records.saves, e.records.listSaves
	e.records.keptFirst = f.kept
	if f.n > 0 && f.lists {
		e.records.failListAt = listSaves + f.n
	} else if f.n > 0 {
		e.records.failAt = saves + f.n
	}
	var err error
	for try := range 4 {
		if a == nil {
			a, err = authority.Open(t.Context(), e.config())
		}
		if err == nil {
			err = f.do(e, a)
		}
		if err == nil && a != nil {
			break
		}
		if !errors.Is(err, errSave) || try == 3 {
			t.Fatalf("%s, try %d: %v", name, try, err)
		}
		if a != nil {
			checkSigns(t, name, e, a)
		}
		if f.reopen {
			a = nil
		}
		err = nil
	}
	a = e.open() // what is durable
	if _, err := a.Tick(t.Context()); err != nil && !errors.Is(err, errSave) {
		t.Fatalf("%s: %v", name, err)
	}
	checkSigns(t, name, e, a)
	if f.done != nil {
		if err := f.done(e, a); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return e.records.saves - saves, e.records.listSaves - listSaves
}

// checkSigns signs both kinds of SVID, if there is a root yet, and verifies
// them by the bundle.
func checkSigns(t *testing.T, name string, e *env, a *authority.Authority) {
	t.Helper()
	now := e.clock.now()
	if len(a.Bundle().X509Authorities) > 0 && of(a, authority.Root, authority.Active).ID != "" {
		chain, err := signTwice(e, a)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, _, err := federation.VerifyX509(chain, a, now); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if kid := states(a, "ES256")[authority.Active]; kid != "" {
		signedBy(t, e, a, "ES256", kid)
	}
}

// signTwice signs an X509-SVID; a failed save is tried again.
func signTwice(e *env, a *authority.Authority) (chain []*x509.Certificate, err error) {
	key := newKey(e.t)
	for range 2 {
		chain, err = a.SignX509(context.Background(), nodeGrant(e.t, key.Public(), e.clock.now(), time.Hour), key.Public())
		if !errors.Is(err, errSave) {
			break
		}
	}
	return chain, err
}

// An old key whose time is over, and which no Tick has removed yet, is no
// fourth.
func TestRotateJWTRemovesFirst(t *testing.T) {
	e := newEnv(t)
	e.records.check = threeAtMost
	a := e.open()
	for i := range 3 {
		e.clock.set(start.Add(time.Duration(i+1) * 2 * day))
		if _, err := a.RotateJWT(t.Context(), "ES256"); err != nil {
			t.Fatal(err)
		}
		if got := kids(a, "ES256"); len(got) != 3 {
			t.Errorf("published %v", got)
		}
	}
}

// A root dropped by force ends what another broker still signs with under it:
// nobody believes that any more.
func TestDropRootOfAnotherBroker(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	e.records.step = checkStep
	other := e.config()
	other.Broker = "b2"
	if _, err := authority.Open(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	a := e.open()
	e.need(a.PublishRoot(t.Context()))
	e.need(a.ActivateRoot(t.Context(), of(a, authority.Root, authority.Published).ID))
	old := of(a, authority.Root, authority.Old).ID
	e.clock.set(start.Add(70 * hour))
	e.tick(a)
	if _, err := a.DropRoot(t.Context(), old, false); !errors.Is(err, authority.ErrNotYet) || !strings.Contains(err.Error(), "b2 still signs") {
		t.Errorf("error %v", err)
	}
	e.need(a.DropRoot(t.Context(), old, true))
	for _, s := range a.List() {
		if s.Broker == "b2" && s.State != authority.Revoked {
			t.Errorf("b2's CA is %s", s.State)
		}
	}
	b, err := authority.Open(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	svidNow(t, e, b)
}
