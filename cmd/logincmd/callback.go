package logincmd

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// A callback is where the provider sends the browser back to: one path, on
// loopback, for one answer.
type callback struct {
	url    string // redirect_uri
	host   string
	path   string
	server *http.Server
	served chan struct{}
	answer chan result // holds one

	mu     sync.Mutex // guards what follows
	state  string     // of the sign-in that is waiting; empty: none is
	issuer string
	named  bool // the provider says iss in each answer (RFC 9207)
}

type result struct {
	code string
	err  error
}

// listen opens a redirect URI on loopback, at its port or any.
func listen(redirect string) (*callback, error) {
	u, err := url.Parse(redirect)
	if err != nil || u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path == "" {
		return nil, fmt.Errorf("the broker has people sent back to %.200q: http://127.0.0.1/PATH is wanted", redirect)
	}
	at := map[string]string{"127.0.0.1": "127.0.0.1", "::1": "::1", "localhost": "127.0.0.1"}[u.Hostname()]
	if at == "" { // whoever is there would have the code
		return nil, fmt.Errorf("the broker has people sent back to %.200q, which is not on this machine", redirect)
	}
	port := u.Port()
	if port == "" {
		port = "0"
	}
	l, err := net.Listen("tcp", net.JoinHostPort(at, port))
	if err != nil {
		return nil, fmt.Errorf("waiting for your browser: %w", err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	u.Host = net.JoinHostPort(u.Hostname(), port)
	c := &callback{url: u.String(), host: u.Host, path: u.Path, served: make(chan struct{}), answer: make(chan result, 1)}
	c.server = &http.Server{Handler: c, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10}
	go func() {
		defer close(c.served)
		_ = c.server.Serve(l) // ends with close
	}()
	return c, nil
}

// close lets the browser have its page, and ends.
func (c *callback) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.server.Shutdown(ctx) != nil {
		_ = c.server.Close()
	}
	<-c.served
}

// expect says which answer is waited for.
func (c *callback) expect(state, issuer string, named bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.issuer, c.named = state, issuer, named
}

// code waits for it.
func (c *callback) code(ctx context.Context) (string, error) {
	select {
	case r := <-c.answer:
		return r.code, r.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", fmt.Errorf("nobody signed in within %s", signInTime)
		}
		return "", ctx.Err()
	}
}

// ServeHTTP takes the provider's answer, which the browser brings (RFC 6749
// §4.1.2). Any page may send a browser here: what does not have the state is
// refused, and the wait goes on.
func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet || r.URL.Path != c.path || r.Host != c.host {
		http.NotFound(w, r)
		return
	}
	got, mine := c.take(r.URL.Query())
	switch {
	case !mine:
		http.Error(w, "This is no answer to the sign-in that waits here.", http.StatusBadRequest)
		return
	case got.err != nil:
		http.Error(w, "You are not signed in: the program that you came from says why.", http.StatusBadRequest)
	default:
		fmt.Fprintln(w, "You are signed in with your provider. Close this page, and go back to the program that you came from.")
	}
	c.answer <- got // there was none before
}

// take reads an answer, and says whether it is the one that is waited for. There
// is one.
func (c *callback) take(q url.Values) (got result, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == "" || len(q["state"]) != 1 || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(c.state)) != 1 {
		return got, false
	}
	c.state = ""
	switch iss, named := q["iss"]; {
	case named && (len(iss) != 1 || iss[0] != c.issuer), !named && c.named: // RFC 9207 §2.4
		return result{err: fmt.Errorf("the answer is of another provider (%.200q), not of %s", clean(q.Get("iss")), c.issuer)}, true
	case q.Get("error") != "":
		return result{err: fmt.Errorf("your provider says: %s", clean(q.Get("error")+" "+q.Get("error_description")))}, true
	case len(q["code"]) != 1 || q.Get("code") == "":
		return result{err: errors.New("your provider's answer has no code, or two")}, true
	}
	return result{code: q.Get("code")}, true
}
