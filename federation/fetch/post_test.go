package fetch_test

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/federation/fetch"
)

// A Post is under the rules of every URL from outside, and its answer is bounded.
//
// Regression: CVE-2026-49478
// Regression: SPIRE 1.14.2 SSRF
func TestPost(t *testing.T) {
	root := newCA(t)
	near := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	packedBomb := string(packed(t, strings.Repeat("x", fetch.MaxBody+1)))
	var elsewhere atomic.Int64
	other := serve(t, root.Web(t, "127.0.0.1"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	for name, row := range map[string]struct {
		handler  http.HandlerFunc
		networks []netip.Prefix
		path     string
		status   int
		why      string
	}{
		"an answer": {func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, near, "/", 200, ""},
		"a refusal": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403); _, _ = io.Copy(w, r.Body) }, near, "/", 403, ""},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(307)
			_, _ = io.Copy(w, r.Body)
		}, near, "/", 307, ""},
		"a private address": {reply("x"), nil, "/", 0, "private"},
		"too much":          {reply(strings.Repeat("x", fetch.MaxBody+1)), near, "/", 0, "larger"},
		"too much, unpacked": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, packedBomb)
		}, near, "/", 0, "larger"},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, near, "/?q=secret", 0, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			s := serve(t, root.Web(t, "127.0.0.1"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("Content-Type", "text/x")
				if r.Method != http.MethodPost || r.Header.Get("X-Ours") != "1" || r.ContentLength != 4 {
					t.Errorf("%s, %v, %d bytes", r.Method, r.Header, r.ContentLength)
				}
				row.handler(w, r)
			}))
			c := fetch.New(fetch.Config{AllowNetworks: row.networks, Roots: root.Pool()})
			got, err := c.Post(t.Context(), s.URL+row.path, http.Header{"X-Ours": {"1"}}, []byte("body"))
			if row.why != "" {
				refused(t, err, row.why)
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("it tells of the query: %v", err)
				}
			} else if d := cmp.Diff(fetch.Answer{Status: row.status, ContentType: "text/x", Body: []byte("body")}, got); err != nil || d != "" {
				t.Errorf("%v: %s", err, d)
			}
			if n := asked.Load(); n > 1 || (n == 0) != (row.networks == nil) {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestPostIsRefused(t *testing.T) {
	root, strange := newCA(t), newCA(t)
	near := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s := serve(t, strange.Web(t, "127.0.0.1"), reply("x"))
	held := make(chan struct{})
	slow := serve(t, root.Web(t, "127.0.0.1"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-held }))
	defer close(held)
	for name, row := range map[string]struct{ url, why string }{
		"another CA":       {s.URL, "authority"},
		"no TLS":           {"http://127.0.0.1/", "https"},
		"no URL":           {"https://\x00/", "parse"},
		"user information": {"https://a:b@127.0.0.1/", "user"},
		"slow":             {slow.URL, "deadline"},
	} {
		c := fetch.New(fetch.Config{AllowNetworks: near, Roots: root.Pool()})
		fetch.SetTimeout(c, 5*time.Second)
		if name == "slow" {
			fetch.SetTimeout(c, 50*time.Millisecond)
		}
		_, err := c.Post(t.Context(), row.url, http.Header{}, []byte("body"))
		t.Run(name, func(t *testing.T) { refused(t, err, row.why) })
	}
}
