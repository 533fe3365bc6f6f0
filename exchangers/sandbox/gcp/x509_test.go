package gcp_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	mtlsType  = "urn:ietf:params:oauth:token-type:mtls"
	x509Name  = "//iam.googleapis.com/" + poolName + "/providers/prov-x509"
	chainText = "The client certificate could not be validated."
)

// mtls is a world with an X.509 provider beside the OIDC one.
type mtls struct {
	*world
	ca   *issuertest.CA
	leaf *x509.Certificate
}

func x509Provider(anchors ...*x509.Certificate) gcp.Provider {
	return gcp.Provider{ID: "prov-x509", TrustStore: &gcp.TrustStore{Anchors: anchors},
		AttributeMapping: map[string]string{"google.subject": "assertion.san.uri"}}
}

func newMTLS(t testing.TB) *mtls {
	w := newWorld(t, nil)
	m := &mtls{world: w, ca: issuertest.NewCA(t, "root", start, nil)}
	m.leaf = m.ca.Issue(t, spiffeID, start, issuertest.EC().Public())
	w.put(x509Provider(m.ca.Certificate))
	return m
}

func subjectToken(chain ...*x509.Certificate) string {
	var der [][]byte
	for _, c := range chain {
		der = append(der, c.Raw)
	}
	b, _ := json.Marshal(der)
	return string(b)
}

func mtlsForm(token string) url.Values {
	f := form(token)
	f.Set("audience", x509Name)
	f.Set("subject_token_type", mtlsType)
	return f
}

// ask calls the mutual-TLS host with a client certificate, or none.
func (m *mtls) ask(f url.Values, certificate *x509.Certificate) call {
	m.t.Helper()
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		r.TLS = &tls.ConnectionState{}
		if certificate != nil {
			r.TLS.PeerCertificates = []*x509.Certificate{certificate}
		}
		m.cloud.MTLS().ServeHTTP(rw, r)
	})
	return m.do(h, call{method: "POST", path: "/v1/token", contentType: "application/x-www-form-urlencoded", body: f.Encode()})
}

func (m *mtls) good() string {
	m.t.Helper()
	c := m.ask(mtlsForm(subjectToken(m.leaf)), m.leaf)
	raw, _ := c.got["access_token"].(string)
	if c.status != 200 || raw == "" || c.got["expires_in"] != 3600.0 {
		m.t.Fatalf("the good request: %d %s", c.status, c.raw)
	}
	return raw
}

func TestExchangeX509(t *testing.T) {
	m := newMTLS(t)
	if me := m.whoami(m.good()); me.status != 200 || me.got["principal"] != principal {
		t.Errorf("whoami: %d %s", me.status, me.raw)
	}
	if c := m.iam(m.good(), email, "generateAccessToken", goodBody); c.status != 200 {
		t.Errorf("impersonation: %d %s", c.status, c.raw)
	}
}

// leafOf issues another leaf for the workload; the certificate with the key is
// the client's.
func (m *mtls) leafOf(key crypto.PublicKey, changes ...func(*x509.Certificate)) *x509.Certificate {
	return m.ca.Issue(m.t, spiffeID, start, key, changes...)
}

