package gcp_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/gcp"
	cloud "github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	x509Provider = "//iam.googleapis.com/" + pool + "/providers/prov-x509"
	first        = "first@proj.iam.gserviceaccount.com"
	second       = "second@proj.iam.gserviceaccount.com"
	idAudience   = "https://orders.example/"
)

// x509SVIDs hold an X509-SVID alone.
type x509SVIDs struct{ svid *x509svid.SVID }

func (x509SVIDs) ID() spiffeid.ID { return spiffeid.RequireFromString(workload) }
func (s x509SVIDs) X509(context.Context) (*x509svid.SVID, error) {
	return s.svid, nil
}
func (x509SVIDs) JWT(context.Context) (string, error) { return "", context.Canceled }

// withX509 adds an X.509 provider to the world, and returns its mutual-TLS
// host and the authority.
func (w *world) withX509(t testing.TB) (*httptest.Server, *issuertest.CA) {
	t.Helper()
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	err := w.cloud.PutProvider(pool, cloud.Provider{ID: "prov-x509", TrustStore: &cloud.TrustStore{Anchors: []*x509.Certificate{ca.Certificate}},
		AttributeMapping: map[string]string{"google.subject": "assertion.san.uri"}, AttributeCondition: "!assertion.san.uri.endsWith('/banned')"})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/token", w.faults.Wrap(w.cloud.MTLS()))
	mux.Handle("/v1/projects/", w.cloud.IAMCredentials())
	s := httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, ca
}

func x509Settings() *gcp.Settings { return &gcp.Settings{Provider: x509Provider, SVID: "x509"} }

func issue(t testing.TB, ca *issuertest.CA, id string, changes ...func(*x509.Certificate)) x509SVIDs {
	leaf := ca.Issue(t, id, time.Now(), issuertest.EC().Public(), changes...)
	return x509SVIDs{&x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{leaf, ca.Certificate}, PrivateKey: issuertest.EC()}}
}

func TestExchangesX509(t *testing.T) {
	w := newWorld(t)
	server, ca := w.withX509(t)
	account := x509Settings()
	account.ServiceAccount = email
	for name, row := range map[string]struct {
		settings *gcp.Settings
		change   func(*x509.Certificate)
		life     time.Duration
	}{
		"federated":           {x509Settings(), func(*x509.Certificate) {}, time.Hour},
		"short SVID":          {x509Settings(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Minute) }, 10 * time.Minute},
		"service account":     {account, func(*x509.Certificate) {}, time.Hour},
		"short SVID, account": {account, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Minute) }, 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			cred, err := exchanger(t, row.settings, server).Exchange(t.Context(), issue(t, ca, workload, row.change))
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(cred.Expires); left > row.life || left < row.life-20*time.Second {
				t.Errorf("expires in %s", left)
			}
			if w.whoami(t, cred.Bearer.Token) != http.StatusOK {
				t.Error("the token does not work")
			}
		})
	}
	if x509Settings().Audience() != "" {
		t.Error("an audience: the JWT-SVID would be fetched")
	}
}

