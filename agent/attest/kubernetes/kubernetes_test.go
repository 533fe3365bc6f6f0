package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
)

const (
	node     = "node-7.example"
	uid      = "0a1b2c3d-0a1b-4c3d-8e9f-0a1b2c3d4e5f"
	otherUID = "ffffffff-0a1b-4c3d-8e9f-0a1b2c3d4e5f"
)

var (
	id      = strings.Repeat("ab12", 16)
	otherID = strings.Repeat("cd34", 16)
	digest  = "sha256:" + strings.Repeat("ef", 32)
)

// web is a pod with a container of each sort, of which web is asked for.
func web() kubernetestest.Pod {
	return kubernetestest.Pod{
		Namespace: "shop", Name: "web-5d9c", UID: uid, Node: node, ServiceAccount: "checkout",
		OwnerKind: "ReplicaSet", OwnerName: "web-5d",
		Labels: map[string]string{"app.kubernetes.io/name": "web", "tier": "front", "canary": ""},
		Containers: []kubernetestest.Container{
			{Name: "web", Image: "registry.example/shop/web:1.2", ImageID: "registry.example/shop/web@" + digest, ID: "containerd://" + id},
			{Name: "sidecar", Image: "b", ImageID: "b@" + digest, ID: "containerd://" + strings.Repeat("1", 64)},
		},
		Init:      []kubernetestest.Container{{Name: "init", Image: "i", ImageID: "i@" + digest, ID: "cri-o://" + strings.Repeat("2", 64)}},
		Ephemeral: []kubernetestest.Container{{Name: "debug", Image: "e", ImageID: digest, ID: "docker://" + strings.Repeat("3", 64)}},
	}
}

func webFacts() map[string][]string {
	return map[string][]string{
		"workload.kubernetes.namespace": {"shop"}, "workload.kubernetes.service_account": {"checkout"},
		"workload.kubernetes.pod": {"web-5d9c"}, "workload.kubernetes.pod_uid": {uid}, "workload.kubernetes.node": {node},
		"workload.kubernetes.owner_kind": {"ReplicaSet"}, "workload.kubernetes.owner_name": {"web-5d"},
		"workload.kubernetes.container": {"web"}, "workload.kubernetes.container_id": {id},
		"workload.kubernetes.image": {"registry.example/shop/web:1.2"}, "workload.kubernetes.image_digest": {digest},
		"workload.kubernetes.labels.app.kubernetes.io/name": {"web"}, "workload.kubernetes.labels.tier": {"front"},
		"workload.kubernetes.labels.canary": {""},
	}
}

func uidOf(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000000", n) }
func idOf(n int) string  { return fmt.Sprintf("%064x", n+1) }

func numbered(n int) kubernetestest.Pod {
	p := web()
	p.Name, p.UID, p.Init, p.Ephemeral = fmt.Sprint("web-", n), uidOf(n), nil, nil
	p.Containers = []kubernetestest.Container{{Name: "web", Image: "a", ImageID: "a@" + digest, ID: "containerd://" + idOf(n)}}
	return p
}

// patience is for what will come, on the busiest machine.
const patience = 30 * time.Second

// brief doesn't wait for long.
func brief(c *kubernetes.Config) { c.Wait = 30 * time.Millisecond }

func server(c *kubernetestest.Cluster, url string) *kubernetes.Server {
	return &kubernetes.Server{URL: url, TokenFile: c.TokenFile, CAFile: c.CAFile}
}

// watching is an attestor that watches the API server until the test ends.
func watching(t *testing.T, c *kubernetestest.Cluster, change func(*kubernetes.Config)) *kubernetes.Attestor {
	t.Helper()
	config := kubernetes.Config{API: server(c, c.API), Node: node, Pause: 10 * time.Millisecond, Wait: patience}
	a := attestor(t, config, change)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return a
}

// polling is an attestor that asks the kubelet.
func polling(t *testing.T, c *kubernetestest.Cluster, change func(*kubernetes.Config)) *kubernetes.Attestor {
	t.Helper()
	return attestor(t, kubernetes.Config{Kubelet: server(c, c.Kubelet), Node: node, Pause: 10 * time.Millisecond, Wait: patience}, change)
}

func attestor(t *testing.T, config kubernetes.Config, change func(*kubernetes.Config)) *kubernetes.Attestor {
	t.Helper()
	if change != nil {
		change(&config)
	}
	a, err := kubernetes.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func in(id, pod string) attest.Place {
	return attest.Place{Container: &attest.Container{ID: id, Pod: pod}, Cgroup: "/kubepods/pod" + pod + "/" + id}
}

// pod is the name that a place's pod has, or the error.
func pod(t *testing.T, a *kubernetes.Attestor, place attest.Place) string {
	t.Helper()
	facts, _, err := a.Describe(t.Context(), place)
	if err != nil {
		return err.Error()
	}
	return facts["workload.kubernetes.pod"][0]
}

// settled returns a when its source has answered once: then a brief wait for
// what isn't there is enough.
func settled(t *testing.T, a *kubernetes.Attestor) *kubernetes.Attestor {
	t.Helper()
	until(t, "an answer", func() bool {
		return strings.HasSuffix(pod(t, a, in(strings.Repeat("0", 64), "")), "as a running container")
	})
	return a
}

// until waits for what a watch brings. Each look waits for the watch itself.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatal("it never came to " + what)
		}
	}
}

