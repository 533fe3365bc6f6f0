// Package attest tells in which container and unit of systemd the kernel has a
// process, for the attestors below it.
//
// It trusts the kernel's cgroup tree as far as root alone can change it. Below a
// unit that systemd delegated, a user's own or a service's, whoever runs there
// names cgroups as they like; so does a process that is root in a container,
// below that container. Therefore the outermost container counts, what stands
// below it is its own affair, and a container's name below a unit is a claim.
// Whatever looks like a container and stands where none is known to stand is
// ambiguous: an attestor then has no answer, which is never an answer about
// another container.
//
// A process's mounts are its own to make in a user namespace: they prove
// nothing, and only take an answer back that they contradict. What a runtime or
// a cluster says of a container is left to the attestors, and so is whether the
// container is still there.
package attest

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ErrAmbiguous is the error of a process that may be in a container, though it
// cannot be told in which.
var ErrAmbiguous = errors.New("which container it is in cannot be told")

// maxText bounds what is read of a process: some 16,000 mounts.
const maxText = 4 << 20

// A Container is one, as cgroups name it.
type Container struct {
	ID      string // 64 lower-case hex digits
	Runtime string // "docker", "containerd", "cri-o", "podman"; empty: its cgroup doesn't say
	Pod     string // UID of its Kubernetes pod; empty: its cgroup names none
	User    string // uid whose own runtime made it; empty: root's
	// Claimed says that others than root, or than what root started there, could
	// have given the name: it counts once the runtime says that the container's
	// first process is in the same cgroup.
	Claimed bool
}

// A Place is where a process is in the cgroup tree.
type Place struct {
	Container *Container // nil: proven to be in none
	// Unit and Slice are systemd's, the outermost that a unit's processes are in;
	// empty: none, or out of sight from a cgroup namespace of ours.
	Unit, Slice string
	// Cgroup is the path to the container, or the process's own if it is in none:
	// other processes of the container are in it or below it.
	Cgroup string
}

// Locate reads /proc/PID/cgroup and /proc/PID/mountinfo. host says whether the
// reader is in the initial cgroup namespace: elsewhere paths are relative to the
// reader's own place, and a process in that very place is ambiguous.
func Locate(cgroup, mountinfo []byte, host bool) (Place, error) {
	if len(cgroup) > maxText || len(mountinfo) > maxText {
		return Place{}, fmt.Errorf("%w: more than %d bytes of cgroups or mounts", ErrAmbiguous, maxText)
	}
	lines, err := parseCgroup(cgroup)
	if err != nil {
		return Place{}, fmt.Errorf("%w: %w", ErrAmbiguous, err)
	}
	place, err := agreed(lines, host)
	if err != nil {
		return Place{}, err
	}
	if err := contradicted(place.Container, mountinfo, host); err != nil {
		return Place{}, err
	}
	return place, nil
}

// A hierarchy is a line of /proc/PID/cgroup (cgroups(7)).
type hierarchy struct {
	controllers string
	path        string
}

func parseCgroup(text []byte) (all []hierarchy, err error) {
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
			return nil, fmt.Errorf("%.100q is no line of a cgroup file", line)
		}
		if strings.HasSuffix(fields[2], " (deleted)") {
			return nil, errors.New("its cgroup was removed")
		}
		all = append(all, hierarchy{fields[1], fields[2]})
	}
	if len(all) == 0 {
		return nil, errors.New("it is in no cgroup")
	}
	return all, nil
}

