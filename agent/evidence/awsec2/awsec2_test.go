package awsec2_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/credence-id/credence/agent/evidence/awsec2"
)

func metadata(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.URL
}

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
}

// The key is made once, for this user alone, and shown again and again; of many
// who make it at once one does.
func TestKeyIsKept(t *testing.T) {
	c := awsec2.Config{TrustDomain: "example.org", KeyFile: filepath.Join(t.TempDir(), "key"), Metadata: metadata(t, say("MIAG"))}
	shown := make([]string, 10)
	var all sync.WaitGroup
	for n := range shown {
		all.Go(func() {
			text, err := c.Evidence(t.Context())
			if err != nil {
				t.Error(err)
			}
			shown[n] = string(text)
		})
	}
	all.Wait()
	for _, text := range shown[1:] {
		if text != shown[0] {
			t.Errorf("%s and %s", text, shown[0])
		}
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(shown[0]), &got); err != nil || got["document"] != "MIAG" || got["key"] == "" || len(got) != 2 {
		t.Errorf("%v: %v", got, err)
	}
	info, err := os.Stat(c.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if files, err := os.ReadDir(filepath.Dir(c.KeyFile)); err != nil || len(files) != 1 {
		t.Errorf("left beside it: %v, %v", files, err)
	}
	if err := os.WriteFile(c.KeyFile, []byte("spoiled"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Evidence(t.Context()); err == nil {
		t.Error("a file that holds no key is passed over")
	}
	if text, err := os.ReadFile(c.KeyFile); err != nil || string(text) != "spoiled" {
		t.Errorf("it is replaced by %q, %v", text, err)
	}
}

func TestNothingElseIsSigned(t *testing.T) {
	c := awsec2.Config{TrustDomain: "example.org", KeyFile: filepath.Join(t.TempDir(), "key")}
	for _, n := range []int{0, 31, 33, 4096} {
		if _, err := c.Answer(t.Context(), make([]byte, n)); err == nil {
			t.Errorf("a challenge of %d bytes is signed", n)
		}
	}
	c.TrustDomain = ""
	if _, err := c.Answer(t.Context(), make([]byte, 32)); err == nil {
		t.Error("it is signed for no trust domain")
	}
}

func TestMetadata(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"refuses": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"is silent": say(""),
		"is endless": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				_, _ = w.Write([]byte("session"))
				return
			}
			_, _ = w.Write([]byte(strings.Repeat("A", 1<<20)))
		},
	} {
		c := awsec2.Config{TrustDomain: "example.org", KeyFile: filepath.Join(t.TempDir(), "key"), Metadata: metadata(t, answer)}
		if _, err := c.Evidence(t.Context()); err == nil {
			t.Errorf("%s: that is a document", name)
		}
	}
}
