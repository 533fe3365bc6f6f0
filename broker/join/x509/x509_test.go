package x509_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/x509"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/x509"
)

const domain = "example.org"

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// A ca is one of the owner's.
type ca struct {
	t    testing.TB
	cert *stdx509.Certificate
	key  crypto.Signer
}

type change = func(*stdx509.Certificate)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue signs a certificate: valid from an hour before start for a year.
func (c *ca) issue(name string, pub crypto.PublicKey, changes ...change) *stdx509.Certificate {
	c.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		c.t.Fatal(err)
	}
	template := &stdx509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Acme"}}, DNSNames: []string{name + ".acme.example"},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(365 * 24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: stdx509.KeyUsageDigitalSignature, ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	parent, key := c.cert, c.key
	if parent == nil {
		parent = template
	}
	der, err := stdx509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := stdx509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

func authority(t *stdx509.Certificate) {
	t.IsCA, t.DNSNames, t.ExtKeyUsage = true, nil, nil
	t.KeyUsage = stdx509.KeyUsageCertSign | stdx509.KeyUsageCRLSign
}

// newCA makes a root, or a CA below by.
func newCA(t testing.TB, name string, by *ca, changes ...change) *ca {
	t.Helper()
	c := &ca{t: t, key: newKey(t)}
	if by == nil {
		by = c
	}
	c.cert = by.issue(name, c.key.Public(), append([]change{authority}, changes...)...)
	return c
}