// Each refusal of Google's names the way out, and the good SVID still passes.
func TestX509Refusals(t *testing.T) {
	w := newWorld(t)
	server, ca := w.withX509(t)
	other := issuertest.NewCA(t, "root", time.Now(), issuertest.NewCA(t, "other", time.Now(), nil))
	edPublic, edKey, _ := ed25519.GenerateKey(nil)
	ed := ca.Issue(t, workload, time.Now(), edPublic)
	long := "spiffe://example.org/" + strings.Repeat("a", 107)
	oidc := x509Settings()
	oidc.Provider = resource
	for name, row := range map[string]struct {
		settings *gcp.Settings
		svids    x509SVIDs
		code     string
		text     string
	}{
		"another CA":     {svids: issue(t, other, workload), code: "invalid_grant", text: "trust store"},
		"condition":      {svids: issue(t, ca, "spiffe://example.org/banned"), code: "unauthorized_client", text: "attribute condition"},
		"OIDC provider":  {settings: oidc, svids: issue(t, ca, workload), code: "invalid_request", text: "check svid"},
		"no SVID":        {code: "unfit_svid", text: "no X509-SVID"},
		"long SPIFFE ID": {svids: issue(t, ca, long), code: "unfit_svid", text: "127"},
		"391 days":       {svids: issue(t, ca, workload, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(391 * 24 * time.Hour) }), code: "unfit_svid", text: "390"},
		"for servers":    {svids: issue(t, ca, workload, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), code: "unfit_svid", text: "clientAuth"},
		"a CA":           {svids: issue(t, ca, workload, func(c *x509.Certificate) { c.IsCA = true }), code: "unfit_svid", text: "no CA"},
		"expired":        {svids: issue(t, ca, workload, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), code: "unfit_svid", text: "clock"},
		"Ed25519": {svids: x509SVIDs{&x509svid.SVID{ID: spiffeid.RequireFromString(workload), Certificates: []*x509.Certificate{ed}, PrivateKey: edKey}},
			code: "unfit_svid", text: "P-256"},
		"eleven certificates": {svids: func() x509SVIDs {
			s := issue(t, ca, workload)
			for range 9 {
				s.svid.Certificates = append(s.svid.Certificates, ca.Certificate)
			}
			return s
		}(), code: "unfit_svid", text: "11 certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			if row.settings == nil {
				row.settings = x509Settings()
			}
			cred, err := exchanger(t, row.settings, server).Exchange(t.Context(), row.svids)
			e := refused(t, cred, err)
			if e.Code != row.code || e.Class != exchangers.Config || !strings.Contains(e.Error(), row.text) {
				t.Errorf("%+v", e)
			}
			if _, err := exchanger(t, x509Settings(), server).Exchange(t.Context(), issue(t, ca, workload)); err != nil {
				t.Errorf("the good SVID: %v", err)
			}
		})
	}
}

// A key that is not the certificate's does not get through the handshake.
func TestX509WithAnotherKey(t *testing.T) {
	w := newWorld(t)
	server, ca := w.withX509(t)
	s := issue(t, ca, workload)
	s.svid.PrivateKey = issuertest.NewEC(issuertest.EC().Curve)
	cred, err := exchanger(t, x509Settings(), server).Exchange(t.Context(), s)
	refused(t, cred, err)
}

// A client that cannot show a certificate is refused before anything is sent.
func TestX509NeedsOurClient(t *testing.T) {
	if _, err := gcp.New(gcp.Config{Settings: x509Settings(), Client: &http.Client{Transport: &transport{}}}); err == nil {
		t.Error("made")
	}
}

func TestRevokeX509(t *testing.T) {
	w := newWorld(t)
	server, ca := w.withX509(t)
	command := x509Settings().Revoke(cut(workload)).Remedies[0].Command
	condition, ok := strings.CutPrefix(command[len(command)-1], "--attribute-condition=")
	if !ok || command[4] != "update-x509" {
		t.Fatalf("%q", command)
	}
	err := w.cloud.PutProvider(pool, cloud.Provider{ID: "prov-x509", TrustStore: &cloud.TrustStore{Anchors: []*x509.Certificate{ca.Certificate}},
		AttributeMapping: map[string]string{"google.subject": "assertion.san.uri"}, AttributeCondition: condition})
	if err != nil {
		t.Fatal(err)
	}
	cred, err := exchanger(t, x509Settings(), server).Exchange(t.Context(), issue(t, ca, workload))
	refused(t, cred, err)
	if _, err := exchanger(t, x509Settings(), server).Exchange(t.Context(), issue(t, ca, workload+"/x")); err != nil {
		t.Errorf("another subject: %v", err)
	}
}

