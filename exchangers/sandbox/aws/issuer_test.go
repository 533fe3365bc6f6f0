package aws_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

const (
	issuerHost = "id.example.org"
	issuerURL  = "https://id.example.org/main"
	audience   = "sts.amazonaws.com"
)

// webPolicy trusts the subject of a token of issuerURL.
const webPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
  "Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/id.example.org/main"},
  "Action":["sts:AssumeRoleWithWebIdentity"],
  "Condition":{"StringEquals":{"id.example.org/main:sub":"` + spiffeID + `","id.example.org/main:aud":"sts.amazonaws.com"}}}]}`

// An issuer serves discovery and keys over TLS, as an issuer of tokens does.
type issuer struct {
	*httptest.Server
	roots *x509.CertPool

	mu       sync.Mutex // guards the rest
	document map[string]any
	keys     []map[string]any
	hang     bool
	status   int
	fetches  int
}

func newIssuer(t testing.TB, ca *authority) *issuer {
	t.Helper()
	key := newKey(t, elliptic.P256())
	cert := ca.leaf(t, key.Public(), always, func(c *x509.Certificate) { c.DNSNames, c.URIs = []string{issuerHost}, nil })
	i := &issuer{roots: x509.NewCertPool(), status: http.StatusOK, keys: []map[string]any{jwk("rs", rsaKey().Public())}}
	i.document = map[string]any{"issuer": issuerURL, "jwks_uri": issuerURL + "/keys"}
	i.roots.AddCert(ca.cert)
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	i.Config.ErrorLog = log.New(io.Discard, "", 0)
	i.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

// always makes a certificate valid whatever the clock: TLS has the real one.
func always(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Unix(0, 0), time.Unix(1<<33, 0)
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	hang, status, out := i.hang, i.status, any(i.document)
	if r.URL.Path == "/main/keys" {
		out = map[string]any{"keys": i.keys}
		i.fetches++
	}
	b, err := json.Marshal(out)
	i.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if r.Host != issuerHost || err != nil || r.URL.Path != "/main/keys" && r.URL.Path != "/main/.well-known/openid-configuration" {
		status = http.StatusNotFound
	}
	w.WriteHeader(status)
	w.Write(b)
}

// set changes what is served.
func (i *issuer) set(f func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

// thumbprint is the SHA-1 digest of the web server's certificate.
func (i *issuer) thumbprint() string {
	sum := sha1.Sum(i.Certificate().Raw)
	return hex.EncodeToString(sum[:])
}

// dial leads every name to the issuer: there is no network.
func (i *issuer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, i.Listener.Addr().String())
}

func jwk(kid string, public crypto.PublicKey) map[string]any {
	m := map[string]any{"kid": kid, "use": "sig"}
	switch k := public.(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		half := len(point) / 2
		m["kty"], m["crv"] = "EC", k.Curve.Params().Name
		m["x"], m["y"] = b64(point[1:1+half]), b64(point[1+half:])
	}
	return m
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// A token is a JWT before it is signed.
type token struct {
	key    crypto.Signer
	header map[string]any
	claims map[string]any
	raw    string // claims as text, in place of claims
	sign   func(signed string) []byte
}

func (k token) with(claim string, v any) token {
	k.claims = maps.Clone(k.claims)
	k.claims[claim] = v
	return k
}

func (k token) without(claim string) token {
	k.claims = maps.Clone(k.claims)
	delete(k.claims, claim)
	return k
}

func (k token) head(name string, v any) token {
	k.header = maps.Clone(k.header)
	k.header[name] = v
	return k
}

func (k token) String() string {
	h, err := json.Marshal(k.header)
	if err != nil {
		panic(err)
	}
	c, err := json.Marshal(k.claims)
	if err != nil {
		panic(err)
	}
	if k.raw != "" {
		c = []byte(k.raw)
	}
	signed := b64(h) + "." + b64(c)
	sign := k.sign
	if sign == nil {
		sign = k.signature
	}
	return signed + "." + b64(sign(signed))
}

// signature follows alg for RSA and ECDSA keys (RFC 7518 §3.3, §3.4).
func (k token) signature(signed string) []byte {
	alg := k.header["alg"].(string)
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	h := hash.New()
	h.Write([]byte(signed))
	sum := h.Sum(nil)
	switch key := k.key.(type) {
	case *rsa.PrivateKey:
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, hash, sum)
		if err != nil {
			panic(err)
		}
		return sig
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, sum)
		if err != nil {
			panic(err)
		}
		size := (key.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	panic("no such key")
}

// A web is a cloud with one OIDC provider and a role, and its issuer.
type web struct {
	*clock
	cloud  *aws.Cloud
	issuer *issuer
	role   aws.Role
}

func newWeb(t testing.TB, change ...func(*aws.Config)) *web {
	t.Helper()
	e := &web{clock: newClock()}
	e.issuer = newIssuer(t, newAuthority(t, "web", e.Now(), nil, always))
	e.role = aws.Role{ARN: roleARN, TrustPolicy: webPolicy}
	cfg := aws.Config{
		Now: e.Now, Account: account, Region: region, Roots: e.issuer.roots, DialContext: e.issuer.dial,
		Roles:         []aws.Role{e.role},
		OIDCProviders: []aws.OIDCProvider{{URL: issuerURL, ClientIDs: []string{audience, "client"}}},
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

// token is the token that is accepted.
func (e *web) token() token {
	now := e.Now().Unix()
	return token{key: rsaKey(), header: map[string]any{"alg": "RS256", "kid": "rs", "typ": "JWT"}, claims: map[string]any{
		"iss": issuerURL, "sub": spiffeID, "aud": audience, "iat": now - 60, "exp": now + 900}}
}