// The rows G6 and G20 to G23 of the contract.
func TestExchangeX509Refuses(t *testing.T) {
	ec := issuertest.EC().Public()
	edPublic, _, _ := ed25519.GenerateKey(nil)
	with := func(key crypto.PublicKey, changes ...func(*x509.Certificate)) func(*mtls) (url.Values, *x509.Certificate) {
		return func(m *mtls) (url.Values, *x509.Certificate) {
			leaf := m.leafOf(key, changes...)
			return mtlsForm(subjectToken(leaf)), leaf
		}
	}
	token := func(text func(*mtls) string) func(*mtls) (url.Values, *x509.Certificate) {
		return func(m *mtls) (url.Values, *x509.Certificate) { return mtlsForm(text(m)), m.leaf }
	}
	set := func(name, value string) func(*mtls) (url.Values, *x509.Certificate) {
		return func(m *mtls) (url.Values, *x509.Certificate) {
			f := mtlsForm(subjectToken(m.leaf))
			f.Set(name, value)
			return f, m.leaf
		}
	}
	below := func(n int, changes ...func(*x509.Certificate)) (func(*mtls) []*x509.Certificate, func(*mtls) []*x509.Certificate) {
		var made []*x509.Certificate
		build := func(m *mtls) []*x509.Certificate {
			ca, chain := m.ca, []*x509.Certificate(nil)
			for i := range n {
				ca = issuertest.NewCA(m.t, fmt.Sprintf("intermediate %d", i), start, ca, changes...)
				chain = append([]*x509.Certificate{ca.Certificate}, chain...)
			}
			made = append([]*x509.Certificate{ca.Issue(m.t, spiffeID, start, ec)}, chain...)
			return made
		}
		return build, func(m *mtls) []*x509.Certificate { return build(m)[:1] }
	}
	chain := func(build func(*mtls) []*x509.Certificate) func(*mtls) (url.Values, *x509.Certificate) {
		return func(m *mtls) (url.Values, *x509.Certificate) {
			c := build(m)
			return mtlsForm(subjectToken(c...)), c[0]
		}
	}
	deep, _ := below(4)
	_, missing := below(1)
	noSign, _ := below(1, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	onlyServers, _ := below(1, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	for name, tc := range map[string]struct {
		change func(*mtls) (url.Values, *x509.Certificate)
		code   string
		text   string
	}{
		"no client certificate": {func(m *mtls) (url.Values, *x509.Certificate) { return mtlsForm(subjectToken(m.leaf)), nil }, "invalid_request", "client certificate"},
		"G6 JWT at this host":   {set("subject_token_type", jwtType), "invalid_request", "subject_token_type"},
		"G6 an OIDC provider":   {set("audience", strings.Replace(x509Name, "prov-x509", "prov-1", 1)), "invalid_request", "subject_token_type"},
		"G5 unknown provider":   {set("audience", x509Name+"0"), "invalid_target", targetText},
		"G17 no scope": {func(m *mtls) (url.Values, *x509.Certificate) {
			f, c := set("x", "y")(m)
			f.Del("scope")
			f.Del("x")
			return f, c
		}, "invalid_scope", ""},
		"G20 another leaf": {func(m *mtls) (url.Values, *x509.Certificate) {
			return mtlsForm(subjectToken(m.leaf)), m.leafOf(ec)
		}, "invalid_grant", "is not the client certificate"},
		"G20 leaf is second": {token(func(m *mtls) string { return subjectToken(m.ca.Certificate, m.leaf) }), "invalid_grant", "is not the client certificate"},
		"G20 no list":        {token(func(m *mtls) string { return `"` + base64.StdEncoding.EncodeToString(m.leaf.Raw) + `"` }), "invalid_request", "subject_token"},
		"G20 empty list":     {token(func(*mtls) string { return "[]" }), "invalid_request", "subject_token"},
		"G20 base64url": {token(func(m *mtls) string {
			return `["` + base64.RawURLEncoding.EncodeToString(m.leaf.Raw) + `"]`
		}), "invalid_request", "subject_token"},
		"G20 line breaks": {token(func(m *mtls) string {
			b := base64.StdEncoding.EncodeToString(m.leaf.Raw)
			return `["` + b[:64] + `\n` + b[64:] + `"]`
		}), "invalid_request", "subject_token"},
		"G20 PEM": {token(func(m *mtls) string {
			b, _ := json.Marshal([]string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.leaf.Raw}))})
			return string(b)
		}), "invalid_request", "subject_token"},
		"more after the list": {token(func(m *mtls) string { return subjectToken(m.leaf) + "[]" }), "invalid_request", "subject_token"},
		"bytes after the DER": {token(func(m *mtls) string {
			b, _ := json.Marshal([][]byte{append(append([]byte{}, m.leaf.Raw...), 0)})
			return string(b)
		}), "invalid_request", "subject_token"},
		"G21 391 days": {with(ec, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(391 * 24 * time.Hour) }), "invalid_grant", chainText},
		"G21 RSA-1024": {with(issuertest.NewRSA(1024).Public()), "invalid_grant", chainText},
		"G21 P-521":    {with(issuertest.NewEC(elliptic.P521()).Public()), "invalid_grant", chainText},
		"G21 Ed25519":  {with(edPublic), "invalid_grant", chainText},
		"G21 no clientAuth": {with(ec, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), "invalid_grant", chainText},
		"G21 any usage":       {with(ec, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), "invalid_grant", chainText},
		"G21 CA:TRUE":         {with(ec, func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }), "invalid_grant", chainText},
		"no constraints":      {with(ec, func(c *x509.Certificate) { c.BasicConstraintsValid = false }), "invalid_grant", chainText},
		"no digitalSignature": {with(ec, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "invalid_grant", chainText},
		"not yet valid":       {with(ec, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Second) }), "invalid_grant", chainText},
		"no more valid":       {with(ec, func(c *x509.Certificate) { c.NotAfter = start }), "invalid_grant", chainText},
		"another root of the same name": {func(m *mtls) (url.Values, *x509.Certificate) {
			other := issuertest.NewCA(m.t, "root", start, issuertest.NewCA(m.t, "other", start, nil))
			leaf := other.Issue(m.t, spiffeID, start, ec)
			return mtlsForm(subjectToken(leaf, other.Certificate)), leaf
		}, "invalid_grant", chainText},
		"G22 depth 6": {chain(deep), "invalid_grant", chainText},
		"G22 11 certificates": {token(func(m *mtls) string {
			var c []*x509.Certificate
			for range 11 {
				c = append(c, m.leaf)
			}
			return subjectToken(c...)
		}), "invalid_request", "subject_token"},
		"G22 intermediate missing":       {chain(missing), "invalid_grant", chainText},
		"intermediate that may not sign": {chain(noSign), "invalid_grant", chainText},
		"intermediate for servers":       {chain(onlyServers), "invalid_grant", chainText},
		"128 bytes of SPIFFE ID": {func(m *mtls) (url.Values, *x509.Certificate) {
			leaf := m.ca.Issue(m.t, "spiffe://example.org/"+strings.Repeat("a", 107), start, ec)
			return mtlsForm(subjectToken(leaf)), leaf
		}, "invalid_request", sizeText},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMTLS(t)
			f, certificate := tc.change(m)
			c := m.ask(f, certificate)
			text, _ := c.got["error_description"].(string)
			if c.status != 400 || c.got["error"] != tc.code || !strings.Contains(text, tc.text) {
				t.Errorf("%d %s (%s)", c.status, c.raw, m.reason())
			}
			m.good()
		})
	}
}

