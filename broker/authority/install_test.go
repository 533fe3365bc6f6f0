package authority_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// byHand is a trust domain whose CA a PKI certifies by hand.
func byHand(t *testing.T, change func(*authority.Config)) (*env, *authority.Authority) {
	t.Helper()
	e := newEnv(t)
	e.issuer = ""
	e.records.step = checkStep
	e.change = func(c *authority.Config) {
		c.UpstreamName, c.SharedRoot = "csr", "dedicated"
		if change != nil {
			change(c)
		}
	}
	return e, e.open()
}

func TestRequest(t *testing.T) {
	_, a := byHand(t, func(c *authority.Config) { c.NameConstraints = true })
	one, two, three := csrOf(t, a, false), csrOf(t, a, false), csrOf(t, a, true)
	keys := make([][]byte, 3)
	for i, der := range [][]byte{one, two, three} {
		r, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.CheckSignature(); err != nil {
			t.Error(err)
		}
		if len(r.URIs) != 1 || r.URIs[0].String() != "spiffe://example.org" {
			t.Errorf("URIs %v", r.URIs)
		}
		keys[i] = r.RawSubjectPublicKeyInfo
	}
	if !bytes.Equal(keys[0], keys[1]) || bytes.Equal(keys[0], keys[2]) {
		t.Error("the key changes without being asked to, or does not when asked")
	}
	path := certFile(t, "csr.pem") // only its directory is used
	writeDER(t, path, one)
	out, ok := openssl(t, "req", "-inform", "DER", "-in", path, "-noout", "-text", "-verify")
	for _, want := range []string{"CA:TRUE, pathlen:1", "Certificate Sign, CRL Sign", "URI:spiffe://example.org", "URI:example.org"} {
		if !ok || !strings.Contains(out, want) {
			t.Errorf("openssl sees no %q in\n%s", want, out)
		}
	}
}

