// Package kubernetestest is a cluster for tests of what asks one for its pods:
// an API server that lists and watches, and a kubelet, both over TLS. It is
// strict: what the real ones ignore or mend it refuses.
package kubernetestest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Pod is one as its API server has it. Every Pod needs a UID.
type Pod struct {
	Namespace, Name, UID, Node, ServiceAccount string
	Labels, Annotations                        map[string]string
	OwnerKind, OwnerName                       string // a controller
	Containers, Init, Ephemeral                []Container
}

// A Container is a container's status.
type Container struct {
	Name, Image, ImageID string
	ID                   string // with the runtime: containerd://...
	Ended                bool
}

// Object is the pod in JSON's terms, with padding that nobody asked for.
func (p Pod) Object(version int) map[string]any {
	metadata := map[string]any{
		"name": p.Name, "namespace": p.Namespace, "uid": p.UID, "resourceVersion": strconv.Itoa(version), "labels": p.Labels, "annotations": p.Annotations,
		"managedFields": []any{map[string]any{"manager": "kubelet", "fieldsV1": map[string]any{"f:status": map[string]any{}}}},
	}
	if p.OwnerKind != "" {
		metadata["ownerReferences"] = []any{
			map[string]any{"apiVersion": "v1", "kind": "Other", "name": "no-controller", "uid": "x"},
			map[string]any{"apiVersion": "apps/v1", "kind": p.OwnerKind, "name": p.OwnerName, "uid": "y", "controller": true},
		}
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
		"spec": map[string]any{"nodeName": p.Node, "serviceAccountName": p.ServiceAccount, "containers": []any{map[string]any{"name": "web", "image": "spec.example/ahead:2"}}},
		"status": map[string]any{
			"phase": "Running", "containerStatuses": statuses(p.Containers), "initContainerStatuses": statuses(p.Init), "ephemeralContainerStatuses": statuses(p.Ephemeral),
		},
	}
}

func statuses(all []Container) []any {
	var out []any
	for _, c := range all {
		state := map[string]any{"running": map[string]any{"startedAt": "2026-01-01T00:00:00Z"}}
		if c.Ended {
			state = map[string]any{"terminated": map[string]any{"exitCode": 0, "containerID": c.ID}}
		}
		out = append(out, map[string]any{"name": c.Name, "image": c.Image, "imageID": c.ImageID, "containerID": c.ID, "state": state, "ready": !c.Ended})
	}
	return out
}

// A Cluster is an API server and the kubelet of one of its nodes.
type Cluster struct {
	API, Kubelet string // URLs
	TokenFile    string // holds what both take
	CAFile       string // what both are verified by
	t            *testing.T

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	token   string
	version int
	oldest  int // changes up to here are forgotten
	pods    map[string]change
	log     []change
	drops   int
	asked   map[string]int // by "list", "watch" and "kubelet"
	seen    []string       // versions that watches began at
	listed  []string       // versions that lists were to be no older than
	status  int            // that all questions are answered with; 0: none
	body    map[string]func(io.Writer)
	hold    chan struct{} // nil: none
	wrong   []string
}

type change struct {
	version int
	kind    string
	node    string
	all     bool // for the watches of all nodes
	object  map[string]any
}

