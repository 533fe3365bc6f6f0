package azure_test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/credence-id/credence/exchangers/sandbox/azure"
)

const capable = `{"access_token":{"xms_cc":{"values":["CP1"]}}}`

// challenge is the claims that the resource asks for, or empty.
func (w *world) challenge(token string) string {
	w.t.Helper()
	r := httptest.NewRequest("GET", "/whoami", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	rec := httptest.NewRecorder()
	w.cloud.ARM().ServeHTTP(rec, r)
	m := regexp.MustCompile(`error="insufficient_claims", claims="([^"]+)"`).FindStringSubmatch(rec.Header().Get("WWW-Authenticate"))
	if (m == nil) != (rec.Code == http.StatusOK) {
		w.t.Errorf("status %d with %q", rec.Code, rec.Header().Get("WWW-Authenticate"))
	}
	if m == nil {
		return ""
	}
	b, err := base64.StdEncoding.DecodeString(m[1])
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// A revoked app's tokens for continuous access are challenged, others live on,
// and the answer to the challenge works.
func TestClaimsChallenge(t *testing.T) {
	w := newWorld(t, nil)
	plain := w.access()
	get := func(claims string) string {
		f := form(w.assertion(nil))
		f.Set("claims", claims)
		c := w.token(f)
		if c.status != http.StatusOK {
			t.Fatalf("%d %s", c.status, c.raw)
		}
		return c.got["access_token"].(string)
	}
	old := get(capable)
	if w.challenge(old) != "" {
		t.Error("challenged before anything happened")
	}
	w.now = w.now.Add(10 * time.Second)
	w.cloud.RevokeSessions(clientID)
	if w.challenge(plain) != "" {
		t.Error("a token that is not for continuous access was challenged")
	}
	claims := w.challenge(old)
	if !strings.Contains(claims, `"nbf"`) {
		t.Fatalf("claims %q", claims)
	}
	merged := strings.Replace(claims, `{"access_token":{`, `{"access_token":{"xms_cc":{"values":["CP1"]},`, 1)
	if w.challenge(get(merged)) != "" {
		t.Error("the answer to the challenge was challenged")
	}
	w.now = w.now.Add(24 * time.Hour)
	if c := w.whoami(old); c.status != http.StatusUnauthorized {
		t.Errorf("after 24 h: %d", c.status)
	}
}

func TestAzidentityAnswersAChallenge(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.Now = time.Now })
	s := httptest.NewTLSServer(w.cloud.Login())
	defer s.Close()
	_, err := credentials(t, w, s.URL, s.Client(), noRetry).GetToken(t.Context(), policy.TokenRequestOptions{
		Scopes: []string{resource + "/.default"}, EnableCAE: true, Claims: `{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}`})
	if err != nil {
		t.Fatal(err)
	}
	all := w.recorder.Entries()
	if got := all[len(all)-1].Fields["claims"]; !strings.Contains(got, "1700000000") || !strings.Contains(got, "CP1") {
		t.Errorf("claims %q", got)
	}
}

func TestAudienceOfASovereignCloud(t *testing.T) {
	identity := app(credential())
	identity.Kind = azure.ManagedIdentity
	w := newWorld(t, func(c *azure.Config) { c.Audience = azure.Audience + "USGov" })
	if err := w.cloud.PutApp(tenantID, identity); err == nil {
		t.Error("a managed identity takes the public cloud's audience")
	}
	identity.Credentials[0].Audience += "USGov"
	if err := w.cloud.PutApp(tenantID, identity); err != nil {
		t.Error(err)
	}
	if c := w.token(form(w.assertion(map[string]any{"aud": azure.Audience + "USGov"}))); c.status != http.StatusOK {
		t.Errorf("%d %s", c.status, c.raw)
	}
	if c := w.token(form(w.assertion(nil))); c.code() != 700212 {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

// A resource may be named by the client ID of its app.
func TestResourceByClientID(t *testing.T) {
	w := newWorld(t, func(c *azure.Config) { c.Resources = []string{objectID} })
	f := form(w.assertion(nil))
	f.Set("scope", objectID+"/.default")
	if c := w.token(f); c.status != http.StatusOK {
		t.Errorf("%d %s", c.status, c.raw)
	}
}

func FuzzClaims(f *testing.F) {
	f.Add(capable)
	f.Add(`{"access_token":{"nbf":{"essential":true,"value":"1"}}}`)
	w := newWorld(f, nil)
	f.Fuzz(func(t *testing.T, claims string) {
		w.t = t
		in := form(w.assertion(nil))
		in.Set("claims", claims)
		if c := w.token(in); c.status == http.StatusOK && !strings.Contains(claims, "{") {
			t.Errorf("taken: %q", claims)
		}
	})
}
