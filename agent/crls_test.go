package agent_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// lists are an update's CRLs.
func lists(u agent.Update) (all [][]byte) {
	for _, l := range u.CRLs {
		all = append(all, l.DER)
	}
	return all
}

func holds(u agent.Update, want ...*api.CRL) bool {
	if len(u.CRLs) != len(want) {
		return false
	}
	for i, l := range lists(u) {
		if !bytes.Equal(l, want[i].GetDer()) {
			return false
		}
	}
	return true
}

func logged() (*buffer, *slog.Logger) {
	log := &buffer{}
	return log, slog.New(slog.NewTextHandler(log, nil))
}

// signed is a list with something of it changed before it is signed.
func signed(t *testing.T, ca *agenttest.CA, change func(*x509.RevocationList)) *api.CRL {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(9), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	change(list)
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Root, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &api.CRL{Der: der, Issuer: [][]byte{ca.Root.Raw}}
}

// unnumbered is a list without extensions, as no CA of this century makes it.
func unnumbered(t *testing.T, ca *agenttest.CA) []byte {
	t.Helper()
	ecdsaSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	tbs, err := asn1.Marshal(struct {
		Version    int
		Algorithm  pkix.AlgorithmIdentifier
		Issuer     asn1.RawValue
		This, Next time.Time
	}{1, ecdsaSHA256, asn1.RawValue{FullBytes: ca.Root.RawSubject}, time.Now().Add(-time.Minute).UTC(), time.Now().Add(time.Hour).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(tbs)
	signature, err := ca.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		List      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, ecdsaSHA256, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// below makes a CA under another, or what poses as one.
func below(t *testing.T, ca *agenttest.CA, change func(*x509.Certificate)) *agenttest.CA {
	t.Helper()
	sub := agenttest.NewCA(t, domain)
	template := *sub.Root
	template.SerialNumber, template.Subject.CommonName, template.RawSubject = big.NewInt(77), "issuing", nil
	change(&template)
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Root, sub.Key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	if sub.Root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return sub
}

func same(*x509.Certificate) {}

// TestCRLsReachOpenStreams: what is revoked is told on a stream that is open,
// and what does not change is not.
func TestCRLsReachOpenStreams(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	if u := v.next(); len(u.CRLs) > 0 {
		t.Errorf("it begins with %v", u.CRLs)
	}
	end := time.Now().Add(time.Hour)
	issuing := below(t, b.CA, same)
	one, two := b.CRL(1, end), issuing.CRL(5, end, big.NewInt(1))
	b.AddCRLs(one, two)
	if u := v.next(); !holds(u, one, two) {
		t.Errorf("it holds %x", lists(u))
	}
	b.AddCRLs(one, two)
	v.quiet()
	newer := b.CRL(2, end, big.NewInt(1), big.NewInt(2)) // republished
	b.AddCRLs(newer, two)
	if u := v.next(); !holds(u, newer, two) {
		t.Errorf("it holds %x", lists(u))
	}
	b.AddCRLs(newer)
	if u := v.next(); !holds(u, newer) {
		t.Errorf("it holds %x", lists(u))
	}
	if u := a.view(t).next(); !holds(u, newer) {
		t.Errorf("another one holds %x", lists(u))
	}
}

// TestBadCRLs: each is left out by itself, with a line in the log; the others
// and the SVIDs are served.
func TestBadCRLs(t *testing.T) {
	t.Parallel()
	now := time.Now()
	hour := now.Add(time.Hour)
	for _, row := range []struct {
		name, logged string
		bad          func(t *testing.T, b *agenttest.Broker) *api.CRL
	}{
		{"not a list", "malformed", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			return &api.CRL{Der: []byte("list"), Issuer: [][]byte{b.Root.Raw}}
		}},
		{"without its issuer", "0 certificates", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			return &api.CRL{Der: b.CRL(9, hour).GetDer()}
		}},
		{"with a long chain", "6 certificates", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			return &api.CRL{Der: b.CRL(9, hour).GetDer(), Issuer: [][]byte{b.Root.Raw, b.Root.Raw, b.Root.Raw, b.Root.Raw, b.Root.Raw, b.Root.Raw}}
		}},
		{"too long", "at most 1048576", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			l := b.CRL(9, hour)
			l.Der = append(l.Der, make([]byte, 1<<20)...)
			return l
		}},
		{"with something after it", "follows it", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			l := b.CRL(9, hour)
			l.Der = append(l.Der, 0)
			return l
		}},
		{"of another domain", "does not verify under our bundle", func(t *testing.T, _ *agenttest.Broker) *api.CRL {
			return agenttest.NewCA(t, domain).CRL(9, hour)
		}},
		{"another key's, in the issuer's name", "its signature", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			l := agenttest.NewCA(t, domain).CRL(9, hour)
			l.Issuer = [][]byte{b.Root.Raw}
			return l
		}},
		{"changed after it was signed", "its signature", func(_ *testing.T, b *agenttest.Broker) *api.CRL {
			l := b.CRL(9, hour)
			l.Der[len(l.Der)-1] ^= 1
			return l
		}},
		{"another issuer's", "not of", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			sub := below(t, b.CA, same)
			l := (&agenttest.CA{Root: b.Root, Key: sub.Key}).Root // its name, with the other's key
			der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(9), ThisUpdate: now, NextUpdate: hour}, &x509.Certificate{
				RawSubject: l.RawSubject, Subject: l.Subject, SubjectKeyId: sub.Root.SubjectKeyId, KeyUsage: x509.KeyUsageCRLSign, PublicKey: sub.Key.Public(),
			}, sub.Key)
			if err != nil {
				t.Fatal(err)
			}
			return &api.CRL{Der: der, Issuer: [][]byte{sub.Root.Raw}}
		}},
		{"a leaf's", "may sign no CRL", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			sub := below(t, b.CA, same)
			l := sub.CRL(9, hour)
			leaf := below(t, b.CA, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
			l.Issuer = [][]byte{leaf.Root.Raw}
			return l
		}},
		{"a CA's without cRLSign", "may sign no CRL", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			sub := below(t, b.CA, same)
			l := sub.CRL(9, hour)
			template := *sub.Root
			template.KeyUsage = x509.KeyUsageCertSign
			der, err := x509.CreateCertificate(rand.Reader, &template, b.Root, sub.Key.Public(), b.Key)
			if err != nil {
				t.Fatal(err)
			}
			l.Issuer = [][]byte{der}
			return l
		}},
		{"of a CA that has ended", "does not verify under our bundle", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			return below(t, b.CA, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }).CRL(9, hour)
		}},
		{"without a number", "no number", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			return &api.CRL{Der: unnumbered(t, b.CA), Issuer: [][]byte{b.Root.Raw}}
		}},
		{"of yesterday", "it ended", func(_ *testing.T, b *agenttest.Broker) *api.CRL { return b.CRL(9, now.Add(-time.Second)) }},
		{"of tomorrow", "to come", func(t *testing.T, b *agenttest.Broker) *api.CRL {
			return signed(t, b.CA, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(10 * time.Minute) })
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			log, logger := logged()
			b, a := started(t, func(c *agent.Config) { c.Log = logger })
			b.Grant(grant("/a"))
			v := a.view(t)
			v.next()
			good := below(t, b.CA, same).CRL(1, hour)
			bad := row.bad(t, b)
			b.AddCRLs(bad, good)
			if u := v.next(); !holds(u, good) || len(u.SVIDs) != 1 {
				t.Errorf("%d SVIDs, lists %x", len(u.SVIDs), lists(u))
			}
			if text := log.String(); strings.Count(text, "CRL not taken") != 1 || !strings.Contains(text, row.logged) {
				t.Errorf("the log lacks %q:\n%s", row.logged, text)
			}
		})
	}
}