// New starts one that has no pods.
func New(t *testing.T, node string) *Cluster {
	dir := t.TempDir()
	c := &Cluster{
		t: t, changed: make(chan struct{}), version: 100, pods: make(map[string]change), asked: make(map[string]int), body: make(map[string]func(io.Writer)),
		TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt"),
	}
	c.Rotate("first")
	done := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) { c.serveAPI(w, r, done) })
	kubelet := serve(t, func(w http.ResponseWriter, r *http.Request) { c.serveKubelet(w, r, node) })
	c.API, c.Kubelet = api.URL, kubelet.URL
	t.Cleanup(func() { // before the servers close
		close(done)
		for _, wrong := range c.wrong {
			t.Error("the cluster was asked wrongly: " + wrong)
		}
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := os.WriteFile(c.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// Rotate has the cluster take another token alone, and writes its file.
func (c *Cluster) Rotate(token string) {
	c.mu.Lock()
	c.token = token
	c.mu.Unlock()
	if err := os.WriteFile(c.TokenFile+".new", []byte(token+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.TokenFile+".new", c.TokenFile); err != nil {
		c.t.Fatal(err)
	}
}

// Apply makes a pod, or changes that with its UID.
func (c *Cluster) Apply(p Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	kind := "ADDED"
	if _, ok := c.pods[p.UID]; ok {
		kind = "MODIFIED"
	}
	e := change{version: c.version, kind: kind, node: p.Node, object: p.Object(c.version)}
	c.pods[p.UID] = e
	c.add(e)
}

// Delete deletes the pod with a UID.
func (c *Cluster) Delete(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	e := c.pods[uid]
	delete(c.pods, uid)
	e.kind, e.version = "DELETED", c.version
	c.add(e)
}

// Bookmark tells watches that nothing happened up to a version.
func (c *Cluster) Bookmark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.add(change{version: c.version, kind: "BOOKMARK", all: true, object: map[string]any{
		"kind": "Pod", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(c.version), "creationTimestamp": nil},
	}})
}

// Send sends watches an event as it is.
func (c *Cluster) Send(kind string, object map[string]any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.add(change{version: c.version, kind: kind, all: true, object: object})
}

// add is called with c.mu held.
func (c *Cluster) add(e change) {
	c.log = append(c.log, e)
	c.wake()
}

func (c *Cluster) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Forget forgets all changes so far: watches from before them are refused.
func (c *Cluster) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.oldest, c.log = c.version, nil
}

// Drop breaks all watches off.
func (c *Cluster) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops++
	c.wake()
}

// Fail has every question answered with a status from now on; 0 ends it.
func (c *Cluster) Fail(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

// Answer has a kind of question (list, watch, kubelet) answered with what is
// written; nil ends it.
func (c *Cluster) Answer(kind string, body func(io.Writer)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.body[kind] = body
}

// Hold keeps all questions waiting until the function that it returns is called.
func (c *Cluster) Hold() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := make(chan struct{})
	c.hold = held
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(held)
		c.hold = nil
	})
}

// Asked is how often a kind of question (list, watch, kubelet) was asked.
func (c *Cluster) Asked(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[kind]
}

// Await waits until a kind of question was asked n times.
func (c *Cluster) Await(kind string, n int) {
	c.t.Helper()
	late := time.After(time.Minute)
	for {
		c.mu.Lock()
		asked, changed := c.asked[kind], c.changed
		c.mu.Unlock()
		if asked >= n {
			return
		}
		select {
		case <-changed:
		case <-late:
			c.t.Fatalf("the cluster was asked %d times, %s", asked, kind)
		}
	}
}

// Since are the versions that watches began at.
func (c *Cluster) Since() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen)
}

// Listed are the versions that lists were to be no older than; empty: the newest.
func (c *Cluster) Listed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.listed)
}

// Version is the newest.
func (c *Cluster) Version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strconv.Itoa(c.version)
}

// admit checks what every question must have.
func (c *Cluster) admit(w http.ResponseWriter, r *http.Request, kind, path string, known ...string) (url.Values, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[kind]++
	c.wake()
	query := r.URL.Query()
	wrong := ""
	switch {
	case r.Method != http.MethodGet || r.URL.Path != path:
		wrong = r.Method + " " + r.URL.Path
	case r.Header.Get("Accept") != "application/json":
		wrong = "it accepts " + r.Header.Get("Accept")
	case len(r.Header.Values("Authorization")) != 1:
		wrong = "without one token"
	}
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) != 1 {
			wrong = fmt.Sprintf("%s=%q", name, values)
		}
	}
	if kind == "list" {
		c.listed = append(c.listed, query.Get("resourceVersion"))
	}
	if wrong != "" {
		c.wrong = append(c.wrong, wrong)
		http.Error(w, wrong, http.StatusBadRequest)
		return nil, false
	}
	switch {
	case c.status != 0:
		w.Header().Set("Location", path) // for those of 3xx
		w.WriteHeader(c.status)
		return nil, false
	case r.Header.Get("Authorization") != "Bearer "+c.token:
		w.WriteHeader(http.StatusUnauthorized)
		return nil, false
	}
	w.Header().Set("Content-Type", "application/json")
	body := c.body[kind]
	if body == nil {
		return query, true
	}
	c.mu.Unlock()
	body(w)
	c.mu.Lock()
	return nil, false
}

