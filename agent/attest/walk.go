package attest

import (
	"regexp"
	"strings"
)

// The names by which runtimes call cgroups.
var (
	// docker-ID.scope and the like: runtimes that have systemd make them.
	scope = regexp.MustCompile(`^(docker|cri-containerd|crio|libpod|nerdctl)-([0-9a-f]{64})\.scope$`)
	// SLICE:RUNTIME:ID, where containerd was told of systemd and has no bus.
	colons = regexp.MustCompile(`^([^:]+):(docker|cri-containerd|crio|libpod|nerdctl):([0-9a-f]{64})$`)
	// crio-ID and libpod-ID, plain, where runtimes make the cgroup themselves.
	plain = regexp.MustCompile(`^(?:(crio|libpod|libpod-payload)-)?([0-9a-f]{64})$`)
	// What watches over a container stands beside it, and isn't in it.
	conmon = regexp.MustCompile(`^(crio|libpod)-conmon-[0-9a-f]{64}(\.scope)?$`)
	// Kubernetes' pods, by systemd's rules of names and without.
	podSlice = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{12}|[0-9a-f]{32})\.slice$`)
	podDir   = regexp.MustCompile(`^pod([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32})$`)
	// ECS's tasks: a cluster's task ID.
	task     = regexp.MustCompile(`^[0-9a-f]{32}$`)
	taskTime = regexp.MustCompile(`^[0-9a-f]{32}-[0-9]{1,20}$`)
	manager  = regexp.MustCompile(`^user@([0-9]{1,10})\.service$`)
	userOf   = regexp.MustCompile(`^user-([0-9]{1,10})\.slice$`)
)

// runtimes are what a name's prefix says.
var runtimes = map[string]string{"docker": "docker", "cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman", "libpod-payload": "podman"}

// dirs are cgroups that runtimes and the kubelet make directly, and in which
// root alone makes others.
var dirs = map[string]string{
	"docker": "docker", "moby": "docker", "libpod_parent": "podman", "k8s.io": "containerd", "default": "containerd",
	"kubepods": "", "kubelet": "", "burstable": "", "besteffort": "", "ecs": "", "machine": "",
}

// runtimeUnits are services in whose cgroups runtimes make containers' when they
// find no bus of systemd's.
var runtimeUnits = map[string]bool{"containerd.service": true, "docker.service": true, "crio.service": true, "kubelet.service": true}

// A walk goes down a path, a part a step.
type walk struct {
	inside    bool   // the path is relative to a namespace of ours
	slice     string // systemd's, the last before a unit
	unit      string // systemd's, the first
	runtime   string // by the directories above
	pod       string
	user      string // whose manager is above: the names below are theirs
	parent    string // the last part
	seen      bool   // there was a part
	made      bool   // a directory of a runtime's or the kubelet's is above
	delegated bool   // below a unit's own cgroup, or somebody's that isn't known
	beside    bool   // it watches over a container
}

// step takes one part, and returns the container, if that is one.
func (w *walk) step(part string) *Container {
	defer func() { w.parent, w.seen = part, true }()
	if c := w.container(part); c != nil {
		return c
	}
	switch {
	case conmon.MatchString(part) && !w.delegated:
		w.beside = true
	case strings.HasSuffix(part, ".slice"):
		w.inSlice(part)
	case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
		w.inUnit(part)
	default:
		w.inDir(part)
	}
	return nil
}

// container reads a container's own name.
func (w *walk) container(part string) *Container {
	c := &Container{Pod: w.pod, User: w.user, Claimed: w.delegated}
	if m := scope.FindStringSubmatch(part); m != nil {
		c.Runtime, c.ID = runtimes[m[1]], m[2]
		return c
	}
	if m := colons.FindStringSubmatch(part); m != nil {
		if pod := podSlice.FindStringSubmatch(m[1]); pod != nil {
			c.Pod = strings.ReplaceAll(pod[1], "_", "-")
		}
		c.Runtime, c.ID, c.Claimed = runtimes[m[2]], m[3], w.delegated && !(runtimeUnits[w.unit] && w.parent == w.unit)
		return c
	}
	m := plain.FindStringSubmatch(part)
	if m == nil || !w.holdsPlain(m[1] != "") {
		return nil
	}
	c.Runtime, c.ID = w.runtime, m[2]
	if m[1] != "" {
		c.Runtime = runtimes[m[1]]
	}
	return c
}

// holdsPlain says whether a bare ID below the last part is a container's: in a
// directory that runtimes or the kubelet make, beside a namespace of ours, or
// with the runtime's name where systemd gave a unit to itself.
func (w *walk) holdsPlain(named bool) bool {
	_, known := dirs[w.parent]
	return known || podDir.MatchString(w.parent) || taskDir(w.parent) || w.inside && !w.seen || named && w.unit != ""
}

func (w *walk) inSlice(part string) {
	if w.delegated {
		return
	}
	w.slice = part
	if m := podSlice.FindStringSubmatch(part); m != nil {
		w.pod = strings.ReplaceAll(m[1], "_", "-")
	}
}

// inUnit: what is below a unit is its own, and where it is a user's manager,
// that user's.
func (w *walk) inUnit(part string) {
	if w.delegated {
		return
	}
	w.unit, w.delegated = strings.TrimPrefix(part, "_"), true
	m, of := manager.FindStringSubmatch(part), userOf.FindStringSubmatch(w.parent)
	if m != nil && of != nil && of[1] == m[1] {
		w.user = m[1]
	}
}

func (w *walk) inDir(part string) {
	if w.delegated {
		return
	}
	runtime, known := dirs[part]
	m := podDir.FindStringSubmatch(part)
	switch {
	case m != nil:
		w.pod, w.made = m[1], true
	case known:
		w.made = true
		if runtime != "" {
			w.runtime = runtime
		}
	case !taskDir(part) || w.parent != "ecs" && !task.MatchString(w.parent):
		w.delegated = true // somebody's, and it isn't known whose
	}
}

func taskDir(part string) bool { return task.MatchString(part) || taskTime.MatchString(part) }
