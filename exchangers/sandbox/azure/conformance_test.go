package azure_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
)

// credentials makes Microsoft's own client of the authority at url.
func credentials(t *testing.T, w *world, url string, tr policy.Transporter, retry policy.RetryOptions) *azidentity.ClientAssertionCredential {
	t.Helper()
	fresh := func(context.Context) (string, error) {
		now := time.Now()
		return w.assertion(map[string]any{"iat": now.Unix(), "exp": now.Add(15 * time.Minute).Unix()}), nil
	}
	cred, err := azidentity.NewClientAssertionCredential(tenantID, clientID, fresh, &azidentity.ClientAssertionCredentialOptions{
		ClientOptions:            azcore.ClientOptions{Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: url}, Transport: tr, Retry: retry},
		DisableInstanceDiscovery: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

var noRetry = policy.RetryOptions{MaxRetries: -1}

func request() policy.TokenRequestOptions {
	return policy.TokenRequestOptions{Scopes: []string{resource + "/.default"}}
}

func TestAzidentity(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.Now = time.Now })
	s := httptest.NewTLSServer(w.cloud.Login())
	defer s.Close()
	for name, life := range map[string]time.Duration{"plain": time.Hour, "continuous access evaluation": 24 * time.Hour} {
		o := request()
		o.EnableCAE = life > time.Hour
		tok, err := credentials(t, w, s.URL, s.Client(), noRetry).GetToken(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if left := time.Until(tok.ExpiresOn); left < life-time.Minute || left > life {
			t.Errorf("%s: lives %v", name, left)
		}
		if c := w.whoami(tok.Token); c.status != 200 || c.got["appid"] != clientID {
			t.Errorf("%s: %d %s", name, c.status, c.raw)
		}
	}
}

func TestAzidentityIsRefused(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.Now = time.Now })
	s := httptest.NewTLSServer(w.cloud.Login())
	defer s.Close()
	w.put(app())
	_, err := credentials(t, w, s.URL, s.Client(), noRetry).GetToken(t.Context(), request())
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) || failed.RawResponse == nil || failed.RawResponse.StatusCode != 401 {
		t.Errorf("got %v", err)
	}
}

func TestAzidentitySeesFaults(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.Now = time.Now })
	s := httptest.NewTLSServer(w.cloud.Login())
	defer s.Close()
	for _, kind := range []sandbox.FaultKind{sandbox.FaultThrottled, sandbox.FaultError, sandbox.FaultUnavailable,
		sandbox.FaultTruncated, sandbox.FaultEmpty, sandbox.FaultHTML} {
		w.cloud.LoginFaults.Queue(10, sandbox.Fault{Kind: kind})
		if _, err := credentials(t, w, s.URL, s.Client(), noRetry).GetToken(t.Context(), request()); err == nil {
			t.Errorf("%s: no error", kind)
		}
		w.cloud.LoginFaults.Clear()
	}
}

// inMemory hands requests to a handler without a network, so that time can be
// made to fly.
type inMemory struct{ http.Handler }

func (h inMemory) Do(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = io.NopCloser(http.NoBody)
	}
	r.Host = r.URL.Host
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// E27: the client waits for what Retry-After says.
func TestRetryAfter(t *testing.T) {
	var now func() time.Time
	w := newWorld(t, func(c *azure.Config) { c.Now = func() time.Time { return now() } })
	synctestStart := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	now = func() time.Time { return synctestStart }
	// Fetched here, for a bubble has no network; valid for an hour of its time.
	f := form(w.assertion(map[string]any{"iat": synctestStart.Unix(), "exp": synctestStart.Add(time.Minute).Unix()}))
	if c := w.token(f); c.status != 200 {
		t.Fatalf("%d %s", c.status, c.raw)
	}
	synctest.Test(t, func(t *testing.T) {
		now = time.Now
		began := time.Now()
		cred := credentials(t, w, "https://login.example", inMemory{w.cloud.Login()}, policy.RetryOptions{})
		w.cloud.LoginFaults.Queue(1, sandbox.Fault{Kind: sandbox.FaultThrottled, RetryAfter: 2 * time.Second})
		if _, err := cred.GetToken(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited < 2*time.Second || waited > 3*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

func FuzzToken(f *testing.F) {
	w := newWorld(f, nil)
	h := w.cloud.Login()
	f.Add(form("e30.e30.").Encode())
	f.Fuzz(func(t *testing.T, body string) {
		w := &world{t: t}
		if c := w.do(h, call{method: "POST", path: "/" + tenantID + "/oauth2/v2.0/token", contentType: formType, body: body}); c.status == 200 || c.code() == 0 {
			t.Errorf("%q: %d %s", body, c.status, c.raw)
		}
	})
}
