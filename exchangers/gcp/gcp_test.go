package gcp_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloud "github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	workload  = "spiffe://example.org/ns/shop/checkout"
	pool      = "projects/123/locations/global/workloadIdentityPools/pool-1"
	resource  = "//iam.googleapis.com/" + pool + "/providers/prov-1"
	principal = "principal://iam.googleapis.com/" + pool + "/subject/" + workload
	email     = "orders@proj.iam.gserviceaccount.com"
)

type svids struct{ jwt string }

func (svids) ID() spiffeid.ID { return spiffeid.RequireFromString(workload) }
func (svids) X509(context.Context) (*x509svid.SVID, error) {
	return nil, errors.New("no X509-SVID is needed")
}
func (s svids) JWT(context.Context) (string, error) {
	if s.jwt == "" {
		return "", errors.New("no JWT-SVID")
	}
	return s.jwt, nil
}

// world is the sandbox's cloud behind TLS.
type world struct {
	issuer     *issuertest.Issuer
	cloud      *cloud.Cloud
	recorder   *sandbox.Recorder
	faults     *sandbox.Faults // of STS
	iamFaults  *sandbox.Faults
	asked, iam atomic.Int32
	charged    atomic.Value // the project that the last call of IAM named
	server     *httptest.Server
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{issuer: issuertest.New(t), recorder: sandbox.NewRecorder(10), faults: &sandbox.Faults{}, iamFaults: &sandbox.Faults{}}
	var err error
	w.cloud, err = cloud.New(cloud.Config{
		Issuers: sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext},
		Pools: []cloud.Pool{{Project: "123", ID: "pool-1", Providers: []cloud.Provider{{ID: "prov-1", Issuer: issuertest.URL,
			AttributeMapping: map[string]string{"google.subject": "assertion.sub"}, AttributeCondition: "!assertion.sub.endsWith('/banned')"}}}},
		ServiceAccounts: []cloud.ServiceAccount{{Email: email, UniqueID: "1234567890",
			Bindings: []cloud.Binding{{Role: cloud.WorkloadIdentityUser, Members: []string{principal}}}}},
		QuotaProjects: []cloud.QuotaProject{{ID: "billed-1", Consumers: []string{principal}}, {ID: "other-1"}},
		Key:           issuertest.RSA(), Log: w.recorder.Record,
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/token", counted(&w.asked, w.faults.Wrap(w.cloud.STS())))
	iam := w.iamFaults.Wrap(w.cloud.IAMCredentials())
	mux.Handle("/v1/projects/", counted(&w.iam, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.charged.Store(r.Header.Get("X-Goog-User-Project"))
		iam.ServeHTTP(rw, r)
	})))
	mux.Handle("/whoami", w.cloud.Whoami())
	w.server = serve(t, mux)
	return w
}

func counted(n *atomic.Int32, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		h.ServeHTTP(w, r)
	})
}

func serve(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (w *world) jwt(t testing.TB, changes map[string]any) svids {
	t.Helper()
	now := time.Now().Unix()
	return svids{issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(map[string]any{"iss": issuertest.URL, "sub": workload,
		"aud": settings().Audience(), "iat": now - 5, "exp": now + 900}, changes))}
}

func settings() *gcp.Settings { return &gcp.Settings{Provider: resource} }

func impersonating() *gcp.Settings { return &gcp.Settings{Provider: resource, ServiceAccount: email} }

func exchanger(t testing.TB, s *gcp.Settings, server *httptest.Server) exchangers.Exchanger {
	t.Helper()
	return exchangerWithin(t, s, server, 30*time.Second)
}

// exchangerWithin gives up on a hanging server that soon.
func exchangerWithin(t testing.TB, s *gcp.Settings, server *httptest.Server, limit time.Duration) exchangers.Exchanger {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	x, err := gcp.New(gcp.Config{Settings: s, Endpoint: server.URL, Client: client})
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
	if cred != (exchangers.Credential{}) {
		t.Errorf("a credential beside the refusal: %v", cred)
	}
	if e.Provider != "gcp" || e.Class == "" || strings.Contains(e.Error(), "eyJ") || strings.Contains(e.Error(), "\n") {
		t.Errorf("%+v", e)
	}
	return e
}

