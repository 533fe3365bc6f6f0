package azure_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloud "github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	tenantID = "11111111-2222-4333-8444-555555555555"
	clientID = "aaaaaaaa-2222-4333-8444-555555555555"
	objectID = "bbbbbbbb-2222-4333-8444-555555555555"
	workload = "spiffe://example.org/ns/shop/checkout"
	arm      = "https://management.azure.com"
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

// world is the sandbox's Entra behind TLS.
type world struct {
	issuer         *issuertest.Issuer
	cloud          *cloud.Cloud
	faults         *sandbox.Faults // of the token endpoint
	metadataFaults *sandbox.Faults
	calls          atomic.Int32
	later          atomic.Int64 // nanoseconds that the cloud's clock is ahead
	server         *httptest.Server
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{issuer: issuertest.New(t), faults: &sandbox.Faults{}, metadataFaults: &sandbox.Faults{}}
	var err error
	w.cloud, err = cloud.New(cloud.Config{
		Issuers: sandbox.IssuersConfig{Roots: w.issuer.Roots(), DialContext: w.issuer.DialContext},
		Tenants: []cloud.Tenant{{ID: tenantID, Domain: "contoso.example", Apps: []cloud.App{{Kind: cloud.Application, ClientID: clientID, ObjectID: objectID,
			Credentials: []cloud.Credential{{Name: "checkout", Issuer: issuertest.URL, Subject: workload, Audience: cloud.Audience}}}}}},
		Resources: []string{arm}, Key: issuertest.RSA(),
		Now: func() time.Time { return time.Now().Add(time.Duration(w.later.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	login := w.cloud.Login()
	token, metadata := w.faults.Wrap(login), w.metadataFaults.Wrap(login)
	w.server = serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.calls.Add(1)
			token.ServeHTTP(rw, r)
			return
		}
		metadata.ServeHTTP(rw, r)
	}))
	return w
}

func serve(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (w *world) jwt(t testing.TB, alg string, changes map[string]any) svids {
	t.Helper()
	now := time.Now().Unix()
	claims := issuertest.With(map[string]any{"iss": issuertest.URL, "sub": workload, "aud": "api://AzureADTokenExchange", "iat": now - 5, "exp": now + 900}, changes)
	if alg == "ES256" {
		return svids{issuertest.Sign(t, issuertest.EC(), alg, map[string]any{"kid": "ec1"}, claims)}
	}
	return svids{issuertest.Sign(t, issuertest.RSA(), alg, nil, claims)}
}

func settings() *azure.Settings {
	return &azure.Settings{Tenant: tenantID, ClientID: clientID, Scope: arm + "/.default"}
}

func exchanger(t testing.TB, s *azure.Settings, server *httptest.Server) exchangers.Exchanger {
	t.Helper()
	return exchangerWithin(t, s, server, 30*time.Second)
}

// exchangerWithin gives up on a hanging server that soon.
func exchangerWithin(t testing.TB, s *azure.Settings, server *httptest.Server, limit time.Duration) exchangers.Exchanger {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	x, err := azure.New(azure.Config{Settings: s, Endpoint: server.URL, Client: client})
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
	if e.Provider != "azure" || e.Class == "" || strings.Contains(e.Error(), "eyJ") || strings.Contains(e.Error(), "\n") {
		t.Errorf("%+v", e)
	}
	return e
}

func TestExchanges(t *testing.T) {
	w := newWorld(t)
	protected := serve(t, w.cloud.ARM())
	for name, change := range map[string]func(*azure.Settings){
		"tenant's ID":     func(*azure.Settings) {},
		"tenant's domain": func(s *azure.Settings) { s.Tenant = "contoso.example" },
	} {
		t.Run(name, func(t *testing.T) {
			s := settings()
			change(s)
			cred, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, "RS256", nil))
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(cred.Expires); left > time.Hour || left < 59*time.Minute {
				t.Errorf("expires in %s", left)
			}
			if diff := cmp.Diff([]string{arm + "/.default"}, cred.Bearer.Scopes); diff != "" || cred.AWS != nil || cred.RequestID == "" {
				t.Errorf("%+v %s", cred, diff)
			}
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, protected.URL+"/whoami", nil)
			r.Header.Set("Authorization", "Bearer "+cred.Bearer.Token.Reveal())
			resp, err := protected.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the token does not work: %s", resp.Status)
			}
		})
	}
}

