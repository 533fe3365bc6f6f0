package containerd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/attest/containerd"
	"github.com/credence-id/credence/agent/caller"
)

func TestMain(m *testing.M) { attesttest.Main(m) }

// daemon speaks as much of containerd's API as is asked for.
type daemon struct {
	socket string
	asked  atomic.Int32

	mu  sync.Mutex // guards all
	all map[string]*record
}

// The other services have methods of the same name.
type taskService struct {
	tasks.TasksServer
	*daemon
}

type imageService struct {
	images.ImagesServer
	*daemon
}

type containerService struct {
	containers.ContainersServer
	*daemon
}

// A record is a container with its task and its image.
type record struct {
	container *containers.Container
	process   *task.Process
	image     *images.Image
}

func newDaemon(t *testing.T) *daemon {
	d := &daemon{socket: filepath.Join(t.TempDir(), "c.sock"), all: make(map[string]*record)}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	containers.RegisterContainersServer(g, containerService{daemon: d})
	tasks.RegisterTasksServer(g, taskService{daemon: d})
	images.RegisterImagesServer(g, imageService{daemon: d})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return d
}

func (d *daemon) find(ctx context.Context, id string) (*record, error) {
	d.asked.Add(1)
	m, _ := metadata.FromIncomingContext(ctx)
	namespace := m.Get("containerd-namespace")
	if len(namespace) != 1 {
		return nil, status.Error(codes.FailedPrecondition, "namespace is required")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.all[namespace[0]+"/"+id]; r != nil {
		return r, nil
	}
	return nil, status.Error(codes.NotFound, "not found")
}

func (s containerService) Get(ctx context.Context, q *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	r, err := s.find(ctx, q.GetID())
	if err != nil {
		return nil, err
	}
	return &containers.GetContainerResponse{Container: r.container}, nil
}

func (s taskService) Get(ctx context.Context, q *tasks.GetRequest) (*tasks.GetResponse, error) {
	r, err := s.find(ctx, q.GetContainerID())
	if err != nil || r.process == nil || q.GetExecID() != "" {
		return nil, status.Error(codes.NotFound, "no running task found")
	}
	return &tasks.GetResponse{Process: r.process}, nil
}

func (s imageService) Get(ctx context.Context, _ *images.GetImageRequest) (*images.GetImageResponse, error) {
	r, err := s.find(ctx, id)
	if err != nil || r.image == nil {
		return nil, status.Error(codes.NotFound, "image not found")
	}
	return &images.GetImageResponse{Image: r.image}, nil
}

const image = "registry.example/shop/web:1.2"

var (
	id     = strings.Repeat("ab12", 16)
	digest = "sha256:" + strings.Repeat("ef", 32)
	made   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// runs has a namespace know a container whose first process is pid.
func (d *daemon) runs(namespace string, pid int, change func(*record)) {
	pulled := timestamppb.New(made.Add(-time.Hour))
	r := &record{
		container: &containers.Container{ID: id, Image: image, Labels: map[string]string{"tier": "front"}, CreatedAt: timestamppb.New(made)},
		process:   &task.Process{ContainerID: id, ID: id, Pid: uint32(pid), Status: task.Status_RUNNING},
		image:     &images.Image{Name: image, Target: &types.Descriptor{Digest: digest}, CreatedAt: pulled, UpdatedAt: pulled},
	}
	if change != nil {
		change(r)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all[namespace+"/"+id] = r
}

func attested(t *testing.T, d *daemon, pid int, namespaces ...string) (map[string][]string, []string, error) {
	t.Helper()
	return asked(t, attestor(t, d, namespaces...), pid)
}

func attestor(t *testing.T, d *daemon, namespaces ...string) *containerd.Attestor {
	t.Helper()
	if namespaces == nil {
		namespaces = []string{"k8s.io", "default"}
	}
	a, err := containerd.New(containerd.Config{Socket: d.socket, Namespaces: namespaces})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func asked(t *testing.T, a *containerd.Attestor, pid int) (map[string][]string, []string, error) {
	t.Helper()
	p, err := caller.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return a.Attest(t.Context(), p, nil)
}

func TestFacts(t *testing.T) {
	for cgroup, namespaces := range map[string][]string{"/default/" + id: nil, "/k8s.io/" + id: nil, "/docker/" + id: {"moby"}, "/kubepods/" + id: nil} {
		t.Run(cgroup, func(t *testing.T) {
			d := newDaemon(t)
			first, second := attesttest.Process(t), attesttest.Process(t)
			attesttest.Into(t, cgroup, first, second)
			namespace := "default"
			if namespaces != nil {
				namespace = namespaces[0]
			}
			d.runs(namespace, first, nil)
			facts, unknown, err := attested(t, d, second, namespaces...)
			if err != nil || len(unknown) != 0 {
				t.Fatal(unknown, err)
			}
			want := map[string][]string{
				"workload.containerd.id": {id}, "workload.containerd.namespace": {namespace}, "workload.containerd.image": {image},
				"workload.containerd.image_digest": {digest}, "workload.containerd.labels.tier": {"front"},
			}
			if diff := cmp.Diff(want, facts); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNotHere(t *testing.T) {
	for name, cgroup := range map[string]string{
		"in none": "", "Docker's": "/docker/" + id, "CRI-O's": "/machine.slice/crio-" + id + ".scope", "another's": "/kubepods/" + id,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			pid := attesttest.Process(t)
			if cgroup != "" {
				attesttest.Into(t, cgroup, pid)
			}
			facts, unknown, err := attested(t, d, pid)
			if err != nil || len(facts)+len(unknown) != 0 {
				t.Errorf("%v, %v, %v", facts, unknown, err)
			}
			if name != "another's" && d.asked.Load() != 0 {
				t.Error("it was asked of that")
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		cgroup  string
		prepare func(t *testing.T, d *daemon, pid int)
		want    string
	}{
		"a cgroup of somebody's making": {"/batch/cri-containerd-" + id + ".scope", func(t *testing.T, d *daemon, _ int) {
			first := attesttest.Process(t)
			attesttest.Into(t, "/default/"+id, first)
			d.runs("default", first, nil)
		}, "cannot be told"},
		"one of a user's own runtime": {"/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-" + id + ".scope", func(_ *testing.T, d *daemon, pid int) { d.runs("default", pid, nil) }, "own runtime"},
		"a container of nobody's":     {"/default/" + id, func(*testing.T, *daemon, int) {}, "no namespace"},
		"one of another namespace":    {"/default/" + id, func(_ *testing.T, d *daemon, pid int) { d.runs("moby", pid, nil) }, "no namespace"},
		"one of two namespaces":       {"/default/" + id, func(_ *testing.T, d *daemon, pid int) { d.runs("k8s.io", pid, nil); d.runs("default", pid, nil) }, "2 namespaces"},
		"an answer about another": {"/default/" + id, func(_ *testing.T, d *daemon, pid int) {
			d.runs("default", pid, func(r *record) { r.container.ID = "x" })
		}, "of another"},
		"one without a task": {"/default/" + id, func(_ *testing.T, d *daemon, pid int) { d.runs("default", pid, func(r *record) { r.process = nil }) }, "first process"},
		"one that has ended": {"/default/" + id, func(_ *testing.T, d *daemon, pid int) {
			d.runs("default", pid, func(r *record) { r.process.Status = task.Status_STOPPED })
		}, "does not run"},
		"one without a first process":  {"/default/" + id, func(_ *testing.T, d *daemon, _ int) { d.runs("default", 0, nil) }, "does not run"},
		"a first process elsewhere":    {"/default/" + id, func(_ *testing.T, d *daemon, _ int) { d.runs("default", os.Getpid(), nil) }, "cannot be told"},
		"a first process that is gone": {"/default/" + id, func(_ *testing.T, d *daemon, _ int) { d.runs("default", 1<<22-1, nil) }, "first process"},
		"a record without an end": {"/default/" + id, func(_ *testing.T, d *daemon, pid int) {
			d.runs("default", pid, func(r *record) { r.container.Snapshotter = strings.Repeat("a", 5<<20) })
		}, "larger than max"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			pid := attesttest.Process(t)
			test.prepare(t, d, pid)
			attesttest.Into(t, test.cgroup, pid)
			facts, _, err := attested(t, d, pid)
			if err == nil || !strings.Contains(err.Error(), test.want) || len(facts) != 0 {
				t.Errorf("%v, %v; want %q", facts, err, test.want)
			}
		})
	}
}

// A digest is told if the name stood for it when the container was made.
func TestDigest(t *testing.T) {
	later := timestamppb.New(made.Add(time.Second))
	for name, test := range map[string]struct {
		change func(*record)
		want   []string
	}{
		"pulled before":     {func(*record) {}, []string{digest}},
		"in the name":       {func(r *record) { r.container.Image = "a/b@" + digest; r.image = nil }, []string{digest}},
		"given again since": {func(r *record) { r.image.UpdatedAt = later }, nil},
		"made again since":  {func(r *record) { r.image.CreatedAt = later }, nil},
		"never made":        {func(r *record) { r.image.CreatedAt = nil }, nil},
		"of no age":         {func(r *record) { r.container.CreatedAt = nil }, nil},
		"another's name":    {func(r *record) { r.image.Name = "other" }, nil},
		"no digest":         {func(r *record) { r.image.Target.Digest = "latest" }, nil},
		"of another kind":   {func(r *record) { r.image.Target.Digest = digest + "ef" }, nil},
		"without an image":  {func(r *record) { r.container.Image, r.image.Name = "", "" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			pid := attesttest.Process(t)
			attesttest.Into(t, "/default/"+id, pid)
			d.runs("default", pid, test.change)
			facts, unknown, err := attested(t, d, pid)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, facts["workload.containerd.image_digest"]); diff != "" {
				t.Error(diff)
			}
			if told := test.want != nil; told == (len(unknown) == 1) {
				t.Errorf("unknown: %v", unknown)
			}
		})
	}
}

func TestHostileLabels(t *testing.T) {
	many := make(map[string]string)
	for n := range 200 {
		many[fmt.Sprint("l", n)] = "x"
	}
	for name, labels := range map[string]map[string]string{"a control character": {"tier": "front", "x": "a\nb"}, "too long": {"tier": strings.Repeat("a", 30<<10)}, "too many": many} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			pid := attesttest.Process(t)
			attesttest.Into(t, "/default/"+id, pid)
			d.runs("default", pid, func(r *record) { r.container.Labels = labels })
			facts, unknown, err := attested(t, d, pid)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"workload.containerd.labels"}, unknown); diff != "" {
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

// A daemon that hangs costs its time-out, no more.
func TestHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := containerd.New(containerd.Config{Socket: path, Namespaces: []string{"default"}, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	pid := attesttest.Process(t)
	attesttest.Into(t, "/default/"+id, pid)
	if facts, _, err := asked(t, a, pid); err == nil {
		t.Errorf("%v", facts)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]containerd.Config{"no socket": {Namespaces: []string{"default"}}, "no namespaces": {Socket: "/x"}} {
		if _, err := containerd.New(c); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
