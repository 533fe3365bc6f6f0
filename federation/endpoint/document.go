package endpoint

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
)

// A Document is JSON that anybody may read: its bytes, the same compressed, and
// the headers of both, which cost more to make than to send. It is immutable.
type Document struct {
	plain, gzip form // gzip has no body where it saves nothing
	cache       string
}

// A form is a representation (RFC 9110 §3.2).
type form struct {
	body                  []byte
	encoding, tag, length string
}

// NewDocument prepares body, which is not changed afterwards, to be served with
// a Cache-Control.
func NewDocument(body []byte, cacheControl string) *Document {
	sum := sha256.Sum256(body)
	name := hex.EncodeToString(sum[:16])
	d := &Document{plain: newForm(body, "", name), cache: cacheControl}
	if small := compressed(body); len(small)+len("Content-Encoding: gzip\r\n") < len(body) {
		d.gzip = newForm(small, "gzip", name+"-gzip")
	}
	return d
}

// newForm has a strong tag: the same bytes, the same tag, on every broker; other
// bytes, another tag, also where the difference is an encoding (RFC 9110 §8.8.3.3).
func newForm(body []byte, encoding, name string) form {
	return form{body, encoding, `"` + name + `"`, strconv.Itoa(len(body))}
}

func compressed(body []byte) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		panic("compressing a document: " + err.Error()) // the level is a constant
	}
	_, _ = z.Write(body) // a Buffer takes everything
	_ = z.Close()
	return b.Bytes()
}

// ServeHTTP answers GET and HEAD.
func (d *Document) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !readOnly(w, r) {
		return
	}
	f, header := &d.plain, w.Header()
	if d.gzip.body != nil {
		header.Set("Vary", "Accept-Encoding")
		if takesGzip(r.Header.Values("Accept-Encoding")) {
			f = &d.gzip
		}
	}
	header.Set("ETag", f.tag)
	header.Set("Cache-Control", d.cache)
	if matches(r.Header.Values("If-None-Match"), f.tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", f.length)
	if f.encoding != "" {
		header.Set("Content-Encoding", f.encoding)
	}
	if r.Method == http.MethodHead {
		return
	}
	w.Write(f.body) // whoever hung up gets no second answer
}

// readOnly refuses methods that would change something.
func readOnly(w http.ResponseWriter, r *http.Request) bool {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	header.Set("Allow", "GET, HEAD")
	http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
	return false
}

// matches compares weakly, as If-None-Match does (RFC 9110 §13.1.2).
func matches(values []string, tag string) bool {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			one = strings.TrimPrefix(strings.TrimSpace(one), "W/")
			if one == tag || one == "*" {
				return true
			}
		}
	}
	return false
}

// takesGzip reads Accept-Encoding (RFC 9110 §12.5.3). What is said of gzip goes
// before what is said of everything; what cannot be read permits nothing.
func takesGzip(values []string) bool {
	named, any := -1.0, -1.0
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			coding, parameters, _ := strings.Cut(one, ";")
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "gzip", "x-gzip":
				named = max(named, weight(parameters))
			case "*":
				any = max(any, weight(parameters))
			}
		}
	}
	if named >= 0 {
		return named > 0
	}
	return any > 0
}

// weight is what q says, 1 where there is none.
func weight(parameters string) float64 {
	if strings.TrimSpace(parameters) == "" {
		return 1
	}
	name, value, _ := strings.Cut(parameters, "=")
	q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	if err != nil || !strings.EqualFold(strings.TrimSpace(name), "q") || !(q >= 0 && q <= 1) {
		return 0
	}
	return q
}
