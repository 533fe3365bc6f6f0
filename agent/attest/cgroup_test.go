package attest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/attest"
)

var (
	idA  = strings.Repeat("a1b2c3d4", 8)
	idB  = strings.Repeat("0f1e2d3c", 8)
	pod  = "3f1c2a77-9b0e-4f5d-8a61-2c4d5e6f7081"
	podU = strings.ReplaceAll(pod, "-", "_")
)

// A shape is what the kernel says of a process, as found on real machines; A and
// B stand for containers' IDs, POD and POD_U for a pod's UID.
type shape struct {
	name   string
	cgroup string // lines; one that has no colon before its path is 0::
	mounts string // roots of its cgroup mounts, or whole lines
	inside bool   // the agent is in a cgroup namespace of its own
	want   attest.Container
	none   bool // it is proven to be in no container
	unit   string
	slice  string
}

func (s shape) text() string {
	var lines []string
	for _, line := range strings.Split(s.cgroup, "\n") {
		if strings.HasPrefix(line, "/") {
			line = "0::" + line
		}
		lines = append(lines, line)
	}
	return fill(strings.Join(lines, "\n")) + "\n"
}

func (s shape) mountinfo() string {
	var lines []string
	for _, root := range strings.Split(s.mounts, "\n") {
		if strings.HasPrefix(root, "/") {
			root = "1049 1048 0:28 " + root + " /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw"
		}
		lines = append(lines, root)
	}
	return fill(strings.Join(lines, "\n")) + "\n"
}

func fill(s string) string {
	return strings.NewReplacer("AAAA", idA, "BBBB", idB, "POD_U", podU, "POD", pod).Replace(s)
}

func docker(id string) attest.Container {
	return attest.Container{ID: id, Runtime: "docker"}
}

func inPod(id, runtime string) attest.Container {
	return attest.Container{ID: id, Runtime: runtime, Pod: pod}
}

