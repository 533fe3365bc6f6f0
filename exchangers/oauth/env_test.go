package oauth_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
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

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
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
	return issuertest.Sign(s.t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, s.changes)), nil
}

// judge verifies JWT-SVIDs through the issuer's published keys.
type judge struct {
	verifier *oidc.IDTokenVerifier

	mu    sync.Mutex // guards the rest
	spent map[string]bool
}

func newJudge(t testing.TB) *judge {
	t.Helper()
	issuer := issuertest.New(t)
	client := &http.Client{Transport: &http.Transport{DialContext: issuer.DialContext, TLSClientConfig: &tls.Config{RootCAs: issuer.Roots()}}}
	t.Cleanup(client.CloseIdleConnections)
	provider, err := oidc.NewProvider(oidc.ClientContext(context.Background(), client), issuertest.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &judge{verifier: provider.Verifier(&oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"RS256"}}), spent: map[string]bool{}}
}

// judge says what is wrong with a token: its audience must be one, byte for
// byte, and a jti is taken once.
func (j *judge) judge(ctx context.Context, jwt string) error {
	token, err := j.verifier.Verify(ctx, jwt)
	if err != nil {
		return err
	}
	var claims struct {
		JTI string `json:"jti"`
	}
	if err := token.Claims(&claims); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case len(token.Audience) != 1 || token.Audience[0] != audience:
		return fmt.Errorf("audience %q", token.Audience)
	case token.Subject != workload:
		return fmt.Errorf("subject %q is nobody's", token.Subject)
	case claims.JTI == "" || j.spent[claims.JTI]:
		return errors.New("jti missing, or spent")
	case token.Expiry.Sub(token.IssuedAt) > time.Hour || token.IssuedAt.After(time.Now()):
		return errors.New("life")
	}
	j.spent[claims.JTI] = true
	return nil
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

// newAS is an authorization server: token exchange for anybody whose subject
// token it can verify, and two grants for the client "shop", whose subject the
// workload is.
func newAS(t testing.TB) *server {
	j := newJudge(t)
	return serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		status, body := as(j, r)
		w.Header().Set("Content-Type", "application/json;charset=UTF-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Request-Id", "req-1")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	})
}

func as(j *judge, r *http.Request) (int, map[string]any) {
	bad := func(status int, code string, why any) (int, map[string]any) {
		return status, map[string]any{"error": code, "error_description": fmt.Sprint(why)}
	}
	if r.Method != http.MethodPost || r.URL.Path != "/realms/shop/token" || r.URL.RawQuery != "" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		return bad(404, "not_found", "no such thing")
	}
	raw, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	f, err := url.ParseQuery(string(raw))
	if err != nil {
		return bad(400, "invalid_request", err)
	}
	takes := map[string]string{
		"client_credentials":                              " client_id client_assertion client_assertion_type scope resource ",
		"urn:ietf:params:oauth:grant-type:jwt-bearer":     " client_id assertion scope resource ",
		"urn:ietf:params:oauth:grant-type:token-exchange": " client_id client_assertion client_assertion_type subject_token subject_token_type requested_token_type audience scope resource ",
	}[f.Get("grant_type")]
	if takes == "" {
		return bad(400, "unsupported_grant_type", f.Get("grant_type"))
	}
	for name, values := range f {
		if many := name == "audience" || name == "resource"; name != "grant_type" && !strings.Contains(takes, " "+name+" ") || values[0] == "" || len(values) > 1 && !many {
			return bad(400, "invalid_request", "parameter "+name)
		}
	}
	if f.Has("client_id") && f.Get("client_id") != "shop" {
		return bad(401, "invalid_client", "no such client")
	}
	if f.Has("client_assertion") || f.Get("grant_type") == "client_credentials" {
		if kind := f.Get("client_assertion_type"); kind != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" && kind != "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe" {
			return bad(401, "invalid_client", "client_assertion_type")
		}
		if err := j.judge(r.Context(), f.Get("client_assertion")); err != nil {
			return bad(401, "invalid_client", err)
		}
	}
	for _, name := range []string{"subject_token", "assertion"} {
		if !strings.Contains(takes, " "+name+" ") {
			continue
		}
		if err := j.judge(r.Context(), f.Get(name)); err != nil {
			return bad(400, "invalid_grant", err)
		}
	}
	for _, s := range strings.Fields(f.Get("scope")) {
		if s != "orders:read" && s != "orders:write" {
			return bad(400, "invalid_scope", s)
		}
	}
	for _, target := range append(f["resource"], f["audience"]...) {
		if target != "https://orders.example" && target != "ledger" && target != "stock" {
			return bad(400, "invalid_target", target)
		}
	}
	answer := map[string]any{"access_token": "tok-" + rand.Text(), "token_type": "Bearer", "expires_in": 600, "refresh_token": "never-kept"}
	if f.Has("subject_token") {
		answer["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
		if f.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt" {
			return bad(400, "invalid_request", "subject_token_type")
		}
		if want := f.Get("requested_token_type"); want == "urn:ietf:params:oauth:token-type:id_token" {
			answer["issued_token_type"], answer["token_type"] = want, "N_A"
		} else if want != "" && want != answer["issued_token_type"] {
			return bad(400, "invalid_request", "requested_token_type")
		}
	}
	if strings.Contains(f.Get("scope"), "orders:write") { // it gives less than was asked for, and says so
		answer["scope"] = "orders:read"
	}
	return 200, answer
}

