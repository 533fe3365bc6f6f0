package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
)

const id = "spiffe://example.org/shop/checkout"

// source hands out what the test wants, by target.
type source struct {
	mu     sync.Mutex // guards what follows
	fetch  map[string]*api.FetchResponse
	failed error // what every call gets
	tokens int   // handed out
	chain  []byte
	key    []byte
}

func (s *source) Fetch(_ context.Context, target string) (*api.FetchResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.fetch[target], s.failed
	}
	r, ok := s.fetch[target]
	if !ok {
		return nil, status.Error(codes.PermissionDenied, "not listed")
	}
	return r, nil
}

// Token is a new one each time, and as long as its number is high.
func (s *source) Token(_ context.Context, target string, toFile bool) (*api.TokenResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	s.tokens++
	token := fmt.Sprintf("%s-%t-%d-", target, toFile, s.tokens)
	return &api.TokenResponse{Token: token + strings.Repeat("x", 100*s.tokens%9000) + "-end", Expires: expires.Unix()}, nil
}

func (s *source) X509(_ context.Context, _ string) (chain, key []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain, s.key, s.failed
}

func (s *source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

func (s *source) put(target string, r *api.FetchResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetch[target] = r
}

var expires = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func wire(flow, settings, endpoint string) []byte {
	text, err := json.Marshal(map[string]any{"flow": flow, "settings": json.RawMessage(settings), "endpoint": endpoint})
	if err != nil {
		panic(err)
	}
	return text
}

func awsAnswer(flow, settings, endpoint string) *api.FetchResponse {
	return &api.FetchResponse{
		Expires: expires.Unix(), Flow: flow, Endpoint: endpoint, Settings: wire(flow, settings, endpoint), SpiffeId: id,
		Credential: &api.FetchResponse_Aws{Aws: &api.AWS{
			AccessKeyId: "ASIAEXAMPLE", SecretAccessKey: "secret-key", SessionToken: "session", Region: "eu-west-1",
			AssumedRole: "arn:aws:sts::123456789012:assumed-role/orders/x",
		}},
	}
}

func bearerAnswer(flow, settings, endpoint string) *api.FetchResponse {
	return &api.FetchResponse{
		Expires: expires.Unix(), Flow: flow, Endpoint: endpoint, Settings: wire(flow, settings, endpoint), SpiffeId: id,
		Credential: &api.FetchResponse_Bearer{Bearer: &api.Bearer{Token: "secret-token"}},
	}
}

const (
	webSettings   = `{"role":"arn:aws:iam::123456789012:role/orders","session_name":"checkout","duration":"30m"}`
	gcpSettings   = `{"audience":"//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/prov","service_account":"a@p.iam.gserviceaccount.com"}`
	azureSettings = `{"tenant":"6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50","client_id":"b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d","scope":"https://management.azure.com/.default"}`
	vaultSettings = `{"tenant":"6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50","client_id":"b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d","scope":"https://vault.azure.net/.default"}`
)

// clouds is a source with a target of each kind.
func clouds() *source {
	return &source{fetch: map[string]*api.FetchResponse{
		"anywhere": awsAnswer("aws_roles_anywhere", `{}`, ""),
		"web":      awsAnswer("aws_web_identity", webSettings, ""),
		"gcp":      bearerAnswer("gcp", gcpSettings, ""),
		"azure":    bearerAnswer("azure", azureSettings, ""),
		"keyvault": bearerAnswer("azure", vaultSettings, ""),
		"orders":   bearerAnswer("oauth", `{}`, ""),
	}}
}

// surfaces are opened ones, and what leads there.
type surfaces struct {
	*local.Surfaces
	t   *testing.T
	dir string
}

func opened(t *testing.T, from *source, targets []string, change ...func(*local.Config)) *surfaces {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("who connects can be told on Linux only")
	}
	cfg := local.Config{
		Dir: filepath.Join(t.TempDir(), "run"), UID: os.Getuid(), GID: os.Getgid(), Targets: targets, Source: from,
		Command: []string{"/usr/bin/credence", "credentials"},
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := local.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &surfaces{s, t, cfg.Dir}
}

func (s *surfaces) env(target, name string) string {
	s.t.Helper()
	for _, v := range s.EnvOf(target) {
		if n, value, _ := strings.Cut(v, "="); n == name {
			return value
		}
	}
	s.t.Fatalf("the environment of %s has no %s", target, name)
	return ""
}

func (s *surfaces) read(file string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// A surface is one endpoint, as an SDK that was handed it knows it.
type surface struct{ url, header, secret, query string }

func (s *surfaces) endpoint(target string) surface {
	s.t.Helper()
	switch {
	case target == "gcp":
		var file struct {
			Source struct {
				URL     string            `json:"url"`
				Headers map[string]string `json:"headers"`
			} `json:"credential_source"`
		}
		if err := json.Unmarshal([]byte(s.read("gcp.json")), &file); err != nil {
			s.t.Fatal(err)
		}
		for header, secret := range file.Source.Headers {
			return surface{file.Source.URL, header, secret, ""}
		}
		s.t.Fatal("no header")
	case target == "azure" || target == "keyvault":
		return surface{s.env(target, "IDENTITY_ENDPOINT"), "X-IDENTITY-HEADER", s.env(target, "IDENTITY_HEADER"),
			"?api-version=2019-08-01&resource=https%3A%2F%2Fmanagement.azure.com"}
	}
	secret, err := os.ReadFile(s.env(target, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
	if err != nil {
		s.t.Fatal(err)
	}
	return surface{s.env(target, "AWS_CONTAINER_CREDENTIALS_FULL_URI"), "Authorization", string(secret), ""}
}

func (e surface) request(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, e.url+e.query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(e.header, e.secret)
	return r
}

func do(t *testing.T, r *http.Request) (int, http.Header, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(body)
}

// refusalIn says what stands where the surface's SDK looks for it.
func refusalIn(target, body string) (code, message string, more int) {
	var flat map[string]json.RawMessage
	_ = json.Unmarshal([]byte(body), &flat) // what isn't there is missed below
	text := func(m map[string]json.RawMessage, name string) (s string) { _ = json.Unmarshal(m[name], &s); return s }
	switch target {
	case "gcp":
		return text(flat, "error"), text(flat, "error_description"), len(flat) - 2
	case "azure":
		var inner map[string]json.RawMessage
		_ = json.Unmarshal(flat["error"], &inner)
		return text(inner, "code"), text(inner, "message"), len(flat) - 1 + len(inner) - 2
	}
	return text(flat, "code"), text(flat, "message"), len(flat) - 2
}

// Each row is a refusal at every surface, in its own form and without a
// credential: cloud-contracts L6, L7 and L9.
//
// Regression: aws-vault #578
func TestSurfacesRefuse(t *testing.T) {
	for _, target := range []string{"anywhere", "gcp", "azure"} {
		for name, c := range map[string]struct {
			change func(*http.Request, surface)
			fail   error
			want   int
		}{
			"L7 no secret":     {func(r *http.Request, e surface) { r.Header.Del(e.header) }, nil, 401},
			"L7 wrong secret":  {func(r *http.Request, e surface) { r.Header.Set(e.header, e.secret[1:]+"x") }, nil, 401},
			"L7 bearer form":   {func(r *http.Request, e surface) { r.Header.Set(e.header, "Bearer "+e.secret) }, nil, 401},
			"L7 twice":         {func(r *http.Request, e surface) { r.Header.Add(e.header, e.secret) }, nil, 401},
			"L9 foreign host":  {func(r *http.Request, _ surface) { r.Host = "evil.example" }, nil, 403},
			"L9 host by name":  {func(r *http.Request, _ surface) { r.Host = strings.Replace(r.URL.Host, "127.0.0.1", "localhost", 1) }, nil, 403},
			"from a web page":  {func(r *http.Request, _ surface) { r.Header.Set("Origin", "https://evil.example") }, nil, 403},
			"referred":         {func(r *http.Request, _ surface) { r.Header.Set("Referer", "https://evil.example/") }, nil, 403},
			"forwarded":        {func(r *http.Request, _ surface) { r.Header.Set("X-Forwarded-For", "10.0.0.1") }, nil, 403},
			"post":             {func(r *http.Request, _ surface) { r.Method = http.MethodPost }, nil, 405},
			"denied":           {nil, status.Error(codes.PermissionDenied, "not listed"), 403},
			"cloud's final no": {nil, status.Error(codes.FailedPrecondition, "no such role"), 403},
			"L6 agent away":    {nil, status.Error(codes.Unavailable, "away"), 503},
			"L6 odd failure":   {nil, errors.New("odd"), 503},
			"too late":         {nil, context.DeadlineExceeded, 503},
		} {
			t.Run(target+"/"+name, func(t *testing.T) {
				from := clouds()
				s := opened(t, from, []string{target})
				from.fail(c.fail)
				e := s.endpoint(target)
				r := e.request(t)
				if c.change != nil {
					c.change(r, e)
				}
				got, header, body := do(t, r)
				if got != c.want || header.Get("Content-Type") != "application/json" {
					t.Errorf("%d %s, want %d", got, header.Get("Content-Type"), c.want)
				}
				code, message, more := refusalIn(target, body)
				if code == "" || message == "" || more != 0 {
					t.Errorf("%s: that is not the form of an error alone", body)
				}
			})
		}
	}
}

// A source that hands out half a credential, or nothing, is an error.
func TestL6NeverEmptyCredentials(t *testing.T) {
	for name, empty := range map[string]*api.FetchResponse{
		"no answer":    nil,
		"no keys":      {Credential: &api.FetchResponse_Aws{Aws: &api.AWS{}}},
		"half of it":   {Credential: &api.FetchResponse_Aws{Aws: &api.AWS{SecretAccessKey: "secret-key"}}},
		"another kind": {Credential: &api.FetchResponse_Bearer{Bearer: &api.Bearer{Token: "t"}}},
		"no token":     {Credential: &api.FetchResponse_Bearer{Bearer: &api.Bearer{}}},
	} {
		from := clouds()
		s := opened(t, from, []string{"anywhere", "azure"})
		from.put("anywhere", empty)
		if code, _, body := do(t, s.endpoint("anywhere").request(t)); code < 500 || strings.Contains(body, "secret-key") {
			t.Errorf("%s: the container endpoint answers %d %s", name, code, body)
		}
		if name == "another kind" {
			empty = awsAnswer("azure", azureSettings, "")
		}
		from.put("azure", empty)
		if code, _, body := do(t, s.endpoint("azure").request(t)); code < 500 || strings.Contains(body, "access_token") {
			t.Errorf("%s: the identity endpoint answers %d %s", name, code, body)
		}
	}
}

func TestL8AnothersSecret(t *testing.T) {
	s := opened(t, clouds(), []string{"anywhere", "web", "gcp", "azure"})
	for _, a := range []string{"anywhere", "web", "gcp", "azure"} {
		for _, b := range []string{"anywhere", "web", "gcp", "azure"} {
			at, of := s.endpoint(a), s.endpoint(b)
			at.secret = of.secret
			want := 403
			if a == b {
				want = 200
			}
			if got, _, body := do(t, at.request(t)); got != want {
				t.Errorf("the secret of %s at %s: %d %s, want %d", b, a, got, body, want)
			}
		}
	}
}

func TestL13ManagedIdentity(t *testing.T) {
	s := opened(t, clouds(), []string{"azure", "keyvault"})
	e := s.endpoint("azure")
	const version, resource = "api-version=2019-08-01", "resource=https%3A%2F%2Fmanagement.azure.com"
	for name, c := range map[string]struct {
		query string
		want  int
		says  string
	}{
		"good":                        {version + "&" + resource, 200, "secret-token"},
		"with a slash":                {version + "&" + resource + "%2F", 200, "secret-token"},
		"by its client ID":            {version + "&" + resource + "&client_id=B3A9C7D5-1e2f-4a6b-8c9d-0e1f2a3b4c5d", 200, "secret-token"},
		"the scope of another target": {version + "&resource=https%3A%2F%2Fvault.azure.net", 200, "secret-token"},
		"no version":                  {resource, 400, "api-version"},
		"another version":             {"api-version=2018-02-01&" + resource, 400, "api-version"},
		"no resource":                 {version, 400, "resource"},
		"no such scope":               {version + "&resource=https%3A%2F%2Fgraph.microsoft.com", 403, "scope"},
		"somebody else":               {version + "&" + resource + "&client_id=00000000-1e2f-4a6b-8c9d-0e1f2a3b4c5d", 400, "client_id"},
		"by object ID":                {version + "&" + resource + "&object_id=x", 400, "client_id"},
		"two resources":               {version + "&" + resource + "&resource=x", 400, "twice"},
		"what is no query":            {version + "&" + resource + "&%zz", 400, "query"},
	} {
		e.query = "?" + c.query
		got, _, body := do(t, e.request(t))
		if got != c.want || !strings.Contains(body, c.says) || got != 200 && strings.Contains(body, "secret-token") {
			t.Errorf("%s: %d %s, want %d and %q", name, got, body, c.want, c.says)
		}
	}
	e.query = "?" + version + "&" + resource
	_, _, body := do(t, e.request(t))
	want := fmt.Sprintf(`{"access_token":"secret-token","client_id":"b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d","expires_on":"%d","resource":"https://management.azure.com","token_type":"Bearer"}`+"\n", expires.Unix())
	if d := cmp.Diff(want, body); d != "" {
		t.Error(d)
	}
}

// The next fetch after a denial is refused at every surface, and files go when
// they are looked after.
func TestL18NoLongerGranted(t *testing.T) {
	from := clouds()
	s := opened(t, from, []string{"anywhere", "web", "gcp", "azure", "orders"})
	files := []string{"web.jwt", "gcp.jwt", "azure.jwt", "orders.token"}
	for _, f := range files {
		s.read(f)
	}
	from.fail(status.Error(codes.Unavailable, "away"))
	s.Refresh(t.Context())
	for _, f := range files {
		s.read(f) // the agent is away: what is there is good until it ends
	}
	from.fail(status.Error(codes.PermissionDenied, "not listed"))
	for _, target := range []string{"anywhere", "web", "gcp", "azure"} {
		if got, _, body := do(t, s.endpoint(target).request(t)); got != 403 {
			t.Errorf("%s: %d %s", target, got, body)
		}
	}
	s.Refresh(t.Context())
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(s.dir, f)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", f, err)
		}
	}
	from.fail(nil)
	s.Refresh(t.Context())
	for _, f := range files {
		s.read(f) // granted again
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*local.Config)
		says   string
	}{
		"no targets":            {func(c *local.Config) { c.Targets = nil }, "targets"},
		"no directory":          {func(c *local.Config) { c.Dir = "" }, "directory"},
		"no source":             {func(c *local.Config) { c.Source = nil }, "source"},
		"a target twice":        {func(c *local.Config) { c.Targets = []string{"gcp", "gcp"} }, "twice"},
		"a path for a target":   {func(c *local.Config) { c.Targets = []string{"../x"} }, "no target's name"},
		"a command in a name":   {func(c *local.Config) { c.Targets = []string{"x;rm"} }, "no target's name"},
		"one that isn't listed": {func(c *local.Config) { c.Targets = []string{"gcp", "nowhere"} }, "not listed"},
		"nobody's files":        {func(c *local.Config) { c.UID = -1 }, "-1"},
		"a variable for two":    {func(c *local.Config) { c.Targets = []string{"a-b", "a.b"} }, "CREDENCE_TOKEN_FILE_A_B"},
		"an odd flow":           {func(c *local.Config) { c.Targets = []string{"odd"} }, "flow"},
	} {
		from := clouds()
		from.put("a-b", bearerAnswer("oauth", "{}", ""))
		from.put("a.b", bearerAnswer("oauth", "{}", ""))
		from.put("odd", bearerAnswer("odd", "{}", ""))
		dir := filepath.Join(t.TempDir(), "run")
		cfg := local.Config{Dir: dir, UID: os.Getuid(), GID: os.Getgid(), Targets: []string{"gcp"}, Source: from}
		c.change(&cfg)
		s, err := local.Open(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if s != nil {
			t.Errorf("%s: surfaces are made all the same", name)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s leaves the directory behind: %v", name, err)
		}
	}
}

func TestTheFirstOfACloudIsItsDefault(t *testing.T) {
	s := opened(t, clouds(), []string{"web", "anywhere", "keyvault", "azure", "gcp", "orders"})
	all := map[string]string{}
	for _, v := range s.Env() {
		name, value, _ := strings.Cut(v, "=")
		all[name] = value
	}
	for name, want := range map[string]string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI": s.env("web", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
		"IDENTITY_ENDPOINT":                  s.env("keyvault", "IDENTITY_ENDPOINT"),
		"GOOGLE_APPLICATION_CREDENTIALS":     filepath.Join(s.dir, "gcp.json"),
		"CREDENCE_TOKEN_FILE_ORDERS":         filepath.Join(s.dir, "orders.token"),
		"AZURE_FEDERATED_TOKEN_FILE":         filepath.Join(s.dir, "keyvault.jwt"),
		"AZURE_AUTHORITY_HOST":               "https://login.microsoftonline.com/",
		"AWS_REGION":                         "eu-west-1",
	} {
		if all[name] != want {
			t.Errorf("%s is %q, want %q", name, all[name], want)
		}
	}
	if _, ok := all["SSL_CERT_FILE"]; ok {
		t.Error("no target has a ca_file, and the roots are replaced")
	}
	got := s.Apply([]string{"PATH=/bin", "AWS_PROFILE=x", "AZURE_CLIENT_SECRET=x", "GOOGLE_CREDENTIALS=x", "VAULT_TOKEN=x", "AWS_CONFIG_FILE=x"})
	if d := cmp.Diff(append([]string{"PATH=/bin", "VAULT_TOKEN=x"}, s.Env()...), got); d != "" {
		t.Errorf("the environment: %s", d)
	}
}

// An authority that Microsoft's libraries don't know gets them into asking
// Microsoft about it: there the file is not in the environment.
func TestAPrivateAuthorityHasTheEndpointAlone(t *testing.T) {
	from := clouds()
	from.put("azure", bearerAnswer("azure", azureSettings, "https://127.0.0.1:4443"))
	s := opened(t, from, []string{"azure"})
	for _, v := range s.Env() {
		if strings.HasPrefix(v, "AZURE_FEDERATED_TOKEN_FILE=") {
			t.Error(v)
		}
	}
	if got := s.env("azure", "AZURE_AUTHORITY_HOST"); got != "https://127.0.0.1:4443/" {
		t.Error(got)
	}
	if got := s.read("azure.jwt"); !strings.HasPrefix(got, "azure-true-") {
		t.Errorf("the file is %q", got)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	from := clouds()
	s := opened(t, from, []string{"web", "gcp", "azure", "orders"})
	e := s.endpoint("web")
	ran := make(chan struct{})
	go func() { s.Run(t.Context()); close(ran) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-ran
	if _, err := os.Lstat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	u, err := url.Parse(e.url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get("http://" + u.Host); err == nil {
		t.Error("somebody still listens")
	}
}