// agreed is what all hierarchies say. A hierarchy in which the process is not in
// the container puts it somewhere above: a runtime may leave a controller alone.
func agreed(all []hierarchy, host bool) (Place, error) {
	var found *spot
	var rest []string
	place := Place{}
	for _, h := range all {
		s, err := locate(h.path, host)
		if err != nil {
			return Place{}, err
		}
		if h.controllers == "name=systemd" || h.controllers == "" && place.Cgroup == "" {
			place.Unit, place.Slice, place.Cgroup = s.unit, s.slice, h.path
		}
		switch {
		case s.container == nil:
			rest = append(rest, h.path)
		case found == nil:
			found = &s
		case *found.container != *s.container:
			return Place{}, fmt.Errorf("%w: %s and %s", ErrAmbiguous, found.cgroup, s.cgroup)
		}
	}
	if found == nil {
		if place.Cgroup == "" {
			place.Cgroup = all[0].path
		}
		return place, nil
	}
	for _, path := range rest {
		if path != "/" && !strings.HasPrefix(found.cgroup, path+"/") {
			return Place{}, fmt.Errorf("%w: it is in %s and in %s", ErrAmbiguous, found.cgroup, path)
		}
	}
	place.Container, place.Cgroup = found.container, found.cgroup
	return place, nil
}

// A spot is what one path says.
type spot struct {
	container   *Container
	unit, slice string
	cgroup      string // the path as far as the container
}

// looksLike is what no name has by chance: a container's ID.
var looksLike = regexp.MustCompile(`[0-9a-fA-F]{64}`)

// locate reads a path from its root inward, and stops at the first container.
func locate(path string, host bool) (spot, error) {
	parts := strings.Split(path, "/")[1:]
	up := 0
	for up < len(parts) && parts[up] == ".." {
		up++
	}
	w := walk{inside: up > 0}
	switch {
	case host && w.inside, slices.Contains(parts[up:], ".."):
		return spot{}, fmt.Errorf("%w: %.200q leads out of the cgroup tree", ErrAmbiguous, path)
	case !host && path == "/":
		return spot{}, fmt.Errorf("%w: it is where the cgroup namespace of this agent begins", ErrAmbiguous)
	}
	for n, part := range parts[up:] {
		if c := w.step(part); c != nil {
			return w.spot(c, "/"+strings.Join(parts[:up+n+1], "/")), nil
		}
		if w.beside {
			return w.spot(nil, path), nil
		}
	}
	if w.made || looksLike.MatchString(path) {
		return spot{}, fmt.Errorf("%w: %.300q is not where containers are known to be", ErrAmbiguous, path)
	}
	return w.spot(nil, path), nil
}

func (w *walk) spot(c *Container, cgroup string) spot {
	s := spot{container: c, cgroup: cgroup}
	if !w.inside {
		s.unit, s.slice = w.unit, w.slice
	}
	if c != nil && w.unit == "" && !w.inside && scope.MatchString(w.parent) {
		s.unit = w.parent // the container's own scope
	}
	return s
}

// contradicted compares the cgroups that the process has mounted: the root of
// such a mount is where the mounter's namespace began.
func contradicted(c *Container, mountinfo []byte, host bool) error {
	for line := range bytes.Lines(mountinfo) {
		root, ok := cgroupMount(strings.TrimSuffix(string(line), "\n"))
		if !ok || root == "/" {
			continue
		}
		s, err := locate(root, host)
		if err == nil && s.container == nil {
			continue // somewhere above
		}
		if c == nil || err != nil && !strings.Contains(root, c.ID) || err == nil && s.container.ID != c.ID {
			return fmt.Errorf("%w: its cgroups say one thing, its mounts %.300q", ErrAmbiguous, root)
		}
	}
	return nil
}

// cgroupMount is the root of a mount of cgroups (proc_pid_mountinfo(5)). Fields
// may be empty, and there are any number of optional ones before the dash.
func cgroupMount(line string) (root string, ok bool) {
	fields := strings.Split(line, " ")
	if len(fields) < 7 {
		return "", false
	}
	dash := slices.Index(fields[6:], "-")
	if dash < 0 || 6+dash+1 >= len(fields) {
		return "", false
	}
	kind := fields[6+dash+1]
	return fields[3], (kind == "cgroup" || kind == "cgroup2") && strings.HasPrefix(fields[3], "/")
}
