package sandbox

import (
	"net/http"
	"sync"
	"time"
)

// An Entry records one request, redacted: of a token it holds the hash alone.
type Entry struct {
	Time    time.Time
	ID      string // also in the response, where the cloud puts it
	Service string
	Method  string
	Path    string
	Status  int
	Code    string            // the cloud's own error code; empty on success
	Reason  string            // for the person at the sandbox: what exactly was refused; never sent
	Token   string            // HashToken of what was presented
	Fields  map[string]string // parameters that are no secrets
}

// A Recorder keeps the last entries. Its Record fits the Log of each cloud.
type Recorder struct {
	mu   sync.Mutex // guards the rest
	ring []Entry
	next int
	size int
}

// NewRecorder returns a Recorder of the last n entries; n below 1 is 1.
func NewRecorder(n int) *Recorder { return &Recorder{size: max(n, 1)} }

// Record adds an entry, in place of the oldest when full.
func (r *Recorder) Record(e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) < r.size {
		r.ring = append(r.ring, e)
		return
	}
	r.ring[r.next] = e
	r.next = (r.next + 1) % r.size
}

// Entries returns the entries held, oldest first.
func (r *Recorder) Entries() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(append([]Entry{}, r.ring[r.next:]...), r.ring[:r.next]...)
}

// Serve makes an http.Handler of h: each request gets an id, and is logged when
// h has returned with the status it wrote and what h noted in the entry. A nil
// log discards.
func Serve(service string, now func() time.Time, log func(Entry), h func(http.ResponseWriter, *http.Request, *Entry)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := Entry{Time: now(), ID: NewID(), Service: service, Method: r.Method, Path: r.URL.Path}
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		h(s, r, &e)
		e.Status = s.status
		if log != nil {
			log(e)
		}
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