func TestExchangeX509Takes(t *testing.T) {
	m := newMTLS(t)
	first := issuertest.NewCA(t, "first", start, m.ca)
	second := issuertest.NewCA(t, "second", start, first)
	third := issuertest.NewCA(t, "third", start, second)
	ec := issuertest.EC().Public()
	for name, chain := range map[string][]*x509.Certificate{
		"depth 5":           {third.Issue(t, spiffeID, start, ec), third.Certificate, second.Certificate, first.Certificate},
		"in any order":      {third.Issue(t, spiffeID, start, ec), first.Certificate, third.Certificate, second.Certificate},
		"anchor too":        {m.leaf, m.ca.Certificate},
		"RSA-2048":          {m.leafOf(issuertest.RSA().Public())},
		"P-384":             {m.leafOf(issuertest.NewEC(elliptic.P384()).Public())},
		"390 days":          {m.leafOf(ec, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(390 * 24 * time.Hour) })},
		"two SANs, a CN":    {m.leafOf(ec, func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "checkout", []string{"a.example"} })},
		"from a bigger one": {first.Issue(t, spiffeID, start, ec), first.Certificate},
	} {
		if c := m.ask(mtlsForm(subjectToken(chain...)), chain[0]); c.status != 200 {
			t.Errorf("%s: %d %s (%s)", name, c.status, c.raw, m.reason())
		}
	}
	store := x509Provider(m.ca.Certificate)
	store.TrustStore.Intermediates = []*x509.Certificate{first.Certificate}
	m.put(store)
	leaf := first.Issue(t, spiffeID, start, ec, func(c *x509.Certificate) { c.NotAfter = start.Add(10 * time.Minute) })
	if c := m.ask(mtlsForm(subjectToken(leaf)), leaf); c.status != 200 || c.got["expires_in"] != 600.0 {
		t.Errorf("intermediate of the trust store: %d %s", c.status, c.raw)
	}
}