func (w *world) whoami(t *testing.T, token exchangers.Secret) int {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/whoami", nil)
	r.Header.Set("Authorization", "Bearer "+token.Reveal())
	resp, err := w.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func TestExchanges(t *testing.T) {
	w := newWorld(t)
	rows := map[string]struct {
		settings *gcp.Settings
		svid     map[string]any
		life     time.Duration
	}{
		"federated":                 {settings(), nil, 900 * time.Second},
		"short SVID, short token":   {settings(), map[string]any{"exp": time.Now().Unix() + 120}, 2 * time.Minute},
		"service account":           {impersonating(), nil, 900 * time.Second},
		"service account, lifetime": {&gcp.Settings{Provider: resource, ServiceAccount: email, Lifetime: exchangers.Duration(5 * time.Minute)}, nil, 5 * time.Minute},
		"unique ID":                 {&gcp.Settings{Provider: resource, ServiceAccount: "1234567890"}, nil, 900 * time.Second},
		"scopes":                    {&gcp.Settings{Provider: resource, Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}}, nil, 900 * time.Second},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			cred, err := exchanger(t, row.settings, w.server).Exchange(t.Context(), w.jwt(t, row.svid))
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(cred.Expires); left > row.life || left < row.life-20*time.Second {
				t.Errorf("expires in %s, want %s", left, row.life)
			}
			if cred.AWS != nil || len(cred.Bearer.Scopes) == 0 || w.whoami(t, cred.Bearer.Token) != http.StatusOK {
				t.Errorf("%+v", cred)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	now := time.Now().Unix()
	other := func(change func(*gcp.Settings)) *gcp.Settings {
		s := impersonating()
		change(s)
		return s
	}
	rows := map[string]struct {
		settings *gcp.Settings
		svid     map[string]any
		status   int
		code     string
		class    exchangers.Class
		hint     string
	}{
		"audience of another cloud": {svid: map[string]any{"aud": "sts.amazonaws.com"}, status: 400, code: "invalid_grant", hint: "allowed audiences"},
		"another issuer":            {svid: map[string]any{"iss": issuertest.URL + "/"}, status: 400, code: "invalid_grant", hint: "issuer URI"},
		"expired":                   {svid: map[string]any{"iat": now - 1000, "exp": now - 500}, status: 400, code: "invalid_grant", hint: "clock"},
		"attribute condition":       {svid: map[string]any{"sub": "spiffe://example.org/banned"}, status: 400, code: "unauthorized_client", hint: "attribute condition"},
		"long SPIFFE ID":            {svid: map[string]any{"sub": "spiffe://example.org/" + strings.Repeat("a", 107)}, status: 400, code: "invalid_request", hint: "127 bytes"},
		"unknown provider":          {settings: other(func(s *gcp.Settings) { s.Provider = resource + "0" }), status: 400, code: "invalid_target", hint: "does not exist"},
		"no binding":                {settings: impersonating(), svid: map[string]any{"sub": "spiffe://example.org/other"}, status: 403, code: "PERMISSION_DENIED", hint: "workloadIdentityUser"},
		"no such account": {settings: other(func(s *gcp.Settings) { s.ServiceAccount = "none@proj.iam.gserviceaccount.com" }),
			status: 403, code: "PERMISSION_DENIED", hint: "must exist"},
		"lifetime without policy": {settings: other(func(s *gcp.Settings) { s.Lifetime = exchangers.Duration(2 * time.Hour) }),
			status: 400, code: "INVALID_ARGUMENT", hint: "organization policy"},
		"scope of nobody": {settings: other(func(s *gcp.Settings) { s.Scopes = []string{"https://example.org/scope"} }),
			status: 400, code: "INVALID_ARGUMENT", hint: "check scopes"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if row.settings == nil {
				row.settings = settings()
			}
			cred, err := exchanger(t, row.settings, w.server).Exchange(t.Context(), w.jwt(t, row.svid))
			e := refused(t, cred, err)
			if e.Status != row.status || e.Code != row.code || e.Class != exchangers.Config || !strings.Contains(e.Hint, row.hint) {
				t.Errorf("%+v", e)
			}
		})
	}
	if _, err := exchanger(t, settings(), w.server).Exchange(t.Context(), svids{}); err == nil {
		t.Error("no SVID gave a credential")
	}
}

func TestIssuerUnreachableIsPropagation(t *testing.T) {
	w := newWorld(t)
	w.issuer.SetDiscovery(issuertest.Status(http.StatusInternalServerError))
	cred, err := exchanger(t, settings(), w.server).Exchange(t.Context(), w.jwt(t, nil))
	if e := refused(t, cred, err); e.Class != exchangers.Propagation || !strings.Contains(e.Hint, "issuer") {
		t.Errorf("%+v", e)
	}
}

func TestFaults(t *testing.T) {
	w := newWorld(t)
	rows := map[string]struct {
		fault sandbox.Fault
		class exchangers.Class
		after time.Duration
	}{
		"throttled":      {sandbox.Fault{Kind: sandbox.FaultThrottled, RetryAfter: 2 * time.Second}, exchangers.Throttled, 2 * time.Second},
		"error":          {sandbox.Fault{Kind: sandbox.FaultError}, exchangers.Outage, 0},
		"unavailable":    {sandbox.Fault{Kind: sandbox.FaultUnavailable}, exchangers.Outage, 0},
		"hang":           {sandbox.Fault{Kind: sandbox.FaultHang}, exchangers.Outage, 0},
		"closed":         {sandbox.Fault{Kind: sandbox.FaultClosed}, exchangers.Outage, 0},
		"truncated":      {sandbox.Fault{Kind: sandbox.FaultTruncated}, exchangers.Outage, 0},
		"empty":          {sandbox.Fault{Kind: sandbox.FaultEmpty}, exchangers.Outage, 0},
		"a proxy's page": {sandbox.Fault{Kind: sandbox.FaultHTML}, exchangers.Outage, 0},
	}
	x := exchanger(t, impersonating(), w.server)
	for at, faults := range map[string]*sandbox.Faults{"sts": w.faults, "iam": w.iamFaults} {
		for name, row := range rows {
			t.Run(at+"/"+name, func(t *testing.T) {
				faults.Queue(1, row.fault)
				w.asked.Store(0)
				w.iam.Store(0)
				first := x
				if row.fault.Kind == sandbox.FaultHang {
					first = exchangerWithin(t, impersonating(), w.server, 2*time.Second)
				}
				cred, err := first.Exchange(t.Context(), w.jwt(t, nil))
				e := refused(t, cred, err)
				if e.Class != row.class || e.RetryAfter != row.after {
					t.Errorf("%+v", e)
				}
				if w.asked.Load() != 1 || w.iam.Load() > 1 {
					t.Errorf("%d and %d calls: the library retried", w.asked.Load(), w.iam.Load())
				}
				if _, err := x.Exchange(t.Context(), w.jwt(t, nil)); err != nil {
					t.Errorf("after the fault: %v", err)
				}
			})
		}
	}
}

// A status of 300 is a success to the library.
func TestRedirectsAreRefusals(t *testing.T) {
	for _, status := range []int{201, 300, 302, 307} {
		var calls atomic.Int32
		server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer","expires_in":3600}`)
		}))
		cred, err := exchanger(t, settings(), server).Exchange(t.Context(), svids{"a.b.c"})
		if e := refused(t, cred, err); e.Status != status || e.Class != exchangers.Config || calls.Load() != 1 {
			t.Errorf("%d: %+v after %d calls", status, e, calls.Load())
		}
	}
}

