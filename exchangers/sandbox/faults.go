package sandbox

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A FaultKind says what goes wrong.
type FaultKind string

// The faults of a service.
const (
	FaultThrottled   FaultKind = "429"               // with Retry-After if Fault.RetryAfter is set
	FaultError       FaultKind = "500"               //
	FaultUnavailable FaultKind = "503"               //
	FaultHang        FaultKind = "hang"              // until the client goes away
	FaultClosed      FaultKind = "close"             // the connection, in the middle of the body
	FaultTruncated   FaultKind = "truncated"         // a well-ended response with half a body
	FaultEmpty       FaultKind = "empty-credentials" // all texts of the response are empty
	FaultHTML        FaultKind = "html"              // 200 and a web page
)

// A Fault is what one response does instead.
type Fault struct {
	Kind       FaultKind
	RetryAfter time.Duration // of 429 and 503, whole seconds; zero sends none
}

// Faults is the switchboard of one service. The zero value lets all through. It
// is safe for concurrent use.
type Faults struct {
	// Shape writes an error status in the shape of the cloud; nil is a bare
	// status. Set it before the first request.
	Shape func(w http.ResponseWriter, status int)
	// Log is told of requests that a fault kept from the service, which tells of
	// the others, under the name of Service. Set both before the first request.
	Log     func(Entry)
	Service string

	mu     sync.Mutex // guards the rest
	queue  []Fault
	offset time.Duration
}

// Queue makes the next n responses, after those already queued, fail with f.
func (f *Faults) Queue(n int, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		f.queue = append(f.queue, fault)
	}
}

// Clear forgets the faults that are still queued.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = nil
}

// SetClockOffset moves the clocks that [Faults.Clock] made.
func (f *Faults) SetClockOffset(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offset = d
}

// Clock returns now, moved by the clock offset. A nil now is time.Now.
func (f *Faults) Clock(now func() time.Time) func() time.Time {
	if now == nil {
		now = time.Now
	}
	return func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		return now().Add(f.offset)
	}
}

// Queued returns the faults that wait, first first.
func (f *Faults) Queued() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.queue)
}

// ClockOffset returns what SetClockOffset has set.
func (f *Faults) ClockOffset() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.offset
}

func (f *Faults) pop() (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return Fault{}, false
	}
	first := f.queue[0]
	f.queue = f.queue[1:]
	return first, true
}

// Wrap puts the switchboard before next. A fault that spoils a response lets
// next make it first, so a credential may exist that no client has seen, as
// with a real cloud.
func (f *Faults) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault, ok := f.pop()
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		f.fail(w, r, next, fault)
	})
}

func (f *Faults) fail(w http.ResponseWriter, r *http.Request, next http.Handler, fault Fault) {
	if s := int(fault.RetryAfter / time.Second); s > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(s))
	}
	if f.Log != nil && fault.Kind != FaultClosed && fault.Kind != FaultTruncated && fault.Kind != FaultEmpty {
		s := &statusWriter{ResponseWriter: w}
		w = s
		defer func(began time.Time) {
			f.Log(Entry{Time: began, ID: NewID(), Service: f.Service, Method: r.Method, Path: r.URL.Path, Status: s.status, Code: "fault", Reason: string(fault.Kind)})
		}(time.Now())
	}
	switch fault.Kind {
	case FaultHang:
		io.Copy(io.Discard, io.LimitReader(r.Body, MaxBody)) // the server notices a client's leave only after the body
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case FaultHTML:
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!DOCTYPE html><html><body>Sign in to the network</body></html>")
	case FaultClosed, FaultTruncated, FaultEmpty:
		spoil(w, r, next, fault.Kind)
	default:
		status, err := strconv.Atoi(string(fault.Kind))
		if err != nil || status < 400 {
			status = http.StatusInternalServerError // an unknown fault is still a fault
		}
		if f.Shape == nil {
			http.Error(w, http.StatusText(status), status)
			return
		}
		f.Shape(w, status)
	}
}

func spoil(w http.ResponseWriter, r *http.Request, next http.Handler, kind FaultKind) {
	held := &holder{header: w.Header(), status: http.StatusOK}
	next.ServeHTTP(held, r)
	body := held.body.Bytes()
	switch kind {
	case FaultClosed:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		body = body[:len(body)/2]
	case FaultTruncated:
		body = body[:len(body)/2]
	case FaultEmpty:
		body = blank(body)
	}
	w.WriteHeader(held.status)
	w.Write(body)
	if kind == FaultClosed {
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// A holder keeps a response back.
type holder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *holder) Header() http.Header         { return h.header }
func (h *holder) WriteHeader(status int)      { h.status = status }
func (h *holder) Write(b []byte) (int, error) { return h.body.Write(b) }

var elementText = regexp.MustCompile(`>[^<]+</`)

// blank empties every text in a JSON or XML document.
func blank(body []byte) []byte {
	if strings.HasPrefix(strings.TrimSpace(string(body)), "<") {
		return elementText.ReplaceAll(body, []byte("></"))
	}
	var v any
	if json.Unmarshal(body, &v) != nil {
		return nil
	}
	b, _ := json.Marshal(blankValue(v)) // cannot fail: v came from JSON
	return b
}

func blankValue(v any) any {
	switch v := v.(type) {
	case string:
		return ""
	case map[string]any:
		for name := range v {
			v[name] = blankValue(v[name])
		}
	case []any:
		for i := range v {
			v[i] = blankValue(v[i])
		}
	}
	return v
}
