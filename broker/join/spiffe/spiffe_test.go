package spiffe_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	evidence "github.com/credence-id/credence/agent/evidence/x509"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/spiffe"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
)

const machine = "spiffe://partner.example/vm/web-1"

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// A world has example.org, whose broker asks, partner.example, which its rule
// lists, and stranger.example, a peer that the rule doesn't list.
type world struct {
	t                      testing.TB
	own, partner, stranger *federationtest.CA
	bundles                *x509bundle.Set
	method                 join.Method
	verified               int // how often it was found out whether an SVID is good
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, bundles: x509bundle.NewSet()}
	for name, ca := range map[string]**federationtest.CA{"example.org": &w.own, "partner.example": &w.partner, "stranger.example": &w.stranger} {
		*ca = federationtest.NewCA(t, start, nil)
		w.bundles.Add((*ca).Bundle(spiffeid.RequireTrustDomainFromString(name)))
	}
	w.method = w.build("example.org", "partner.example")
	return w
}

// build makes the method of a rule that lists trust domains, judging as the
// broker does.
func (w *world) build(trustDomains ...string) join.Method {
	w.t.Helper()
	m, err := spiffe.New(spiffe.Config{
		Settings: &spiffe.Settings{TrustDomains: trustDomains}, TrustDomain: "example.org",
		Verify: func(_ context.Context, chain []*x509.Certificate) (spiffeid.ID, error) {
			w.verified++
			id, _, err := federation.VerifyX509(chain, w.bundles, start)
			if err != nil {
				return id, fmt.Errorf("%w: %w", join.ErrEvidence, err)
			}
			return id, nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// node shows a pair, to the broker of a trust domain.
func node(t testing.TB, method, trustDomain string, pair tls.Certificate) signer {
	t.Helper()
	n := evidence.New(evidence.Config{Method: method, TrustDomain: trustDomain, Pair: func(context.Context) (tls.Certificate, error) { return pair, nil }})
	if _, err := n.Evidence(t.Context()); err != nil {
		t.Fatal(err)
	}
	return signer{n}
}

// ours is the public key that nodes join with, as far as anybody here sees.
var ours = []byte("ours")

func joining(t testing.TB) context.Context {
	return join.WithKey(t.Context(), sha256.Sum256(ours))
}

// A signer answers for our key.
type signer struct{ *evidence.Node }

func (s signer) Answer(ctx context.Context, challenge []byte) ([]byte, error) {
	return s.Node.Answer(ctx, challenge, ours)
}

func (w *world) join(pair tls.Certificate) (join.Proof, error) {
	w.t.Helper()
	n := node(w.t, spiffe.Method, "example.org", pair)
	shown, err := n.Evidence(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.method.Join(joining(w.t), shown, n.Answer)
}

func (w *world) refused(err error) {
	w.t.Helper()
	if !errors.Is(err, join.ErrEvidence) {
		w.t.Errorf("it is taken, or refused for another reason: %v", err)
	}
}

func TestJoin(t *testing.T) {
	w := newWorld(t)
	pair := w.partner.SVID(t, spiffeid.RequireFromString(machine))
	proof, err := w.join(pair)
	if err != nil {
		t.Fatal(err)
	}
	facts := proof.Facts.Map()
	if serial := facts["node.spiffe.serial"]; len(serial) != 1 || serial[0] == "" {
		t.Errorf("serial %q", serial)
	}
	delete(facts, "node.spiffe.serial")
	if d := cmp.Diff(map[string][]string{
		"node.spiffe.id": {machine}, "node.spiffe.trust_domain": {"partner.example"}, "node.spiffe.path": {"/vm/web-1"},
	}, facts); d != "" || proof.Name != "partner.example-vm-web-1" || proof.DurableKey != machine || proof.Instance != "" {
		t.Errorf("%+v: facts %s", proof, d)
	}
	// Its next SVID is the same node's, though another CA of the trust domain's
	// signed it; and so is the one after its keys were changed.
	next := federationtest.NewCA(t, start, nil)
	bundle, _ := w.bundles.Get(spiffeid.RequireTrustDomainFromString("partner.example"))
	bundle.AddX509Authority(next.Cert)
	for name, ca := range map[string]*federationtest.CA{"the same CA": w.partner, "one below": w.partner.Sub(t, nil), "the next": next} {
		again, err := w.join(ca.SVID(t, spiffeid.RequireFromString(machine)))
		if err != nil || again.DurableKey != proof.DurableKey || again.Name != proof.Name {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
	}
	bundle.RemoveX509Authority(w.partner.Cert)
	_, err = w.join(pair)
	w.refused(err)
	// One of ours, where it is listed.
	if _, err := w.join(w.own.SVID(t, spiffeid.RequireFromString("spiffe://example.org/vm/1"))); err != nil {
		t.Error(err)
	}
	w.method = w.build("partner.example")
	_, err = w.join(w.own.SVID(t, spiffeid.RequireFromString("spiffe://example.org/vm/1")))
	w.refused(err)
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	long := "/" + strings.Repeat("a", 60)
	seen := map[string]string{}
	for path, want := range map[string]string{"/a": "partner.example-a", long + "1": "", long + "2": ""} {
		proof, err := w.join(w.partner.SVID(t, spiffeid.RequireFromString("spiffe://partner.example"+path)))
		if err != nil || want != "" && proof.Name != want || len(proof.Name) > 63 || !strings.HasPrefix(proof.Name, "partner.example-a") || seen[proof.Name] != "" {
			t.Errorf("%s is called %q, as %s is: %v", path, proof.Name, seen[proof.Name], err)
		}
		seen[proof.Name] = path
	}
}

// Every shape of a certificate of which SPIFFE says something.
func TestVectors(t *testing.T) {
	w := newWorld(t)
	own := spiffeid.RequireTrustDomainFromString("example.org")
	joined := 0
	for _, v := range federationtest.X509Vectors(t, start, "/vm/web-1") {
		t.Run(v.Name, func(t *testing.T) {
			w.bundles.Remove(own)
			if v.Bundle != nil {
				w.bundles.Add(v.Bundle)
			}
			shown, err := json.Marshal(map[string]any{"chain": v.Shown})
			if err != nil {
				t.Fatal(err)
			}
			n := node(t, spiffe.Method, "example.org", tls.Certificate{Certificate: v.Shown, PrivateKey: v.Key})
			_, err = w.method.Join(joining(t), shown, n.Answer)
			listed := strings.HasPrefix(v.ID, "spiffe://example.org/") || strings.HasPrefix(v.ID, "spiffe://partner.example/")
			switch {
			case err == nil && !v.Peer:
				t.Error("it is taken")
			case err != nil && v.Peer && listed && len(v.Shown) <= 5 && !weak(v.Key):
				t.Errorf("it is refused: %v", err)
			case err != nil:
				w.refused(err)
			default:
				joined++
			}
		})
	}
	if joined == 0 {
		t.Error("nobody joined")
	}
}

// weak keys are none for a node, whatever its trust domain holds of them.
func weak(key crypto.Signer) bool {
	k, ok := key.(*rsa.PrivateKey)
	return ok && k.N.BitLen() < 2048
}

// Who is not what it says, or nothing that vouches for a machine. What shows
// already by what it says is refused before it is verified, which asks the
// index, and could be dear.
//
// Regression: SPIRE azure_imds
// Regression: SPIRE 1.14.2 x509pop
func TestHostile(t *testing.T) {
	w := newWorld(t)
	key := federationtest.NewKey(t)
	pair := func(ca *federationtest.CA, edit func(*x509.Certificate), uris ...string) tls.Certificate {
		return tls.Certificate{Certificate: [][]byte{ca.LeafFor(t, key.Public(), edit, uris...)}, PrivateKey: key}
	}
	add := func(p tls.Certificate, certs ...[]byte) tls.Certificate {
		p.Certificate = append(slices.Clone(p.Certificate), certs...)
		return p
	}
	good := pair(w.partner, nil, machine)
	goodLeaf, err := x509.ParseCertificate(good.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	victim := w.partner.Issue(t, nil, machine)
	huge := new(rsa.PublicKey)
	huge.N, huge.E = new(big.Int).SetBit(big.NewInt(1), 16383, 1), 65537
	for _, row := range []struct {
		name   string
		cheap  bool // it is not verified
		pair   tls.Certificate
		method string // signs for another
	}{
		{name: "of a peer that is not listed", cheap: true, pair: pair(w.stranger, nil, "spiffe://stranger.example/vm/web-1")},
		{name: "of a trust domain that ends like one", cheap: true, pair: pair(w.partner, nil, "spiffe://evil-partner.example/vm/web-1")},
		{name: "of a trust domain below one", cheap: true, pair: pair(w.partner, nil, "spiffe://a.partner.example/vm/web-1")},
		{name: "of a trust domain that begins like one", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example.evil.example/vm/web-1")},
		{name: "with a dot behind", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example./vm/web-1")},
		{name: "with a dot that stands for any letter", cheap: true, pair: pair(w.partner, nil, "spiffe://partnerxexample/vm/web-1")},
		{name: "in capitals", cheap: true, pair: pair(w.partner, nil, "spiffe://PARTNER.example/vm/web-1")},
		{name: "its punycode", cheap: true, pair: pair(w.partner, nil, "spiffe://xn--prtner-3ve.example/vm/web-1")},
		{name: "with a port", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example:443/vm/web-1")},
		{name: "with a user", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example@stranger.example/vm/web-1")},
		{name: "of another scheme", cheap: true, pair: pair(w.partner, nil, "https://partner.example/vm/web-1")},
		{name: "its scheme in capitals", pair: pair(w.partner, nil, "SPIFFE://partner.example/vm/web-1")},
		{name: "with a fragment", pair: pair(w.partner, nil, machine+"#")},
		{name: "with a query", cheap: true, pair: pair(w.partner, nil, machine+"?a=b")},
		{name: "a trust domain's own", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example")},
		{name: "with dots in its path", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example/vm/../credence/broker")},
		{name: "with an escape in its path", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example/vm%2fweb-1")},
		{name: "our broker's", cheap: true, pair: pair(w.own, nil, "spiffe://example.org/credence/broker")},
		{name: "our node's", cheap: true, pair: pair(w.own, nil, "spiffe://example.org/credence/node/a")},
		{name: "under /credence", cheap: true, pair: pair(w.own, nil, "spiffe://example.org/credence")},
		{name: "a peer's broker's", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example/credence/broker")},
		{name: "a peer's node's", cheap: true, pair: pair(w.partner, nil, "spiffe://partner.example/credence/node/a")},
		{name: "two URIs", cheap: true, pair: pair(w.partner, nil, machine, "spiffe://partner.example/vm/web-2")},
		{name: "no URI", cheap: true, pair: pair(w.partner, func(c *x509.Certificate) { c.DNSNames = []string{"partner.example"} })},
		{name: "signed by another trust domain that is listed", pair: pair(w.own, nil, machine)},
		{name: "signed by a peer that is not", pair: pair(w.stranger, nil, machine)},
		{name: "ours, signed by a peer", pair: pair(w.partner, nil, "spiffe://example.org/vm/1")},
		{name: "expired", pair: pair(w.partner, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) }, machine)},
		{name: "of the future", pair: pair(w.partner, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Second) }, machine)},
		{name: "a CA's", pair: pair(w.partner, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, machine)},
		{name: "one of the authorities", pair: tls.Certificate{Certificate: [][]byte{w.partner.Cert.Raw}, PrivateKey: w.partner.Key}, cheap: true},
		{name: "signed by an SVID", pair: add(pair(&federationtest.CA{Cert: goodLeaf, Key: key, Now: start}, nil, machine), good.Certificate[0])},
		{name: "a victim's, and ours behind it", pair: tls.Certificate{Certificate: [][]byte{victim.Certificate[0], good.Certificate[0]}, PrivateKey: key}},
		{name: "a victim's", pair: tls.Certificate{Certificate: victim.Certificate, PrivateKey: key}},
		{name: "a hundred certificates", cheap: true, pair: add(good, slices.Repeat([][]byte{w.partner.Cert.Raw}, 100)...)},
		{name: "a key of 16384 bits", cheap: true, pair: tls.Certificate{Certificate: [][]byte{w.partner.LeafFor(t, huge, nil, machine)}, PrivateKey: key}},
		{name: "a key of 16384 bits behind", cheap: true, pair: add(good, w.partner.LeafFor(t, huge, nil, machine))},
		{name: "a thousand addresses", cheap: true, pair: pair(w.partner, func(c *x509.Certificate) { c.IPAddresses = slices.Repeat([]net.IP{{1, 2, 3, 4}}, 1000) })},
		{name: "signed for the method x509", pair: good, method: "x509"},
	} {
		t.Run(row.name, func(t *testing.T) {
			method := row.method
			if method == "" {
				method = spiffe.Method
			}
			n := node(t, method, "example.org", row.pair)
			shown, err := n.Evidence(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.verified = 0
			proof, err := w.method.Join(joining(t), shown, n.Answer)
			w.refused(err)
			if cheap := w.verified == 0; cheap != row.cheap || proof.DurableKey != "" {
				t.Errorf("verified %d times; the proof is %+v", w.verified, proof)
			}
			t.Log(err)
		})
	}
	if _, err := w.join(good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	for name, shown := range map[string]string{
		"nothing": "{}", "no JSON": "x", "an empty chain": `{"chain":[]}`, "no certificate": `{"chain":["AAAA"]}`, "a number": `{"chain":[1]}`, "truncated": `{"chain":["MIIB`,
		"oversized": `{"chain":["` + strings.Repeat("A", 16<<10) + `"]}`, "nested": strings.Repeat(`{"chain":`, 3000),
	} {
		if _, err := w.method.Join(joining(t), []byte(shown), nil); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Neither a recording, nor what was signed for somebody else, nor a signature of
// the bare challenge is one of ours.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	pair := w.partner.Issue(t, nil, machine)
	n := node(t, spiffe.Method, "example.org", pair)
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var recorded []byte
	var challenges [][]byte
	if _, err := w.method.Join(joining(t), shown, func(ctx context.Context, challenge []byte) ([]byte, error) {
		challenges = append(challenges, challenge)
		recorded, err = n.Answer(ctx, challenge)
		return recorded, err
	}); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]join.Challenge{
		"a recording": func(_ context.Context, challenge []byte) ([]byte, error) {
			challenges = append(challenges, challenge)
			return recorded, nil
		},
		"elsewhere's": node(t, spiffe.Method, "example.com", pair).Answer,
		"bare": func(_ context.Context, challenge []byte) ([]byte, error) {
			sum := sha256.Sum256(challenge)
			return pair.PrivateKey.(*ecdsa.PrivateKey).Sign(rand.Reader, sum[:], crypto.SHA256)
		},
		"another key's": node(t, spiffe.Method, "example.org", w.partner.Issue(t, nil, machine)).Answer,
		"for another key": func(ctx context.Context, challenge []byte) ([]byte, error) {
			return n.Node.Answer(ctx, challenge, []byte("theirs"))
		},
		"none": func(context.Context, []byte) ([]byte, error) { return nil, nil },
		"long": func(context.Context, []byte) ([]byte, error) { return make([]byte, 16<<10), nil },
	} {
		_, err := w.method.Join(joining(t), shown, answer)
		if !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(challenges) != 2 || len(challenges[0]) != 32 || bytes.Equal(challenges[0], challenges[1]) {
		t.Errorf("challenges %x", challenges)
	}
	if _, err := w.method.Join(t.Context(), shown, n.Answer); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a join for no key: %v", err)
	}
	hungUp := errors.New("hung up")
	if _, err := w.method.Join(joining(t), shown, func(context.Context, []byte) ([]byte, error) { return nil, hungUp }); !errors.Is(err, hungUp) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a node that leaves: %v", err)
	}
}

// What is not known, or is another's than the certificate says, lets nobody in.
//
// Regression: CVE-2026-46405
func TestVerifier(t *testing.T) {
	w := newWorld(t)
	unknown := errors.New("the store is away")
	for name, row := range map[string]struct {
		id   string
		err  error
		want error
	}{
		"away": {err: unknown, want: unknown}, "an ID and an error": {id: machine, err: unknown, want: unknown},
		"another's": {id: "spiffe://partner.example/vm/web-2", want: join.ErrEvidence}, "nobody's": {want: join.ErrEvidence},
	} {
		m, err := spiffe.New(spiffe.Config{Settings: &spiffe.Settings{TrustDomains: []string{"partner.example"}}, TrustDomain: "example.org",
			Verify: func(context.Context, []*x509.Certificate) (id spiffeid.ID, err error) {
				if row.id != "" {
					id = spiffeid.RequireFromString(row.id)
				}
				return id, row.err
			}})
		if err != nil {
			t.Fatal(err)
		}
		w.method = m
		if proof, err := w.join(w.partner.Issue(t, nil, machine)); !errors.Is(err, row.want) || proof.Name != "" {
			t.Errorf("%s: %+v, %v", name, proof, err)
		}
	}
	for name, c := range map[string]spiffe.Config{
		"no trust domain": {Settings: &spiffe.Settings{TrustDomains: []string{"a"}}, Verify: func(context.Context, []*x509.Certificate) (id spiffeid.ID, err error) { return id, nil }},
		"nobody verifies": {Settings: &spiffe.Settings{TrustDomains: []string{"a"}}, TrustDomain: "a"},
	} {
		if _, err := spiffe.New(c); err == nil {
			t.Errorf("%s: it is a method", name)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, row := range []struct {
		names []string
		good  bool
	}{
		{nil, false}, {[]string{}, false}, {[]string{""}, false}, {[]string{"partner.example", ""}, false}, {[]string{"Partner.example"}, false},
		{[]string{"spiffe://partner.example"}, false}, {[]string{"partner.example/vm"}, false}, {[]string{"*.example"}, false}, {[]string{"a", "a"}, false},
		{make([]string, 65), false}, {[]string{"partner.example"}, true}, {[]string{"partner.example", "example.org"}, true},
	} {
		s := spiffe.Settings{TrustDomains: row.names}
		err := s.Validate()
		if (err == nil) != row.good || err != nil && !strings.HasPrefix(err.Error(), "trust_domains: ") {
			t.Errorf("%q: %v", row.names, err)
		}
		_, built := spiffe.New(spiffe.Config{Settings: &s, TrustDomain: "a", Verify: func(context.Context, []*x509.Certificate) (id spiffeid.ID, err error) { return id, nil }})
		if (built == nil) != row.good {
			t.Errorf("%q: a method of it: %v", row.names, built)
		}
	}
}

func FuzzJoin(f *testing.F) {
	w := newWorld(f)
	pair := w.partner.Issue(f, nil, machine)
	shown, err := node(f, spiffe.Method, "example.org", pair).Evidence(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shown)
	f.Add([]byte(`{"chain":["AAAA"]}`))
	f.Fuzz(func(t *testing.T, shown []byte) {
		if _, err := w.method.Join(joining(t), shown, func(context.Context, []byte) ([]byte, error) { return []byte("x"), nil }); err == nil {
			t.Errorf("%q is a node", shown)
		}
	})
}
