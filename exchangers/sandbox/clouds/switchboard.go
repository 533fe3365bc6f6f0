package clouds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// Kinds of a [Fault] that are none of one response.
const (
	kindClock  = "clock"     // the cloud's clock is Offset ahead, until it is set again
	kindForget = "drop-jwks" // what the cloud has cached of issuers is forgotten, once
)

// responseKinds are the faults of a response; the others are of a fetch of keys.
var (
	responseKinds = []string{
		string(sandbox.FaultThrottled), string(sandbox.FaultError), string(sandbox.FaultUnavailable), string(sandbox.FaultHang),
		string(sandbox.FaultClosed), string(sandbox.FaultTruncated), string(sandbox.FaultEmpty), string(sandbox.FaultHTML),
	}
	fetchKinds = []string{string(sandbox.FetchSlow), string(sandbox.FetchError)}
)

// Kinds are all kinds of a [Fault].
func Kinds() []string {
	return slices.Concat(responseKinds, fetchKinds, []string{kindForget, kindClock})
}

// A Fault is what POST /faults takes: the next Count responses of a service, or
// its cloud's next fetches of key sets, go wrong.
type Fault struct {
	Service    string `json:"service"`
	Kind       string `json:"kind"`
	Count      int    `json:"count,omitempty"`       // 1 if left out; clock and drop-jwks have none
	RetryAfter int    `json:"retry_after,omitempty"` // seconds, of 429 and 503; zero sends none
	Offset     string `json:"offset,omitempty"`      // of clock: a Go duration, such as -10m
}

// A State is one service as GET /faults tells it.
type State struct {
	Service string   `json:"service"`
	URL     string   `json:"url"`
	Queued  []Queued `json:"queued"`  // responses to come, first first
	Fetches []string `json:"fetches"` // its cloud's fetches of key sets to come
	Offset  string   `json:"offset"`  // of its cloud's clock
}

// Queued is a fault that waits.
type Queued struct {
	Kind       string `json:"kind"`
	RetryAfter int    `json:"retry_after,omitempty"`
}

// A Request is one entry of the record as GET /requests tells it: of a token it
// holds the digest alone.
type Request struct {
	Time    time.Time         `json:"time"`
	ID      string            `json:"id"`
	Service string            `json:"service"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Status  int               `json:"status"`
	Code    string            `json:"code"`
	Reason  string            `json:"reason"`
	Token   string            `json:"token"`
	Fields  map[string]string `json:"fields"`
}

const (
	maxQueue = 10_000
	maxClock = 10 * 365 * 24 * time.Hour
)

// Switchboard makes services fail and tells what was asked of them:
//
//	GET    /faults               the state of all services
//	POST   /faults               a Fault, as JSON
//	DELETE /faults               all is well again, clocks too
//	GET    /requests[?service=]  the record, oldest first
//
// Whoever reaches it commands the clouds: serve it on a Unix socket.
func (c *Clouds) Switchboard() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, c.state()) })
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) {
		c.clear()
		answer(w, http.StatusOK, c.state())
	})
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var f Fault
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
		d.DisallowUnknownFields()
		err := d.Decode(&f)
		if err == nil && d.More() {
			err = fmt.Errorf("more than one JSON object")
		}
		if err == nil {
			err = c.fail(f)
		}
		if err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, c.state())
	})
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, r *http.Request) {
		service := r.URL.Query().Get("service")
		if service != "" && c.find(service) == nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": c.unknown(service).Error()})
			return
		}
		answer(w, http.StatusOK, c.requests(service))
	})
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the client may be gone
}

func (c *Clouds) find(name string) *service {
	for _, s := range c.services {
		if s.name == name {
			return s
		}
	}
	return nil
}

func (c *Clouds) unknown(service string) error {
	var names []string
	for _, s := range c.services {
		names = append(names, s.name)
	}
	return fmt.Errorf("service %q: there are %s", service, strings.Join(names, ", "))
}

func (c *Clouds) fail(f Fault) error {
	s := c.find(f.Service)
	if s == nil {
		return c.unknown(f.Service)
	}
	once := f.Kind == kindClock || f.Kind == kindForget
	if f.Count == 0 {
		f.Count = 1
	}
	retries := f.Kind == string(sandbox.FaultThrottled) || f.Kind == string(sandbox.FaultUnavailable)
	switch {
	case !slices.Contains(Kinds(), f.Kind):
		return fmt.Errorf("kind %q: there are %s", f.Kind, strings.Join(Kinds(), ", "))
	case f.Count < 1 || f.Count > maxQueue || once && f.Count > 1:
		return fmt.Errorf("count %d: 1 to %d are wanted, and 1 of clock and drop-jwks", f.Count, maxQueue)
	case f.RetryAfter < 0 || f.RetryAfter > 86400 || f.RetryAfter > 0 && !retries:
		return fmt.Errorf("retry_after %d: 429 and 503 have one, of up to 86400 seconds", f.RetryAfter)
	case (f.Offset != "") != (f.Kind == kindClock):
		return fmt.Errorf("offset %q: clock has one, and nothing else", f.Offset)
	}
	switch {
	case f.Kind == kindClock:
		d, err := time.ParseDuration(f.Offset)
		if err != nil || d.Abs() > maxClock {
			return fmt.Errorf("offset %q: a duration is wanted, such as -10m", f.Offset)
		}
		s.clock.SetClockOffset(d)
	case f.Kind == kindForget:
		s.issuers.Forget()
	case slices.Contains(fetchKinds, f.Kind):
		s.issuers.QueueFetch(f.Count, sandbox.FetchFault(f.Kind))
	default:
		s.faults.Queue(f.Count, sandbox.Fault{Kind: sandbox.FaultKind(f.Kind), RetryAfter: time.Duration(f.RetryAfter) * time.Second})
	}
	return nil
}

func (c *Clouds) clear() {
	for _, s := range c.services {
		s.faults.Clear()
		s.clock.SetClockOffset(0)
		s.issuers.ClearFetches()
	}
}

func (c *Clouds) state() []State {
	all := []State{}
	for _, s := range c.services {
		state := State{Service: s.name, URL: s.url, Queued: []Queued{}, Fetches: []string{}, Offset: s.clock.ClockOffset().String()}
		for _, f := range s.faults.Queued() {
			state.Queued = append(state.Queued, Queued{string(f.Kind), int(f.RetryAfter / time.Second)})
		}
		for _, f := range s.issuers.QueuedFetches() {
			state.Fetches = append(state.Fetches, string(f))
		}
		all = append(all, state)
	}
	return all
}

func (c *Clouds) requests(service string) []Request {
	all := []Request{}
	for _, e := range c.record.Entries() {
		if service == "" || e.Service == service {
			all = append(all, Request(e))
		}
	}
	return all
}
