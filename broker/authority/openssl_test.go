package authority_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// opensslPKI is a root and a policy CA under it that OpenSSL made, as PKI teams
// make them, in dir.
func opensslPKI(t *testing.T, dir string) {
	t.Helper()
	ca := "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
	files := map[string]string{
		"root.ext":   ca,
		"policy.ext": ca + "authorityKeyIdentifier=keyid:always,issuer:always\n",
		"ours.ext": "basicConstraints=critical,CA:TRUE,pathlen:1\nkeyUsage=critical,keyCertSign,cRLSign,digitalSignature\n" +
			"subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always\nsubjectAltName=URI:spiffe://example.org\nnameConstraints=critical,permitted;URI:example.org\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"req", "-newkey", "rsa:2048", "-noenc", "-keyout", in("root.key"), "-out", in("root.csr"), "-subj", "/C=DE/O=Acme/CN=Acme Root G1"},
		{"x509", "-req", "-sha384", "-in", in("root.csr"), "-signkey", in("root.key"), "-days", "3000", "-extfile", in("root.ext"), "-out", in("root.pem")},
		{"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-noenc", "-keyout", in("policy.key"), "-out", in("policy.csr"), "-subj", "/C=DE/O=Acme/CN=Acme Policy CA 7"},
		{"x509", "-req", "-in", in("policy.csr"), "-CA", in("root.pem"), "-CAkey", in("root.key"), "-days", "2000", "-extfile", in("policy.ext"), "-out", in("policy.pem")},
	} {
		if out, ok := openssl(t, args...); !ok {
			t.Fatalf("openssl %s: %s", args[0], out)
		}
	}
}

// A corporate root made with OpenSSL signs our request; the bundle holds it and
// nothing else, and SVIDs verify with OpenSSL's strict rules, for both uses and
// by the CRL, by the present clock, and in Go.
func TestOpenSSL(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	e.clock.set(time.Now())
	e.change = func(c *authority.Config) { c.UpstreamName, c.SharedRoot = "csr", "dedicated" }
	a := e.open()
	dir := t.TempDir()
	opensslPKI(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	writeDER(t, in("ours.csr"), csrOf(t, a, false))
	if out, ok := openssl(t, "x509", "-req", "-inform", "DER", "-in", in("ours.csr"), "-CA", in("policy.pem"), "-CAkey", in("policy.key"), "-days", "1000", "-extfile", in("ours.ext"), "-out", in("ours.pem")); !ok {
		t.Fatal(out)
	}
	e.clock.set(time.Now().Add(time.Second))
	root := readCerts(t, in("root.pem"))[0]
	chain := append(append(readCerts(t, in("ours.pem")), readCerts(t, in("policy.pem"))...), root)
	done, err := a.Install(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("warned: %q", done.Warnings)
	if got := a.Bundle().X509Authorities; len(got) != 1 || !got[0].Equal(root) {
		t.Fatalf("the bundle holds %d roots", len(got))
	}
	svid, err := signTwice(e, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := federation.VerifyX509(svid, peerOf(t, a), e.clock.now()); err != nil {
		t.Error(err)
	}
	leaf, below := certFile(t, "svid.pem", svid[0]), certFile(t, "below.pem", svid[1:]...)
	verify := func(more ...string) (string, bool) {
		args := append([]string{"verify", "-x509_strict", "-CAfile", in("root.pem"), "-untrusted", below}, more...)
		return openssl(t, append(args, leaf)...)
	}
	for _, purpose := range []string{"sslclient", "sslserver"} {
		if out, ok := verify("-purpose", purpose); !ok {
			t.Errorf("%s: %s", purpose, out)
		}
	}
	crl := func() string {
		for _, l := range a.CRLs() {
			if l.Issuer == of(a, authority.Issuing, authority.Active).ID {
				writeDER(t, in("crl.der"), l.DER)
			}
		}
		if out, ok := openssl(t, "crl", "-inform", "DER", "-in", in("crl.der"), "-out", in("crl.pem")); !ok {
			t.Fatal(out)
		}
		return in("crl.pem")
	}
	if out, ok := verify("-crl_check", "-CRLfile", crl()); !ok {
		t.Errorf("by the CRL: %s", out)
	}
	e.clock.set(time.Now().Add(2 * time.Second))
	if err := a.Revoke(t.Context(), []authority.Revocation{{Serial: svid[0].SerialNumber, Issuer: of(a, authority.Issuing, authority.Active).ID, NotAfter: svid[0].NotAfter}}); err != nil {
		t.Fatal(err)
	}
	if out, ok := verify("-crl_check", "-CRLfile", crl()); ok || !strings.Contains(out, "revoked") {
		t.Errorf("by the CRL, revoked: %s", out)
	}
}

// What is refused for OpenSSL's sake, OpenSSL does refuse.
func TestOpenSSLRefusesToo(t *testing.T) {
	for name, change := range map[string]func(*x509.Certificate){
		"any usage":                  func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"no issuing key's name":      authorityKey(`3000`),
		"another issuing key's name": authorityKey(`3004 8002 0102`),
		"another issuer's serial":    authorityKey(`300f 8009 506f6c696379204341 8202 0539`),
		"another issuer's issuer":    authorityKey(`3020 8009 506f6c696379204341 a110 a40e 300c 310a300806035504030c0158 820101`),
		"directory names permitted":  constraints(`3014 a012 3010 a40e 300c 310a300806035504030c0158`),
		"basicConstraints of no weight": func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA = false, false
			c.ExtraExtensions = extensionOf(19, `3003 0101ff`)
		},
		"no name": func(c *x509.Certificate) { c.Subject, c.RawSubject = pkix.Name{}, nil },
		"":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			root := newPKI(t, "Corporate Root", nil, nil)
			policy := newPKI(t, "Policy CA", root, nil)
			ca := newPKI(t, "Our CA", policy, change)
			svid, _ := ca.svid("/shop/checkout", pkix.Name{CommonName: "checkout"})
			out, ok := openssl(t, "verify", "-x509_strict", "-purpose", "sslclient", "-attime", "1777890030", "-CAfile", certFile(t, "root.pem", root.cert),
				"-untrusted", certFile(t, "chain.pem", svid[1:]...), certFile(t, "svid.pem", svid[0]))
			if ok != (name == "") {
				t.Errorf("openssl: %s", out)
			}
		})
	}
}
