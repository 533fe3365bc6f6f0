package oauth_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
	judgeoauth "github.com/credence-id/credence/exchangers/sandbox/oauth"
	judgevault "github.com/credence-id/credence/exchangers/sandbox/vault"
)

const (
	workload  = "spiffe://example.org/ns/shop/checkout"
	neighbour = "spiffe://example.org/ns/shop/billing"
	audience  = "https://as.example/realms/shop"
)

// svids mints a fresh JWT-SVID, with a jti of its own, for each call.
type svids struct {
	t       testing.TB
	changes map[string]any // of the claims
	alg     string         // empty: RS256
	kid     string         // empty: that of the key
	x509    *x509svid.SVID
	calls   *int
}

func (svids) ID() spiffeid.ID { return spiffeid.RequireFromString(workload) }

func (s svids) X509(context.Context) (*x509svid.SVID, error) {
	if s.x509 == nil {
		return nil, errors.New("no X509-SVID is needed")
	}
	return s.x509, nil
}

func (s svids) JWT(context.Context) (string, error) {
	if s.calls != nil {
		*s.calls++
	}
	now := time.Now().Unix()
	claims := map[string]any{"iss": issuertest.URL, "sub": workload, "aud": []string{audience}, "iat": now - 5, "exp": now + 900, "jti": rand.Text()}
	key, alg, header := crypto.Signer(issuertest.RSA()), "RS256", map[string]any{}
	if s.alg == "ES256" {
		key, alg, header["kid"] = issuertest.EC(), s.alg, "ec1"
	}
	if s.kid != "" {
		header["kid"] = s.kid
	}
	return issuertest.Sign(s.t, key, alg, header, issuertest.With(claims, s.changes)), nil
}

// server is a TLS server; spoil answers instead of it while it is set.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	spoil http.HandlerFunc
	asked []string // paths
}

func serve(t testing.TB, config *tls.Config, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		next := s.spoil
		s.asked = append(s.asked, r.URL.Path)
		s.mu.Unlock()
		if next == nil {
			next = h
		}
		next(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) spoiled(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil = h
}

func (s *server) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *server) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
}

// issuers reach the issuer of a test, as both judges do.
func issuers(t testing.TB) sandbox.IssuersConfig {
	t.Helper()
	i := issuertest.New(t)
	return sandbox.IssuersConfig{Roots: i.Roots(), DialContext: i.DialContext}
}

// newAS is an authorization server to which the workload is the client "shop".
func newAS(t testing.TB) *server {
	t.Helper()
	judge, err := judgeoauth.New(judgeoauth.Config{Issuers: issuers(t), Identifier: audience, Grants: []judgeoauth.Grant{{
		Issuer: issuertest.URL, Subject: workload, ClientID: "shop", Scopes: []string{"orders:read", "orders:write"}, Resources: []string{"https://orders.example", "ledger", "stock"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, nil, http.StripPrefix("/realms/shop", judge.Token()).ServeHTTP)
}

// newVault has role "checkout" in the mounts jwt, cert and, in the namespace
// team/shop, spiffe/cert.
func newVault(t testing.TB, ca *authority) *server {
	t.Helper()
	of := judgevault.Token{TTL: 20 * time.Minute}
	cert := &judgevault.Cert{Roles: []judgevault.CertRole{{Name: "checkout", Certificates: []*x509.Certificate{ca.cert}, AllowedURISANs: []string{workload}, Token: of}}}
	judge, err := judgevault.New(judgevault.Config{Issuers: issuers(t), Mounts: []judgevault.Mount{
		{Path: "jwt", JWT: &judgevault.JWT{DiscoveryURL: issuertest.URL, SupportedAlgs: []string{"RS256"}, Roles: []judgevault.JWTRole{{
			Name: "checkout", BoundAudiences: []string{audience}, BoundSubject: workload, UserClaim: "sub", Token: of}}}},
		{Path: "cert", Cert: cert},
		{Namespace: "team/shop", Path: "spiffe/cert", Cert: cert},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, &tls.Config{ClientAuth: tls.RequestClientCert}, judge.Handler().ServeHTTP)
}

// authority signs X509-SVIDs.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := issuertest.NewEC(issuertest.EC().Curve)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"example.org"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) svid(t testing.TB, id string) *x509svid.SVID {
	return a.named(t, id, "checkout")
}

// until is the workload's, to that end.
func (a *authority) until(t testing.TB, end time.Time) *x509svid.SVID {
	return a.issue(t, workload, "checkout", end)
}

// named has a CN, or none.
func (a *authority) named(t testing.TB, id, name string) *x509svid.SVID {
	return a.issue(t, id, name, time.Now().Add(time.Hour))
}

func (a *authority) issue(t testing.TB, id, name string, end time.Time) *x509svid.SVID {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key := issuertest.NewEC(issuertest.EC().Curve)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Minute), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func exchanger(t testing.TB, s *oauth.Settings, on *server) exchangers.Exchanger {
	t.Helper()
	x, err := oauth.New(oauth.Config{Settings: s, Roots: on.roots(), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func refused(t testing.TB, cred exchangers.Credential, err error) *exchangers.Error {
	t.Helper()
	var e *exchangers.Error
	if !errors.As(err, &e) {
		t.Fatalf("not a refusal: %v, %v", cred, err)
	}
	if cred.Bearer != nil || cred.AWS != nil {
		t.Errorf("a credential beside the refusal: %v", cred)
	}
	if text := fmt.Sprintf("%v %+v", e, e); e.Provider != "oauth" || e.Class == "" || strings.Contains(text, "eyJ") || strings.Contains(text, "\n") || strings.Contains(text, secret) {
		t.Errorf("%+v", e)
	}
	return e
}

// secret is a token that stands in answers which must not be told.
const secret = "hunter2-token"
