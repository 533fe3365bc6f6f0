package authority_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// An unreliable upstream fails, or answers otherwise than it should.
type unreliable struct {
	*pki
	fail   error
	change func(csr []byte, chain, anchors []*x509.Certificate) (c, a []*x509.Certificate)
	asked  int
}

func (u *unreliable) Sign(ctx context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error) {
	u.asked++
	if u.fail != nil {
		return nil, nil, u.fail
	}
	chain, anchors, err = u.pki.Sign(ctx, csr, life)
	if err == nil && u.change != nil {
		chain, anchors = u.change(csr, chain, anchors)
	}
	return chain, anchors, err
}

// automatic is a trust domain whose issuing CAs an upstream certifies: a CA
// under a corporate root.
func automatic(t *testing.T) (*env, *unreliable) {
	t.Helper()
	e := newEnv(t)
	e.issuer = ""
	e.records.step = checkStep
	root := newPKI(t, "Corporate Root", nil, nil)
	up := &unreliable{pki: newPKI(t, "Policy CA", root, nil)}
	up.now = e.clock.now
	e.change = func(c *authority.Config) { c.Upstream, c.UpstreamName, c.SharedRoot = up, "vault", "dedicated" }
	return e, up
}

// svidNow signs, and verifies as a peer.
func svidNow(t *testing.T, e *env, a *authority.Authority) []*x509.Certificate {
	t.Helper()
	svid, err := signTwice(e, a)
	if err != nil {
		t.Fatalf("%s: %v", e.clock.now(), err)
	}
	if _, _, err := federation.VerifyX509(svid, peerOf(t, a), e.clock.now()); err != nil {
		t.Fatalf("%s: %v", e.clock.now(), err)
	}
	return svid
}

// Nothing of ours is self-signed, and the bundle holds the corporate root alone.
func TestUpstream(t *testing.T) {
	e, up := automatic(t)
	a := e.open()
	if got := a.Bundle().X509Authorities; len(got) != 1 || !got[0].Equal(up.parent.cert) {
		t.Errorf("the bundle holds %d roots", len(got))
	}
	svid := svidNow(t, e, a)
	if len(svid) != 3 || !svid[2].Equal(up.cert) {
		t.Errorf("an SVID of %d certificates", len(svid))
	}
	strict(t, up.parent.cert, svid)
	lintCerts(t, svid[0])
	if st := of(a, authority.Issuing, authority.Active); st.Waits[0] != "upstream vault" || !st.Self {
		t.Errorf("%+v", st)
	}
	for _, s := range a.List() {
		if s.Use == authority.Root && (s.Self || s.KeySource != "vault") {
			t.Errorf("root %+v", s)
		}
	}
}

// The owner names a CA as anchor that is not the top: what stands above it is
// not ours to show.
func TestUpstreamUnderALowerAnchor(t *testing.T) {
	e, up := automatic(t)
	up.change = func(_ []byte, c, a []*x509.Certificate) (chain, anchors []*x509.Certificate) {
		return []*x509.Certificate{c[0], c[1], a[0]}, []*x509.Certificate{c[1]}
	}
	a := e.open()
	if got := a.Bundle().X509Authorities; len(got) != 1 || !got[0].Equal(up.cert) {
		t.Errorf("the bundle holds %d roots", len(got))
	}
	if svid := svidNow(t, e, a); len(svid) != 2 {
		t.Errorf("an SVID of %d certificates", len(svid))
	}
}