func TestSorts(t *testing.T) {
	c := kubernetestest.New(t, node)
	p := web()
	p.Containers = append(p.Containers, kubernetestest.Container{Name: "ended", ID: "containerd://" + strings.Repeat("4", 64), Ended: true})
	c.Apply(p)
	a := settled(t, polling(t, c, brief))
	for digit, want := range map[string]string{"1": "sidecar", "2": "init", "3": "debug"} {
		facts, unknown, err := a.Describe(t.Context(), in(strings.Repeat(digit, 64), uid))
		if err != nil || facts["workload.kubernetes.container"][0] != want {
			t.Errorf("%v, %v; want %s", facts, err, want)
		}
		if digit == "3" { // an image without a manifest's digest
			if diff := cmp.Diff([]string{"workload.kubernetes.image_digest"}, unknown); diff != "" {
				t.Error(diff)
			}
		}
	}
	if got := pod(t, a, in(strings.Repeat("4", 64), uid)); !strings.Contains(got, "no pod of this node") {
		t.Errorf("a container that has ended: %s", got)
	}
}

// What others than root could have named counts for nothing.
func TestClaimed(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	a := polling(t, c, nil)
	for name, change := range map[string]func(*attest.Container){
		"claimed": func(c *attest.Container) { c.Claimed = true }, "a user's": func(c *attest.Container) { c.User = "1000" },
	} {
		place := in(id, uid)
		change(place.Container)
		if facts, _, err := a.Describe(t.Context(), place); !errors.Is(err, attest.ErrAmbiguous) {
			t.Errorf("%s: %v, %v", name, facts, err)
		}
	}
}