func TestSendsWhatGoogleDocuments(t *testing.T) {
	var form url.Values
	var body, authorization, path string
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/v1/token" {
			form, _ = url.ParseQuery(string(b))
			_, _ = io.WriteString(w, `{"access_token":"federated","token_type":"Bearer","expires_in":3600}`)
			return
		}
		body, authorization, path = string(b), r.Header.Get("Authorization"), r.URL.Path
		_, _ = io.WriteString(w, `{"accessToken":"account","expireTime":"`+time.Now().Add(20*time.Minute).UTC().Format(time.RFC3339)+`"}`)
	}))
	s := impersonating()
	s.Scopes = []string{"https://www.googleapis.com/auth/devstorage.read_only"}
	s.Lifetime = exchangers.Duration(20 * time.Minute)
	cred, err := exchanger(t, s, server).Exchange(t.Context(), svids{"a.b.c"})
	if err != nil || cred.Bearer.Token.Reveal() != "account" {
		t.Fatalf("%v, %v", cred, err)
	}
	want := url.Values{"audience": {resource}, "grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "scope": {"https://www.googleapis.com/auth/cloud-platform"},
		"subject_token": {"a.b.c"}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}}
	if diff := cmp.Diff(want, form); diff != "" {
		t.Errorf("form (-want +sent):\n%s", diff)
	}
	if authorization != "Bearer federated" || path != "/v1/projects/-/serviceAccounts/"+email+":generateAccessToken" ||
		!strings.Contains(body, `"1200s"`) || !strings.Contains(body, "devstorage.read_only") {
		t.Errorf("sent %s to %s as %s", body, path, authorization)
	}
}

