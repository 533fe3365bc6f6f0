// Package endpoint serves a trust domain's bundle, by either profile of SPIFFE
// Federation §5: the handler is the same, the TLS configuration differs.
//
// It trusts its Config for the document and the certificates, and nobody else:
// whoever asks is answered, whatever they show (§5.2.1.3, §5.2.2.3). Making the
// bundle, its sequence and its hint is left to the authority.
package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds of the max-age that is made of a hint.
const (
	minAge = 30 * time.Second
	maxAge = 10 * time.Minute
)

// Config is the wiring of a Handler.
type Config struct {
	// Document gives the newest bundle whole and its refresh hint; not ok while
	// there is none. It is called for each request and must not block; what it
	// returned is not changed afterwards.
	Document func() (doc []byte, hint time.Duration, ok bool)
}

// A Handler serves the bundle at whatever path it is put.
type Handler struct {
	document func() ([]byte, time.Duration, bool)
	last     atomic.Pointer[answer]
}

// An answer is a document with its headers, which cost more than to send it.
// It is immutable.
type answer struct {
	doc               []byte
	hint              time.Duration
	tag, cache, bytes string
}

// of says whether a is the answer for a document: documents are not changed,
// so the same bytes in the same place are the same document.
func (a *answer) of(doc []byte, hint time.Duration) bool {
	return a != nil && a.hint == hint && len(a.doc) == len(doc) && &a.doc[0] == &doc[0]
}

func (h *Handler) answer(doc []byte, hint time.Duration) *answer {
	if last := h.last.Load(); last.of(doc, hint) {
		return last
	}
	age := int64(min(max(hint, minAge), maxAge) / time.Second)
	a := &answer{doc, hint, etag(doc), fmt.Sprintf("max-age=%d", age), strconv.Itoa(len(doc))}
	h.last.Store(a)
	return a
}

// New makes a Handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Document == nil {
		return nil, errors.New("making a bundle endpoint: Document is required")
	}
	return &Handler{document: cfg.Document}, nil
}

// ServeHTTP answers GET and HEAD with the newest bundle (SPIFFE Federation §4,
// §5.2.1.3), or with 503 while there is none.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	doc, hint, ok := h.document()
	if !ok || len(doc) == 0 {
		header.Set("Cache-Control", "no-store")
		header.Set("Retry-After", "5")
		http.Error(w, "no bundle yet", http.StatusServiceUnavailable)
		return
	}
	a := h.answer(doc, hint)
	header.Set("ETag", a.tag)
	header.Set("Cache-Control", a.cache)
	if matches(r.Header.Values("If-None-Match"), a.tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", a.bytes)
	if r.Method == http.MethodHead {
		return
	}
	w.Write(doc) // whoever hung up gets no second answer
}

// etag is strong: the same bytes, the same tag, on every broker.
func etag(doc []byte) string {
	sum := sha256.Sum256(doc)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
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