// Certificates sent and those of the trust store count together.
func TestTenCertificatesInAll(t *testing.T) {
	m := newMTLS(t)
	store := x509Provider(m.ca.Certificate)
	for n := range 9 {
		store.TrustStore.Intermediates = append(store.TrustStore.Intermediates, issuertest.NewCA(t, fmt.Sprint("ca", n), start, m.ca).Certificate)
	}
	m.put(store)
	m.good()
	if c := m.ask(mtlsForm(subjectToken(m.leaf, m.ca.Certificate)), m.leaf); c.status != 400 || c.got["error"] != "invalid_grant" {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func TestX509Mapping(t *testing.T) {
	m := newMTLS(t)
	p := x509Provider(m.ca.Certificate)
	p.AttributeMapping = nil
	m.put(p)
	if c := m.ask(mtlsForm(subjectToken(m.leaf)), m.leaf); c.status != 400 || c.got["error"] != "invalid_request" {
		t.Errorf("G23: %d %s", c.status, c.raw)
	}
	named := m.leafOf(issuertest.EC().Public(), func(c *x509.Certificate) { c.Subject.CommonName = "checkout" })
	if c := m.ask(mtlsForm(subjectToken(named)), named); c.status != 200 {
		t.Errorf("with a common name: %d %s", c.status, c.raw)
	}
	p = x509Provider(m.ca.Certificate)
	p.AttributeMapping["attribute.all"] = "assertion.subject.dn.cn + '|' + assertion.subject.dn.o + '|' + assertion.subject.dn.ou + '|' + assertion.issuer.dn.cn + '|' + assertion.san.dns"
	p.AttributeCondition = "attribute.all == 'checkout|shop|eu|root|a.example' && assertion.sha256Fingerprint.size() == 44 && assertion.serialNumberHex.matches('^([0-9a-f]{2})+$')"
	m.put(p)
	full := m.leafOf(issuertest.EC().Public(), func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "checkout", Organization: []string{"shop"}, OrganizationalUnit: []string{"eu"}}
		c.DNSNames = []string{"a.example", "b.example"}
	})
	if c := m.ask(mtlsForm(subjectToken(full)), full); c.status != 200 {
		t.Errorf("all fields: %d %s (%s)", c.status, c.raw, m.reason())
	}
	p.AttributeMapping = map[string]string{"google.subject": "assertion.san.uri"}
	p.AttributeCondition = "assertion.san.uri == 'spiffe://example.org/another'"
	m.put(p)
	if c := m.ask(mtlsForm(subjectToken(m.leaf)), m.leaf); c.got["error"] != "unauthorized_client" {
		t.Errorf("condition: %d %s", c.status, c.raw)
	}
}

func TestX509ProviderIsRefused(t *testing.T) {
	ca := issuertest.NewCA(t, "root", start, nil)
	leaf := ca.Issue(t, spiffeID, start, issuertest.EC().Public())
	for name, change := range map[string]func(*gcp.Provider){
		"no anchor":      func(p *gcp.Provider) { p.TrustStore.Anchors = nil },
		"four anchors":   func(p *gcp.Provider) { a := ca.Certificate; p.TrustStore.Anchors = []*x509.Certificate{a, a, a, a} },
		"a leaf":         func(p *gcp.Provider) { p.TrustStore.Anchors = []*x509.Certificate{leaf} },
		"leaf among CAs": func(p *gcp.Provider) { p.TrustStore.Intermediates = []*x509.Certificate{leaf} },
		"an issuer":      func(p *gcp.Provider) { p.Issuer = issuertest.URL },
		"audiences":      func(p *gcp.Provider) { p.AllowedAudiences = []string{"mine"} },
		"eleven of these": func(p *gcp.Provider) {
			for range 11 {
				p.TrustStore.Intermediates = append(p.TrustStore.Intermediates, ca.Certificate)
			}
		},
	} {
		p := x509Provider(ca.Certificate)
		change(&p)
		if err := newWorld(t, nil).cloud.PutProvider(poolName, p); err == nil {
			t.Errorf("%s: created", name)
		}
	}
}