// What Source drops must not come back from the library's cache.
func TestEachExchangeAsksAnew(t *testing.T) {
	w := newWorld(t)
	x := exchanger(t, settings(), w.server)
	for range 2 {
		if _, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if w.calls.Load() != 2 {
		t.Errorf("%d calls for 2 exchanges", w.calls.Load())
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	now := time.Now().Unix()
	rows := map[string]struct {
		settings func(*azure.Settings)
		alg      string
		svid     map[string]any
		code     string
		hint     string
	}{
		"audience of another cloud": {svid: map[string]any{"aud": "sts.amazonaws.com"}, code: "AADSTS700212", hint: "audience"},
		"another issuer":            {svid: map[string]any{"iss": issuertest.URL + "/"}, code: "AADSTS700211", hint: "issuer"},
		"another subject":           {svid: map[string]any{"sub": workload + "/x"}, code: "AADSTS700213", hint: "subject"},
		"two audiences":             {svid: map[string]any{"aud": []string{"api://AzureADTokenExchange", "x"}}, code: "AADSTS5002741"},
		"ES256":                     {alg: "ES256", code: "AADSTS5002738", hint: "RS256"},
		"expired":                   {svid: map[string]any{"iat": now - 2000, "exp": now - 1000}, code: "AADSTS700024", hint: "clock"},
		"unknown tenant":            {settings: func(s *azure.Settings) { s.Tenant = objectID }, code: "AADSTS90002", hint: "check tenant"},
		"unknown client":            {settings: func(s *azure.Settings) { s.ClientID = objectID }, code: "AADSTS700016", hint: "no such application"},
		"unknown resource":          {settings: func(s *azure.Settings) { s.Scope = "https://none.example/.default" }, code: "AADSTS500011", hint: "check scope"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := settings()
			if row.settings != nil {
				row.settings(s)
			}
			if row.alg == "" {
				row.alg = "RS256"
			}
			cred, err := exchanger(t, s, w.server).Exchange(t.Context(), w.jwt(t, row.alg, row.svid))
			e := refused(t, cred, err)
			if e.Code != row.code || e.Status/100 != 4 || e.Class != exchangers.Config || e.RequestID == "" || !strings.Contains(e.Hint, row.hint) {
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
	cred, err := exchanger(t, settings(), w.server).Exchange(t.Context(), w.jwt(t, "RS256", nil))
	if e := refused(t, cred, err); e.Class != exchangers.Propagation || e.Code != "AADSTS501661" || !strings.Contains(e.Hint, "issuer") {
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
	x := exchanger(t, settings(), w.server)
	for at, faults := range map[string]*sandbox.Faults{"token": w.faults, "metadata": w.metadataFaults} {
		for name, row := range rows {
			t.Run(at+"/"+name, func(t *testing.T) {
				faults.Queue(1, row.fault)
				w.calls.Store(0)
				first := x
				if row.fault.Kind == sandbox.FaultHang {
					first = exchangerWithin(t, settings(), w.server, 2*time.Second)
				}
				cred, err := first.Exchange(t.Context(), w.jwt(t, "RS256", nil))
				e := refused(t, cred, err)
				if e.Class != row.class || e.RetryAfter != row.after {
					t.Errorf("%+v", e)
				}
				if w.calls.Load() > 1 {
					t.Errorf("%d calls: the library retried", w.calls.Load())
				}
				if _, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil)); err != nil {
					t.Errorf("after the fault: %v", err)
				}
			})
		}
	}
}

// The library quotes a body that it cannot read, tokens in it included.
func TestAnswerIsNotQuoted(t *testing.T) {
	var server *httptest.Server
	server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"issuer":"`+server.URL+`/t/v2.0","authorization_endpoint":"`+server.URL+`/a","token_endpoint":"`+server.URL+`/t"}`)
			return
		}
		_, _ = io.WriteString(w, `{"access_token":"s3cr3t-token","expires_in":`)
	}))
	cred, err := exchanger(t, settings(), server).Exchange(t.Context(), svids{"a.b.c"})
	if e := refused(t, cred, err); e.Code != "unusable_answer" || strings.Contains(e.Error(), "s3cr3t") {
		t.Errorf("%+v", e)
	}
}

// The authority's metadata may not lead the assertion out of TLS.
func TestTokenEndpointWithoutTLS(t *testing.T) {
	leaked := false
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked = true }))
	defer plain.Close()
	var server *httptest.Server
	server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"issuer":"`+server.URL+`/t/v2.0","authorization_endpoint":"`+server.URL+`/a","token_endpoint":"`+plain.URL+`/t"}`)
	}))
	cred, err := exchanger(t, settings(), server).Exchange(t.Context(), svids{"a.b.c"})
	if refused(t, cred, err); leaked {
		t.Error("the assertion went over plain HTTP")
	}
}

