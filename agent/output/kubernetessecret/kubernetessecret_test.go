package kubernetessecret_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/output"
	k8s "github.com/credence-id/credence/agent/output/kubernetessecret"
)

// A Secret as the API has it.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Type       string            `json:"type"`
	Immutable  bool              `json:"immutable,omitempty"`
	Data       map[string][]byte `json:"data"`
	Metadata   struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels,omitempty"`
		Annotations     map[string]string `json:"annotations,omitempty"`
	} `json:"metadata"`
}

// An apiServer has one Secret, and is as strict as the real one in what it takes.
type apiServer struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex // guards what follows
	token   string
	stands  *object
	version int
	asked   []string
	before  func(w http.ResponseWriter, r *http.Request) (answered bool) // nil: nothing
}

func serve(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{t: t, token: "token-1"}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func answer(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind": "Status", "code": %d, "reason": %q, "message": "it quotes what it was sent"}`, code, reason)
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method)
	const all = "/api/v1/namespaces/shop/secrets"
	body, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		answer(w, 400, "BadRequest")
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		answer(w, 401, "Unauthorized")
	case s.before != nil && s.before(w, r):
	case r.Method == "GET" && r.URL.Path == all+"/web" && s.stands == nil:
		answer(w, 404, "NotFound")
	case r.Method == "GET" && r.URL.Path == all+"/web":
		s.show(w)
	case r.URL.Query().Get("fieldManager") != "credence":
		answer(w, 400, "BadRequest")
	case r.Method == "POST" && r.URL.Path == all && r.Header.Get("Content-Type") == "application/json":
		s.create(w, body)
	case r.Method == "PATCH" && r.URL.Path == all+"/web" && r.Header.Get("Content-Type") == "application/merge-patch+json":
		s.patch(w, body)
	case r.Method == "PATCH" || r.Method == "POST":
		answer(w, 415, "UnsupportedMediaType")
	default:
		answer(w, 405, "MethodNotAllowed")
	}
}

func (s *apiServer) show(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.stands)
}

// valid is what the API server holds a Secret to.
func valid(o *object) bool {
	_, crt := o.Data["tls.crt"]
	_, key := o.Data["tls.key"]
	return o.APIVersion == "v1" && o.Kind == "Secret" && (o.Type != "kubernetes.io/tls" || crt && key)
}

func (s *apiServer) create(w http.ResponseWriter, body []byte) {
	next := &object{}
	if err := json.Unmarshal(body, next); err != nil || !valid(next) || next.Metadata.ResourceVersion != "" {
		answer(w, 422, "Invalid")
		return
	}
	if s.stands != nil {
		answer(w, 409, "AlreadyExists")
		return
	}
	s.keep(next)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(201)
	_ = json.NewEncoder(w).Encode(s.stands)
}

func (s *apiServer) keep(o *object) {
	s.version++
	o.Metadata.ResourceVersion = strconv.Itoa(s.version)
	s.stands = o
}

func (s *apiServer) patch(w http.ResponseWriter, body []byte) {
	var with map[string]any
	text, err := json.Marshal(s.stands)
	if err != nil || json.Unmarshal(body, &with) != nil {
		answer(w, 400, "BadRequest")
		return
	}
	if s.stands == nil {
		answer(w, 404, "NotFound")
		return
	}
	if v := with["metadata"].(map[string]any)["resourceVersion"]; v != nil && v != s.stands.Metadata.ResourceVersion {
		answer(w, 409, "Conflict")
		return
	}
	var was map[string]any
	if err := json.Unmarshal(text, &was); err != nil {
		s.t.Error(err)
	}
	text, err = json.Marshal(merge(was, with))
	next := &object{}
	if err != nil || json.Unmarshal(text, next) != nil || !valid(next) || next.Type != s.stands.Type || s.stands.Immutable {
		answer(w, 422, "Invalid")
		return
	}
	s.keep(next)
	s.show(w)
}