// The upstream is away for almost half of the CA's life: workloads see nothing
// of it, the log warns at half and is alarmed at a quarter, and it is asked
// again ever more rarely. Then it comes back.
func TestUpstreamAway(t *testing.T) {
	e, up := automatic(t)
	var log bytes.Buffer
	with := e.change
	e.change = func(c *authority.Config) { with(c); c.Log = slog.New(slog.NewTextHandler(&log, nil)) }
	a := e.open()
	first := svidNow(t, e, a)[1]
	up.fail, up.asked = errors.New("the vault is sealed"), 0
	half := start.Add(36 * hour)
	e.clock.set(half.Add(-time.Minute))
	e.tick(a)
	if up.asked != 0 {
		t.Error("asked before half of its life")
	}
	alarmed := time.Time{}
	for e.clock.set(half); e.clock.now().Before(start.Add(71 * hour)); {
		next := e.tick(a)
		if !next.After(e.clock.now()) || next.After(e.clock.now().Add(time.Hour)) {
			t.Fatalf("at %s it is looked at again at %s", e.clock.now(), next)
		}
		if !svidNow(t, e, a)[1].Equal(first) {
			t.Fatal("another CA")
		}
		if alarmed.IsZero() && strings.Contains(log.String(), "level=ERROR") {
			alarmed = e.clock.now()
		}
		e.clock.set(next)
	}
	if up.asked < 140 || up.asked > 150 { // each quarter of an hour, sooner at first
		t.Errorf("asked %d times in 35 hours", up.asked)
	}
	if want := start.Add(54 * hour); alarmed.Before(want.Add(-time.Minute)) || alarmed.After(want.Add(16*time.Minute)) {
		t.Errorf("alarmed at %s, want %s", alarmed, want)
	}
	if st := of(a, authority.Issuing, authority.Active); !strings.Contains(st.Problem, "the vault is sealed") {
		t.Errorf("problem %q", st.Problem)
	}
	if !strings.Contains(log.String(), "past half of its life") {
		t.Error("no warning at half")
	}
	a = e.open() // a restart changes nothing
	svidNow(t, e, a)
	up.fail = nil
	e.clock.set(e.clock.now().Add(16 * time.Minute))
	e.tick(a)
	if svidNow(t, e, a)[1].Equal(first) {
		t.Error("not renewed when it came back")
	}
	if st := of(a, authority.Issuing, authority.Active); st.Problem != "" {
		t.Errorf("problem %q", st.Problem)
	}
}

// What an upstream may get wrong is named, in List too; the old CA works on.
func TestUpstreamRefused(t *testing.T) {
	type certs = []*x509.Certificate
	other := newPKI(t, "Other Root", nil, nil)
	weak := newPKI(t, "Ended Root", nil, func(c *x509.Certificate) { c.NotAfter = start.Add(time.Hour) })
	leaf := func(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.KeyUsage = false, 0, x509.KeyUsageDigitalSignature }
	for name, tt := range map[string]struct {
		want   string
		change func(up *unreliable, csr []byte, chain, anchors certs) (certs, certs)
	}{
		"as it should be":       {"", nil},
		"the root in the chain": {"", func(_ *unreliable, _ []byte, c, a certs) (certs, certs) { return append(c, a...), a }},
		"an ended root besides": {"", func(_ *unreliable, _ []byte, c, a certs) (certs, certs) { return c, certs{weak.cert, a[0]} }},
		"nothing":               {"chain: is empty", func(_ *unreliable, _ []byte, _, a certs) (certs, certs) { return nil, a }},
		"nil":                   {"chain: a certificate is none", func(_ *unreliable, _ []byte, c, a certs) (certs, certs) { return certs{c[0], nil}, a }},
		"no root":               {"of 0 none is valid", func(_ *unreliable, _ []byte, c, _ certs) (certs, certs) { return c, nil }},
		"ended roots":           {"of 1 none is valid", func(_ *unreliable, _ []byte, c, _ certs) (certs, certs) { return c, certs{weak.cert} }},
		"too many roots":        {"there are 11", func(_ *unreliable, _ []byte, c, a certs) (certs, certs) { return c, append(make(certs, 10), a...) }},
		"a root that is none": {"basicConstraints: is no CA's", func(up *unreliable, csr []byte, c, a certs) (certs, certs) {
			return c, append(a, up.grant(csr, hour, e0(up), leaf)[0])
		}},
		"another root": {"is none of the 1 anchors", func(_ *unreliable, _ []byte, c, _ certs) (certs, certs) { return c, certs{other.cert} }},
		"another's chain": {"is none of the 1 anchors", func(up *unreliable, csr []byte, _, a certs) (certs, certs) {
			return other.grant(csr, 72*hour, e0(up), nil)[:1], a
		}},
		"a gap":       {"is none of the 1 anchors", func(_ *unreliable, _ []byte, c, a certs) (certs, certs) { return c[:1], a }},
		"another key": {"key: is not the one", func(up *unreliable, _ []byte, c, a certs) (certs, certs) { return c[1:], a }},
		"a leaf": {"basicConstraints: is no CA's", func(up *unreliable, csr []byte, c, a certs) (certs, certs) {
			return append(up.grant(csr, 72*hour, e0(up), leaf)[:1], c[1:]...), a
		}},
		"of years": {"at the latest", func(up *unreliable, csr []byte, c, a certs) (certs, certs) {
			return append(up.grant(csr, 1000*day, e0(up), nil)[:1], c[1:]...), a
		}},
		"of minutes": {"at the earliest", func(up *unreliable, csr []byte, c, a certs) (certs, certs) {
			return append(up.grant(csr, time.Minute, e0(up), nil)[:1], c[1:]...), a
		}},
		"client usage only": {"extendedKeyUsage", func(up *unreliable, csr []byte, c, a certs) (certs, certs) {
			return append(up.grant(csr, 72*hour, e0(up), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })[:1], c[1:]...), a
		}},
	} {
		t.Run(name, func(t *testing.T) {
			e, up := automatic(t)
			a := e.open()
			first := svidNow(t, e, a)[1]
			document := a.Bundle().Document
			e.clock.set(start.Add(37 * hour))
			if tt.change != nil {
				up.change = func(csr []byte, c, a []*x509.Certificate) (certs, certs) { return tt.change(up, csr, c, a) }
			}
			e.tick(a)
			st := of(a, authority.Issuing, authority.Active)
			if tt.want == "" {
				if st.Problem != "" || svidNow(t, e, a)[1].Equal(first) {
					t.Errorf("not renewed: %s", st.Problem)
				}
			} else if !strings.Contains(st.Problem, tt.want) || !svidNow(t, e, a)[1].Equal(first) {
				t.Errorf("problem %q, want %q", st.Problem, tt.want)
			}
			if !bytes.Equal(a.Bundle().Document, document) {
				t.Error("the bundle changed")
			}
		})
	}
}

