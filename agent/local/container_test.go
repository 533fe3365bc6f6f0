package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
)

const secret = "0123456789abcdef0123456789abcdef"

var good = &api.FetchResponse{
	Expires:    time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).Unix(),
	Credential: &api.FetchResponse_Aws{Aws: &api.AWS{AccessKeyId: "ASIAEXAMPLE", SecretAccessKey: "secret-key", SessionToken: "session"}},
}

func endpoint(t *testing.T, fetch func(context.Context) (*api.FetchResponse, error)) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	handler, err := local.NewContainer(local.ContainerConfig{Host: server.Listener.Addr().String(), Secret: secret, Fetch: fetch})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = handler
	server.Start()
	t.Cleanup(server.Close)
	return server
}

func always(r *api.FetchResponse, err error) func(context.Context) (*api.FetchResponse, error) {
	return func(context.Context) (*api.FetchResponse, error) { return r, err }
}

// TestContainerRefuses holds the endpoint against cloud-contracts L6, L7 and
// L9: each refusal is an error in the surface's form, and holds no credential.
//
// Regression: aws-vault #578
func TestContainerRefuses(t *testing.T) {
	ok := func(r *http.Request) { r.Header.Set("Authorization", secret) }
	for name, c := range map[string]struct {
		change func(*http.Request)
		fetch  func(context.Context) (*api.FetchResponse, error)
		want   int
	}{
		"no authorization":    {func(*http.Request) {}, always(good, nil), 401},
		"wrong authorization": {func(r *http.Request) { r.Header.Set("Authorization", secret[1:]+"x") }, always(good, nil), 401},
		"bearer form":         {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) }, always(good, nil), 401},
		"foreign host":        {func(r *http.Request) { ok(r); r.Host = "evil.example" }, always(good, nil), 403},
		"host by name":        {func(r *http.Request) { ok(r); r.Host = strings.Replace(r.URL.Host, "127.0.0.1", "localhost", 1) }, always(good, nil), 403},
		"from a web page":     {func(r *http.Request) { ok(r); r.Header.Set("Origin", "https://evil.example") }, always(good, nil), 403},
		"referred":            {func(r *http.Request) { ok(r); r.Header.Set("Referer", "https://evil.example/") }, always(good, nil), 403},
		"forwarded":           {func(r *http.Request) { ok(r); r.Header.Set("X-Forwarded-For", "10.0.0.1") }, always(good, nil), 403},
		"post":                {func(r *http.Request) { ok(r); r.Method = http.MethodPost }, always(good, nil), 405},
		"denied":              {ok, always(nil, status.Error(codes.PermissionDenied, "not listed")), 403},
		"agent away":          {ok, always(nil, status.Error(codes.Unavailable, "away")), 503},
		"strange failure":     {ok, always(nil, errors.New("odd")), 503},
		"empty credential":    {ok, always(&api.FetchResponse{Credential: &api.FetchResponse_Aws{Aws: &api.AWS{}}}, nil), 502},
		"another kind":        {ok, always(&api.FetchResponse{Credential: &api.FetchResponse_Bearer{Bearer: &api.Bearer{Token: "t"}}}, nil), 502},
	} {
		t.Run(name, func(t *testing.T) {
			server := endpoint(t, c.fetch)
			request, err := http.NewRequest(http.MethodGet, server.URL+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.change(request)
			response, err := server.Client().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			var body map[string]string
			if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != c.want || response.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %s, want %d", response.StatusCode, response.Header.Get("Content-Type"), c.want)
			}
			if len(body) != 2 || body["code"] == "" || body["message"] == "" {
				t.Errorf("the body is %v: want code and message alone", body)
			}
		})
	}
}

// TestContainerServesTheSDK shows that aws-sdk-go-v2's default chain finds the
// credential, by the variables that exec sets.
func TestContainerServesTheSDK(t *testing.T) {
	server := endpoint(t, always(good, nil))
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL+"/")
	t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"} {
		t.Setenv(name, "")
	}
	sdk, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("us-east-1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := sdk.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ASIAEXAMPLE", "secret-key", "session", "2030-01-02T02:59:05Z"} // the SDK asks again five minutes early
	if d := cmp.Diff(want, []string{got.AccessKeyID, got.SecretAccessKey, got.SessionToken, got.Expires.UTC().Format(time.RFC3339)}); d != "" {
		t.Error(d)
	}
}

func TestContainerWantsASecret(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 31)} {
		if _, err := local.NewContainer(local.ContainerConfig{Host: "127.0.0.1:1", Secret: s, Fetch: always(good, nil)}); err == nil {
			t.Errorf("a secret of %d bytes is taken", len(s))
		}
	}
}