// chained lets the workload reach email through first and second.
func (w *world) chained(t *testing.T) {
	t.Helper()
	for account, by := range map[string]string{first: principal, second: "serviceAccount:" + first, email: "serviceAccount:" + second} {
		err := w.cloud.PutServiceAccount(cloud.ServiceAccount{Email: account, UniqueID: "1234567890",
			Bindings: []cloud.Binding{{Role: cloud.TokenCreator, Members: []string{by}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDelegates(t *testing.T) {
	w := newWorld(t)
	w.chained(t)
	good := impersonating()
	good.Delegates = []string{first, second}
	for name, delegates := range map[string][]string{"none": nil, "the first alone": {first}, "the second alone": {second}, "in another order": {second, first}} {
		s := impersonating()
		s.Delegates = delegates
		cred, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, nil))
		if e := refused(t, cred, err); e.Code != "PERMISSION_DENIED" || !strings.Contains(e.Hint, "delegate") {
			t.Errorf("%s: %+v", name, e)
		}
		if cred, err = exchanger(t, good, w.server).Exchange(t.Context(), w.jwt(t, nil)); err != nil || w.whoami(t, cred.Bearer.Token) != http.StatusOK {
			t.Errorf("%s: the good delegates: %v", name, err)
		}
	}
}

func TestIDToken(t *testing.T) {
	w := newWorld(t)
	s := impersonating()
	s.IDTokenAudience = idAudience
	cred, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(cred.Bearer.Token.Reveal(), ".")[1])
	if text := string(payload); err != nil || !strings.Contains(text, `"`+idAudience+`"`) || !strings.Contains(text, email) {
		t.Errorf("%v: %s", err, payload)
	}
	if left := time.Until(cred.Expires); left > 15*time.Minute || left < 14*time.Minute || cred.Bearer.Scopes != nil {
		t.Errorf("expires in %s: the SVID ends in 15m; scopes %v", left, cred.Bearer.Scopes)
	}
	cred, err = exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, map[string]any{"sub": "spiffe://example.org/other"}))
	if e := refused(t, cred, err); e.Code != "PERMISSION_DENIED" {
		t.Errorf("%+v", e)
	}
}

// Through delegates too, and not an ID token for somebody else.
func TestIDTokenThroughDelegates(t *testing.T) {
	w := newWorld(t)
	w.chained(t)
	s := impersonating()
	s.IDTokenAudience, s.Delegates = idAudience, []string{first, second}
	if _, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, nil)); err != nil {
		t.Error(err)
	}
	for name, token := range map[string]string{
		"another audience": "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"https://evil.example/","exp":4102444800}`)) + ".x",
		"no token":         "", "no JWT": "ya29.x", "no exp": "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"`+idAudience+`"}`)) + ".x",
	} {
		mux := http.NewServeMux()
		mux.Handle("/v1/token", w.cloud.STS())
		mux.HandleFunc("/v1/projects/", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"token":"` + token + `"}`))
		})
		cred, err := exchanger(t, s, serve(t, mux)).Exchange(t.Context(), w.jwt(t, nil))
		if e := refused(t, cred, err); e.Code != "unusable_answer" || token != "" && strings.Contains(e.Error(), token) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestQuotaProject(t *testing.T) {
	w := newWorld(t)
	s := impersonating()
	s.QuotaProject = "other-1"
	cred, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, nil))
	if e := refused(t, cred, err); e.Code != "PERMISSION_DENIED" || !strings.Contains(e.Hint, "quota_project") {
		t.Errorf("%+v", e)
	}
	s.QuotaProject = "billed-1"
	for _, with := range []*gcp.Settings{s, impersonating()} {
		w.charged.Store("")
		if _, err := exchanger(t, with, w.server).Exchange(t.Context(), w.jwt(t, nil)); err != nil || w.charged.Load() != with.QuotaProject {
			t.Errorf("charged %q: %v", w.charged.Load(), err)
		}
	}
}

func FuzzIDTokenExpiry(f *testing.F) {
	f.Add("e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"a","exp":4102444800}`)) + ".x")
	f.Add("e30.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if at, err := gcp.IDTokenExpiry(token, "a"); err == nil && (at.Unix() <= 0 || at.Year() > 9999) {
			t.Errorf("%q expires at %s", token, at)
		}
	})
}

func TestHostOfX509(t *testing.T) {
	if got, err := gcp.STS(x509Settings()); err != nil || got != "https://sts.mtls.googleapis.com/v1/token" {
		t.Errorf("%s %v", got, err)
	}
}
