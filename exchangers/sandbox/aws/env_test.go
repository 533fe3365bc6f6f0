package aws_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

const (
	account    = "123456789012"
	region     = "us-east-1"
	anchorARN  = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555"
	profileARN = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/66666666-7777-8888-9999-000000000000"
	roleARN    = "arn:aws:iam::123456789012:role/team/orders"
	spiffeID   = "spiffe://example.org/ns/shop/sa/orders"
)

// anywherePolicy trusts spiffeID through the anchor.
const anywherePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
  "Principal":{"Service":"rolesanywhere.amazonaws.com"},
  "Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
  "Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":"` + spiffeID + `"},
    "ArnEquals":{"aws:SourceArn":"` + anchorARN + `"}}}]}`

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type clock struct {
	mu sync.Mutex // guards t
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// An authority issues certificates, good ones unless change says otherwise.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	now  time.Time
}

func newAuthority(t testing.TB, name string, now time.Time, parent *authority, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	a := &authority{key: newKey(t, elliptic.P256()), now: now}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name, Organization: []string{"Acme"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, f := range change {
		f(template)
	}
	if parent == nil {
		parent = &authority{cert: template, key: a.key, now: now}
	}
	a.cert = parent.sign(t, template, a.key.Public())
	return a
}

func (a *authority) sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leaf certifies a key as spiffeID.
func (a *authority) leaf(t testing.TB, public crypto.PublicKey, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	id, err := url.Parse(spiffeID)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes([]byte{0x0a, 0xbc, 0xde, 0xf0, 0x12, 0x34}),
		Subject:      pkix.Name{CommonName: "orders", Organization: []string{"Acme"}},
		URIs:         []*url.URL{id}, DNSNames: []string{"orders.example.org"},
		NotBefore: a.now.Add(-time.Minute), NotAfter: a.now.Add(24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(template)
	}
	return a.sign(t, template, public)
}

// An anywhere is a cloud with one trust anchor, profile and role, and a caller
// that may have the role.
type anywhere struct {
	*clock
	cloud *aws.Cloud
	root  *authority
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate

	anchor  aws.TrustAnchor
	profile aws.Profile
	role    aws.Role
}

func newAnywhere(t testing.TB, change ...func(*aws.Config)) *anywhere {
	t.Helper()
	e := &anywhere{clock: newClock(), key: newKey(t, elliptic.P256())}
	e.root = newAuthority(t, "root", e.Now(), nil, always)
	e.cert = e.root.leaf(t, e.key.Public())
	e.anchor = aws.TrustAnchor{ARN: anchorARN, Certificates: []*x509.Certificate{e.root.cert}, Enabled: true}
	e.profile = aws.Profile{ARN: profileARN, RoleARNs: []string{roleARN}, Enabled: true, AcceptRoleSessionName: true}
	e.role = aws.Role{ARN: roleARN, TrustPolicy: anywherePolicy}
	cfg := aws.Config{
		Now: e.Now, Account: account, Region: region, RatePerSecond: 1_000_000,
		TrustAnchors: []aws.TrustAnchor{e.anchor}, Profiles: []aws.Profile{e.profile}, Roles: []aws.Role{e.role},
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if e.cloud, err = aws.New(cfg); err != nil {
		t.Fatal(err)
	}
	return e
}

// call is the request that succeeds.
func (e *anywhere) call() *call {
	return &call{
		key: e.key, leaf: e.cert, date: e.Now().Format("20060102T150405Z"), algorithm: "AWS4-X509-ECDSA-SHA256",
		region: region, service: "rolesanywhere",
		query: url.Values{"trustAnchorArn": {anchorARN}, "profileArn": {profileARN}, "roleArn": {roleARN}},
		body:  `{"durationSeconds":900}`,
	}
}

func (e *anywhere) send(t testing.TB, c *call) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	e.cloud.RolesAnywhere().ServeHTTP(w, c.request(t))
	return w
}

// wantCredential fails unless the request that should succeed does.
func (e *anywhere) wantCredential(t testing.TB) {
	t.Helper()
	if w := e.send(t, e.call()); w.Code != http.StatusCreated {
		t.Fatalf("the good request: status %d: %s", w.Code, w.Body)
	}
}

// noCredential fails if a body has anything of a credential in it.
func noCredential(t testing.TB, body string) {
	t.Helper()
	for _, s := range []string{"ASIA", "accessKeyId", "secretAccessKey", `"sessionToken`, "<sessionToken", "assumedRole"} {
		if strings.Contains(strings.ToLower(body), strings.ToLower(s)) {
			t.Errorf("a refusal has %q in it: %s", s, body)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