// A static pod's cgroup has the UID that its kubelet gave it. Any pod's author
// may claim one by an annotation, but no mirror has a service account.
func TestStaticPods(t *testing.T) {
	hash := strings.Repeat("0f", 16)
	static := func(change func(*kubernetestest.Pod)) kubernetestest.Pod {
		p := web()
		p.ServiceAccount = ""
		p.Annotations = map[string]string{"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash, "kubernetes.io/config.source": "file"}
		if change != nil {
			change(&p)
		}
		return p
	}
	for name, test := range map[string]struct {
		change func(*kubernetestest.Pod)
		want   string
	}{
		"a mirror":                   {nil, "web-5d9c"},
		"with a service account":     {func(p *kubernetestest.Pod) { p.ServiceAccount = "checkout" }, "cannot be told"},
		"no mirror":                  {func(p *kubernetestest.Pod) { delete(p.Annotations, "kubernetes.io/config.mirror") }, "cannot be told"},
		"a mirror of another":        {func(p *kubernetestest.Pod) { p.Annotations["kubernetes.io/config.mirror"] = strings.Repeat("1", 32) }, "cannot be told"},
		"another's":                  {func(p *kubernetestest.Pod) { p.Annotations = nil }, "cannot be told"},
		"as the kubelet has it":      {func(p *kubernetestest.Pod) { p.UID, p.Annotations = hash, nil }, "web-5d9c"},
		"a name with a line's end":   {func(p *kubernetestest.Pod) { p.Name = "a\nb" }, "no pod of this node"},
		"a namespace that is a path": {func(p *kubernetestest.Pod) { p.Namespace = "a/b" }, "no pod of this node"},
		"an account with a brace":    {func(p *kubernetestest.Pod) { p.ServiceAccount = "a}" }, "no pod of this node"},
		"a container's name":         {func(p *kubernetestest.Pod) { p.Containers[0].Name = "a/../b" }, "no pod of this node"},
		"an endless image":           {func(p *kubernetestest.Pod) { p.Containers[0].Image = strings.Repeat("a", 5000) }, "no pod of this node"},
		"an ID that is none":         {func(p *kubernetestest.Pod) { p.Containers[0].ID = id }, "no pod of this node"},
	} {
		t.Run(name, func(t *testing.T) {
			c := kubernetestest.New(t, node)
			c.Apply(static(test.change))
			if got := pod(t, settled(t, polling(t, c, brief)), in(id, hash)); !strings.Contains(got, test.want) {
				t.Errorf("%s; want %s", got, test.want)
			}
		})
	}
}

// Two pods that have one container are told apart by the cgroup alone.
func TestOneContainerTwoPods(t *testing.T) {
	c := kubernetestest.New(t, node)
	thief := web()
	thief.Name, thief.UID, thief.ServiceAccount = "thief", otherUID, "admin"
	c.Apply(web())
	c.Apply(thief)
	a := settled(t, polling(t, c, brief))
	if got := pod(t, a, in(id, uid)); got != "web-5d9c" {
		t.Error(got)
	}
	if got := pod(t, a, in(id, "")); !strings.Contains(got, "2 pods have it") {
		t.Error(got)
	}
}

func TestAnotherNodesPods(t *testing.T) {
	elsewhere := web()
	elsewhere.Node = "other"
	list := func(w io.Writer) { writeList(w, elsewhere) }
	c := kubernetestest.New(t, node)
	c.Answer("list", list)
	c.Answer("kubelet", list)
	for source, a := range map[string]*kubernetes.Attestor{"watch": watching(t, c, brief), "kubelet": polling(t, c, brief)} {
		if got := pod(t, settled(t, a), in(id, uid)); strings.HasPrefix(got, "web") {
			t.Errorf("%s: %s", source, got)
		}
	}
}

// What can't be told whole isn't told in part.
func TestHostileLabels(t *testing.T) {
	many := make(map[string]string)
	for n := range 200 {
		many[fmt.Sprint("l", n)] = "x"
	}
	for name, labels := range map[string]map[string]string{
		"a control character": {"tier": "front", "x": "a\nb"}, "too long": {"tier": strings.Repeat("a", 30<<10)}, "too many": many,
	} {
		t.Run(name, func(t *testing.T) {
			c := kubernetestest.New(t, node)
			p := web()
			p.Labels = labels
			c.Apply(p)
			facts, unknown, err := polling(t, c, nil).Describe(t.Context(), in(id, uid))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"workload.kubernetes.labels"}, unknown); diff != "" {
				t.Error(diff)
			}
			for name := range maps.Keys(facts) {
				if strings.Contains(name, ".labels.") {
					t.Errorf("%s was told", name)
				}
			}
		})
	}
}