func shapes() []shape {
	static := strings.Repeat("9c", 16)
	return []shape{
		// No container.
		{name: "v2 system service", cgroup: "/system.slice/nginx.service", none: true, unit: "nginx.service", slice: "system.slice"},
		{name: "v2 templated service in a slice of its own", cgroup: "/system.slice/system-getty.slice/getty@tty1.service", none: true, unit: "getty@tty1.service", slice: "system-getty.slice"},
		{name: "v2 service with cgroups below it", cgroup: "/system.slice/postgresql@15-main.service/workers", none: true, unit: "postgresql@15-main.service", slice: "system.slice"},
		{name: "v2 login session", cgroup: "/user.slice/user-1000.slice/session-3.scope", none: true, unit: "session-3.scope", slice: "user-1000.slice"},
		{name: "v2 user's own service", cgroup: "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", none: true, unit: "user@1000.service", slice: "user-1000.slice"},
		{name: "v2 init", cgroup: "/init.scope", none: true, unit: "init.scope"},
		{name: "v2 root, and a kernel without systemd", cgroup: "/", none: true},
		{name: "v1 system service", cgroup: "12:pids:/system.slice/nginx.service\n4:memory:/system.slice/nginx.service\n2:cpuset:/\n1:name=systemd:/system.slice/nginx.service", none: true, unit: "nginx.service", slice: "system.slice"},
		{name: "hybrid system service", cgroup: "12:pids:/system.slice/nginx.service\n1:name=systemd:/system.slice/nginx.service\n0::/system.slice/nginx.service", none: true, unit: "nginx.service", slice: "system.slice"},
		{name: "the docker daemon itself", cgroup: "/system.slice/docker.service", none: true, unit: "docker.service", slice: "system.slice"},
		{name: "podman's conmon beside its container", cgroup: "/machine.slice/libpod-conmon-AAAA.scope", none: true, slice: "machine.slice"},
		{name: "cri-o's conmon beside its container", cgroup: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_U.slice/crio-conmon-AAAA.scope", none: true, slice: "kubepods-burstable-podPOD_U.slice"},

		// Docker.
		{name: "v2 docker by systemd", cgroup: "/system.slice/docker-AAAA.scope", want: docker(idA), unit: "docker-AAAA.scope", slice: "system.slice"},
		{name: "v2 docker by itself", cgroup: "/docker/AAAA", want: docker(idA)},
		{name: "v1 docker by itself", cgroup: "11:memory:/docker/AAAA\n10:freezer:/docker/AAAA\n3:rdma:/\n1:name=systemd:/docker/AAAA\n0::/system.slice/containerd.service", want: attest.Container{}},
		{name: "v1 docker, one controller left alone", cgroup: "11:memory:/docker/AAAA\n3:rdma:/\n2:misc:/docker\n1:name=systemd:/docker/AAAA\n0::/", want: attest.Container{}},
		{name: "v1 docker, all controllers", cgroup: "11:memory:/docker/AAAA\n3:rdma:/\n1:name=systemd:/docker/AAAA\n0::/", want: docker(idA)},
		{name: "v1 docker by systemd", cgroup: "9:cpu,cpuacct:/system.slice/docker-AAAA.scope\n1:name=systemd:/system.slice/docker-AAAA.scope", want: docker(idA), unit: "docker-AAAA.scope", slice: "system.slice"},
		{name: "hybrid docker", cgroup: "9:cpu:/docker/AAAA\n1:name=systemd:/docker/AAAA\n0::/docker/AAAA", want: docker(idA)},
		{name: "docker in a slice of the owner's", cgroup: "/batch.slice/batch-night.slice/docker-AAAA.scope", want: docker(idA), unit: "docker-AAAA.scope", slice: "batch-night.slice"},
		{name: "docker with systemd inside", cgroup: "/system.slice/docker-AAAA.scope/system.slice/nginx.service", want: docker(idA), unit: "docker-AAAA.scope", slice: "system.slice"},
		{name: "docker in docker: the outer", cgroup: "/docker/AAAA/docker/BBBB", mounts: "/docker/AAAA/docker/BBBB", want: docker(idA)},
		{name: "docker, an empty mount source", cgroup: "/system.slice/docker-AAAA.scope", mounts: "1049 1048 0:28 /system.slice/docker-AAAA.scope /sys/fs/cgroup ro,nosuid -  cgroup2  rw\n77 70 0:50 / /dev/shm rw - tmpfs  rw", want: docker(idA), unit: "docker-AAAA.scope", slice: "system.slice"},
		{name: "docker, optional fields and escapes in mounts", cgroup: "/docker/AAAA", mounts: "1049 1048 0:28 /docker/AAAA /a\\040b ro shared:3 master:1 - cgroup2 cgroup rw", want: docker(idA)},
		{name: "docker seen from a namespace beside it", inside: true, cgroup: "/../docker-AAAA.scope", want: docker(idA)},
		{name: "docker by itself seen from beside it", inside: true, cgroup: "/../AAAA", want: attest.Container{ID: idA}},
		{name: "docker rootless", cgroup: "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-AAAA.scope", want: attest.Container{ID: idA, Runtime: "docker", User: "1000", Claimed: true}, unit: "user@1000.service", slice: "user-1000.slice"},

		// Podman.
		{name: "podman", cgroup: "/machine.slice/libpod-AAAA.scope/container", want: attest.Container{ID: idA, Runtime: "podman"}, unit: "libpod-AAAA.scope", slice: "machine.slice"},
		{name: "podman v1 by itself", cgroup: "5:memory:/libpod_parent/libpod-AAAA\n1:name=systemd:/libpod_parent/libpod-AAAA", want: attest.Container{ID: idA, Runtime: "podman"}},
		{name: "podman rootless", cgroup: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-AAAA.scope/container", want: attest.Container{ID: idA, Runtime: "podman", User: "1000", Claimed: true}, unit: "user@1000.service", slice: "user-1000.slice"},
		{name: "podman rootless in a user's unit", cgroup: "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/libpod-payload-AAAA", want: attest.Container{ID: idA, Runtime: "podman", User: "1000", Claimed: true}, unit: "user@1000.service", slice: "user-1000.slice"},
		{name: "podman in a unit that it was given", cgroup: "/system.slice/web.service/libpod-payload-AAAA", want: attest.Container{ID: idA, Runtime: "podman", Claimed: true}, unit: "web.service", slice: "system.slice"},
		{name: "podman v1 rootless", cgroup: "9:pids:/user.slice/user-1000.slice/user@1000.service\n1:name=systemd:/user.slice/user-1000.slice/user@1000.service/libpod-AAAA.scope\n0::/user.slice/user-1000.slice/user@1000.service/libpod-AAAA.scope", want: attest.Container{ID: idA, Runtime: "podman", User: "1000", Claimed: true}, unit: "user@1000.service", slice: "user-1000.slice"},

		// containerd without Kubernetes, nerdctl, ECS.
		{name: "nerdctl by systemd", cgroup: "/system.slice/nerdctl-AAAA.scope", want: attest.Container{ID: idA, Runtime: "containerd"}, unit: "nerdctl-AAAA.scope", slice: "system.slice"},
		{name: "containerd's default namespace", cgroup: "/default/AAAA", want: attest.Container{ID: idA, Runtime: "containerd"}},
		{name: "ECS", cgroup: "/ecs/0123456789abcdef0123456789abcdef/AAAA", want: attest.Container{ID: idA}},
		{name: "ECS with the cluster's name", cgroup: "9:memory:/ecs/0123456789abcdef0123456789abcdef/AAAA", want: attest.Container{ID: idA}},
		{name: "Fargate, whose IDs are no digests", cgroup: "/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1234567890", want: attest.Container{}},

		// Kubernetes.
		{name: "containerd, burstable", cgroup: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_U.slice/cri-containerd-AAAA.scope", want: inPod(idA, "containerd"), unit: "cri-containerd-AAAA.scope", slice: "kubepods-burstable-podPOD_U.slice"},
		{name: "containerd, guaranteed", cgroup: "/kubepods.slice/kubepods-podPOD_U.slice/cri-containerd-AAAA.scope", want: inPod(idA, "containerd"), unit: "cri-containerd-AAAA.scope", slice: "kubepods-podPOD_U.slice"},
		{name: "containerd by itself, guaranteed", cgroup: "11:memory:/kubepods/podPOD/AAAA\n1:name=systemd:/kubepods/podPOD/AAAA", want: inPod(idA, "")},
		{name: "containerd by itself, best effort", cgroup: "/kubepods/besteffort/podPOD/AAAA", want: inPod(idA, "")},
		{name: "containerd without a bus", cgroup: "/system.slice/containerd.service/kubepods-besteffort-podPOD_U.slice:cri-containerd:AAAA", want: inPod(idA, "containerd"), unit: "containerd.service", slice: "system.slice"},
		{name: "v1 containerd without a bus", cgroup: "12:cpuset:/system.slice/containerd.service/kubepods-burstable-podPOD_U.slice:cri-containerd:AAAA\n1:name=systemd:/system.slice/containerd.service/kubepods-burstable-podPOD_U.slice:cri-containerd:AAAA", want: inPod(idA, "containerd"), unit: "containerd.service", slice: "system.slice"},
		{name: "without a bus and without a service", cgroup: "/kubepods-besteffort-podPOD_U.slice:cri-containerd:AAAA", want: inPod(idA, "containerd")},
		{name: "cri-o", cgroup: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podPOD_U.slice/crio-AAAA.scope", want: inPod(idA, "cri-o"), unit: "crio-AAAA.scope", slice: "kubepods-besteffort-podPOD_U.slice"},
		{name: "cri-o with crun's own cgroup", cgroup: "/kubepods.slice/kubepods-podPOD_U.slice/crio-AAAA.scope/container", want: inPod(idA, "cri-o"), unit: "crio-AAAA.scope", slice: "kubepods-podPOD_U.slice"},
		{name: "cri-o by itself", cgroup: "8:memory:/kubepods/burstable/podPOD/crio-AAAA\n1:name=systemd:/kubepods/burstable/podPOD/crio-AAAA", want: inPod(idA, "cri-o")},
		{name: "docker under the kubelet", cgroup: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_U.slice/docker-AAAA.scope", want: inPod(idA, "docker"), unit: "docker-AAAA.scope", slice: "kubepods-burstable-podPOD_U.slice"},
		{name: "a static pod", cgroup: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-AAAA.scope", want: attest.Container{ID: idA, Runtime: "containerd", Pod: static}, unit: "cri-containerd-AAAA.scope", slice: "kubepods-burstable-pod" + static + ".slice"},
		{name: "kind, from inside the node", cgroup: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podPOD_U.slice/cri-containerd-AAAA.scope", want: inPod(idA, "containerd"), inside: true, unit: "cri-containerd-AAAA.scope", slice: "kubelet-kubepods-burstable-podPOD_U.slice"},
		{name: "kind, from a pod of it", cgroup: "/../../kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podPOD_U.slice/cri-containerd-AAAA.scope", want: inPod(idA, "containerd"), inside: true},
		{name: "kind by itself, from inside the node", cgroup: "/kubelet/kubepods/burstable/podPOD/AAAA", want: inPod(idA, ""), inside: true},
		{name: "kind, from the machine: the node is the container", cgroup: "/docker/AAAA/kubelet/kubepods/burstable/podPOD/BBBB", want: docker(idA)},
		{name: "kind by systemd, from the machine", cgroup: "/system.slice/docker-AAAA.scope/kubelet.slice/kubelet-kubepods.slice/cri-containerd-BBBB.scope", want: docker(idA), unit: "docker-AAAA.scope", slice: "system.slice"},
		{name: "another pod, from a pod", cgroup: "/../../kubepods-burstable-podPOD_U.slice/cri-containerd-AAAA.scope", inside: true, want: inPod(idA, "containerd")},
		{name: "another pod's, made directly, from a pod", cgroup: "/../../podPOD/AAAA", inside: true, want: inPod(idA, "")},
		{name: "another container of the agent's pod", cgroup: "/../cri-containerd-AAAA.scope", inside: true, want: attest.Container{ID: idA, Runtime: "containerd"}},
		{name: "a service of the machine, from a pod", cgroup: "/../../../../system.slice/nginx.service", inside: true, none: true},

		// Nobody can tell.
		{name: "the agent's own place", cgroup: "/", inside: true},
		{name: "the pod's own cgroup", cgroup: "/kubepods/burstable/podPOD"},
		{name: "a digest somewhere else", cgroup: "/garden/AAAA"},
		{name: "a digest in a service", cgroup: "/system.slice/web.service/AAAA"},
		{name: "a longer name", cgroup: "/system.slice/docker-AAAAAAAA.scope"},
		{name: "two containers", cgroup: "9:memory:/docker/AAAA\n1:name=systemd:/docker/BBBB"},
		{name: "in a container and in a session", cgroup: "9:memory:/docker/AAAA\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope"},
		{name: "mounts of another container", cgroup: "/docker/AAAA", mounts: "/docker/BBBB"},
		{name: "mounts of a container, a service's cgroup", cgroup: "/system.slice/nginx.service", mounts: "/docker/BBBB"},
		{name: "a removed cgroup", cgroup: "/docker/AAAA (deleted)"},
		{name: "out of the tree", cgroup: "/../docker/AAAA"},
		{name: "up again", cgroup: "/docker/../docker/AAAA"},
		{name: "no cgroup", cgroup: ""},
		{name: "not a cgroup file", cgroup: "nonsense"},
	}
}

func TestLocate(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.name, func(t *testing.T) {
			text := s.text()
			if s.cgroup == "" {
				text = ""
			}
			got, err := attest.Locate([]byte(text), []byte(s.mountinfo()), !s.inside)
			if s.want == (attest.Container{}) && !s.none {
				if !errors.Is(err, attest.ErrAmbiguous) {
					t.Fatalf("%+v, %v: want an ambiguous place", got.Container, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := attest.Place{Unit: fill(s.unit), Slice: fill(s.slice), Cgroup: got.Cgroup}
			if !s.none {
				want.Container = &s.want
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if got.Container != nil && !strings.Contains(got.Cgroup, got.Container.ID) {
				t.Errorf("cgroup %s", got.Cgroup)
			}
		})
	}
}

// A process that is root in its container names cgroups below it, and a user
// below their own manager: neither becomes another container by that.
func TestForgedNames(t *testing.T) {
	forged := []string{"/docker-BBBB.scope", "/docker/BBBB", "/kubepods/podPOD/BBBB", "/../docker-BBBB.scope", "/system.slice/docker-BBBB.scope", "/BBBB",
		"/kubepods.slice/kubepods-podPOD_U.slice/cri-containerd-BBBB.scope", "/x:docker:BBBB", "/machine.slice/libpod-BBBB.scope", "/crio-conmon-BBBB.scope", "/libpod-payload-BBBB"}
	for _, s := range shapes() {
		if strings.Contains(s.cgroup, "\n") || !strings.HasPrefix(s.cgroup, "/") || s.cgroup == "/" {
			continue
		}
		before, err := attest.Locate([]byte(s.text()), nil, !s.inside)
		for _, more := range forged {
			got, errAfter := attest.Locate([]byte(fill("0::"+s.cgroup+more+"\n")), nil, !s.inside)
			switch {
			case err == nil && before.Container != nil:
				if !strings.Contains(more, "..") && (errAfter != nil || *got.Container != *before.Container) {
					t.Errorf("%s%s: %+v, %v", s.cgroup, more, got.Container, errAfter)
				}
			case before.Unit == "docker.service" && strings.HasPrefix(more, "/x:"):
				// Root's own daemon names what is in its cgroup.
			case errAfter == nil && got.Container != nil && !got.Container.Claimed && before.Unit != "":
				t.Errorf("%s%s counts as %+v", s.cgroup, more, got.Container)
			}
		}
	}
}

func FuzzLocate(f *testing.F) {
	for _, s := range shapes() {
		f.Add([]byte(s.text()), []byte(s.mountinfo()), !s.inside)
	}
	f.Fuzz(func(t *testing.T, cgroup, mounts []byte, host bool) {
		got, err := attest.Locate(cgroup, mounts, host)
		if err != nil {
			if !errors.Is(err, attest.ErrAmbiguous) || got != (attest.Place{}) {
				t.Fatalf("%+v, %v", got, err)
			}
			return
		}
		if c := got.Container; c != nil && (len(c.ID) != 64 || !strings.HasSuffix(strings.TrimSuffix(got.Cgroup, ".scope"), c.ID)) {
			t.Fatalf("%+v of %q", c, cgroup)
		}
	})
}
