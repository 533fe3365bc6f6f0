package local

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/exchangers"
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

// A Door is a loopback listener for one user, which stays while Surfaces behind
// it come and go. Where there are none it refuses all.
type Door struct {
	uid    int
	host   string // what a Host header must say
	http   *http.Server
	behind atomic.Pointer[room]
	served sync.WaitGroup
}

// A room is what a Door leads to.
type room struct {
	targets []*target
	trace   Trace    // nil: nothing is traced
	shut    *refusal // of everything
}

// A Trace traces a request about a target that was let in: what is done for it is
// done under the context that it returns, and the status of the answer ends it.
type Trace func(r *http.Request, target string) (_ context.Context, end func(status int))

// OpenDoor listens at an address of loopback and refuses until Surfaces are
// there. Close it.
func OpenDoor(address string, uid int) (*Door, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("listening at %q: an address of loopback with a port is wanted, such as 127.0.0.1:9911", exchangers.Clean(address))
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	d := &Door{uid: uid, host: l.Addr().String()}
	d.Refuse(status.Error(codes.Unavailable, "nothing is served yet"))
	d.http = &http.Server{
		Handler: d, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), ConnContext: d.connected,
	}
	d.served.Go(func() { _ = d.http.Serve(l) }) // it ends by Close
	return d, nil
}

// Addr is where it listens.
func (s *Door) Addr() string { return s.host }

// Refuse answers every request with an error, which carries a gRPC status.
func (s *Door) Refuse(err error) { s.behind.Store(&room{shut: sourceRefusal(err)}) }

// Close ends it.
func (s *Door) Close() {
	_ = s.http.Close() // it closes the listener
	s.served.Wait()
}

func (s *Door) url(t *target) string { return "http://" + s.host + t.path }

func (s *Door) admit(r *room) { s.behind.Store(r) }

// leave shuts the door on a room, unless another is behind it by now.
func (s *Door) leave(r *room) {
	s.behind.CompareAndSwap(r, &room{shut: sourceRefusal(status.Error(codes.Unavailable, "nothing is served any more"))})
}

// ownerKey leads to who owns the other end of a request's connection.
type ownerKey struct{}

// connected has the owner looked up once a connection, when it is asked for:
// while it waits for its answer its socket stands in the kernel's table.
func (s *Door) connected(ctx context.Context, conn net.Conn) context.Context {
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
func (s *Door) allowed(ctx context.Context) bool {
	owner, ok := ctx.Value(ownerKey{}).(func() (uint32, error))
	if !ok {
		return false
	}
	uid, err := owner()
	return err == nil && int(uid) == s.uid
}

// ServeHTTP lets through what only the workload can ask.
func (s *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// The path is compared as it is spelled: no other leads there.
	path, query, asks := strings.Cut(r.RequestURI, "?")
	behind := s.behind.Load()
	t := behind.find(path)
	if asks && t != nil && !t.endpoint.parameters() {
		t = nil
	}
	var out any
	no := s.guard(r, behind, t)
	if no == nil {
		var values url.Values
		if values, no = parseQuery(query); no == nil {
			out, no = behind.answer(r, t, values)
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

// answer is the endpoint's, traced.
func (b *room) answer(r *http.Request, t *target, values url.Values) (out any, no *refusal) {
	if b.trace == nil {
		return t.endpoint.answer(r.Context(), values)
	}
	ctx, end := b.trace(r, t.name)
	defer func() {
		if no != nil {
			end(no.status)
		} else {
			end(http.StatusOK)
		}
	}()
	return t.endpoint.answer(ctx, values)
}

func (b *room) find(path string) *target {
	for _, t := range b.targets {
		if t.endpoint != nil && subtle.ConstantTimeCompare([]byte(t.path), []byte(path)) == 1 {
			return t
		}
	}
	return nil
}

// guard says why a request gets no further. Programs send none of the headers
// by which pages in browsers, and proxies, show themselves, not even empty.
func (s *Door) guard(r *http.Request, behind *room, t *target) *refusal {
	has := func(header string) bool { return len(r.Header.Values(header)) > 0 }
	switch {
	case r.Host != s.host, has("Origin"), has("Referer"), has("X-Forwarded-For"):
		return &refusal{http.StatusForbidden, "Forbidden", "this endpoint is for programs on this machine"}
	case !s.allowed(r.Context()):
		return &refusal{http.StatusForbidden, "Forbidden", "this endpoint is for another user of this machine, or the connection's owner cannot be told"}
	case behind.shut != nil:
		return behind.shut
	case t == nil:
		return &refusal{http.StatusNotFound, "NotFound", "there is nothing at this path"}
	case r.Method != http.MethodGet:
		return &refusal{http.StatusMethodNotAllowed, "MethodNotAllowed", "GET is wanted"}
	}
	shown := r.Header.Values(t.endpoint.header())
	switch {
	case len(shown) == 1 && t.is(shown[0]):
		return nil
	case len(shown) == 1 && behind.anothers(shown[0]):
		return &refusal{http.StatusForbidden, "Forbidden", "the secret is another target's"}
	}
	return &refusal{http.StatusUnauthorized, "Unauthorized", "the " + t.endpoint.header() + " header is missing or wrong"}
}

func (t *target) is(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(secret), []byte(t.secret)) == 1
}

func (b *room) anothers(secret string) bool {
	for _, t := range b.targets {
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
