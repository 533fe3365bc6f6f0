// Package clustertest is a Kubernetes cluster for tests of what takes the tokens
// of its service accounts: an API server over TLS that makes tokens bound to pods,
// publishes its keys (OpenID Connect Discovery) and reviews tokens
// (authentication.k8s.io/v1). It is strict: what the real one ignores it refuses.
// It shares no code with what it judges.
package clustertest

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A Pod is one that has tokens. Node empty: its cluster is older than tokens that
// name nodes.
type Pod struct {
	Namespace, Account, AccountUID string
	Name, UID                      string
	Node, NodeUID                  string
}

// A Cluster is an API server.
type Cluster struct {
	Issuer    string // may be set to URL before its first use, so that anybody finds it
	URL       string // of the API server
	CA        string // PEM
	TokenFile string // holds what an account may review tokens by
	t         testing.TB
	server    *httptest.Server
	now       func() time.Time

	mu      sync.Mutex // guards what follows
	key     *rsa.PrivateKey
	kid     string
	own     string
	pods    map[string]Pod
	reviews int
	made    int
	spoil   func(status map[string]any)
	instead http.HandlerFunc
}

// New starts one that has no pods, whose issuer is https://example.com/NAME.
func New(t testing.TB, name string, now func() time.Time) *Cluster {
	c := &Cluster{
		Issuer: "https://example.com/" + name, t: t, now: now, key: issuertest.RSA(), kid: name + "-1", pods: map[string]Pod{},
		TokenFile: filepath.Join(t.TempDir(), "reviewer"),
	}
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.server.EnableHTTP2 = true
	c.server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are wanted
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	c.URL = c.server.URL
	c.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.server.Certificate().Raw}))
	c.SetOwn("first")
	return c
}

// SetOwn has the API server take another token of those who ask, and writes its
// file.
func (c *Cluster) SetOwn(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = token
	if err := os.WriteFile(c.TokenFile, []byte(token+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// Start makes a pod.
func (c *Cluster) Start(p Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[p.UID] = p
}

// End ends one.
func (c *Cluster) End(p Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, p.UID)
}

// Rotate has the cluster sign by another key, and publish it alone.
func (c *Cluster) Rotate(kid string, key *rsa.PrivateKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kid, c.key = kid, key
}

// Reviews is how many were asked for.
func (c *Cluster) Reviews() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reviews
}

// Spoil changes the status of what is answered to reviews; nil undoes it.
func (c *Cluster) Spoil(f func(status map[string]any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoil = f
}

// Instead has reviews be answered by a test's own; nil undoes it.
func (c *Cluster) Instead(h http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instead = h
}

// Claims are those of a pod's token for an audience, good for an hour.
func (c *Cluster) Claims(p Pod, audience string) map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	bound := map[string]any{
		"namespace": p.Namespace, "serviceaccount": map[string]any{"name": p.Account, "uid": p.AccountUID},
		"pod": map[string]any{"name": p.Name, "uid": p.UID}, "warnafter": c.now().Add(time.Hour).Unix(),
	}
	if p.Node != "" {
		bound["node"] = map[string]any{"name": p.Node}
		if p.NodeUID != "" {
			bound["node"] = map[string]any{"name": p.Node, "uid": p.NodeUID}
		}
	}
	if p.UID == "" {
		delete(bound, "pod")
	}
	return map[string]any{
		"iss": c.Issuer, "sub": "system:serviceaccount:" + p.Namespace + ":" + p.Account, "aud": []string{audience}, "jti": fmt.Sprint("token-", c.made),
		"iat": c.now().Unix(), "nbf": c.now().Unix(), "exp": c.now().Add(time.Hour).Unix(), "kubernetes.io": bound,
	}
}

// Sign makes a token of claims.
func (c *Cluster) Sign(claims map[string]any) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return issuertest.Sign(c.t, c.key, "RS256", map[string]any{"kid": c.kid, "typ": nil}, claims)
}

// Token is a pod's for an audience.
func (c *Cluster) Token(p Pod, audience string) string { return c.Sign(c.Claims(p, audience)) }

// Keys is its JWK Set, as of now.
func (c *Cluster) Keys() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys()
}

func (c *Cluster) keys() string {
	text, err := json.Marshal(issuertest.KeySet(issuertest.With(issuertest.JWK(c.kid, c.key.Public()), map[string]any{"alg": "RS256"})))
	if err != nil {
		panic(err)
	}
	return string(text)
}

// Get asks the cluster's issuer and nobody else.
func (c *Cluster) Get(ctx context.Context, url string) ([]byte, error) {
	if !strings.HasPrefix(url, c.Issuer+"/") {
		return nil, fmt.Errorf("%s is asked", url)
	}
	client := c.server.Client()
	transport := client.Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, c.server.Listener.Addr().String())
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	return io.ReadAll(io.LimitReader(response.Body, 1<<20))
}