// newVault is OpenBao as far as its logins go: role "checkout" of the mounts
// jwt, cert and, in the namespace team/shop, spiffe/cert.
func newVault(t testing.TB, ca *authority) *server {
	j := newJudge(t)
	return serve(t, &tls.Config{ClientAuth: tls.RequestClientCert}, func(w http.ResponseWriter, r *http.Request) {
		status, body := vault(j, ca, r)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	})
}

func vault(j *judge, ca *authority, r *http.Request) (int, map[string]any) {
	bad := func(status int, why string) (int, map[string]any) {
		return status, map[string]any{"errors": []string{why}}
	}
	if r.Method != http.MethodPost || r.URL.RawQuery != "" || r.Header.Get("X-Vault-Request") != "true" || r.Header.Get("X-Vault-Token") != "" {
		return bad(400, "missing X-Vault-Request, or something beside it")
	}
	decoder := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	decoder.DisallowUnknownFields()
	var body struct{ Role, JWT, Name string }
	if err := decoder.Decode(&body); err != nil {
		return bad(400, "failed to parse JSON input")
	}
	switch namespace := r.Header.Get("X-Vault-Namespace"); {
	case namespace == "" && r.URL.Path == "/v1/auth/jwt/login":
		if body.Role != "checkout" {
			return bad(400, fmt.Sprintf("role %q could not be found", body.Role))
		}
		if err := j.judge(r.Context(), body.JWT); err != nil {
			return bad(400, "error validating token: "+err.Error())
		}
	case namespace == "" && r.URL.Path == "/v1/auth/cert/login", namespace == "team/shop" && r.URL.Path == "/v1/auth/spiffe/cert/login":
		if why := ca.judge(r.TLS.PeerCertificates, body.Name); why != "" {
			return bad(400, why)
		}
		if r.TLS.PeerCertificates[0].Subject.CommonName == "" {
			return bad(500, "missing name in alias")
		}
	default:
		return bad(403, "permission denied")
	}
	return 200, map[string]any{"request_id": "7f0c2f6e", "lease_id": "", "renewable": false, "lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil,
		"auth": map[string]any{"client_token": "hvs." + rand.Text(), "accessor": rand.Text(), "policies": []string{"default"}, "token_policies": []string{"default"},
			"lease_duration": 1200, "renewable": true, "entity_id": rand.Text(), "token_type": "service", "orphan": true, "mfa_requirement": nil, "num_uses": 0}}
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

// named has a CN, or none.
func (a *authority) named(t testing.TB, id, name string) *x509svid.SVID {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key := issuertest.NewEC(issuertest.EC().Curve)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
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

// judge is the role: its certificate is the authority's, its allowed_uri_sans
// the workload.
func (a *authority) judge(chain []*x509.Certificate, role string) string {
	if len(chain) == 0 {
		return "client certificate must be supplied"
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || role != "checkout" {
		return "invalid certificate or no client certificate supplied"
	}
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != workload {
		return "failed to match all constraints for this login certificate"
	}
	return ""
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