func e0(up *unreliable) time.Time { return up.now() }

// The upstream moves to another root. It is published beside the old one for
// three refresh hints before anything under it is used, and the old one leaves
// when its SVIDs have ended.
func TestUpstreamChangesItsRoot(t *testing.T) {
	e, up := automatic(t)
	a := e.open()
	old := up.parent.cert
	e.clock.set(start.Add(35 * hour))
	under := svidNow(t, e, a)[1]
	up.pki = newPKI(t, "Policy CA 2", newPKI(t, "Corporate Root 2", nil, nil), nil)
	up.now = e.clock.now
	e.clock.set(start.Add(36 * hour))
	next := e.tick(a)
	if got := a.Bundle().X509Authorities; len(got) != 2 || !svidNow(t, e, a)[1].Equal(under) {
		t.Fatalf("%d roots are published: %s", len(got), of(a, authority.Issuing, authority.Active).Problem)
	}
	if _, err := a.RotateIssuing(t.Context()); !errors.Is(err, authority.ErrNotYet) {
		t.Errorf("used at once: %v", err)
	}
	if st := of(a, authority.Issuing, authority.Prepared); st.Next != "becomes active" || !strings.Contains(st.Problem, "3 refresh hints") {
		t.Errorf("%+v", st)
	}
	if want := start.Add(36*hour + 15*time.Minute + time.Second); !next.Equal(want) {
		t.Errorf("looked at again at %s, want %s", next, want)
	}
	e.clock.set(next.Add(-time.Second))
	e.tick(a)
	if !svidNow(t, e, a)[1].Equal(under) {
		t.Error("used too soon")
	}
	e.clock.set(next)
	a = e.open() // which is also when it is taken into use
	if svidNow(t, e, a)[1].Equal(under) {
		t.Error("not used in time")
	}
	if len(a.Bundle().X509Authorities) != 2 {
		t.Error("the old root left while SVIDs under it live")
	}
	e.clock.set(next.Add(4 * hour))
	e.tick(a)
	if got := a.Bundle().X509Authorities; len(got) != 1 || got[0].Equal(old) {
		t.Errorf("%d roots are published, one of them old", len(got))
	}
	svidNow(t, e, a)
}

// Without an upstream that answers, a new trust domain has nothing to begin
// with, and says why.
func TestUpstreamAwayAtFirst(t *testing.T) {
	e, up := automatic(t)
	up.fail = errors.New("the vault is sealed")
	if _, err := authority.Open(t.Context(), e.config()); err == nil || !strings.Contains(err.Error(), "the vault is sealed") {
		t.Errorf("error %v", err)
	}
	up.fail = nil
	svidNow(t, e, e.open())
}