func (c *Cluster) serve(w http.ResponseWriter, r *http.Request) {
	_, path, _ := strings.Cut(strings.TrimPrefix(c.Issuer, "https://"), "/")
	path = strings.TrimSuffix("/"+path, "/") + "/"
	switch r.Method + " " + r.URL.Path {
	case "GET " + path + ".well-known/openid-configuration":
		answer(w, http.StatusOK, "application/json", fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"response_types_supported":["id_token"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["RS256"]}`,
			c.Issuer, c.Issuer+"/openid/v1/jwks"))
	case "GET " + path + "openid/v1/jwks":
		answer(w, http.StatusOK, "application/jwk-set+json", c.Keys())
	case "POST /apis/authentication.k8s.io/v1/tokenreviews":
		c.serveReview(w, r)
	default:
		answer(w, http.StatusNotFound, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	}
}

func answer(w http.ResponseWriter, status int, kind, text string) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// A TokenReview is as it is asked for: nothing else may be in it.
type tokenReview struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token"`
		Audiences []string `json:"audiences"`
	} `json:"spec"`
}

func (c *Cluster) serveReview(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	instead, spoil, own := c.instead, c.spoil, c.own
	c.reviews++
	c.mu.Unlock()
	if instead != nil {
		instead(w, r)
		return
	}
	failure := func(status int, reason string) {
		answer(w, status, "application/json", fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, status))
	}
	if r.Header.Get("Authorization") != "Bearer "+own {
		failure(http.StatusUnauthorized, "Unauthorized")
		return
	}
	var q tokenReview
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil || q.APIVersion != "authentication.k8s.io/v1" || q.Kind != "TokenReview" || q.Spec.Token == "" || len(q.Spec.Audiences) == 0 ||
		r.Header.Get("Content-Type") != "application/json" || r.URL.RawQuery != "" {
		failure(http.StatusBadRequest, "BadRequest")
		return
	}
	status := map[string]any{"user": map[string]any{}, "error": "[invalid bearer token, Token has been invalidated]"}
	if user, audiences, err := c.authenticate(q.Spec.Token, q.Spec.Audiences); err == nil {
		status = map[string]any{"authenticated": true, "user": user, "audiences": audiences}
	}
	if spoil != nil {
		spoil(status)
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": q.APIVersion, "kind": q.Kind, "spec": q.Spec, "status": status,
		"metadata": map[string]any{"creationTimestamp": nil, "managedFields": []any{map[string]any{"manager": "credence", "operation": "Update"}}},
	})
	if err != nil {
		panic(err)
	}
	answer(w, http.StatusCreated, "application/json", string(text))
}

// authenticate is the authenticator of service accounts.
func (c *Cluster) authenticate(token string, wanted []string) (user map[string]any, audiences []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, fmt.Errorf("%d parts", len(parts))
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&c.key.PublicKey, crypto.SHA256, sum[:], signature); err != nil {
		return nil, nil, err
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, nil, err
	}
	var claims struct {
		Iss, Sub string
		Aud      []string
		Exp, Nbf int64
		Cluster  bound `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return nil, nil, err
	}
	for _, a := range wanted {
		if slices.Contains(claims.Aud, a) {
			audiences = append(audiences, a)
		}
	}
	now := c.now().Unix()
	if claims.Iss != c.Issuer || len(audiences) == 0 || claims.Exp < now || claims.Nbf > now {
		return nil, nil, fmt.Errorf("issuer %s, audiences %v, %d to %d", claims.Iss, claims.Aud, claims.Nbf, claims.Exp)
	}
	b := claims.Cluster
	extra := map[string]any{"authentication.kubernetes.io/credential-id": []string{"JTI=x"}}
	if b.Pod.UID != "" {
		if p, ok := c.pods[b.Pod.UID]; !ok || p.Name != b.Pod.Name {
			return nil, nil, fmt.Errorf("pod %s is gone", b.Pod.Name)
		}
		extra["authentication.kubernetes.io/pod-name"], extra["authentication.kubernetes.io/pod-uid"] = []string{b.Pod.Name}, []string{b.Pod.UID}
	}
	if b.Node.Name != "" {
		extra["authentication.kubernetes.io/node-name"] = []string{b.Node.Name}
		if b.Node.UID != "" {
			extra["authentication.kubernetes.io/node-uid"] = []string{b.Node.UID}
		}
	}
	return map[string]any{
		"username": "system:serviceaccount:" + b.Namespace + ":" + b.Serviceaccount.Name, "uid": b.Serviceaccount.UID,
		"groups": []string{"system:serviceaccounts", "system:serviceaccounts:" + b.Namespace, "system:authenticated"}, "extra": extra,
	}, audiences, nil
}

// bound is the claim kubernetes.io.
type bound struct {
	Namespace                 string
	Serviceaccount, Pod, Node struct{ Name, UID string }
}
