package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/kubeaccess"
)

// A Server is an API server or a kubelet. It is asked over TLS only, at no
// proxy's hands, and no redirect is followed.
type Server struct {
	URL        string // https://HOST:PORT
	TokenFile  string // a service account's token; read at each question, for it is replaced while it lives
	CAFile     string // certificates, one of which must have signed the server's or be it; read like the token; empty: the system's
	ServerName string // that the certificate must carry; empty: the URL's host
	SkipVerify bool   // takes any certificate: whoever answers gets the token, and is believed
}

// InCluster is the API server as a pod's containers are told of it.
func InCluster(getenv func(string) string) (Server, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Server{}, errors.New("finding the API server: KUBERNETES_SERVICE_HOST and _PORT are not set: this is no pod")
	}
	return Server{URL: "https://" + net.JoinHostPort(host, port), TokenFile: DefaultToken, CAFile: DefaultCA}, nil
}

// Where a pod's containers find what they need for its API server.
const (
	DefaultToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	DefaultCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// CheckURL says whether u is a server's.
func CheckURL(u string) error {
	parsed, err := url.Parse(u)
	if err != nil || parsed.Scheme != "https" || parsed.Hostname() == "" || parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
		return fmt.Errorf("%q is not a URL such as https://127.0.0.1:10250", u)
	}
	return nil
}

// A client asks one server.
type client struct {
	server Server

	mu   sync.Mutex // guards ca and http
	ca   []byte
	http *http.Client // nil: none yet
}

func newClient(s Server) (*client, error) {
	if err := CheckURL(s.URL); err != nil {
		return nil, err
	}
	if s.TokenFile == "" {
		return nil, errors.New("a token's file is wanted")
	}
	if s.SkipVerify && s.CAFile != "" {
		return nil, errors.New("either its certificate is verified by a CA or not at all")
	}
	s.URL = strings.TrimSuffix(s.URL, "/")
	return &client{server: s}, nil
}

// A refusal is an answer that is none.
type refusal struct {
	status int
	hint   string
}

func (r *refusal) Error() string { return fmt.Sprintf("it answered %d%s", r.status, r.hint) }

// get asks. The caller must close the answer's body, which is unbounded.
func (c *client) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	u := c.server.URL + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	token, err := kubeaccess.Token(c.server.TokenFile)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "credence-agent")
	h, err := c.connection()
	if err != nil {
		return nil, err
	}
	response, err := h.Do(r)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	_ = response.Body.Close()
	hint := ""
	switch response.StatusCode {
	case http.StatusUnauthorized:
		hint = ": it doesn't take the token in " + c.server.TokenFile
	case http.StatusForbidden:
		hint = ": the token's account may not: the API server wants list and watch of pods, a kubelet get of nodes/proxy or nodes/pods"
	}
	return nil, &refusal{response.StatusCode, hint}
}

// connection is a new one whenever the CA is.
func (c *client) connection() (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ca []byte
	var roots *x509.CertPool // nil: the system's
	if c.server.CAFile != "" {
		var err error
		if ca, roots, err = kubeaccess.CA(c.server.CAFile); err != nil {
			return nil, err
		}
	}
	if c.http != nil && bytes.Equal(ca, c.ca) {
		return c.http, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: c.server.ServerName, InsecureSkipVerify: c.server.SkipVerify}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.ca, c.http = ca, &http.Client{
		Transport: &http.Transport{
			DialContext:     (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig: t, TLSHandshakeTimeout: 5 * time.Second, ForceAttemptHTTP2: true,
			// A connection that died without a word is found by these.
			HTTP2:        &http.HTTP2Config{SendPingTimeout: 20 * time.Second, PingTimeout: 10 * time.Second},
			MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, // so that what is read is bounded
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.http, nil
}