// Only a server that the CA has signed gets the token.
func TestServers(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(other, []byte(otherCA), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		server kubernetes.Server
		want   string
	}{
		"verified":          {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, CAFile: c.CAFile}, "web-5d9c"},
		"by its own name":   {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, CAFile: c.CAFile, ServerName: "example.com"}, "web-5d9c"},
		"by another's name": {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, CAFile: c.CAFile, ServerName: "kubelet"}, "not kubelet"},
		"said not to be":    {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, SkipVerify: true}, "web-5d9c"},
		"by the system's":   {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile}, "certificate"},
		"by another CA":     {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, CAFile: other}, "certificate"},
		"no CA":             {kubernetes.Server{URL: c.Kubelet, TokenFile: c.TokenFile, CAFile: empty}, "holds no certificate"},
		"no token":          {kubernetes.Server{URL: c.Kubelet, TokenFile: empty, CAFile: c.CAFile}, "holds none"},
		"another's token":   {kubernetes.Server{URL: c.Kubelet, TokenFile: c.CAFile, CAFile: c.CAFile}, "holds none"},
		"no token's file":   {kubernetes.Server{URL: c.Kubelet, TokenFile: "/nowhere", CAFile: c.CAFile}, "/nowhere"},
		"nobody there":      {kubernetes.Server{URL: "https://127.0.0.1:1", TokenFile: c.TokenFile, CAFile: c.CAFile}, "refused"},
		"an endless token":  {kubernetes.Server{URL: c.Kubelet, TokenFile: "/dev/zero", CAFile: c.CAFile}, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := attestor(t, kubernetes.Config{Kubelet: &test.server, Node: node, Wait: 100 * time.Millisecond, Pause: 100 * time.Millisecond}, nil)
			until(t, test.want, func() bool { return strings.Contains(pod(t, a, in(id, uid)), test.want) })
		})
	}
}

func TestRedirect(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Fail(http.StatusTemporaryRedirect)
	until(t, "307", func() bool { return strings.Contains(pod(t, polling(t, c, brief), in(id, uid)), "it answered 307") })
	c.Fail(http.StatusForbidden)
	until(t, "403", func() bool { return strings.Contains(pod(t, polling(t, c, brief), in(id, uid)), "nodes/proxy") })
}

func TestConfig(t *testing.T) {
	good := &kubernetes.Server{URL: "https://127.0.0.1:1", TokenFile: "/t"}
	for name, c := range map[string]kubernetes.Config{
		"no source":              {Node: node},
		"two":                    {Node: node, API: good, Kubelet: good},
		"no node":                {API: good},
		"a node that is a query": {Node: "a&fieldSelector=", API: good},
		"no TLS":                 {Node: node, API: &kubernetes.Server{URL: "http://127.0.0.1:1", TokenFile: "/t"}},
		"no URL":                 {Node: node, API: &kubernetes.Server{TokenFile: "/t"}},
		"a password":             {Node: node, API: &kubernetes.Server{URL: "https://a:b@h", TokenFile: "/t"}},
		"no token":               {Node: node, API: &kubernetes.Server{URL: "https://127.0.0.1:1"}},
		"a CA that nobody reads": {Node: node, Kubelet: &kubernetes.Server{URL: "https://127.0.0.1:1", TokenFile: "/t", CAFile: "/c", SkipVerify: true}},
	} {
		if _, err := kubernetes.New(c); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestInCluster(t *testing.T) {
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
	s, err := kubernetes.InCluster(func(name string) string { return env[name] })
	if err != nil || s.URL != "https://[fd00::1]:443" || s.CAFile == "" || s.TokenFile == "" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := kubernetes.InCluster(func(string) string { return "" }); err == nil {
		t.Error("no pod passes")
	}
}

// otherCA is of nobody who is asked.
const otherCA = `-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIUKd+b23J8QFDmkT32dxpsSLzLJRowCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFb3RoZXIwIBcNMjYxMTIxMTQzOTAzWhgPMjEyNjEwMjgxNDM5
MDNaMBAxDjAMBgNVBAMMBW90aGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
Cv6cu2WbxkUo8Wt2gc+Dt+t3MTE+fhX1vvuTmcTwMeKRtGCYOKhnhKGp2RquQlo4
fDyCfNq5GoBN25xXuRSICqNTMFEwHQYDVR0OBBYEFJkeK3F3zfG04a0ZQh8QtGJ/
x+oHMB8GA1UdIwQYMBaAFJkeK3F3zfG04a0ZQh8QtGJ/x+oHMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgFkTPjQPvAeKjXjoar24+Wbi+RmgkDC6q
h3OPAkCAYPkCIQCIif9vKnsYaIwoN3orDDa308b6bt58av5Mwwn6tMQfDg==
-----END CERTIFICATE-----
`
