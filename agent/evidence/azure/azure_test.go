package azure_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/azure"
)

func say(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
}

func ask(t *testing.T, answer http.HandlerFunc) azure.Config {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return azure.Config{TrustDomain: "example.org", Audience: "api://credence", Endpoint: s.URL}
}

// What is no token is no evidence, and the error says what to do.
func TestToken(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // nobody is there: no proxy is asked
	for name, row := range map[string]struct {
		answer http.HandlerFunc
		want   string // empty: it is evidence
	}{
		"gives one": {func(w http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); r.Header.Get("Metadata") != "true" || r.URL.Path != "/metadata/identity/oauth2/token" || q.Get("api-version") != "2018-02-01" || q.Get("resource") != "api://credence" {
				w.WriteHeader(http.StatusForbidden)
			}
			fmt.Fprint(w, `{"access_token":"a.b.c","token_type":"Bearer"}`)
		}, ""},
		"has no identity": {say(http.StatusBadRequest, `{"error":"invalid_request","error_description":"Identity not found"}`), `"Identity not found": has the machine a managed identity`},
		"knows no such":   {say(http.StatusBadRequest, `{"error":"invalid_resource","error_description":"AADSTS500011"}`), "app registration"},
		"is overrun":      {say(http.StatusTooManyRequests, ""), "try again"},
		"is silent":       {say(http.StatusOK, "{}"), "none in its answer"},
		"is a page":       {say(http.StatusOK, "<html>"), "not in JSON"},
		"is endless":      {say(http.StatusOK, strings.Repeat(" ", 1<<20)), "more than"},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "status 302"},
	} {
		text, err := ask(t, row.answer).Evidence(t.Context())
		switch {
		case row.want == "" && (err != nil || string(text) != `{"token":"a.b.c"}`):
			t.Errorf("%s: %s, %v", name, text, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %s, %v, want %s", name, text, err, row.want)
		}
	}
	if text, err := (azure.Config{Endpoint: "http://127.0.0.1:1"}).Evidence(t.Context()); err != nil || string(text) != "{}" {
		t.Errorf("where none is to be shown: %s, %v", text, err)
	}
	if _, err := (azure.Config{Audience: "api://x", Endpoint: "http://127.0.0.1:1"}).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "is this a machine of Azure's?") {
		t.Error(err)
	}
}

// A document is asked for with a nonce of all that it is for, until it has that.
func TestDocument(t *testing.T) {
	nonces, stale := map[string]bool{}, 1
	c := ask(t, func(w http.ResponseWriter, r *http.Request) {
		nonce := r.URL.Query().Get("nonce")
		if len(nonce) != 32 || strings.Trim(nonce, "0123456789abcdef") != "" || r.URL.Path != "/metadata/attested/document" || r.Header.Get("Metadata") != "true" {
			w.WriteHeader(http.StatusBadRequest)
		}
		nonces[nonce] = true
		if stale > 0 {
			stale--
			nonce = "1234567890"
		}
		fmt.Fprintf(w, `{"encoding":"pkcs7","signature":%q}`, base64.StdEncoding.EncodeToString([]byte("about "+nonce)))
	})
	challenge, key := make([]byte, 32), []byte("a key")
	first, err := c.Answer(t.Context(), challenge, key)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Answer(t.Context(), challenge, key); err != nil || string(again) != string(first) {
		t.Errorf("the same: %s, %v", again, err)
	}
	other := c
	other.TrustDomain = "example.com"
	for name, ask := range map[string]func() ([]byte, error){
		"another challenge":    func() ([]byte, error) { return c.Answer(t.Context(), append([]byte{1}, challenge[1:]...), key) },
		"another key":          func() ([]byte, error) { return c.Answer(t.Context(), challenge, []byte("another")) },
		"another trust domain": func() ([]byte, error) { return other.Answer(t.Context(), challenge, key) },
	} {
		if text, err := ask(); err != nil || string(text) == string(first) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	if len(nonces) != 4 {
		t.Errorf("%d nonces", len(nonces))
	}
	other.TrustDomain = ""
	for name, ask := range map[string]func() ([]byte, error){
		"a short challenge": func() ([]byte, error) { return c.Answer(t.Context(), challenge[1:], key) },
		"no key":            func() ([]byte, error) { return c.Answer(t.Context(), challenge, nil) },
		"no trust domain":   func() ([]byte, error) { return other.Answer(t.Context(), challenge, key) },
	} {
		if text, err := ask(); err == nil {
			t.Errorf("%s: %s", name, text)
		}
	}
	if text, err := ask(t, say(http.StatusOK, `{"encoding":"jws","signature":"AAAA"}`)).Answer(t.Context(), challenge, key); err == nil {
		t.Errorf("of another kind: %s", text)
	}
}
