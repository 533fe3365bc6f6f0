package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join/bearer"
)

const (
	reviews     = "/apis/authentication.k8s.io/v1/tokenreviews"
	reviewTime  = 5 * time.Second
	maxAnswer   = 256 << 10 // it repeats the question
	maxOwnToken = 16 << 10
	// maxReviews is how many are under way at once: strangers ask for them.
	maxReviews = 16
)

// A reviewer asks one API server about tokens (authentication.k8s.io/v1,
// TokenReview): over TLS, at no proxy's hands, and it follows no redirect.
type reviewer struct {
	url, tokenFile string
	patience       time.Duration
	http           *http.Client
	slots          chan struct{}
}

func newReviewer(t *TokenReview, patience time.Duration) (*reviewer, error) {
	roots, err := bearer.ParseRoots(t.CA)
	if err != nil {
		return nil, err
	}
	if patience <= 0 {
		patience = reviewTime
	}
	return &reviewer{
		url: strings.TrimSuffix(t.URL, "/") + reviews, tokenFile: t.TokenFile, patience: patience, slots: make(chan struct{}, maxReviews),
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:     (&net.Dialer{}).DialContext,
				TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, ForceAttemptHTTP2: true,
				// A connection that died without a word is found by these.
				HTTP2:        &http.HTTP2Config{SendPingTimeout: 20 * time.Second, PingTimeout: 10 * time.Second},
				MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
				DisableCompression: true, // so that what is read is bounded
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// A review is of one token for one audience. It is an oidc.KeySet: the API server
// verifies the signature, and what it says of the token is kept for agrees.
type review struct {
	*reviewer
	audience string
	user     user
}

func (r *reviewer) of(audience string) *review { return &review{reviewer: r, audience: audience} }

// user is whom the API server takes the bearer for.
type user struct {
	Username, UID string
	Extra         map[string][]string
}

// question and answer are as much of a TokenReview as matters.
type question struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token"`
		Audiences []string `json:"audiences"`
	} `json:"spec"`
}

type answer struct {
	Kind   string
	Status struct {
		Authenticated bool
		User          user
		Audiences     []string
		Error         string
	}
}

// VerifySignature has the API server verify a token, and returns its claims.
func (r *review) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	a, err := r.ask(ctx, token)
	if err != nil {
		return nil, bearer.Unavailable(fmt.Errorf("having the API server review a token: %w", err))
	}
	switch {
	case !a.Status.Authenticated:
		return nil, fmt.Errorf("the API server does not take it: %.200q", a.Status.Error)
	case !slices.Equal(a.Status.Audiences, []string{r.audience}): // none: it doesn't know what an audience is
		return nil, fmt.Errorf("the API server takes it for audiences %.300q, want %q", a.Status.Audiences, r.audience)
	}
	r.user = a.Status.User
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("it has no three parts")
	}
	return base64.RawURLEncoding.Strict().DecodeString(parts[1])
}

func (r *review) ask(ctx context.Context, token string) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return a, ctx.Err()
	}
	request, err := r.request(ctx, token)
	if err != nil {
		return a, err
	}
	response, err := r.http.Do(request)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusCreated, http.StatusOK:
	case http.StatusUnauthorized:
		return a, fmt.Errorf("it answers 401: it doesn't take our own token, in %s", r.tokenFile)
	case http.StatusForbidden:
		return a, fmt.Errorf("it answers 403: the account of our own token, in %s, wants system:auth-delegator", r.tokenFile)
	default:
		return a, fmt.Errorf("it answers %d", response.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return a, fmt.Errorf("it answers in %.80q", response.Header.Get("Content-Type"))
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return a, err
	case len(text) > maxAnswer:
		return a, fmt.Errorf("it answers more than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(text, &a); err != nil || a.Kind != "TokenReview" {
		return answer{}, errors.New("its answer is no TokenReview") // which may hold the token
	}
	return a, nil
}

func (r *review) request(ctx context.Context, token string) (*http.Request, error) {
	own, err := readOwn(r.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading our own token: %w", err)
	}
	q := question{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	q.Spec.Token, q.Spec.Audiences = token, []string{r.audience}
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+own)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "credence")
	return request, nil
}

func readOwn(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxOwnToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(text) > maxOwnToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s holds none", path)
	}
	return token, nil
}

// agrees holds what the API server says of a token against what the token says:
// another authenticator of its, which reads other claims, must not pass for the
// one of service accounts.
func (r *review) agrees(s subject) error {
	said := func(name string) string {
		if values := r.user.Extra["authentication.kubernetes.io/"+name]; len(values) == 1 {
			return values[0]
		} else if len(values) > 1 {
			return fmt.Sprintf("%q", values) // no name or UID
		}
		return ""
	}
	for _, f := range []struct{ what, token, server string }{
		{"user", s.user(), r.user.Username}, {"user's UID", s.account.uid, r.user.UID},
		{"pod", s.pod.name, said("pod-name")}, {"pod's UID", s.pod.uid, said("pod-uid")},
		{"node", s.node.name, said("node-name")}, {"node's UID", s.node.uid, said("node-uid")},
	} {
		if f.token != f.server {
			return fmt.Errorf("its %s is %q, and the API server says %.200q", f.what, f.token, f.server)
		}
	}
	return nil
}
