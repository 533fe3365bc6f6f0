package docker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/attest/docker"
	"github.com/credence-id/credence/agent/caller"
)

func TestMain(m *testing.M) { attesttest.Main(m) }

// runtime speaks as much of the Engine API as is asked for.
type runtime struct {
	socket string
	asked  atomic.Int32
	mu     sync.Mutex
	all    map[string]map[string]any // by path
	raw    map[string]string
}

func newRuntime(t *testing.T) *runtime {
	r := &runtime{socket: filepath.Join(t.TempDir(), "docker.sock"), all: make(map[string]map[string]any), raw: make(map[string]string)}
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: r}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return r
}

func (r *runtime) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.asked.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if raw, ok := r.raw[q.URL.Path]; ok {
		_, _ = io.WriteString(w, raw)
		return
	}
	answer, ok := r.all[q.URL.Path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"message":"No such container"}`)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

var (
	id    = strings.Repeat("ab12", 16)
	other = strings.Repeat("cd34", 16)
	image = "sha256:" + strings.Repeat("ef", 32)
)

// runs has the runtime know a container whose first process is pid.
func (r *runtime) runs(id string, pid int, change func(config map[string]any)) {
	config := map[string]any{
		"Image": "registry.example/shop/web:1.2", "Labels": map[string]string{"app.kubernetes.io/name": "web", "tier": "front"},
		"Env": []string{"TIER=front", "TOKEN=secret", "EMPTY="},
	}
	if change != nil {
		change(config)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all["/containers/"+id+"/json"] = map[string]any{
		"Id": id, "Name": "/web-1", "Image": image, "State": map[string]any{"Running": true, "Pid": pid}, "Config": config,
	}
	r.all["/images/"+image+"/json"] = map[string]any{
		"Id": image, "RepoDigests": []string{"registry.example/shop/web@sha256:11", "mirror.example/web@sha256:11", "mirror.example/web@sha256:00"},
	}
}

func attestor(t *testing.T, r *runtime) *docker.Attestor {
	t.Helper()
	a, err := docker.New(docker.Config{Runtime: "docker", Socket: r.socket})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func attested(t *testing.T, a *docker.Attestor, pid int, wanted ...string) (map[string][]string, []string, error) {
	t.Helper()
	p, err := caller.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return a.Attest(t.Context(), p, func(name string) bool {
		for _, w := range wanted {
			if w == name {
				return true
			}
		}
		return false
	})
}

func TestFacts(t *testing.T) {
	r := newRuntime(t)
	first, second := attesttest.Process(t), attesttest.Process(t)
	attesttest.Into(t, "/docker/"+id, first, second)
	r.runs(id, first, nil)
	facts, unknown, err := attested(t, attestor(t, r), second)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"workload.docker.id": {id}, "workload.docker.name": {"web-1"}, "workload.docker.image": {"registry.example/shop/web:1.2"},
		"workload.docker.image_id": {image}, "workload.docker.image_digest": {"sha256:00", "sha256:11"},
		"workload.docker.labels.app.kubernetes.io/name": {"web"}, "workload.docker.labels.tier": {"front"},
	}
	if diff := cmp.Diff(want, facts); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"workload.docker.env"}, unknown); diff != "" {
		t.Error(diff)
	}
}

// Variables are told by name only, and none where none is wanted.
func TestVariables(t *testing.T) {
	r := newRuntime(t)
	pid := attesttest.Process(t)
	attesttest.Into(t, "/docker/"+id, pid)
	r.runs(id, pid, nil)
	facts, unknown, err := attested(t, attestor(t, r), pid, "workload.docker.env", "workload.docker.env.TIER", "workload.docker.env.ABSENT")
	if err != nil || len(unknown) != 0 {
		t.Fatal(unknown, err)
	}
	if diff := cmp.Diff([]string{"front"}, facts["workload.docker.env.TIER"]); diff != "" {
		t.Error(diff)
	}
	for name := range facts {
		if strings.HasPrefix(name, "workload.docker.env.") && name != "workload.docker.env.TIER" {
			t.Errorf("%s was told", name)
		}
	}
}

func TestNotHere(t *testing.T) {
	r := newRuntime(t)
	facts, unknown, err := attested(t, attestor(t, r), attesttest.Process(t))
	if err != nil || len(facts) != 0 || len(unknown) != 0 {
		t.Errorf("a process in no container: %v, %v, %v", facts, unknown, err)
	}
	pid := attesttest.Process(t)
	attesttest.Into(t, "/default/"+id, pid)
	if facts, unknown, err = attested(t, attestor(t, r), pid); err != nil || len(facts) != 0 || len(unknown) != 0 {
		t.Errorf("another runtime's container: %v, %v, %v", facts, unknown, err)
	}
	if r.asked.Load() != 0 {
		t.Error("the runtime was asked of them")
	}
}

func TestRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		cgroup  string
		prepare func(t *testing.T, r *runtime, pid int)
		want    string
	}{
		"a cgroup of somebody's making": {"/batch/docker-" + id + ".scope", func(t *testing.T, r *runtime, pid int) {
			first := attesttest.Process(t)
			attesttest.Into(t, "/docker/"+id, first)
			r.runs(id, first, nil)
		}, "cannot be told"},
		"a container that the runtime doesn't know": {"/docker/" + id, func(*testing.T, *runtime, int) {}, "no such container"},
		"a container that has ended": {"/docker/" + id, func(_ *testing.T, r *runtime, pid int) {
			r.runs(id, pid, nil)
			r.all["/containers/"+id+"/json"]["State"] = map[string]any{"Running": false, "Pid": 0}
		}, "does not run"},
		"an answer about another": {"/docker/" + id, func(_ *testing.T, r *runtime, pid int) {
			r.runs(id, pid, nil)
			r.all["/containers/"+id+"/json"]["Id"] = other
		}, "of another"},
		"a first process elsewhere":    {"/docker/" + id, func(_ *testing.T, r *runtime, _ int) { r.runs(id, os.Getpid(), nil) }, "cannot be told"},
		"a first process that is gone": {"/docker/" + id, func(_ *testing.T, r *runtime, _ int) { r.runs(id, 1<<22-1, nil) }, "first process"},
		"an endless answer": {"/docker/" + id, func(_ *testing.T, r *runtime, _ int) {
			r.raw["/containers/"+id+"/json"] = `{"Id":"` + strings.Repeat("a", 5<<20)
		}, "more than"},
		"no JSON": {"/docker/" + id, func(_ *testing.T, r *runtime, _ int) { r.raw["/containers/"+id+"/json"] = `<html>` }, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t)
			pid := attesttest.Process(t)
			test.prepare(t, r, pid)
			attesttest.Into(t, test.cgroup, pid)
			facts, _, err := attested(t, attestor(t, r), pid)
			if err == nil || !strings.Contains(err.Error(), test.want) || len(facts) != 0 {
				t.Errorf("%v, %v; want %q", facts, err, test.want)
			}
		})
	}
}