func TestSendsWhatMicrosoftDocuments(t *testing.T) {
	t.Setenv("AZURE_AUTHORITY_HOST", "https://evil.invalid")
	w := newWorld(t)
	var form url.Values
	login := w.cloud.Login()
	server := serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			b, _ := io.ReadAll(r.Body)
			form, _ = url.ParseQuery(string(b))
			r.Body = io.NopCloser(strings.NewReader(string(b)))
		}
		login.ServeHTTP(rw, r)
	}))
	present := w.jwt(t, "RS256", nil)
	if _, err := exchanger(t, settings(), server).Exchange(t.Context(), present); err != nil {
		t.Fatal(err)
	}
	want := url.Values{"client_assertion": {present.jwt}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_id": {clientID}, "client_info": {"1"}, "grant_type": {"client_credentials"}, "scope": {arm + "/.default openid offline_access profile"}}
	if diff := cmp.Diff(want, form); diff != "" {
		t.Errorf("form (-want +sent):\n%s", diff)
	}
}

func TestRefusalByCode(t *testing.T) {
	rows := map[string]struct {
		status int
		body   string
		code   string
		class  exchangers.Class
	}{
		"not replicated":  {400, `{"error":"invalid_request","error_description":"AADSTS70021: No matching\r\nTrace ID: x","error_codes":[70021]}`, "AADSTS70021", exchangers.Propagation},
		"key not found":   {401, `{"error":"invalid_client","error_description":"AADSTS7000272: The certificate"}`, "AADSTS7000272", exchangers.Propagation},
		"code in numbers": {400, `{"error":"invalid_client","error_description":"no","error_codes":[700211]}`, "AADSTS700211", exchangers.Config},
		"no code":         {400, `{"error":"invalid_client","error_description":"no"}`, "invalid_client", exchangers.Config},
		"transient":       {400, `{"error":"temporarily_unavailable","error_description":"AADSTS90033: transient"}`, "AADSTS90033", exchangers.Outage},
		"loop":            {400, `{"error":"invalid_grant","error_description":"AADSTS50196: loop"}`, "AADSTS50196", exchangers.Throttled},
		"throttled":       {429, `{"error":"x","error_description":"AADSTS70021: y"}`, "AADSTS70021", exchangers.Throttled},
		"outage":          {503, `<html>`, "", exchangers.Outage},
		"redirect":        {302, ``, "", exchangers.Config},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			e := azure.Refusal(row.status, http.Header{"X-Ms-Request-Id": {"id\n1"}}, []byte(row.body), exchangers.NewSecret("jwt"))
			if e.Code != row.code || e.Class != row.class || e.RequestID != "id 1" || strings.ContainsAny(e.Error(), "\r\n") {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	rows := map[string]struct {
		change func(*azure.Settings)
		want   string
	}{
		"good": {func(*azure.Settings) {}, ""},
		"sovereign": {func(s *azure.Settings) {
			s.Authority, s.TokenAudience = "https://login.microsoftonline.us/", "api://AzureADTokenExchangeUSGov"
		}, ""},
		"GUID for resource": {func(s *azure.Settings) { s.Scope = clientID + "/.default" }, ""},
		"empty":             {func(s *azure.Settings) { *s = azure.Settings{} }, "tenant"},
		"common":            {func(s *azure.Settings) { s.Tenant = "common" }, "tenant"},
		"path for a tenant": {func(s *azure.Settings) { s.Tenant = tenantID + "/../x" }, "tenant"},
		"name for a client": {func(s *azure.Settings) { s.ClientID = "checkout" }, "client_id"},
		"no scope":          {func(s *azure.Settings) { s.Scope = "" }, "scope"},
		"one permission":    {func(s *azure.Settings) { s.Scope = arm + "/user_impersonation" }, "scope"},
		"two scopes":        {func(s *azure.Settings) { s.Scope = arm + "/.default https://vault.azure.net/.default" }, "scope"},
		"audience":          {func(s *azure.Settings) { s.TokenAudience = " api://AzureADTokenExchange" }, "audience"},
		"plain authority":   {func(s *azure.Settings) { s.Authority = "http://login.example" }, "authority"},
		"path of authority": {func(s *azure.Settings) { s.Authority = "https://login.example/tenant" }, "authority"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := settings()
			row.change(s)
			err := s.Validate()
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if _, err := azure.New(azure.Config{Settings: s}); (err == nil) != (row.want == "") {
				t.Errorf("New: %v", err)
			}
		})
	}
	for name, cfg := range map[string]azure.Config{"no settings": {}, "plain HTTP": {Settings: settings(), Endpoint: "http://login.example"},
		"path": {Settings: settings(), Endpoint: "https://login.example/x"}, "no such file": {Settings: settings(), CAFile: "none.pem"}} {
		if _, err := azure.New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if got := settings().Audience(); got != "api://AzureADTokenExchange" {
		t.Errorf("default audience %q", got)
	}
}

func TestSettingsInYAMLAndOnTheWire(t *testing.T) {
	text := "tenant: " + tenantID + "\nclient_id: " + clientID + "\nscope: " + arm + "/.default\naudience: api://AzureADTokenExchangeChina\nauthority: https://login.chinacloudapi.cn\ncloud: china\ncontinuous_access: true\n"
	var s azure.Settings
	if err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	wire, err := exchangers.Target{Name: "vault", Flow: "azure", Settings: &s}.Wire()
	if err != nil {
		t.Fatal(err)
	}
	got, err := exchangers.ParseWire(wire, &azure.Settings{})
	if diff := cmp.Diff(exchangers.Settings(&s), got.Settings); err != nil || diff != "" {
		t.Errorf("%v (-yaml +wire):\n%s", err, diff)
	}
}

// transport sees where a request goes, and sends nothing.
type transport struct{ host string }

func (tr *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.host = r.URL.Host
	return nil, io.ErrUnexpectedEOF
}

func TestHosts(t *testing.T) {
	for want, set := range map[string][2]string{
		"login.microsoftonline.com": {"", ""},
		"login.microsoftonline.us":  {"https://login.microsoftonline.us", ""},
		"sandbox.example":           {"https://login.microsoftonline.us", "https://sandbox.example/"},
	} {
		tr, s := &transport{}, settings()
		s.Authority = set[0]
		x, err := azure.New(azure.Config{Settings: s, Endpoint: set[1], Client: &http.Client{Transport: tr}})
		if err != nil {
			t.Fatal(err)
		}
		cred, err := x.Exchange(t.Context(), svids{"a.b.c"})
		if e := refused(t, cred, err); e.Status != 0 || e.Class != exchangers.Outage || tr.host != want {
			t.Errorf("asked %s, want %s: %+v", tr.host, want, e)
		}
	}
}

func FuzzRefusal(f *testing.F) {
	f.Add(400, []byte(`{"error":"invalid_client","error_description":"AADSTS700213: No matching\r\nTrace ID: x","error_codes":[700213]}`))
	f.Add(429, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := azure.Refusal(status, http.Header{}, body, exchangers.NewSecret("token"))
		if e.Class == "" || len(e.Message) > 512 || strings.ContainsAny(e.Error(), "\r\n\x00") {
			t.Errorf("%+v", e)
		}
	})
}