// A corporate root made elsewhere signs our request: SVIDs verify under it as
// Go, SPIFFE and OpenSSL do it, and the bundle holds it alone.
func TestInstall(t *testing.T) {
	for _, tt := range []struct {
		name     string
		pathLen  int
		anchor   string
		chain    int // of an SVID
		warnings []string
	}{
		{"path length 1", 1, "root", 4, nil},
		{"path length 0", 0, "root", 3, []string{"path length 0"}},
		{"not bounded", -1, "root", 4, nil},
		{"anchor ours", 1, "ours", 2, []string{"anchor ours"}},
		{"path length 0 under anchor ours", 0, "ours", 1, []string{"path length 0", "anchor ours"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, a := byHand(t, func(c *authority.Config) { c.Anchor = tt.anchor })
			if a.Pin() != "" || len(a.Bundle().X509Authorities) != 0 {
				t.Error("a root before there is one")
			}
			key := newKey(t)
			if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public()); err == nil {
				t.Error("signed without a CA")
			}
			root := newPKI(t, "Corporate Root", nil, nil)
			policy := newPKI(t, "Policy CA", root, func(c *x509.Certificate) { c.MaxPathLen = 2 })
			chain := policy.grant(csrOf(t, a, false), 1000*day, start, func(c *x509.Certificate) {
				c.MaxPathLen, c.MaxPathLenZero = tt.pathLen, tt.pathLen == 0
			})
			done, err := a.Install(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			if done.PathLen != tt.pathLen || len(done.Warnings) != len(tt.warnings) || done.Anchor.State != authority.Active || done.CA.State != authority.Active {
				t.Errorf("installed %+v", done)
			}
			for i, want := range tt.warnings {
				if !strings.HasPrefix(done.Warnings[i], want) {
					t.Errorf("warning %q", done.Warnings[i])
				}
			}
			anchor := root.cert
			if tt.anchor == "ours" {
				anchor = chain[0]
			}
			if got := a.Bundle().X509Authorities; len(got) != 1 || !got[0].Equal(anchor) {
				t.Errorf("the bundle holds %d roots", len(got))
			}
			for _, a := range []*authority.Authority{a, e.open()} {
				svid, err := signTwice(e, a)
				if err != nil {
					t.Fatal(err)
				}
				if len(svid) != tt.chain {
					t.Errorf("an SVID of %d certificates", len(svid))
				}
				for _, c := range svid {
					if c.Equal(anchor) {
						t.Error("the anchor is in the chain")
					}
				}
				if _, _, err := federation.VerifyX509(svid, a, start); err != nil {
					t.Error(err)
				}
				strict(t, anchor, svid)
				lintCerts(t, svid[0])
				if tt.pathLen != 0 {
					lintCerts(t, svid[1])
				}
			}
			if again, err := a.Install(t.Context(), chain); err != nil || again.CA.ID != done.CA.ID {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// strict has OpenSSL verify an SVID at the start of the tests' clock.
func strict(t *testing.T, anchor *x509.Certificate, svid []*x509.Certificate, more ...string) {
	t.Helper()
	args := []string{"verify", "-x509_strict", "-attime", "1777890030", "-partial_chain", "-CAfile", certFile(t, "anchor.pem", anchor)}
	if len(svid) > 1 {
		args = append(args, "-untrusted", certFile(t, "chain.pem", svid[1:]...))
	}
	if out, ok := openssl(t, append(append(args, more...), certFile(t, "svid.pem", svid[0]))...); !ok {
		t.Errorf("openssl: %s", out)
	}
}

// Each thing that may be wrong with what a PKI team sends is named.
func TestInstallRefuses(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	type certs = []*x509.Certificate
	ca := func(f func(*x509.Certificate)) func(*x509.Certificate) { return f }
	for _, tt := range []struct {
		name, want string
		ours       func(*x509.Certificate)
		policy     func(*x509.Certificate)
		root       func(*x509.Certificate)
		chain      func(certs) certs
		config     func(*authority.Config)
	}{
		{name: "as it should be"},
		{name: "nothing", want: "chain: is empty", chain: func(certs) certs { return nil }},
		{name: "nil", want: "chain: is empty", chain: func(c certs) certs { return certs{nil, c[1]} }},
		{name: "another's certificate", want: "key: certificate 1", chain: func(c certs) certs { return c[1:] }},
		{name: "the wrong order", want: "not the first", chain: func(c certs) certs { return certs{c[2], c[1], c[0]} }},
		{name: "the wrong order above", want: "issuer: ", chain: func(c certs) certs { return certs{c[0], c[2], c[2]} }},
		{name: "a certificate twice", want: "twice", chain: func(c certs) certs { return certs{c[0], c[1], c[1], c[2]} }},
		{name: "a gap", want: "issuer: is \"CN=Policy CA", chain: func(c certs) certs { return certs{c[0], c[2]} }},
		{name: "no root", want: "should go on to the self-signed root", chain: func(c certs) certs { return c[:2] }},
		{name: "a leaf", want: "basicConstraints: is no CA's", ours: ca(func(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.KeyUsage = false, 0, x509.KeyUsageDigitalSignature })},
		{name: "no keyCertSign", want: "keyUsage: lacks keyCertSign", ours: ca(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })},
		{name: "another trust domain's ID", want: "subjectAltName", ours: ca(func(c *x509.Certificate) { c.URIs = uri("spiffe://other.org") })},
		{name: "an ID with a path", want: "subjectAltName", ours: ca(func(c *x509.Certificate) { c.URIs = uri("spiffe://example.org/ca") })},
		{name: "two IDs", want: "subjectAltName", ours: ca(func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("https://example.org")...) })},
		{name: "client usage only", want: "extendedKeyUsage", ours: ca(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		{name: "another usage only, above", want: "extendedKeyUsage", policy: ca(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })},
		{name: "both usages", ours: ca(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		})},
		{name: "any usage, which OpenSSL takes for none", want: "extendedKeyUsage", ours: ca(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })},
		{name: "a path too short above", want: "path length is 1, should be 2", policy: ca(func(c *x509.Certificate) { c.MaxPathLen = 1 })},
		{name: "a path too short at the root", want: "path length is 2, should be 3", root: ca(func(c *x509.Certificate) { c.MaxPathLen = 2 })},
		{name: "other URIs permitted", want: "nameConstraints: permitted", ours: ca(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.org"} })},
		{name: "a part of our name permitted", want: "nameConstraints: permitted", policy: ca(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"org"} })},
		{name: "our URIs excluded", want: "nameConstraints: excludes", root: ca(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"example.org"} })},
		{name: "our parent's URIs excluded", want: "nameConstraints: excludes", root: ca(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{".org"} })},
		{name: "our URIs permitted", ours: ca(func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"example.org"}, true
		})},
		{name: "URIs under a dot permitted", policy: ca(func(c *x509.Certificate) { c.PermittedURIDomains = []string{".org"} })},
		{name: "an end too soon", want: "notAfter: is 2026-05-10", ours: ca(func(c *x509.Certificate) { c.NotAfter = start.Add(144*time.Hour - time.Minute) })},
		{name: "an end above too soon", want: "certificate 2 of 3", policy: ca(func(c *x509.Certificate) { c.NotAfter = start.Add(143 * time.Hour) })},
		{name: "a root that ended", want: "certificate 3 of 3", root: ca(func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Minute) })},
		{name: "not begun", want: "notBefore", ours: ca(func(c *x509.Certificate) { c.NotBefore = start.Add(time.Minute) })},
		{name: "an extension nobody understands", want: "extension 1.2.3.4", ours: ca(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		})},
		{name: "no basicConstraints of weight", want: "basicConstraints: is not critical", policy: ca(func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA = false, false
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		})},
		{name: "no keyUsage of weight", want: "keyUsage: is not critical", ours: ca(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 1, 6}}}
		})},
		{name: "a root without a name", want: "issuer: is empty", root: ca(func(c *x509.Certificate) { c.Subject = pkix.Name{} })},
		{name: "no name", want: "subject: is empty", ours: ca(func(c *x509.Certificate) { c.Subject, c.RawSubject = pkix.Name{}, nil })},
		{name: "no key's name", want: "subjectKeyIdentifier: is missing", ours: ca(func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA = false, false // crypto/x509 gives every CA one
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		})},
		{name: "no issuing key's name", want: "authorityKeyIdentifier: has no", ours: authorityKey(`3000`)},
		{name: "another issuing key's name", want: "authorityKeyIdentifier: is 0102", ours: authorityKey(`3004 8002 0102`)},
		{name: "another issuer's serial number", want: "authorityKeyIdentifier: has serial", ours: authorityKey(`300f 8009 506f6c696379204341 820205 39`)},
		{name: "another issuer's issuer", want: "authorityKeyIdentifier: names another", ours: authorityKey(`301f 8009 506f6c696379204341 a112 a410 300e 310c300a06035504030c0358595a`)},
		{name: "an issuing key's name that does not parse", want: "authorityKeyIdentifier: does not", ours: authorityKey(`300d 8009 506f6c696379204341 8200`)},
		{name: "directory names permitted", want: "kind directoryName", policy: constraints(`3016 a014 3012 a410 300e 310c300a06035504030c0358595a`)},
		{name: "directory names excluded", want: "kind directoryName", root: constraints(`3016 a114 3012 a410 300e 310c300a06035504030c0358595a`)},
		{name: "mail permitted, which we have none of", policy: constraints(`3010 a00e 300c 810a 61636d652e6c6f63616c`)},
		{name: "what only a trial tells: no address meets a constraint in Go", want: "a trial SVID under it does not verify",
			config: func(c *authority.Config) { c.TrustDomain = spiffeid.RequireTrustDomainFromString("1.2.3.4") },
			policy: ca(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"other.org"} })},
		{name: "too many", want: "chain: has", chain: func(c certs) certs {
			return append(append(certs{}, c[0], c[1]), c[2], c[2], c[2], c[2], c[2], c[2], c[2])
		}},
		{name: "nobody said what the root signs", want: "root_is_dedicated", config: func(c *authority.Config) { c.SharedRoot = "" }},
		{name: "nobody needs to under anchor ours", config: func(c *authority.Config) { c.SharedRoot, c.Anchor = "", "ours" }},
		{name: "anchor ours without what is above", config: func(c *authority.Config) { c.Anchor = "ours" }, chain: func(c certs) certs { return c[:1] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, a := byHand(t, tt.config)
			root := newPKI(t, "Corporate Root", nil, tt.root)
			policy := newPKI(t, "Policy CA", root, tt.policy)
			chain := policy.grant(csrOf(t, a, false), 1000*day, start, tt.ours)
			if tt.chain != nil {
				chain = tt.chain(chain)
			}
			before, saves := string(a.Bundle().Document), e.records.saves
			_, err := a.Install(t.Context(), chain)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if e.records.saves != saves || string(a.Bundle().Document) != before {
				t.Error("something was kept")
			}
		})
	}
	t.Run("keys and algorithms", func(t *testing.T) {
		_, a := byHand(t, nil)
		p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		_, edwards, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		csr := csrOf(t, a, false)
		for want, p := range map[string]*pki{
			"RSA of 1024": {t: t, key: weak}, "ECDSA, should": {t: t, key: p521}, "signatureAlgorithm: is Ed25519": {t: t, key: edwards},
		} {
			p.cert = caOf("Weak Root")
			p.cert = p.certify(p.cert, p.key.Public())
			if _, err := a.Install(t.Context(), p.grant(csr, 1000*day, start, nil)); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		}
	})
}