// merge is RFC 7396.
func merge(was, with any) any {
	patch, ok := with.(map[string]any)
	if !ok {
		return with
	}
	old, ok := was.(map[string]any)
	if !ok {
		old = map[string]any{}
	}
	for name, v := range patch {
		if v == nil {
			delete(old, name)
		} else {
			old[name] = merge(old[name], v)
		}
	}
	return old
}

func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *apiServer) secret() *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stands
}

// takeAsked are the methods since the last time.
func (s *apiServer) takeAsked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.asked, " ")
	s.asked = nil
	return all
}

// foreign is a Secret that somebody else made.
func foreign() *object {
	o := &object{APIVersion: "v1", Kind: "Secret", Type: "kubernetes.io/tls", Data: map[string][]byte{"tls.crt": []byte("theirs"), "tls.key": {}}}
	o.Metadata.Name, o.Metadata.Namespace, o.Metadata.ResourceVersion = "web", "shop", "0"
	return o
}

type scene struct {
	*testing.T
	api   *apiServer
	ca    *agenttest.CA
	cfg   k8s.Config
	waits []time.Duration
}

func start(t *testing.T) *scene {
	t.Helper()
	s := &scene{T: t, api: serve(t), ca: agenttest.NewCA(t, "example.org")}
	dir := t.TempDir()
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	put(t, token, "token-1\n")
	put(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.api.Certificate().Raw})))
	s.cfg = k8s.Config{
		Namespace: "shop", Name: "web", Output: "web", Server: k8s.Server{URL: s.api.URL, TokenFile: token, CAFile: ca},
		Wait: func(d time.Duration) <-chan time.Time {
			s.waits = append(s.waits, d)
			now := make(chan time.Time, 1)
			now <- time.Time{}
			return now
		},
	}
	return s
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *scene) writer() *k8s.Writer {
	s.Helper()
	w, err := k8s.New(s.cfg)
	if err != nil {
		s.Fatal(err)
	}
	return w
}

func (s *scene) update(path string) agent.Update {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.Fatal(err)
	}
	id := spiffeid.RequireFromPath(s.ca.TrustDomain, path)
	return agent.Update{
		SVIDs:   []*agent.SVID{{ID: id, Key: key, KeyDER: der, Certificates: []*x509.Certificate{s.ca.Sign(id, key.Public(), time.Now().Add(time.Hour))}}},
		Bundles: map[spiffeid.TrustDomain]*agent.Bundle{s.ca.TrustDomain: {TrustDomain: s.ca.TrustDomain, X509Authorities: []*x509.Certificate{s.ca.Root}}},
	}
}

func (s *scene) write(w *k8s.Writer, u agent.Update) output.Written {
	s.Helper()
	got, err := w.Write(s.Context(), nil, u)
	if err != nil {
		s.Fatal(err)
	}
	return got
}