// Google's own client, with files as its documents want them, passes.
func TestGoogleLibraryFederatesByX509(t *testing.T) {
	w := newWorld(t, func(c *gcp.Config) { c.Now = time.Now })
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	middle := issuertest.NewCA(t, "middle", time.Now(), ca)
	leaf := middle.Issue(t, spiffeID, time.Now(), issuertest.EC().Public())
	w.put(x509Provider(ca.Certificate))
	s := httptest.NewUnstartedServer(w.cloud.MTLS())
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)

	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(issuertest.EC())
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, blocks ...*pem.Block) string {
		var out []byte
		for _, b := range blocks {
			out = append(out, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, out, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile := file("cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	keyFile := file("key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	chainFile := file("chain.pem", &pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}, &pem.Block{Type: "CERTIFICATE", Bytes: middle.Certificate.Raw})
	config, _ := json.Marshal(map[string]any{"cert_configs": map[string]any{"workload": map[string]string{"cert_path": certFile, "key_path": keyFile}}})
	configFile := filepath.Join(dir, "certificate_config.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_API_CERTIFICATE_CONFIG", configFile)
	client := s.Client()
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw, middle.Certificate.Raw}, PrivateKey: issuertest.EC()}}
	creds, err := externalaccount.NewCredentials(&externalaccount.Options{
		Audience: x509Name, SubjectTokenType: mtlsType, TokenURL: s.URL + "/v1/token", Scopes: []string{scope}, Client: client,
		CredentialSource: &externalaccount.CredentialSource{Certificate: &externalaccount.CertificateConfig{UseDefaultCertificateConfig: true, TrustChainPath: chainFile}},
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := creds.Token(t.Context())
	if err != nil {
		t.Fatalf("%v (%s)", err, w.reason())
	}
	if left := time.Until(token.Expiry); left < 58*time.Minute || left > time.Hour {
		t.Errorf("lives %s", left)
	}
}

func TestQuotaProject(t *testing.T) {
	w := newWorld(t, func(c *gcp.Config) {
		c.QuotaProjects = []gcp.QuotaProject{{ID: "billed-1", Consumers: []string{principal}}, {ID: "other-1"}}
	})
	for name, tc := range map[string]struct {
		projects []string
		status   int
	}{"may": {[]string{"billed-1"}, 200}, "may not": {[]string{"other-1"}, 403}, "is none": {[]string{"nobodys-1"}, 403}, "two": {[]string{"billed-1", "billed-1"}, 403}, "empty": {[]string{""}, 403}} {
		c := w.do(w.cloud.IAMCredentials(), call{method: "POST", contentType: "application/json", bearer: w.federated(), body: goodBody,
			path: "/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken", header: http.Header{"X-Goog-User-Project": tc.projects}})
		if c.status != tc.status || c.status == 403 && !strings.Contains(c.raw, "USER_PROJECT_DENIED") {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
		who := w.do(w.cloud.Whoami(), call{method: "GET", path: "/whoami", bearer: w.federated(), header: http.Header{"X-Goog-User-Project": tc.projects}})
		if who.status != tc.status {
			t.Errorf("%s: whoami %d %s", name, who.status, who.raw)
		}
	}
	for _, id := range []string{"", "123456", "Proj-1"} {
		if _, err := gcp.New(gcp.Config{QuotaProjects: []gcp.QuotaProject{{ID: id}}}); err == nil {
			t.Errorf("project %q was created", id)
		}
	}
}

func FuzzMTLS(f *testing.F) {
	m := newMTLS(f)
	f.Add(subjectToken(m.leaf))
	f.Add(subjectToken(m.leaf, m.ca.Certificate, m.ca.Certificate))
	f.Add(`["MIIB"]`)
	f.Fuzz(func(t *testing.T, token string) {
		m.t = t
		c := m.ask(mtlsForm(token), m.leaf)
		if c.status == 200 && !strings.Contains(token, base64.StdEncoding.EncodeToString(m.leaf.Raw)) && !strings.Contains(token, `\`) {
			t.Errorf("taken: %q", token)
		}
	})
}

// reason is why the last request was refused.
func (w *world) reason() string {
	all := w.recorder.Entries()
	if len(all) == 0 {
		return "nothing was recorded"
	}
	return all[len(all)-1].Reason
}
