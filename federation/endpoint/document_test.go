package endpoint_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var long = `{"keys":[` + strings.Repeat(`{"kty":"EC","use":"jwt-svid"},`, 50) + `{}]}`

func TestGzip(t *testing.T) {
	h := handler(t, long, time.Minute, true)
	plain := ask(h, http.MethodGet)
	if got := body(t, plain); got != long || plain.Header.Get("Content-Encoding") != "" || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("not asked for: %v", plain.Header)
	}
	packed := ask(h, http.MethodGet, "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(packed.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != long {
		t.Errorf("unpacked: %v, %.100s", err, got)
	}
	length, err := strconv.Atoi(packed.Header.Get("Content-Length"))
	if err != nil || length >= len(long)/4 || packed.Header.Get("Content-Encoding") != "gzip" || packed.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("%v", packed.Header)
	}
	if diff := cmp.Diff(packed.Header, ask(h, http.MethodHead, "Accept-Encoding", "gzip").Header); diff != "" {
		t.Errorf("HEAD is not GET: %s", diff)
	}
	// Two representations, two strong tags (RFC 9110 §8.8.3.3).
	tag, packedTag := plain.Header.Get("ETag"), packed.Header.Get("ETag")
	if tag == packedTag {
		t.Error("one strong tag for two representations")
	}
	for _, c := range []struct {
		encoding, tag string
		want          int
	}{{"gzip", packedTag, 304}, {"gzip", tag, 200}, {"identity", tag, 304}, {"identity", packedTag, 200}} {
		r := ask(h, http.MethodGet, "Accept-Encoding", c.encoding, "If-None-Match", c.tag)
		if r.StatusCode != c.want || r.Header.Get("Vary") == "" || r.StatusCode == 304 && r.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s with %s: %s", c.encoding, c.tag, r.Status)
		}
	}
}

// RFC 9110 §12.5.3.
func TestAcceptEncoding(t *testing.T) {
	h := handler(t, long, time.Minute, true)
	for value, want := range map[string]bool{
		"gzip": true, "GZIP": true, "x-gzip": true, "br, gzip;q=0.5": true, "*": true, "gzip; q=1.0": true, "gzip;Q=0.001": true,
		"": false, "br": false, "identity": false, "gzip;q=0": false, "*;q=0": false, "gzip;q=0, *": false, "gzip;q=x": false,
		"gzip;q=-1": false, "gzip;q=2": false, "gzip;q=NaN": false, "gzipped": false, "gzip;level=9": false, "*;q=0, gzip": true,
	} {
		got := ask(h, http.MethodGet, "Accept-Encoding", value).Header.Get("Content-Encoding") == "gzip"
		if got != want {
			t.Errorf("Accept-Encoding %q: gzip %v", value, got)
		}
	}
}

func TestSmallDocumentsAreNotCompressed(t *testing.T) {
	r := ask(handler(t, document, time.Minute, true), http.MethodGet, "Accept-Encoding", "gzip")
	if r.Header.Get("Content-Encoding") != "" || r.Header.Get("Vary") != "" || body(t, r) != document {
		t.Errorf("%v", r.Header)
	}
}