// TestCRLNumbers: an older list, or another one of the same number, does not
// take the place of what is held (RFC 5280 §5.2.3), also when it has been away.
func TestCRLNumbers(t *testing.T) {
	t.Parallel()
	log, logger := logged()
	b, a := started(t, func(c *agent.Config) { c.Log = logger })
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	end := time.Now().Add(time.Hour)
	five := b.CRL(5, end, big.NewInt(1))
	b.AddCRLs(five)
	v.next()
	for n, told := range [][]*api.CRL{{b.CRL(4, end)}, {b.CRL(5, end)}, {{Der: []byte("list"), Issuer: [][]byte{b.Root.Raw}}}, {five, five}} {
		b.AddCRLs(told...)
		eventually(t, "one is left out", func() bool { return strings.Count(log.String(), "CRL not taken") == n+1 })
		v.quiet()
	}
	b.AddCRLs()
	if u := v.next(); !holds(u) {
		t.Errorf("it holds %x", lists(u))
	}
	other := below(t, b.CA, same).CRL(1, end)
	b.AddCRLs(b.CRL(4, end), other)
	if u := v.next(); !holds(u, other) {
		t.Errorf("it holds %x", lists(u))
	}
	six := b.CRL(6, end)
	b.AddCRLs(six, other)
	if u := v.next(); !holds(u, six, other) {
		t.Errorf("it holds %x", lists(u))
	}
}