// The library writes requests and answers to stderr if the environment asks.
func TestDebugEnvironmentLogsNoToken(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	w := newWorld(t)
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = pipe
	var out bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(&out, r) }()
	_, err = exchanger(t, impersonating(), w.server).Exchange(t.Context(), w.jwt(t, nil))
	os.Stderr = stderr
	_ = pipe.Close()
	<-read
	if err != nil || out.Len() != 0 {
		t.Errorf("%v; stderr:\n%s", err, out.String())
	}
}

func TestValidate(t *testing.T) {
	rows := map[string]struct {
		change func(*gcp.Settings)
		want   string
	}{
		"good":       {func(*gcp.Settings) {}, ""},
		"with https": {func(s *gcp.Settings) { s.Provider = "https:" + resource }, ""},
		"bare name":  {func(s *gcp.Settings) { s.Provider = strings.TrimPrefix(resource, "//iam.googleapis.com/") }, ""},
		"all": {func(s *gcp.Settings) {
			*s = gcp.Settings{resource, "jwt", email, []string{"1234567890"}, "", "proj-1", []string{"https://www.googleapis.com/auth/pubsub"}, "https://iam.example", exchangers.Duration(time.Hour)}
		}, ""},
		"empty":                    {func(s *gcp.Settings) { *s = gcp.Settings{} }, "audience"},
		"project's ID":             {func(s *gcp.Settings) { s.Provider = strings.Replace(resource, "123", "my-project", 1) }, "project's number"},
		"another host":             {func(s *gcp.Settings) { s.Provider = strings.Replace(resource, "iam.", "evil.", 1) }, "audience"},
		"https without a host":     {func(s *gcp.Settings) { s.Provider = "https:" + pool + "/providers/prov-1" }, "audience"},
		"pool alone":               {func(s *gcp.Settings) { s.Provider = "//iam.googleapis.com/" + pool }, "audience"},
		"account of another":       {func(s *gcp.Settings) { s.ServiceAccount = "ana@example.org" }, "service_account"},
		"path for an account":      {func(s *gcp.Settings) { s.ServiceAccount = "x/../y@p.iam.gserviceaccount.com" }, "service_account"},
		"lifetime alone":           {func(s *gcp.Settings) { s.ServiceAccount, s.Lifetime = "", exchangers.Duration(time.Hour) }, "lifetime"},
		"lifetime of 13 h":         {func(s *gcp.Settings) { s.Lifetime = exchangers.Duration(13 * time.Hour) }, "lifetime"},
		"scope without scheme":     {func(s *gcp.Settings) { s.Scopes = []string{"cloud-platform"} }, "scopes"},
		"two scopes in one":        {func(s *gcp.Settings) { s.Scopes = []string{"https://a.b/c https://d.e/f"} }, "scopes"},
		"33 scopes":                {func(s *gcp.Settings) { s.Scopes = make([]string, 33) }, "scopes"},
		"ID token":                 {func(s *gcp.Settings) { s.IDTokenAudience = "https://orders.example/" }, ""},
		"SVID of another kind":     {func(s *gcp.Settings) { s.SVID = "saml" }, "svid"},
		"delegates alone":          {func(s *gcp.Settings) { s.ServiceAccount, s.Delegates = "", []string{email} }, "delegates"},
		"ID token alone":           {func(s *gcp.Settings) { s.ServiceAccount, s.IDTokenAudience = "", "x" }, "id_token_audience"},
		"quota project alone":      {func(s *gcp.Settings) { s.ServiceAccount, s.QuotaProject = "", "proj-1" }, "quota_project"},
		"five delegates":           {func(s *gcp.Settings) { s.Delegates = []string{email, email, email, email, email} }, "delegates"},
		"delegate is a person":     {func(s *gcp.Settings) { s.Delegates = []string{"ana@example.org"} }, "delegates"},
		"scopes of an ID token":    {func(s *gcp.Settings) { s.IDTokenAudience, s.Scopes = "x", []string{"https://a.example/b"} }, "scopes"},
		"lifetime of an ID token":  {func(s *gcp.Settings) { s.IDTokenAudience, s.Lifetime = "x", exchangers.Duration(time.Hour) }, "lifetime"},
		"space in an audience":     {func(s *gcp.Settings) { s.IDTokenAudience = "a b" }, "id_token_audience"},
		"number of a project":      {func(s *gcp.Settings) { s.QuotaProject = "123456" }, "quota_project"},
		"header in a project":      {func(s *gcp.Settings) { s.QuotaProject = "proj-1\r\nx: y" }, "quota_project"},
		"plain HTTP":               {func(s *gcp.Settings) { s.ImpersonationEndpoint = "http://iam.example" }, "impersonation_endpoint"},
		"endpoint without account": {func(s *gcp.Settings) { s.ServiceAccount, s.ImpersonationEndpoint = "", "https://iam.example" }, "service_account"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := impersonating()
			row.change(s)
			err := s.Validate()
			switch {
			case row.want == "" && (err != nil || s.Audience() != "https:"+resource):
				t.Errorf("refused: %v, or audience %s", err, s.Audience())
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("%v, want %q", err, row.want)
			}
			if _, err := gcp.New(gcp.Config{Settings: s}); (err == nil) != (row.want == "") {
				t.Errorf("New: %v", err)
			}
		})
	}
	for name, cfg := range map[string]gcp.Config{"no settings": {}, "plain HTTP": {Settings: settings(), Endpoint: "http://sts.example"}, "no such file": {Settings: settings(), CAFile: "none.pem"}} {
		if _, err := gcp.New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

func TestSettingsInYAMLAndOnTheWire(t *testing.T) {
	text := "audience: " + resource + "\nsvid: x509\nservice_account: " + email + "\ndelegates: [" + email + "]\nquota_project: proj-1\nscopes: [https://www.googleapis.com/auth/pubsub]\nimpersonation_endpoint: https://iam.example\nlifetime: 30m\n"
	var s gcp.Settings
	if err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	wire, err := exchangers.Target{Name: "analytics", Flow: "gcp", Settings: &s}.Wire()
	if err != nil {
		t.Fatal(err)
	}
	got, err := exchangers.ParseWire(wire, &gcp.Settings{})
	if diff := cmp.Diff(exchangers.Settings(&s), got.Settings); err != nil || diff != "" {
		t.Errorf("%v (-yaml +wire):\n%s", err, diff)
	}
}

// transport sees where requests go: the first gets a token, the second nothing.
type transport struct{ hosts []string }

func (tr *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.hosts = append(tr.hosts, r.URL.Host)
	if len(tr.hosts) > 1 {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r,
		Body: io.NopCloser(strings.NewReader(`{"access_token":"t","token_type":"Bearer","expires_in":3600}`))}, nil
}

func TestHosts(t *testing.T) {
	rows := map[string]struct {
		endpoint, impersonation string
		want                    []string
	}{
		"Google's":     {"", "", []string{"sts.googleapis.com", "iamcredentials.googleapis.com"}},
		"one for both": {"https://sandbox.example/", "", []string{"sandbox.example", "sandbox.example"}},
		"two":          {"https://sts-x.p.googleapis.com", "https://iam-x.p.googleapis.com", []string{"sts-x.p.googleapis.com", "iam-x.p.googleapis.com"}},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			tr, s := &transport{}, impersonating()
			s.ImpersonationEndpoint = row.impersonation
			x, err := gcp.New(gcp.Config{Settings: s, Endpoint: row.endpoint, Client: &http.Client{Transport: tr}})
			if err != nil {
				t.Fatal(err)
			}
			cred, err := x.Exchange(t.Context(), svids{"a.b.c"})
			if e := refused(t, cred, err); e.Status != 0 || e.Class != exchangers.Outage {
				t.Errorf("%+v", e)
			}
			if diff := cmp.Diff(row.want, tr.hosts); diff != "" {
				t.Errorf("(-want +asked):\n%s", diff)
			}
		})
	}
}

func FuzzRefusal(f *testing.F) {
	f.Add(400, []byte(`{"error":"invalid_grant","error_description":"ID Token issued at 1 is stale to sign-in."}`))
	f.Add(403, []byte(`{"error":{"code":403,"message":"no","status":"PERMISSION_DENIED"}}`))
	f.Add(429, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := gcp.Refusal(status, body, exchangers.NewSecret("token"))
		if e.Class == "" || len(e.Message) > 512 || strings.ContainsAny(e.Error(), "\r\n\x00") {
			t.Errorf("%+v", e)
		}
	})
}
