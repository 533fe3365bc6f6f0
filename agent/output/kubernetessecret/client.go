package kubernetessecret

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/agent/kubeaccess"
	"github.com/credence-id/credence/agent/output"
)

// A Server is an API server. It is asked over TLS only, at no proxy's hands, and
// no redirect is followed.
type Server struct {
	URL       string // https://HOST:PORT; empty: as a pod's containers are told
	TokenFile string // a service account's token; read at each question; empty: a pod's
	CAFile    string // certificates, one of which signed the server's; read likewise; empty: a pod's
}

// Where a pod's containers find what they need for its API server.
const (
	podToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	podCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// Bounds of what is asked.
const (
	askTime   = 10 * time.Second
	maxAnswer = 2 << 20     // a Secret has a MiB, and a third more in base64
	maxPause  = time.Minute // that a server may ask for
)

func (s *Server) complete() error {
	if s.TokenFile == "" {
		s.TokenFile = podToken
	}
	if s.CAFile == "" {
		s.CAFile = podCA
	}
	for _, f := range []struct{ field, path string }{{"token_file", s.TokenFile}, {"ca_file", s.CAFile}} {
		if err := output.CheckPath(f.path); err != nil {
			return fmt.Errorf("%s: %w", f.field, err)
		}
	}
	if s.URL == "" {
		return nil
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(s.URL, "?#") {
		return fmt.Errorf("api: %q: a URL such as https://10.0.0.1:6443 is wanted", s.URL)
	}
	s.URL = strings.TrimSuffix(s.URL, "/")
	return nil
}

// A client asks one server. It is for one goroutine.
type client struct {
	server Server
	getenv func(string) string
	now    func() time.Time
	wait   func(time.Duration) <-chan time.Time

	http      *http.Client // nil: none yet
	ca        []byte       // that http trusts
	notBefore time.Time    // when the server wants to be asked again
}

// A refusal is an answer that is none.
type refusal struct {
	status int
	reason string // the server's own word
}

// Error says what a person can do; of what the server says no more than its
// reason, for its words may quote what it was sent.
func (r *refusal) Error() string {
	s := fmt.Sprintf("the API server answered %d", r.status)
	if r.reason != "" {
		s += " (" + r.reason + ")"
	}
	switch r.status {
	case http.StatusUnauthorized:
		s += ": it doesn't take the token"
	case http.StatusForbidden:
		s += ": the token's account needs get and patch of this Secret, and create of secrets"
	case http.StatusNotFound:
		s += ": is there such a namespace?"
	}
	return s
}

func isStatus(err error, code int) bool {
	r := (*refusal)(nil)
	return errors.As(err, &r) && r.status == code
}

// do asks once, and reads the answer into out, if that isn't nil.
func (c *client) do(ctx context.Context, method, path, kind string, in, out any) error {
	if err := c.rest(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r, err := c.request(ctx, method, path, kind, in)
	if err != nil {
		return err
	}
	h, err := c.connection()
	if err != nil {
		return err
	}
	response, err := h.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("reading the API server's answer: %w", err)
	}
	if response.StatusCode/100 != 2 {
		c.heed(response)
		return refused(response, text)
	}
	switch {
	case len(text) > maxAnswer:
		return fmt.Errorf("the API server's answer has more than %d bytes", maxAnswer)
	case out == nil:
		return nil
	case !isJSON(response):
		return errors.New("the API server's answer is no JSON: is that an API server?")
	}
	if err := json.Unmarshal(text, out); err != nil {
		return errors.New("the API server's answer cannot be read") // its error could quote a key
	}
	return nil
}

func (c *client) request(ctx context.Context, method, path, kind string, in any) (*http.Request, error) {
	base := c.server.URL
	if base == "" {
		host, port := "", ""
		if c.getenv != nil {
			host, port = c.getenv("KUBERNETES_SERVICE_HOST"), c.getenv("KUBERNETES_SERVICE_PORT")
		}
		if host == "" || port == "" {
			return nil, errors.New("finding the API server: KUBERNETES_SERVICE_HOST and _PORT are not set: this is no pod, so name it (api)")
		}
		base = "https://" + net.JoinHostPort(host, port)
	}
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body, path = bytes.NewReader(text), path+"?fieldManager="+managedBy
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, err
	}
	token, err := kubeaccess.Token(c.server.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("calling the API server: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "credence-agent")
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return r, nil
}

// rest waits for as long as the server wants to be left alone.
func (c *client) rest(ctx context.Context) error {
	left := c.notBefore.Sub(c.now())
	if left <= 0 {
		return nil
	}
	select {
	case <-c.wait(left):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// heed notes when a server that has too much to do wants to be asked again.
func (c *client) heed(r *http.Response) {
	if r.StatusCode != http.StatusTooManyRequests && r.StatusCode/100 != 5 {
		return
	}
	pause := time.Second
	if n, err := strconv.ParseUint(r.Header.Get("Retry-After"), 10, 31); err == nil {
		pause = min(max(time.Duration(n)*time.Second, pause), maxPause)
	}
	c.notBefore = c.now().Add(pause)
}

func refused(r *http.Response, text []byte) error {
	var said struct {
		Kind   string `json:"kind"`
		Reason string `json:"reason"`
	}
	if isJSON(r) && len(text) <= maxAnswer {
		_ = json.Unmarshal(text, &said) // else it gave no reason
	}
	if said.Kind != "Status" {
		said.Reason = ""
	}
	return &refusal{r.StatusCode, bounded(said.Reason)}
}

func isJSON(r *http.Response) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(kind) == "application/json"
}

// connection is a new one whenever the CA is.
func (c *client) connection() (*http.Client, error) {
	ca, roots, err := kubeaccess.CA(c.server.CAFile)
	if err != nil {
		return nil, fmt.Errorf("calling the API server: %w", err)
	}
	if c.http != nil && bytes.Equal(ca, c.ca) {
		return c.http, nil
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.ca, c.http = ca, &http.Client{
		Transport: &http.Transport{
			DialContext:     (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, TLSHandshakeTimeout: 5 * time.Second,
			ForceAttemptHTTP2: true, ResponseHeaderTimeout: askTime, MaxResponseHeaderBytes: 64 << 10,
			DisableKeepAlives: true, DisableCompression: true, // it is asked every few minutes; what is read is bounded
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.http, nil
}