// What can't be told whole isn't told in part.
func TestHostileLabels(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"a control character": {"tier": "front", "x": "a\nb"},
		"too long":            {"tier": strings.Repeat("a", 30<<10)},
		"too many":            many(200),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t)
			pid := attesttest.Process(t)
			attesttest.Into(t, "/docker/"+id, pid)
			r.runs(id, pid, func(c map[string]any) { c["Labels"] = labels })
			facts, unknown, err := attested(t, attestor(t, r), pid)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"workload.docker.labels", "workload.docker.env"}, unknown); diff != "" {
				t.Error(diff)
			}
			for name := range facts {
				if strings.Contains(name, ".labels.") {
					t.Errorf("%s was told", name)
				}
			}
		})
	}
}

func many(n int) map[string]string {
	all := make(map[string]string)
	for i := range n {
		all[fmt.Sprint("l", i)] = "x"
	}
	return all
}

// However many ask at once, the runtime is asked once of the container and once
// of its image.
func TestAskedOnce(t *testing.T) {
	r := newRuntime(t)
	pid := attesttest.Process(t)
	attesttest.Into(t, "/docker/"+id, pid)
	r.runs(id, pid, nil)
	a := attestor(t, r)
	var group sync.WaitGroup
	var failed atomic.Int32
	for range 200 {
		group.Go(func() {
			if _, _, err := attested(t, a, pid); err != nil {
				failed.Add(1)
			}
		})
	}
	group.Wait()
	if n := r.asked.Load(); n > 2 || failed.Load() != 0 {
		t.Errorf("asked %d times, %d failed", n, failed.Load())
	}
}

// A runtime that hangs costs its time-out, no more.
func TestHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := docker.New(docker.Config{Runtime: "docker", Socket: path, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	pid := attesttest.Process(t)
	attesttest.Into(t, "/docker/"+id, pid)
	if _, _, err := attested(t, a, pid); err == nil || errors.Is(err, attest.ErrAmbiguous) {
		t.Errorf("%v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]docker.Config{"no runtime": {Socket: "/x"}, "another": {Runtime: "runc", Socket: "/x"}, "no socket": {Runtime: "podman"}} {
		if _, err := docker.New(c); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