// authorityKey and constraints put an extension into a certificate as hex says.
func authorityKey(text string) func(*x509.Certificate) { return extended(35, text) }
func constraints(text string) func(*x509.Certificate)  { return extended(30, text) }

func extended(id int, text string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = extensionOf(id, text) }
}

func extensionOf(id int, text string) []pkix.Extension {
	value, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Value: value}}
}

// crypto/x509 makes no SHA-1 any more: OpenSSL does. It is refused by its name
// wherever it stands, before anything else is found wrong with the chain.
func TestInstallRefusesSHA1(t *testing.T) {
	for _, tt := range []struct{ name, root, ours, want string }{
		{"all of it", "-sha1", "-sha1", "certificate 1 of 2"},
		{"ours", "-sha256", "-sha1", "certificate 1 of 2"},
		{"the root's own signature", "-sha1", "-sha256", "certificate 2 of 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, a := byHand(t, nil)
			dir := t.TempDir()
			writeDER(t, dir+"/ours.csr", csrOf(t, a, false))
			for _, args := range [][]string{
				{"req", "-x509", "-newkey", "rsa:2048", "-noenc", tt.root, "-keyout", dir + "/root.key", "-out", dir + "/root.pem", "-subj", "/CN=Old Root", "-days", "3000"},
				{"x509", "-req", tt.ours, "-in", dir + "/ours.csr", "-inform", "DER", "-CA", dir + "/root.pem", "-CAkey", dir + "/root.key", "-copy_extensions", "copyall", "-days", "3000", "-out", dir + "/ours.pem"},
			} {
				if out, ok := openssl(t, args...); !ok {
					t.Skipf("this openssl signs no SHA-1: %s", out)
				}
			}
			_, err := a.Install(t.Context(), append(readCerts(t, dir+"/ours.pem"), readCerts(t, dir+"/root.pem")...))
			if want := "signatureAlgorithm: is SHA1-RSA"; !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %s: %s", err, tt.want, want)
			}
		})
	}
}

