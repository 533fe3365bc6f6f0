// Package endpoint serves a trust domain's bundle, by either profile of SPIFFE
// Federation §5: the handler is the same, the TLS configuration differs.
//
// It trusts its Config for the document and the certificates, and nobody else:
// whoever asks is answered, whatever they show (§5.2.1.3, §5.2.2.3). Making the
// bundle, its sequence and its hint is left to the authority.
package endpoint

import (
	"errors"
	"fmt"
	"net/http"
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

// An answer is a document as it was handed out. It is immutable.
type answer struct {
	doc  []byte
	hint time.Duration
	*Document
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
	a := &answer{doc, hint, NewDocument(doc, CacheControl(hint))}
	h.last.Store(a)
	return a
}

// CacheControl is that of a bundle with a refresh hint: no cache may keep it
// longer than peers wait, nor for less than is worth it.
func CacheControl(hint time.Duration) string {
	return fmt.Sprintf("max-age=%d", int64(min(max(hint, minAge), maxAge)/time.Second))
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
	if !readOnly(w, r) {
		return
	}
	doc, hint, ok := h.document()
	if !ok || len(doc) == 0 {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("Retry-After", "5")
		http.Error(w, "no bundle yet", http.StatusServiceUnavailable)
		return
	}
	h.answer(doc, hint).ServeHTTP(w, r)
}
