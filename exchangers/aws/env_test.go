package aws_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloud "github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	accountID  = "123456789012"
	anchorARN  = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555"
	profileARN = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/66666666-7777-8888-9999-000000000000"
	roleARN    = "arn:aws:iam::123456789012:role/team/orders"
	webRoleARN = "arn:aws:iam::123456789012:role/orders-web"
)

var workload = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/orders")

var anywherePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"rolesanywhere.amazonaws.com"},
  "Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
  "Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":"` + workload.String() + `"},"ArnEquals":{"aws:SourceArn":"` + anchorARN + `"}}}]}`

const webPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
  "Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/example.com/credence"},"Action":"sts:AssumeRoleWithWebIdentity",
  "Condition":{"StringEquals":{"example.com/credence:aud":"sts.amazonaws.com","example.com/credence:sub":"spiffe://example.org/ns/shop/sa/orders"}}}]}`

const (
	secondARN = "arn:aws:iam::123456789012:role/second"
	external  = "customer:42/x"
)

// secondPolicy trusts both first roles, with an external ID.
const secondPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
  "Principal":{"AWS":["arn:aws:iam::123456789012:role/team/orders","arn:aws:iam::123456789012:role/orders-web"]},
  "Action":["sts:AssumeRole","sts:SetSourceIdentity"],"Condition":{"StringEquals":{"sts:ExternalId":"customer:42/x"}}}]}`

// issued is a CA and what it certified.
type issued struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func certify(t testing.TB, parent *issued, key crypto.Signer, template *x509.Certificate) *issued {
	t.Helper()
	if parent == nil {
		parent = &issued{template, key}
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	template.SerialNumber = must(t, func() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) })
	der := must(t, func() ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	})
	return &issued{must(t, func() (*x509.Certificate, error) { return x509.ParseCertificate(der) }), key}
}

func must[T any](t testing.TB, f func() (T, error)) T {
	t.Helper()
	v, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must(t, func() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(c, rand.Reader) })
}

func authority(t testing.TB, parent *issued, name string) *issued {
	t.Helper()
	return certify(t, parent, ecKey(t, elliptic.P256()), &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign})
}

func leafTemplate() *x509.Certificate {
	uri, _ := url.Parse(workload.String())
	return &x509.Certificate{Subject: pkix.Name{CommonName: "orders"}, URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
}

// svids present what the test says.
type svids struct {
	x509 *x509svid.SVID
	jwt  string
}

func (svids) ID() spiffeid.ID { return workload }
func (s svids) X509(context.Context) (*x509svid.SVID, error) {
	if s.x509 == nil {
		return nil, errors.New("no X509-SVID")
	}
	return s.x509, nil
}
func (s svids) JWT(context.Context) (string, error) {
	if s.jwt == "" {
		return "", errors.New("no JWT-SVID")
	}
	return s.jwt, nil
}

func x509SVID(leaf *issued, chain ...*issued) *x509svid.SVID {
	s := &x509svid.SVID{ID: workload, Certificates: []*x509.Certificate{leaf.cert}, PrivateKey: leaf.key}
	for _, c := range chain {
		s.Certificates = append(s.Certificates, c.cert)
	}
	return s
}

// account is the sandbox's account, both services behind TLS.
type account struct {
	root, issuing *issued
	leaf          *issued
	issuer        *issuertest.Issuer
	faults        *sandbox.Faults
	cloud         *cloud.Cloud
	anywhere, sts *httptest.Server
}

func newAccount(t testing.TB) *account {
	t.Helper()
	return newAccountIn(t, "aws", "us-east-1")
}

// newAccountIn has the same in another place.
func newAccountIn(t testing.TB, partition, region string) *account {
	t.Helper()
	in := strings.NewReplacer("arn:aws:", "arn:"+partition+":", "us-east-1", region).Replace
	a := &account{root: authority(t, nil, "root"), faults: &sandbox.Faults{}, issuer: issuertest.New(t)}
	a.issuing = authority(t, a.root, "issuing")
	a.leaf = certify(t, a.issuing, ecKey(t, elliptic.P256()), leafTemplate())
	a.cloud = must(t, func() (*cloud.Cloud, error) {
		return cloud.New(cloud.Config{
			Account: accountID, Region: region, RatePerSecond: 1_000_000,
			Roots: a.issuer.Roots(), DialContext: a.issuer.DialContext,
			TrustAnchors: []cloud.TrustAnchor{{ARN: in(anchorARN), Certificates: []*x509.Certificate{a.root.cert}, Enabled: true}},
			Profiles:     []cloud.Profile{{ARN: in(profileARN), RoleARNs: []string{in(roleARN)}, Enabled: true, AcceptRoleSessionName: true}},
			Roles: []cloud.Role{{ARN: in(roleARN), TrustPolicy: in(anywherePolicy)}, {ARN: in(webRoleARN), TrustPolicy: in(webPolicy)},
				{ARN: in(secondARN), TrustPolicy: in(secondPolicy)}},
			OIDCProviders: []cloud.OIDCProvider{{URL: issuertest.URL, ClientIDs: []string{"sts.amazonaws.com"}}},
		})
	})
	a.anywhere = serve(t, a.faults.Wrap(a.cloud.RolesAnywhere()))
	a.sts = serve(t, a.faults.Wrap(a.cloud.STS()))
	return a
}

func serve(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (a *account) jwt(t testing.TB, changes map[string]any) svids {
	t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{"iss": issuertest.URL, "sub": workload.String(), "aud": "sts.amazonaws.com", "iat": now - 5, "exp": now + 900}
	return svids{jwt: issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, changes))}
}

func exchanger(t testing.TB, s exchangers.Settings, server *httptest.Server) exchangers.Exchanger {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := must(t, func() (*http.Client, error) {
		return exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots, Timeout: 5 * time.Second})
	})
	t.Cleanup(client.CloseIdleConnections)
	return must(t, func() (exchangers.Exchanger, error) {
		return aws.New(aws.Config{Settings: s, Endpoint: server.URL, Client: client})
	})
}

// refused fails unless err is a refusal, and returns it.
func refused(t testing.TB, cred exchangers.Credential, err error) *exchangers.Error {
	t.Helper()
	var e *exchangers.Error
	if !errors.As(err, &e) {
		t.Fatalf("not a refusal: %v, %v", cred, err)
	}
	if cred != (exchangers.Credential{}) {
		t.Errorf("a credential beside the refusal: %v", cred)
	}
	if e.Provider != "aws" || e.Class == "" {
		t.Errorf("provider %q, class %q", e.Provider, e.Class)
	}
	return e
}

// exchangerWithin gives up on a hanging server that soon.
func exchangerWithin(t testing.TB, s exchangers.Settings, server *httptest.Server, limit time.Duration) exchangers.Exchanger {
	t.Helper()
	client := *server.Client()
	client.Timeout = limit
	return must(t, func() (exchangers.Exchanger, error) {
		return aws.New(aws.Config{Settings: s, Endpoint: server.URL, Client: &client})
	})
}

// client trusts both services.
func (a *account) client(t testing.TB) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.anywhere.Certificate())
	roots.AddCert(a.sts.Certificate())
	return must(t, func() (*http.Client, error) { return exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots}) })
}

// toHosts serves the named hosts itself, and no others.
type toHosts struct {
	t       testing.TB
	servers map[string]http.Handler
}

func (h *toHosts) RoundTrip(r *http.Request) (*http.Response, error) {
	server := h.servers[r.URL.Host]
	if server == nil || r.URL.Scheme != "https" {
		h.t.Errorf("asked %s", r.URL)
		return nil, errors.New("no such host")
	}
	in := r.Clone(r.Context())
	in.Host = r.URL.Host
	w := httptest.NewRecorder()
	server.ServeHTTP(w, in)
	return w.Result(), nil
}
