package authority_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// A pki is a corporate CA: its root, or an intermediate of its.
type pki struct {
	t      testing.TB
	now    func() time.Time // as an upstream; nil: the start
	cert   *x509.Certificate
	key    crypto.Signer
	parent *pki
}

// newPKI makes a root, or a CA under parent, changed by change.
func newPKI(t testing.TB, name string, parent *pki, change func(*x509.Certificate)) *pki {
	t.Helper()
	p := &pki{t: t, key: newKey(t), parent: parent}
	template := caOf(name)
	if change != nil {
		change(template)
	}
	signer := p
	if parent != nil {
		signer = parent
	} else {
		p.cert = template
	}
	p.cert = signer.certify(template, p.key.Public())
	return p
}

func caOf(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serialNumber(), Subject: pkix.Name{CommonName: name, Organization: []string{"Acme"}},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(3650 * day),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
	}
}

func (p *pki) certify(template *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	p.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, pub, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// grant certifies the key of a request as the request asks, changed by change,
// and returns the chain up to the root.
func (p *pki) grant(csr []byte, life time.Duration, now time.Time, change func(*x509.Certificate)) []*x509.Certificate {
	p.t.Helper()
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := r.CheckSignature(); err != nil {
		p.t.Fatal(err)
	}
	template := caOf("")
	template.Subject, template.RawSubject, template.URIs, template.MaxPathLen = r.Subject, r.RawSubject, r.URIs, 1
	template.SubjectKeyId = nil // crypto/x509 makes one
	template.NotBefore, template.NotAfter = now.Add(-time.Minute), now.Add(life)
	if change != nil {
		change(template)
	}
	chain := []*x509.Certificate{p.certify(template, r.PublicKey)}
	for ca := p; ca != nil; ca = ca.parent {
		chain = append(chain, ca.cert)
	}
	return chain
}

// Sign makes a pki an upstream that works as it should.
func (p *pki) Sign(_ context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error) {
	now := start
	if p.now != nil {
		now = p.now()
	}
	chain = p.grant(csr, life, now, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	return chain[:len(chain)-1], chain[len(chain)-1:], nil
}

// serialNumber is one that no other certificate of the tests has.
func serialNumber() *big.Int { return big.NewInt(serials.Add(1)) }

var serials atomic.Int64

// certFile writes certificates as PEM.
func certFile(t testing.TB, name string, certs ...*x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openssl runs it where there is one.
func openssl(t testing.TB, args ...string) (out string, ok bool) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl on this machine")
	}
	text, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(text), err == nil
}

// csrOf asks for a request.
func csrOf(t testing.TB, a *authority.Authority, again bool) []byte {
	t.Helper()
	csr, _, err := a.CSR(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func writeDER(t testing.TB, path string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, der, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readCerts(t testing.TB, path string) (certs []*x509.Certificate) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	return certs
}