// TestCRLEnds: one that nobody renewed is told no longer than it holds.
func TestCRLEnds(t *testing.T) { // it ends within moments: not beside others
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	short := signed(t, b.CA, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(2 * time.Second) })
	b.AddCRLs(short)
	if u := v.next(); !holds(u, short) {
		t.Errorf("it holds %x", lists(u))
	}
	if u := v.next(); !holds(u) || len(u.SVIDs) != 1 {
		t.Errorf("%d SVIDs, lists %x", len(u.SVIDs), lists(u))
	}
	v.quiet()
}

// TestManyCRLs: more than a client of the Workload API takes in one message is
// left out, the longest first.
func TestManyCRLs(t *testing.T) {
	t.Parallel()
	log, logger := logged()
	b, a := started(t, func(c *agent.Config) { c.Log = logger })
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	end := time.Now().Add(time.Hour)
	long := func(n int) *api.CRL {
		var all []*big.Int
		for i := range n {
			all = append(all, new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 126), big.NewInt(int64(i))))
		}
		return below(t, b.CA, same).CRL(1, end, all...)
	}
	one, two, three, small := long(20_000), long(20_001), long(20_002), b.CRL(1, end)
	b.AddCRLs(three, one, small, two)
	if u := v.next(); !holds(u, one, small, two) {
		t.Errorf("%d lists", len(u.CRLs))
	}
	if text := log.String(); strings.Count(text, "CRL not taken") != 1 {
		t.Error(text)
	}
}

// TestCRLsOfManyCAs: no more are kept than a trust domain has CAs.
func TestCRLsOfManyCAs(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	var all []*api.CRL
	for range 65 {
		all = append(all, below(t, b.CA, same).CRL(1, time.Now().Add(time.Hour)))
	}
	b.AddCRLs(all...)
	if u := v.next(); len(u.CRLs) != 64 {
		t.Errorf("%d lists", len(u.CRLs))
	}
}

// FuzzCRL: whatever comes, what is taken is one list, whole, that its issuer
// signed.
func FuzzCRL(f *testing.F) {
	ca := agenttest.NewCA(f, domain)
	good := ca.CRL(1, time.Now().Add(time.Hour), big.NewInt(7))
	f.Add(good.GetDer(), ca.Root.Raw)
	f.Add(good.GetDer(), good.GetDer())
	f.Add(append(bytes.Clone(good.GetDer()), 0), ca.Root.Raw)
	f.Fuzz(func(t *testing.T, der, issuer []byte) {
		if agent.ReadCRL(&api.CRL{Der: der, Issuer: [][]byte{issuer}}, ca.Root) != nil {
			return
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil || len(list.Raw) != len(der) || list.Number == nil {
			t.Fatalf("taken: %x, %v", der, err)
		}
		if err := list.CheckSignatureFrom(ca.Root); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPeersHaveNoCRLs: what comes with another domain's bundle is not taken.
func TestPeersHaveNoCRLs(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	ours := b.CRL(1, time.Now().Add(time.Hour))
	b.AddCRLs(ours)
	v.next()
	peer := agenttest.NewCA(t, "peer.example")
	b.Push(&api.WatchResponse{Revision: 5, Bundles: []*api.Bundle{{TrustDomain: "peer.example", Document: peer.Document(), Crls: []*api.CRL{peer.CRL(1, time.Now().Add(time.Hour))}}}})
	b.Await("it is read", func() bool { return b.Acknowledged() >= 5 })
	if u := a.view(t).next(); !holds(u, ours) {
		t.Errorf("it holds %x", lists(u))
	}
}

// TestARevokedBroker: whoever has the key of an issuing CA that was replaced is
// not taken for the broker, though the CA has not ended.
func TestARevokedBroker(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	id := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(domain), "/credence/broker")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen, good := below(t, b.CA, same), below(t, b.CA, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(78) })
	thief, broker := stolen.Sign(id, key.Public(), time.Now().Add(time.Hour)), good.Sign(id, key.Public(), time.Now().Add(time.Hour))
	for name, err := range map[string]error{"of the stolen CA": a.Verify(thief, stolen.Root), "of the good one": a.Verify(broker, good.Root)} {
		if err != nil {
			t.Fatalf("before it is known, %s: %v", name, err)
		}
	}
	b.AddCRLs(b.CRL(1, time.Now().Add(time.Hour), stolen.Root.SerialNumber))
	v.next()
	if err := a.Verify(thief, stolen.Root); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("of the stolen CA: %v", err)
	}
	if err := a.Verify(broker, good.Root); err != nil {
		t.Errorf("of the good one: %v", err)
	}
	b.AddCRLs(b.CRL(2, time.Now().Add(time.Hour), stolen.Root.SerialNumber), good.CRL(1, time.Now().Add(time.Hour), broker.SerialNumber))
	v.next()
	if err := a.Verify(broker, good.Root); err == nil {
		t.Error("a broker's own certificate that is revoked is taken")
	}
}