func TestSecret(t *testing.T) {
	t.Parallel()
	s := start(t)
	w, u := s.writer(), s.update("/web")
	if got := s.write(w, u); !got.Changed || got.Generation != 1 || got.Again.Before(time.Now()) || s.api.takeAsked() != "GET POST" {
		t.Errorf("%+v", got)
	}
	o := s.api.secret()
	if o.Type != "kubernetes.io/tls" || o.Metadata.Labels["app.kubernetes.io/managed-by"] != "credence" || o.Metadata.Annotations["credence-generation"] != "1" || o.Metadata.Annotations["credence-output"] != "web" {
		t.Errorf("%+v", o)
	}
	if diff := cmp.Diff([]string{"ca.crt", "tls.crt", "tls.key"}, slices.Sorted(maps.Keys(o.Data))); diff != "" {
		t.Error(diff)
	}
	cert, err := tls.X509KeyPair(o.Data["tls.crt"], o.Data["tls.key"])
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(o.Data["ca.crt"]) {
		t.Fatal(err)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Error(err)
	}
	// The same again, after a restart too, changes nothing.
	if got := s.write(s.writer(), u); got.Changed || got.Generation != 1 || s.api.takeAsked() != "GET" {
		t.Errorf("%+v", got)
	}
	next := s.update("/web")
	if got := s.write(w, next); !got.Changed || got.Generation != 2 || s.api.takeAsked() != "GET PATCH" || s.api.secret().Metadata.Annotations["credence-generation"] != "2" {
		t.Errorf("%+v", got)
	}
	// What others put beside it goes, their labels stay, and what they took
	// away comes back.
	s.api.set(func() {
		s.api.stands.Data["theirs"] = []byte("x")
		s.api.stands.Metadata.Labels["team"] = "shop"
	})
	if got := s.write(w, next); !got.Changed || len(s.api.secret().Data) != 3 || s.api.secret().Metadata.Labels["team"] != "shop" {
		t.Errorf("%+v %v", got, s.api.secret())
	}
	s.api.set(func() { s.api.stands = nil })
	if got := s.write(w, next); !got.Changed || s.api.secret() == nil {
		t.Errorf("%+v", got)
	}
}

func TestOpaque(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.cfg.Type = k8s.TypeOpaque
	u := s.update("/web")
	peer := agenttest.NewCA(t, "peer.example")
	u.Bundles[peer.TrustDomain] = &agent.Bundle{TrustDomain: peer.TrustDomain, X509Authorities: []*x509.Certificate{peer.Root}}
	u.CRLs = []*agent.CRL{{DER: []byte("crl")}}
	w := s.writer()
	s.write(w, u)
	o := s.api.secret()
	if diff := cmp.Diff([]string{"peer.example.svid_bundle.pem", "svid.pem", "svid_bundle.pem", "svid_crl.pem", "svid_key.pem"}, slices.Sorted(maps.Keys(o.Data))); diff != "" {
		t.Error(diff)
	}
	if block, rest := pem.Decode(o.Data["peer.example.svid_bundle.pem"]); block == nil || !slices.Equal(block.Bytes, peer.Root.Raw) || len(rest) > 0 {
		t.Error("a peer's bundle is not its alone")
	}
	if err := w.Erase(t.Context()); err != nil || len(s.api.secret().Data) != 0 {
		t.Errorf("%v, %v", s.api.secret().Data, err)
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.writer()
	if err := w.Erase(t.Context()); err != nil || s.api.secret() != nil {
		t.Errorf("before anything was written: %v", err)
	}
	s.write(w, s.update("/web"))
	if err := s.writer().Erase(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]byte{"tls.crt": {}, "tls.key": {}}, s.api.secret().Data); diff != "" || s.api.secret().Metadata.Annotations["credence-generation"] != "2" {
		t.Error(diff)
	}
	s.api.takeAsked()
	if err := w.Erase(t.Context()); err != nil || s.api.takeAsked() != "GET" {
		t.Errorf("erased already: %v", err)
	}
	s.api.set(func() { s.api.stands = foreign() })
	if err := w.Erase(t.Context()); err != nil || string(s.api.secret().Data["tls.crt"]) != "theirs" {
		t.Errorf("another's: %v", err)
	}
	// Where an identity is wanted that is not there, what stands goes.
	s.api.set(func() { s.api.stands = nil })
	s.write(w, s.update("/web"))
	s.cfg.Hint = "main"
	if _, err := s.writer().Write(t.Context(), nil, s.update("/web")); err == nil || len(s.api.secret().Data["tls.key"]) > 0 {
		t.Errorf("without the hint's identity: %v", err)
	}
}