func (c *Cluster) held(r *http.Request) {
	c.mu.Lock()
	held := c.hold
	c.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
		}
	}
}

func (c *Cluster) serveKubelet(w http.ResponseWriter, r *http.Request, node string) {
	if _, ok := c.admit(w, r, "kubelet", "/pods"); ok {
		c.held(r)
		_, body := c.list(node)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1", "metadata": map[string]any{}, "items": body})
	}
}

func (c *Cluster) serveAPI(w http.ResponseWriter, r *http.Request, done chan struct{}) {
	const path = "/api/v1/pods"
	kind, known := "list", []string{"fieldSelector", "resourceVersion", "resourceVersionMatch"}
	if r.URL.Query().Has("watch") {
		kind, known = "watch", []string{"watch", "fieldSelector", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"}
	}
	query, ok := c.admit(w, r, kind, path, known...)
	if !ok {
		return
	}
	node, ok := strings.CutPrefix(query.Get("fieldSelector"), "spec.nodeName=")
	if !ok || node == "" {
		c.refuse(w, "pods of every node")
		return
	}
	c.held(r)
	if kind == "watch" {
		c.watch(w, r, query, node, done)
		return
	}
	if query.Has("resourceVersion") != query.Has("resourceVersionMatch") {
		c.refuse(w, "a version without what it means")
		return
	}
	version, items := c.list(node)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "PodList", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(version)}, "items": items,
	})
}

func (c *Cluster) refuse(w http.ResponseWriter, wrong string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, wrong)
	http.Error(w, wrong, http.StatusBadRequest)
}

func (c *Cluster) list(node string) (int, []any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	items := []any{}
	for _, p := range c.pods {
		if p.node == node {
			items = append(items, p.object)
		}
	}
	return c.version, items
}

// watch streams changes as they come, after a version that a list or an event
// gave.
func (c *Cluster) watch(w http.ResponseWriter, r *http.Request, query url.Values, node string, done chan struct{}) {
	version, err := strconv.Atoi(query.Get("resourceVersion"))
	life, terr := strconv.Atoi(query.Get("timeoutSeconds"))
	if err != nil || version == 0 || terr != nil || life < 60 || query.Get("watch") != "true" || query.Get("allowWatchBookmarks") != "true" {
		c.refuse(w, "a watch "+query.Encode())
		return
	}
	c.mu.Lock()
	c.seen = append(c.seen, query.Get("resourceVersion"))
	dropped, gone := c.drops, version < c.oldest
	c.mu.Unlock()
	encoder, flush := json.NewEncoder(w), http.NewResponseController(w)
	if gone {
		_ = encoder.Encode(map[string]any{"type": "ERROR", "object": map[string]any{
			"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old resource version",
		}})
		return
	}
	sent := 0
	for {
		c.mu.Lock()
		log, changed, drop := c.log, c.changed, c.drops != dropped
		c.mu.Unlock()
		sent = min(sent, len(log)) // it may have been forgotten
		for _, e := range log[sent:] {
			if (e.node == node || e.all) && e.version > version {
				_ = encoder.Encode(map[string]any{"type": e.kind, "object": e.object})
			}
		}
		sent = len(log)
		if err := flush.Flush(); err != nil {
			return
		}
		if drop {
			panic(http.ErrAbortHandler)
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-done:
			return
		}
	}
}
