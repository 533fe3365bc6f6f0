package local

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An endpoint is what one target's SDK asks over HTTP.
type endpoint interface {
	header() string   // with the secret
	parameters() bool // whether the path may have a query
	// answer returns what is sent as JSON.
	answer(ctx context.Context, query url.Values) (any, *refusal)
	// refused is a refusal in the surface's own form.
	refused(*refusal) any
}

// A refusal is an answer without a credential.
type refusal struct {
	status        int
	code, message string
}

// server is the one listener.
type server struct {
	uid     int
	host    string // what a Host header must say
	l       net.Listener
	http    *http.Server
	targets []*target
	served  sync.WaitGroup
}

func listen(uid int) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &server{uid: uid, host: l.Addr().String(), l: l}, nil
}

func (s *server) url(t *target) string { return "http://" + s.host + t.path }

func (s *server) start(targets []*target) {
	s.targets = targets
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), ConnContext: s.connected,
	}
	s.served.Go(func() { _ = s.http.Serve(s.l) }) // it ends by close
}

func (s *server) close() {
	if s.http != nil {
		_ = s.http.Close()
	}
	_ = s.l.Close() // it may be closed already
	s.served.Wait()
}

// ownerKey leads to who owns the other end of a request's connection.
type ownerKey struct{}

// connected has the owner looked up once a connection, when it is asked for:
// while it waits for its answer its socket stands in the kernel's table.
func (s *server) connected(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, ownerKey{}, sync.OnceValues(func() (uint32, error) {
		peer, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil {
			return 0, err
		}
		us, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err != nil {
			return 0, err
		}
		return ownerOf(peer, us)
	}))
}

// allowed says whether the other end is our workload's user. Who can't be told
// is not.
func (s *server) allowed(ctx context.Context) bool {
	owner, ok := ctx.Value(ownerKey{}).(func() (uint32, error))
	if !ok {
		return false
	}
	uid, err := owner()
	return err == nil && int(uid) == s.uid
}

// ServeHTTP lets through what only the workload can ask.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// The path is compared as it is spelled: no other leads there.
	path, query, asks := strings.Cut(r.RequestURI, "?")
	t := s.find(path)
	if asks && t != nil && !t.endpoint.parameters() {
		t = nil
	}
	var out any
	no := s.guard(r, t)
	if no == nil {
		var values url.Values
		if values, no = parseQuery(query); no == nil {
			out, no = t.endpoint.answer(r.Context(), values)
		}
	}
	if no != nil {
		out = any(map[string]string{"code": no.code, "message": no.message})
		if t != nil {
			out = t.endpoint.refused(no)
		}
		if no.status == http.StatusMethodNotAllowed {
			h.Set("Allow", http.MethodGet)
		}
		w.WriteHeader(no.status)
	}
	_ = json.NewEncoder(w).Encode(out) // an error: the client has gone
}

func (s *server) find(path string) *target {
	for _, t := range s.targets {
		if t.endpoint != nil && subtle.ConstantTimeCompare([]byte(t.path), []byte(path)) == 1 {
			return t
		}
	}
	return nil
}

// guard says why a request gets no further. Programs send none of the headers
// by which pages in browsers, and proxies, show themselves, not even empty.
func (s *server) guard(r *http.Request, t *target) *refusal {
	has := func(header string) bool { return len(r.Header.Values(header)) > 0 }
	switch {
	case r.Host != s.host, has("Origin"), has("Referer"), has("X-Forwarded-For"):
		return &refusal{http.StatusForbidden, "Forbidden", "this endpoint is for programs on this machine"}
	case !s.allowed(r.Context()):
		return &refusal{http.StatusForbidden, "Forbidden", "this endpoint is for another user of this machine, or the connection's owner cannot be told"}
	case t == nil:
		return &refusal{http.StatusNotFound, "NotFound", "there is nothing at this path"}
	case r.Method != http.MethodGet:
		return &refusal{http.StatusMethodNotAllowed, "MethodNotAllowed", "GET is wanted"}
	}
	shown := r.Header.Values(t.endpoint.header())
	switch {
	case len(shown) == 1 && t.is(shown[0]):
		return nil
	case len(shown) == 1 && s.anothers(shown[0]):
		return &refusal{http.StatusForbidden, "Forbidden", "the secret is another target's"}
	}
	return &refusal{http.StatusUnauthorized, "Unauthorized", "the " + t.endpoint.header() + " header is missing or wrong"}
}

func (t *target) is(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(secret), []byte(t.secret)) == 1
}

func (s *server) anothers(secret string) bool {
	for _, t := range s.targets {
		if t.is(secret) {
			return true
		}
	}
	return false
}

func parseQuery(query string) (url.Values, *refusal) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "BadRequest", "the query cannot be read"}
	}
	return values, nil
}

// sourceRefusal is a Source's error.
func sourceRefusal(err error) *refusal {
	s := status.Convert(err)
	code, text := s.Code().String(), s.Message()
	switch {
	case s.Code() == codes.PermissionDenied, s.Code() == codes.FailedPrecondition, s.Code() == codes.InvalidArgument:
		return &refusal{http.StatusForbidden, code, text}
	case errors.Is(err, context.DeadlineExceeded):
		text = "the answer took too long"
	}
	return &refusal{http.StatusServiceUnavailable, code, text}
}