// What is not ours is neither read for its content nor written.
func TestForeign(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*object){
		"without our label": func(*object) {},
		"of another's": func(o *object) {
			o.Metadata.Labels = map[string]string{"app.kubernetes.io/managed-by": "Helm"}
		},
		"of another type": func(o *object) {
			o.Metadata.Labels, o.Type = map[string]string{"app.kubernetes.io/managed-by": "credence"}, "Opaque"
		},
		"immutable": func(o *object) {
			o.Metadata.Labels, o.Immutable = map[string]string{"app.kubernetes.io/managed-by": "credence"}, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			o := foreign()
			change(o)
			s.api.stands = o
			w := s.writer()
			if _, err := w.Write(t.Context(), nil, s.update("/web")); err == nil || s.api.takeAsked() != "GET" {
				t.Errorf("written: %v", err)
			}
			if w.Check() == nil {
				t.Error("it is said to be fine")
			}
		})
	}
	s := start(t)
	o := foreign()
	o.Metadata.Labels = map[string]string{"app.kubernetes.io/managed-by": "credence"}
	s.api.stands = o
	if got := s.write(s.writer(), s.update("/web")); !got.Changed || len(s.api.secret().Data) != 3 {
		t.Errorf("labelled as ours by its owner: %+v", got)
	}
}

// Somebody else writes between our look and our write.
func TestConflict(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.writer()
	s.write(w, s.update("/web"))
	meddle := 3
	s.api.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == "PATCH" && meddle > 0 {
			meddle--
			s.api.keep(s.api.stands)
		}
		return false
	}
	u := s.update("/web")
	if got := s.write(w, u); !got.Changed || meddle != 0 {
		t.Errorf("%+v", got)
	}
	meddle = 1000
	if _, err := w.Write(t.Context(), nil, s.update("/web")); err == nil || meddle < 990 {
		t.Errorf("%d left: %v", meddle, err)
	}
	// One that is made by another meanwhile is another's.
	s.api.set(func() { s.api.stands, meddle = nil, 0 })
	s.api.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == "POST" && s.api.stands == nil {
			s.api.keep(foreign())
		}
		return false
	}
	if _, err := w.Write(t.Context(), nil, u); err == nil || string(s.api.secret().Data["tls.crt"]) != "theirs" {
		t.Errorf("%v", err)
	}
}

// What goes wrong is told, by no word that could hold a key, and changes nothing.
func TestServerFails(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("x", 3<<20)
	for name, row := range map[string]struct {
		before func(http.ResponseWriter, *http.Request)
		says   string
	}{
		"RBAC":                  {func(w http.ResponseWriter, _ *http.Request) { answer(w, 403, "Forbidden") }, "403 (Forbidden): the token's account needs get and patch"},
		"a full disk":           {func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, "InternalError") }, "500 (InternalError)"},
		"a reason that is none": {func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, "a\nb"+strings.Repeat("c", 200)) }, "500 (a?bccc"},
		"a huge Secret": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"data": {"a": "`+huge+`"}}`)
		}, "more than"},
		"a page": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "no JSON"},
		"half of JSON": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"data": {"tls.key": "secret`)
		}, "cannot be read"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		}, "302"},
		"nothing": {func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "reading Secret shop/web"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.api.before = func(w http.ResponseWriter, r *http.Request) bool { row.before(w, r); return true }
			_, err := s.writer().Write(t.Context(), nil, s.update("/web"))
			if err == nil || !strings.Contains(err.Error(), row.says) || len(err.Error()) > 400 || strings.Contains(err.Error(), "quotes") || strings.Contains(err.Error(), "secret\"") {
				t.Errorf("%v", err)
			}
			if s.api.secret() != nil {
				t.Error("written")
			}
		})
	}
}