// A CA of another key under the right name.
func TestInstallRefusesAnImpostor(t *testing.T) {
	_, a := byHand(t, nil)
	root := newPKI(t, "Corporate Root", nil, nil)
	policy, impostor := newPKI(t, "Policy CA", root, nil), newPKI(t, "Policy CA", root, nil)
	chain := policy.grant(csrOf(t, a, false), 1000*day, start, nil)
	chain[1] = impostor.cert
	_, err := a.Install(t.Context(), chain)
	if want := "issuer: its signature does not verify with the key of"; !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// Our own key under its own request: what somebody gets who asks the wrong tool.
func TestInstallRefusesSelfSigned(t *testing.T) {
	for _, anchor := range []string{"root", "ours"} {
		e, a := byHand(t, func(c *authority.Config) { c.Anchor = anchor })
		csr := csrOf(t, a, false)
		key, err := e.keys.Open(t.Context(), "0")
		if err != nil {
			t.Fatal(err)
		}
		self := &pki{t: t, key: key, cert: caOf("Ours")}
		self.cert = self.certify(self.cert, key.Public())
		chain := []*x509.Certificate{self.cert}
		if r, err := x509.ParseCertificateRequest(csr); err != nil || !bytes.Equal(r.RawSubjectPublicKeyInfo, self.cert.RawSubjectPublicKeyInfo) {
			t.Fatalf("it is another key: %v", err)
		}
		if _, err := a.Install(t.Context(), chain); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "is self-signed") {
			t.Errorf("anchor %s: %v", anchor, err)
		}
	}
}

