package gcp_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials/externalaccount"
	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
)

type subjectTokens func() string

func (s subjectTokens) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return s(), nil
}

// servers puts the cloud behind TLS and returns a client that trusts it. The
// clock is the real one: Google's library has no other.
func servers(t *testing.T) (*world, *httptest.Server, *http.Client) {
	t.Helper()
	w := newWorld(t, func(c *gcp.Config) { c.Now = time.Now })
	mux := http.NewServeMux()
	mux.Handle("/v1/token", w.cloud.STS())
	mux.Handle("/v1/projects/", w.cloud.IAMCredentials())
	mux.Handle("/whoami", w.cloud.Whoami())
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	return w, s, s.Client()
}

func (w *world) freshToken() string {
	now := time.Now()
	return w.token(map[string]any{"iat": now.Unix(), "exp": now.Add(15 * time.Minute).Unix()})
}

func options(w *world, s *httptest.Server, hc *http.Client) *externalaccount.Options {
	return &externalaccount.Options{
		Audience: "//iam.googleapis.com/" + poolName + "/providers/prov-1", SubjectTokenType: jwtType, TokenURL: s.URL + "/v1/token",
		Scopes: []string{scope}, Client: hc, SubjectTokenProvider: subjectTokens(w.freshToken),
	}
}

func whoami(t *testing.T, s *httptest.Server, hc *http.Client, token string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestGoogleLibraryFederates(t *testing.T) {
	w, s, hc := servers(t)
	creds, err := externalaccount.NewCredentials(options(w, s, hc))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := creds.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(tok.Expiry); left < 14*time.Minute || left > 15*time.Minute {
		t.Errorf("lives %v", left)
	}
	if code := whoami(t, s, hc, tok.Value); code != 200 {
		t.Errorf("whoami: %d", code)
	}
}

func TestGoogleLibraryImpersonates(t *testing.T) {
	w, s, hc := servers(t)
	o := options(w, s, hc)
	o.ServiceAccountImpersonationURL = s.URL + "/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken"
	o.ServiceAccountImpersonationLifetimeSeconds = 600
	creds, err := externalaccount.NewCredentials(o)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := creds.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(tok.Expiry); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("lives %v", left)
	}
	if code := whoami(t, s, hc, tok.Value); code != 200 {
		t.Errorf("whoami: %d", code)
	}
}

func TestGoogleLibrarySeesFaults(t *testing.T) {
	w, s, hc := servers(t)
	for _, kind := range []sandbox.FaultKind{sandbox.FaultThrottled, sandbox.FaultError, sandbox.FaultTruncated, sandbox.FaultClosed, sandbox.FaultHTML} {
		creds, err := externalaccount.NewCredentials(options(w, s, hc))
		if err != nil {
			t.Fatal(err)
		}
		w.cloud.STSFaults.Queue(10, sandbox.Fault{Kind: kind})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if tok, err := creds.Token(ctx); err == nil {
			t.Errorf("%s: token %v", kind, tok.Value != "")
		}
		cancel()
		w.cloud.STSFaults.Clear()
	}
}

type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func TestIAMCredentialsClient(t *testing.T) {
	w, s, hc := servers(t)
	creds, err := externalaccount.NewCredentials(options(w, s, hc))
	if err != nil {
		t.Fatal(err)
	}
	var tok *auth.Token
	if tok, err = creds.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	with := &http.Client{Transport: bearer{tok.Value, hc.Transport}}
	client, err := credentials.NewIamCredentialsRESTClient(t.Context(), option.WithEndpoint(s.URL), option.WithHTTPClient(with))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const name = "projects/-/serviceAccounts/" + email
	access, err := client.GenerateAccessToken(t.Context(), &credentialspb.GenerateAccessTokenRequest{
		Name: name, Scope: []string{scope}, Lifetime: durationpb.New(10 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if code := whoami(t, s, hc, access.GetAccessToken()); code != 200 {
		t.Errorf("whoami: %d", code)
	}
	id, err := client.GenerateIdToken(t.Context(), &credentialspb.GenerateIdTokenRequest{Name: name, Audience: "a", IncludeEmail: true})
	if err != nil || id.GetToken() == "" {
		t.Errorf("ID token: %v", err)
	}
	if _, err := client.GenerateAccessToken(t.Context(), &credentialspb.GenerateAccessTokenRequest{
		Name: "projects/-/serviceAccounts/gone@proj.iam.gserviceaccount.com", Scope: []string{scope}}); err == nil {
		t.Error("an account that is not there was impersonated")
	}
}

func FuzzSTS(f *testing.F) {
	w := newWorld(f, nil)
	h := w.cloud.STS()
	f.Add(form("e30.e30.").Encode(), false)
	f.Add(`{"grantType":"x"}`, true)
	f.Fuzz(func(t *testing.T, body string, js bool) {
		w := &world{t: t}
		c := call{method: "POST", path: "/v1/token", contentType: "application/x-www-form-urlencoded", body: body}
		if js {
			c.contentType = "application/json"
		}
		if c = w.do(h, c); c.status == 200 {
			t.Errorf("taken: %q", body)
		}
		if _, err := url.ParseQuery(body); err != nil && !js && c.got["error"] != "invalid_request" {
			t.Errorf("%q: %s", body, c.raw)
		}
	})
}