// A server that has too much to do is left alone for as long as it says, and at
// most a minute.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	s := start(t)
	now := time.Unix(1800000000, 0)
	s.cfg.Now = func() time.Time { return now }
	w := s.writer()
	for after, want := range map[string]time.Duration{"7": 7 * time.Second, "86400": time.Minute, "soon": time.Second, "": time.Second} {
		s.api.set(func() {
			s.api.before = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Retry-After", after)
				answer(w, 429, "TooManyRequests")
				return true
			}
		})
		if _, err := w.Write(t.Context(), nil, s.update("/web")); err == nil {
			t.Error("written")
		}
		s.api.set(func() { s.api.before = nil })
		s.waits = nil
		s.write(w, s.update("/web"))
		if len(s.waits) == 0 || s.waits[0] != want {
			t.Errorf("Retry-After: %s: it waits %v", after, s.waits)
		}
		now = now.Add(time.Hour)
	}
	// Who is told to stop waits no longer.
	s.api.set(func() {
		s.api.before = func(w http.ResponseWriter, _ *http.Request) bool { answer(w, 503, ""); return true }
	})
	s.cfg.Wait = func(time.Duration) <-chan time.Time { return nil }
	w = s.writer()
	_, _ = w.Write(t.Context(), nil, s.update("/web"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Write(ctx, nil, s.update("/web")); err == nil || ctx.Err() == nil {
		t.Error("it goes on")
	}
}

// The token is read each time, and the certificate must be the CA's.
func TestTokenAndCA(t *testing.T) {
	t.Parallel()
	s := start(t)
	w, u := s.writer(), s.update("/web")
	s.write(w, u)
	s.api.set(func() { s.api.token = "token-2" })
	if _, err := w.Write(t.Context(), nil, u); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("an old token: %v", err)
	}
	put(t, s.cfg.TokenFile, "token-2")
	s.write(w, u)
	for _, text := range []string{"", "two\nlines", strings.Repeat("a", 17<<10)} {
		put(t, s.cfg.TokenFile, text)
		if _, err := w.Write(t.Context(), nil, u); err == nil {
			t.Errorf("a token of %d bytes is taken", len(text))
		}
	}
	put(t, s.cfg.TokenFile, "token-2")
	s.api.takeAsked()
	put(t, s.cfg.CAFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Root.Raw})))
	if _, err := w.Write(t.Context(), nil, u); err == nil || s.api.takeAsked() != "" {
		t.Errorf("the certificate is another CA's: %v", err)
	}
	put(t, s.cfg.CAFile, "none")
	if _, err := w.Write(t.Context(), nil, u); err == nil {
		t.Error("without a CA it is written")
	}
}

func TestInCluster(t *testing.T) {
	t.Parallel()
	s := start(t)
	host, port, _ := strings.Cut(strings.TrimPrefix(s.api.URL, "https://"), ":")
	s.cfg.URL = ""
	if _, err := s.writer().Write(t.Context(), nil, s.update("/web")); err == nil || !strings.Contains(err.Error(), "no pod") {
		t.Errorf("outside of a cluster: %v", err)
	}
	s.cfg.Getenv = func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
	}
	s.write(s.writer(), s.update("/web"))
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*k8s.Config){
		"":                    func(*k8s.Config) {},
		"namespace: ":         func(c *k8s.Config) { c.Namespace = "a/b" },
		"namespace: \"\"":     func(c *k8s.Config) { c.Namespace = "" },
		"name: ":              func(c *k8s.Config) { c.Name = "../x" },
		"name: \"\"":          func(c *k8s.Config) { c.Name = "" },
		"type: ":              func(c *k8s.Config) { c.Type = "TLS" },
		"api: \"http:":        func(c *k8s.Config) { c.URL = "http://10.0.0.1" },
		"api: \"https://a@":   func(c *k8s.Config) { c.URL = "https://a@10.0.0.1" },
		"api: \"https://b/x?": func(c *k8s.Config) { c.URL = "https://b/x?" },
		"token_file: ":        func(c *k8s.Config) { c.TokenFile = "token" },
		"ca_file: ":           func(c *k8s.Config) { c.CAFile = "ca.crt" },
	} {
		c := k8s.Config{Namespace: "shop", Name: "web.tls", Server: k8s.Server{URL: "https://10.0.0.1:6443/"}}
		change(&c)
		if err := c.Complete(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
