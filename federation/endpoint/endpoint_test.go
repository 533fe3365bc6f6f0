package endpoint_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/federation/endpoint"
)

const document = `{"spiffe_sequence":1,"spiffe_refresh_hint":300,"keys":[]}`

func handler(t *testing.T, doc string, hint time.Duration, ok bool) http.Handler {
	t.Helper()
	h, err := endpoint.New(endpoint.Config{Document: func() ([]byte, time.Duration, bool) { return []byte(doc), hint, ok }})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func ask(h http.Handler, method string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "/", strings.NewReader("x"))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestGet(t *testing.T) {
	h := handler(t, document, 5*time.Minute, true)
	r := ask(h, http.MethodGet, "Authorization", "Bearer x") // FS-03
	if r.StatusCode != http.StatusOK || body(t, r) != document {
		t.Errorf("got %s", r.Status)
	}
	tag := r.Header.Get("ETag")
	want := http.Header{"Content-Type": {"application/json"}, "X-Content-Type-Options": {"nosniff"},
		"Cache-Control": {"max-age=300"}, "Etag": {tag}, "Content-Length": {"57"}}
	if diff := cmp.Diff(want, r.Header); diff != "" {
		t.Error(diff)
	}
	if len(tag) < 20 || tag[0] != '"' {
		t.Errorf("ETag %s is not strong", tag)
	}
	if other := ask(handler(t, document+" ", 0, true), http.MethodGet).Header.Get("ETag"); other == tag {
		t.Error("two documents have one ETag")
	}
}

func TestHead(t *testing.T) { // FS-04
	h := handler(t, document, 5*time.Minute, true)
	get, head := ask(h, http.MethodGet), ask(h, http.MethodHead)
	if diff := cmp.Diff(get.Header, head.Header); diff != "" || head.StatusCode != http.StatusOK || body(t, head) != "" {
		t.Errorf("HEAD is not GET without its body: %s\n%s", head.Status, diff)
	}
}

func TestOtherMethodsAreRefused(t *testing.T) { // FS-05
	h := handler(t, document, 5*time.Minute, true)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, "get"} {
		r := ask(h, method)
		if r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET, HEAD" || strings.Contains(body(t, r), "keys") {
			t.Errorf("%s: %s", method, r.Status)
		}
	}
}

func TestIfNoneMatch(t *testing.T) {
	h := handler(t, document, 5*time.Minute, true)
	tag := ask(h, http.MethodGet).Header.Get("ETag")
	for value, want := range map[string]int{
		tag: 304, "W/" + tag: 304, `"old", ` + tag: 304, "*": 304,
		`"old"`: 200, "": 200, strings.Trim(tag, `"`): 200, tag[:10]: 200,
	} {
		r := ask(h, http.MethodGet, "If-None-Match", value)
		if r.StatusCode != want || r.Header.Get("ETag") != tag || (want == 304) != (body(t, r) == "") {
			t.Errorf("If-None-Match %s: %s", value, r.Status)
		}
	}
	if r := ask(h, http.MethodGet, "If-None-Match", `"old"`, "If-None-Match", tag); r.StatusCode != 304 {
		t.Errorf("two headers: %s", r.Status)
	}
}

func TestCacheControlIsBounded(t *testing.T) {
	for hint, want := range map[time.Duration]string{
		0: "max-age=30", -time.Hour: "max-age=30", time.Minute: "max-age=60", 90 * 24 * time.Hour: "max-age=600",
	} {
		if got := ask(handler(t, document, hint, true), http.MethodGet).Header.Get("Cache-Control"); got != want {
			t.Errorf("hint %s: %s, want %s", hint, got, want)
		}
	}
}

func TestNoBundleYet(t *testing.T) {
	for name, h := range map[string]http.Handler{
		"not ok":       handler(t, document, 0, false),
		"half-made":    handler(t, `{"keys":[`, 0, false),
		"ok and empty": handler(t, "", 0, true),
	} {
		r := ask(h, http.MethodGet)
		if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Cache-Control") != "no-store" ||
			r.Header.Get("ETag") != "" || strings.Contains(body(t, r), "keys") {
			t.Errorf("%s: %s %v", name, r.Status, r.Header)
		}
	}
}

func TestNewWantsADocument(t *testing.T) {
	if _, err := endpoint.New(endpoint.Config{}); err == nil {
		t.Error("made without")
	}
}

// The bundle that is served is always the newest, with its own tag and age,
// also where it is as long as the last.
func TestNewBundleIsServedAtOnce(t *testing.T) {
	var document []byte
	var hint time.Duration
	h, err := endpoint.New(endpoint.Config{Document: func() ([]byte, time.Duration, bool) { return document, hint, true }})
	if err != nil {
		t.Fatal(err)
	}
	tags := map[string]bool{}
	for _, next := range []string{`{"keys":[1]}`, `{"keys":[2]}`, `{"keys":[22]}`} {
		document, hint = []byte(next), time.Minute
		r := ask(h, http.MethodGet)
		tags[r.Header.Get("ETag")] = true
		if got := body(t, r); got != next || r.Header.Get("Content-Length") != strconv.Itoa(len(next)) {
			t.Errorf("%s, want %s", got, next)
		}
		hint = 2 * time.Minute
		if got := ask(h, http.MethodGet).Header.Get("Cache-Control"); got != "max-age=120" {
			t.Errorf("Cache-Control %s after the hint changed", got)
		}
	}
	if len(tags) != 3 {
		t.Errorf("%d tags of three documents", len(tags))
	}
}
