package kubernetes_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
	"github.com/credence-id/credence/agent/caller"
)

func TestMain(m *testing.M) { attesttest.Main(m) }

// asked are the requests that passed, as RBAC calls them.
type asked struct {
	mu  sync.Mutex // guards all
	all map[string]bool
}

func (a *asked) verbs() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for v := range a.all {
		out = append(out, v)
	}
	return slices.Sorted(slices.Values(out))
}

// between stands before a server of the cluster's, and notes what it is asked.
func between(t *testing.T, c *kubernetestest.Cluster, server string, verb func(*http.Request) string) (*kubernetes.Server, *asked) {
	t.Helper()
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: transport, FlushInterval: -1}
	seen := &asked{all: map[string]bool{}}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.mu.Lock()
		seen.all[verb(r)] = true
		seen.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return &kubernetes.Server{URL: s.URL, TokenFile: c.TokenFile, CAFile: c.CAFile}, seen
}

// ofAPI is a request to an API server in RBAC's words (Kubernetes, "Authorization
// overview: Determine the request verb").
func ofAPI(r *http.Request) string {
	resource, ok := strings.CutPrefix(r.URL.Path, "/api/v1/")
	if !ok || r.Method != http.MethodGet || strings.Contains(resource, "/") {
		return r.Method + " " + r.URL.Path
	}
	if r.URL.Query().Get("watch") == "true" {
		return "watch " + resource
	}
	return "list " + resource
}

// ofKubelet is a request to a kubelet in RBAC's words (Kubernetes, "Kubelet
// authentication/authorization": fine-grained).
func ofKubelet(r *http.Request) string {
	if r.Method != http.MethodGet || r.URL.Path != "/pods" {
		return r.Method + " " + r.URL.Path
	}
	return "get nodes/pods"
}

// allowed are what a role lets do.
func allowed(t *testing.T, role object) (out []string) {
	t.Helper()
	for _, r := range role.Rules {
		if !slices.Equal(r.APIGroups, []string{""}) {
			t.Errorf("API groups %q", r.APIGroups)
		}
		for _, resource := range r.Resources {
			for _, verb := range r.Verbs {
				out = append(out, verb+" "+resource)
			}
		}
	}
	return slices.Sorted(slices.Values(out))
}

// The account may do what the attestor does, and nothing besides.
func TestRoleOfTheWatch(t *testing.T) {
	const node = "node-1"
	c := kubernetestest.New(t, node)
	server, seen := between(t, c, c.API, ofAPI)
	a, err := kubernetes.New(kubernetes.Config{API: server, Node: node})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	c.Await("list", 1)
	c.Await("watch", 1)
	cancel()
	running.Wait()
	if diff := cmp.Diff(seen.verbs(), allowed(t, installs(t)["the API server"].role)); diff != "" {
		t.Errorf("asked and allowed: %s", diff)
	}
}

func TestRoleAtTheKubelet(t *testing.T) {
	const node, uid = "node-1", "6f4f7d5e-2c0a-4c63-9d5e-0c1f6f3b7a11"
	id := strings.Repeat("4d", 32)
	c := kubernetestest.New(t, node)
	c.Apply(kubernetestest.Pod{Namespace: "shop", Name: "checkout", UID: uid, Node: node, ServiceAccount: "checkout", Containers: []kubernetestest.Container{{Name: "checkout", ID: "containerd://" + id}}})
	server, seen := between(t, c, c.Kubelet, ofKubelet)
	a, err := kubernetes.New(kubernetes.Config{Kubelet: server, Node: node})
	if err != nil {
		t.Fatal(err)
	}
	pid := attesttest.Process(t)
	attesttest.Into(t, "/kubepods/pod"+uid+"/"+id, pid)
	p, err := caller.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if facts, _, err := a.Attest(t.Context(), p, nil); err != nil || facts["workload.kubernetes.service_account"][0] != "checkout" {
		t.Fatalf("%v, %v", facts, err)
	}
	if diff := cmp.Diff(seen.verbs(), allowed(t, installs(t)["the kubelet"].role)); diff != "" {
		t.Errorf("asked and allowed: %s", diff)
	}
}

// The bindings give the role to the account that the agent runs as.
func TestBinding(t *testing.T) {
	all := manifest(t, "credence-agent.yaml")
	binding, account := all["ClusterRoleBinding"], all["ServiceAccount"].Metadata
	if diff := cmp.Diff(map[string]string{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": all["ClusterRole"].Metadata.Name}, binding.RoleRef); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]map[string]any{{"kind": "ServiceAccount", "name": account.Name, "namespace": account.Namespace}}, binding.Subjects); diff != "" {
		t.Error(diff)
	}
	for _, kind := range []string{"ServiceAccount", "ConfigMap", "DaemonSet"} {
		if all[kind].Metadata.Namespace != all["Namespace"].Metadata.Name {
			t.Errorf("%s is in %q", kind, all[kind].Metadata.Namespace)
		}
	}
	if got := all["DaemonSet"].WorkloadSpec.Template.Spec.ServiceAccountName; got != account.Name {
		t.Errorf("the agent runs as %s", got)
	}
}