func pemOf(kind string, ders ...[]byte) string {
	var all []byte
	for _, der := range ders {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return string(all)
}

func settings(root *ca) *x509.Settings {
	return &x509.Settings{Roots: pemOf("CERTIFICATE", root.cert.Raw)}
}

func method(t testing.TB, s *x509.Settings) join.Method {
	t.Helper()
	m, err := x509.New(x509.Config{Settings: s, TrustDomain: domain, Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// node is the agent's side, from files.
func node(t testing.TB, key crypto.Signer, chain ...*stdx509.Certificate) signer {
	t.Helper()
	return nodeOf(t, domain, key, chain...)
}

// nodeOf is another trust domain's. It has shown its certificates once.
func nodeOf(t testing.TB, trustDomain string, key crypto.Signer, chain ...*stdx509.Certificate) signer {
	t.Helper()
	der, err := stdx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var raw [][]byte
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for path, text := range map[string]string{certFile: pemOf("CERTIFICATE", raw...), keyFile: pemOf("PRIVATE KEY", der)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := evidence.New(evidence.Config{Method: x509.Method, TrustDomain: trustDomain, Pair: evidence.Files(certFile, keyFile)})
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

func joinAs(t testing.TB, m join.Method, n signer) (join.Proof, error) {
	t.Helper()
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m.Join(joining(t), shown, n.Answer)
}

func TestJoin(t *testing.T) {
	root := newCA(t, "root", nil)
	between := newCA(t, "machines", root)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := method(t, settings(root))
	for name, key := range map[string]crypto.Signer{"ECDSA": newKey(t), "RSA": rsaKey, "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			leaf := between.issue("build-7", key.Public())
			proof, err := joinAs(t, m, node(t, key, leaf, between.cert))
			if err != nil {
				t.Fatal(err)
			}
			facts := proof.Facts.Map()
			for _, random := range []string{"node.x509.serial", "node.x509.key", "node.x509.root_key"} {
				if len(facts[random]) != 1 {
					t.Errorf("%s is %q", random, facts[random])
				}
				delete(facts, random)
			}
			if d := cmp.Diff(map[string][]string{
				"node.x509.dns": {"build-7.acme.example"}, "node.x509.cn": {"build-7"}, "node.x509.organization": {"Acme"}, "node.x509.issuer_cn": {"machines"},
			}, facts); d != "" || proof.Name != "build-7.acme.example" || proof.Instance != "" {
				t.Errorf("name %s, facts %s", proof.Name, d)
			}
		})
	}
	// The machine is the same after its certificate was renewed, whatever CA below
	// the root signed it.
	var keys []string
	for _, by := range []*ca{between, root} {
		key := newKey(t)
		chain := []*stdx509.Certificate{by.issue("build-7", key.Public())}
		if by == between {
			chain = append(chain, between.cert)
		}
		proof, err := joinAs(t, m, node(t, key, chain...))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, proof.DurableKey)
	}
	if keys[0] != keys[1] {
		t.Errorf("durable keys %q", keys)
	}
}

func TestHostile(t *testing.T) {
	root := newCA(t, "root", nil)
	other := newCA(t, "root", nil) // of the same name
	between := newCA(t, "machines", root)
	narrow := newCA(t, "narrow", root, func(c *stdx509.Certificate) {
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"other.example"}
	})
	leafed := newCA(t, "leaf", root, func(c *stdx509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 })
	deep := newCA(t, "deep", leafed)
	key := newKey(t)
	good := root.issue("build-7", key.Public())
	m := method(t, settings(root))
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]*stdx509.Certificate, 100)
	for i := range many {
		many[i] = between.cert
	}
	for name, chain := range map[string][]*stdx509.Certificate{
		"of another root":            {other.issue("build-7", key.Public())},
		"of another root, ours too":  {other.issue("build-7", key.Public()), root.cert},
		"a root of its own":          {other.issue("build-7", key.Public()), other.cert},
		"without what is between":    {between.issue("build-7", key.Public())},
		"expired":                    {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.NotAfter = start.Add(-time.Second) })},
		"of the future":              {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.NotBefore = start.Add(time.Second) })},
		"a CA":                       {root.issue("build-7", key.Public(), authority)},
		"a server's":                 {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth} })},
		"for encryption":             {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.KeyUsage = stdx509.KeyUsageKeyEncipherment })},
		"beyond a name constraint":   {narrow.issue("build-7", key.Public()), narrow.cert},
		"beyond a path length":       {deep.issue("build-7", key.Public()), deep.cert, leafed.cert},
		"signed by a leaf":           {(&ca{t: t, cert: good, key: key}).issue("build-8", key.Public()), good},
		"two names":                  {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.DNSNames = []string{"a", "b"} })},
		"no name":                    {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.DNSNames = nil })},
		"a weak key":                 {root.issue("build-7", weak.Public())},
		"a hundred certificates":     append([]*stdx509.Certificate{good}, many...),
		"a thousand names":           {root.issue("build-7", key.Public(), func(c *stdx509.Certificate) { c.DNSNames = slices.Repeat([]string{"a.example"}, 1000) })},
		"somebody else's":            {root.issue("build-7", newKey(t).Public())},
		"the other's after our own":  {good, other.issue("build-8", key.Public())}, // taken: what is not needed is not looked at
		"an RSA key of 16384 bits":   {root.issue("build-7", &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537})},
		"what is not needed is dear": {good, root.issue("x", &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537})},
	} {
		t.Run(name, func(t *testing.T) {
			var raw [][]byte
			for _, c := range chain {
				raw = append(raw, c.Raw)
			}
			shown, err := json.Marshal(map[string]any{"chain": raw})
			if err != nil {
				t.Fatal(err)
			}
			shows := node(t, key, good)
			began := time.Now()
			_, err = m.Join(joining(t), shown, shows.Answer)
			if name == "the other's after our own" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, join.ErrEvidence) {
				t.Errorf("it is taken, or refused for another reason: %v", err)
			}
			t.Log(time.Since(began), err)
		})
	}
	for name, shown := range map[string]string{
		"nothing": "{}", "no JSON": "x", "an empty chain": `{"chain":[]}`, "no certificate": `{"chain":["AAAA"]}`, "a number": `{"chain":[1]}`, "truncated": `{"chain":["MIIB`,
	} {
		if _, err := m.Join(joining(t), []byte(shown), node(t, key, good).Answer); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Neither a recording, nor what was signed for somebody else, nor a signature of
// the bare challenge is one of ours.
func TestAnswers(t *testing.T) {
	root, key := newCA(t, "root", nil), newKey(t)
	m := method(t, settings(root))
	leaf := root.issue("build-7", key.Public())
	n := node(t, key, leaf)
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var recorded []byte
	if _, err := m.Join(joining(t), shown, func(ctx context.Context, challenge []byte) ([]byte, error) {
		recorded, err = n.Answer(ctx, challenge)
		return recorded, err
	}); err != nil {
		t.Fatal(err)
	}
	foreign := newKey(t)
	another := node(t, foreign, root.issue("build-8", foreign.Public()))
	elsewhere := nodeOf(t, "example.com", key, leaf)
	for name, answer := range map[string]join.Challenge{
		"a recording": func(context.Context, []byte) ([]byte, error) { return recorded, nil },
		"elsewhere's": elsewhere.Answer,
		"bare": func(_ context.Context, challenge []byte) ([]byte, error) {
			sum := sha256.Sum256(challenge)
			return key.Sign(rand.Reader, sum[:], crypto.SHA256)
		},
		"another key's": another.Answer,
		"for another key": func(ctx context.Context, challenge []byte) ([]byte, error) {
			return n.Node.Answer(ctx, challenge, []byte("theirs"))
		},
		"none": func(context.Context, []byte) ([]byte, error) { return nil, nil },
		"long": func(context.Context, []byte) ([]byte, error) { return make([]byte, 16<<10), nil },
	} {
		if _, err := m.Join(joining(t), shown, answer); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
	hungUp := errors.New("hung up")
	if _, err := m.Join(joining(t), shown, func(context.Context, []byte) ([]byte, error) { return nil, hungUp }); !errors.Is(err, hungUp) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a node that leaves: %v", err)
	}
	if _, err := n.Answer(t.Context(), []byte("POST /transfer")); err == nil {
		t.Error("the node signs whatever it is sent")
	}
}

func TestRevocation(t *testing.T) {
	root, other, key := newCA(t, "root", nil), newCA(t, "root", nil), newKey(t)
	leaf := root.issue("build-7", key.Public())
	s := settings(root)
	s.CRLFile = filepath.Join(t.TempDir(), "list.pem")
	m := method(t, s)
	list := func(by *ca, ends time.Time, serials ...*big.Int) {
		t.Helper()
		l := &stdx509.RevocationList{Number: big.NewInt(1), ThisUpdate: start.Add(-time.Hour), NextUpdate: ends}
		for _, serial := range serials {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, stdx509.RevocationListEntry{SerialNumber: serial, RevocationTime: start.Add(-time.Minute)})
		}
		der, err := stdx509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.CRLFile, []byte(pemOf("X509 CRL", der)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := node(t, key, leaf)
	unjudged := func(why string) {
		t.Helper()
		if _, err := joinAs(t, m, n); err == nil || errors.Is(err, join.ErrEvidence) || !strings.HasPrefix(err.Error(), "crl_file: ") {
			t.Errorf("%s: %v", why, err)
		}
	}
	unjudged("no list")
	list(root, start.Add(time.Hour), big.NewInt(1))
	if _, err := joinAs(t, m, n); err != nil {
		t.Error(err)
	}
	list(root, start.Add(time.Hour), big.NewInt(1), leaf.SerialNumber)
	if _, err := joinAs(t, m, n); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("revoked: %v", err)
	}
	list(root, start, big.NewInt(1))
	unjudged("a list that has ended")
	list(other, start.Add(time.Hour), big.NewInt(1))
	unjudged("another's list")
	for _, text := range []string{"x", strings.Repeat("x", 2<<20)} {
		if err := os.WriteFile(s.CRLFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		unjudged("waste")
	}
}

func TestNameFrom(t *testing.T) {
	root, key := newCA(t, "root", nil), newKey(t)
	spiffe, err := url.Parse("spiffe://acme.example/host/7")
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"": "build-7.acme.example", "cn": "build-7", "uri": "spiffe---acme.example-host-7"} {
		s := settings(root)
		s.NameFrom = from
		leaf := root.issue("build-7", key.Public())
		if from != "" {
			leaf = root.issue("build 7", key.Public(), func(c *stdx509.Certificate) { c.URIs = []*url.URL{spiffe} })
		}
		proof, err := joinAs(t, method(t, s), node(t, key, leaf))
		if err != nil || proof.Name != want {
			t.Errorf("%q: %s, %v", from, proof.Name, err)
		}
	}
}

func TestSettings(t *testing.T) {
	root := newCA(t, "root", nil)
	leaf := root.issue("x", newKey(t).Public())
	good := pemOf("CERTIFICATE", root.cert.Raw)
	for _, row := range []struct {
		s    x509.Settings
		want string
	}{
		{x509.Settings{}, "roots:"},
		{x509.Settings{Roots: "x"}, "roots:"},
		{x509.Settings{Roots: good + "x"}, "roots:"},
		{x509.Settings{Roots: pemOf("CERTIFICATE", leaf.Raw)}, "roots:"},
		{x509.Settings{Roots: pemOf("PRIVATE KEY", root.cert.Raw)}, "roots:"},
		{x509.Settings{Roots: good, NameFrom: "ip"}, "name_from:"},
		{x509.Settings{Roots: good + good}, ""},
	} {
		err := row.s.Validate()
		if (err == nil) != (row.want == "") || (err != nil && !strings.HasPrefix(err.Error(), row.want)) {
			t.Errorf("%+v: %v", row.s, err)
		}
	}
}

func FuzzJoin(f *testing.F) {
	root, key := newCA(f, "root", nil), newKey(f)
	m := method(f, settings(root))
	n := node(f, key, root.issue("build-7", key.Public()))
	shown, err := n.Evidence(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shown)
	f.Add([]byte(`{"chain":["AAAA"]}`))
	f.Fuzz(func(t *testing.T, shown []byte) {
		if _, err := m.Join(joining(t), shown, func(context.Context, []byte) ([]byte, error) { return []byte("x"), nil }); err == nil {
			t.Errorf("%q is a node", shown)
		}
	})
}