// A root from before extensions, which OpenSSL makes where none are asked for.
func TestInstallRefusesVersion1(t *testing.T) {
	e, a := byHand(t, nil)
	dir := t.TempDir()
	writeDER(t, dir+"/ours.csr", csrOf(t, a, false))
	for _, args := range [][]string{
		{"req", "-newkey", "rsa:2048", "-noenc", "-keyout", dir + "/root.key", "-out", dir + "/root.csr", "-subj", "/CN=Old Root"},
		{"x509", "-req", "-in", dir + "/root.csr", "-signkey", dir + "/root.key", "-days", "3000", "-out", dir + "/root.pem"},
		{"x509", "-req", "-in", dir + "/ours.csr", "-inform", "DER", "-CA", dir + "/root.pem", "-CAkey", dir + "/root.key", "-copy_extensions", "copyall", "-days", "3000", "-out", dir + "/ours.pem"},
	} {
		if out, ok := openssl(t, args...); !ok {
			t.Fatal(out)
		}
	}
	root := readCerts(t, dir+"/root.pem")
	if root[0].Version != 1 {
		t.Skipf("this openssl makes roots of version %d", root[0].Version)
	}
	e.clock.set(time.Now().Add(time.Second))
	_, err := a.Install(t.Context(), append(readCerts(t, dir+"/ours.pem"), root...))
	if want := "version: is 1, should be 3"; !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// A certificate installed twice with different words, or under a key given up.
func TestInstallAgain(t *testing.T) {
	_, a := byHand(t, nil)
	root := newPKI(t, "Corporate Root", nil, nil)
	first := root.grant(csrOf(t, a, false), 1000*day, start, nil)
	given := first
	csrOf(t, a, true)
	if _, err := a.Install(t.Context(), given); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "given up") {
		t.Errorf("of a key given up: %v", err)
	}
	csr := csrOf(t, a, false)
	one := root.grant(csr, 1000*day, start, nil)
	if _, err := a.Install(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Install(t.Context(), root.grant(csr, 2000*day, start, nil)); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("another certificate for a key in use: %v", err)
	}
	// The next CA under the same root is used at once: no bundle changes.
	document := a.Bundle().Document
	done, err := a.Install(t.Context(), root.grant(csrOf(t, a, false), 1000*day, start, nil))
	if err != nil {
		t.Fatal(err)
	}
	if done.CA.State != authority.Active || !bytes.Equal(document, a.Bundle().Document) || of(a, authority.Domain, authority.Old).ID == "" {
		t.Errorf("the next CA is %s", done.CA.State)
	}
}

