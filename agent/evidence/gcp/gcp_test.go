package gcp_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/gcp"
)

// What no metadata server of Google's answers is no evidence, and the error says
// what to do.
func TestMetadata(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // nobody is there: no proxy is asked
	answer := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		}
	}
	for name, row := range map[string]struct {
		answer http.HandlerFunc
		want   string // empty: it is evidence
	}{
		"gives one":    {answer(http.StatusOK, "a.b.c\n"), ""},
		"has no token": {answer(http.StatusNotFound, "no"), "set-service-account"},
		"refuses":      {answer(http.StatusForbidden, "no"), "status 403"},
		"is silent":    {answer(http.StatusOK, "\n"), "nothing"},
		"is endless":   {answer(http.StatusOK, strings.Repeat("A", 1<<20)), "more than"},
		"is a portal":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("a.b.c")) }, "no metadata server"},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "status 302"},
	} {
		s := httptest.NewServer(row.answer)
		text, err := gcp.Config{Audience: "credence://example.org/join", Host: strings.TrimPrefix(s.URL, "http://")}.Evidence(t.Context())
		s.Close()
		switch {
		case row.want == "" && (err != nil || string(text) != "a.b.c"):
			t.Errorf("%s: %q, %v", name, text, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %q, %v, want %s", name, text, err, row.want)
		}
	}
	if _, err := (gcp.Config{Host: "127.0.0.1:1"}).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "is this a machine of Google's?") {
		t.Error(err)
	}
}