func TestOpenRefusesAnchors(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*authority.Config)
	}{
		{"an unknown anchor", "anchor is", func(c *authority.Config) { c.Anchor = "theirs" }},
		{"an unknown answer", "want dedicated or shared", func(c *authority.Config) { c.SharedRoot = "yes" }},
		{"an upstream without a name", "name", func(c *authority.Config) { c.Upstream = &pki{} }},
		{"a name without an upstream", "there is none", func(c *authority.Config) { c.UpstreamName = "vault" }},
		{"a root nobody answered for", "root_is_dedicated", func(c *authority.Config) { c.Upstream, c.UpstreamName = &pki{}, "vault" }},
		{"anchor ours by itself", "anchor ours", func(c *authority.Config) { c.Upstream, c.UpstreamName, c.Anchor = &pki{}, "vault", "ours" }},
		{"a CRL without its issuer", "%s", func(c *authority.Config) { c.CRLURLs = []string{"http://crl.example.org/list"} }},
		{"a CRL nowhere", "want an http", func(c *authority.Config) { c.CRLURLs = []string{"ldap://crl.example.org/%s"} }},
		{"a CRL life of years", "CRL", func(c *authority.Config) { c.Lives.CRL = 400 * day }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.change = tt.change
			if _, err := authority.Open(t.Context(), e.config()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A CA that may certify no other signs SVIDs itself; List says who must act for
// the next one, rotation says so too, and its end is told of in time.
func TestInstallPathLengthZero(t *testing.T) {
	for _, anchor := range []string{"root", "ours"} {
		t.Run(anchor, func(t *testing.T) {
			var log bytes.Buffer
			e, a := byHand(t, func(c *authority.Config) { c.Anchor, c.Log = anchor, slog.New(slog.NewTextHandler(&log, nil)) })
			root := newPKI(t, "Corporate Root", nil, nil)
			zero := func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = true, 0 }
			done, err := a.Install(t.Context(), root.grant(csrOf(t, a, false), 100*day, start, zero))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(done.CA.Waits, " "); !strings.Contains(got, "the PKI team certifies another") {
				t.Errorf("waits for %q", got)
			}
			if _, err := a.RotateIssuing(t.Context()); !errors.Is(err, authority.ErrNothing) || !strings.Contains(err.Error(), "PKI team") {
				t.Errorf("rotating: %v", err)
			}
			if _, err := a.ReplaceIssuing(t.Context(), "lost"); !errors.Is(err, authority.ErrNothing) || !strings.Contains(err.Error(), "PKI team") {
				t.Errorf("replacing: %v", err)
			}
			for _, tt := range []struct {
				at    time.Duration
				level string
			}{{49 * day, ""}, {51 * day, "level=WARN"}, {76 * day, "level=ERROR"}} {
				log.Reset()
				e.clock.set(start.Add(tt.at))
				e.tick(a)
				said := strings.Contains(log.String(), "certify another CA (csr, install)")
				if said != (tt.level != "") || !strings.Contains(log.String(), tt.level) {
					t.Errorf("after %s: %s", tt.at, &log)
				}
			}
			next := root.grant(csrOf(t, a, false), 100*day, e.clock.now(), zero)
			done, err = a.Install(t.Context(), next)
			if err == nil && anchor == "ours" {
				_, err = a.ActivateRoot(t.Context(), done.Anchor.ID)
			}
			if err != nil {
				t.Fatal(err)
			}
			svid, err := signTwice(e, a)
			if err != nil {
				t.Fatal(err)
			}
			if err := svid[0].CheckSignatureFrom(next[0]); err != nil {
				t.Error(err)
			}
		})
	}
}

// Without cRLSign there is no list, nothing that names one, and nothing that
// complains of it each time.
func TestInstallWithoutCRLSign(t *testing.T) {
	for _, pathLen := range []int{0, 1} {
		e, a := byHand(t, func(c *authority.Config) { c.CRLURLs = []string{"http://crl.example.org/%s"} })
		root := newPKI(t, "Corporate Root", nil, nil)
		done, err := a.Install(t.Context(), root.grant(csrOf(t, a, false), 100*day, start, func(c *x509.Certificate) {
			c.KeyUsage, c.MaxPathLen, c.MaxPathLenZero = x509.KeyUsageCertSign, pathLen, pathLen == 0
		}))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(done.Warnings, "\n"); !strings.Contains(got, "lacks cRLSign") {
			t.Errorf("warnings %q", got)
		}
		e.tick(a)
		svid, err := signTwice(e, a)
		if err != nil {
			t.Fatal(err)
		}
		lists, named := len(a.CRLs()), len(svid[0].CRLDistributionPoints)
		if lists != pathLen || named != pathLen || pathLen == 1 && len(svid[1].CRLDistributionPoints) != 0 {
			t.Errorf("path length %d: %d lists, an SVID names %d", pathLen, lists, named)
		}
		if pathLen == 1 {
			r, err := a.ReplaceIssuing(t.Context(), "lost")
			if err != nil || !strings.Contains(strings.Join(r.Believed, "\n"), "there is no CRL of ca") {
				t.Errorf("%v: %q", err, r.Believed)
			}
		}
	}
}

// Two CAs installed under a root that is not active yet: the last one is used,
// and stays in use.
func TestInstallTwoBeforeActivation(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	e.records.step = checkStep
	e.change = func(c *authority.Config) { c.SharedRoot = "shared" }
	a := e.open()
	root := newPKI(t, "Corporate Root", nil, nil)
	var last authority.Installed
	for i, said := range []string{"dedicated", "", ""} { // what is said last of the root counts
		e.clock.set(start.Add(time.Duration(i) * time.Minute))
		var err error
		if last, err = a.InstallUnder(t.Context(), root.grant(csrOf(t, a, false), 1000*day, start, nil), said); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(last.Anchor.Believed, " "); !strings.Contains(got, "every CA under this root can speak for us") {
		t.Errorf("the root is believed: %q", got)
	}
	if !last.Anchor.Shared || last.CA.Shared {
		t.Errorf("shared: the root %v, our CA %v", last.Anchor.Shared, last.CA.Shared)
	}
	if _, err := a.ActivateRoot(t.Context(), last.Anchor.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e.tick(a)
	}
	if got := of(a, authority.Domain, authority.Active); got.ID != last.CA.ID {
		t.Errorf("active is %s, installed last %s", got.ID, last.CA.ID)
	}
	if n := len(a.List()); of(a, authority.Domain, authority.Published).ID != "" || of(a, authority.Domain, authority.Old).ID != "" {
		t.Errorf("of %d authorities another CA is left", n)
	}
}
