package kubernetes

import (
	"errors"
	"fmt"

	"github.com/credence-id/credence/agent/attest"
)

// Bounds of what is kept: nodes have at most some hundreds of running pods.
const (
	maxPods = 4096
	maxKept = 8 << 20
)

// errUnknown is the error of a container that no running pod has.
var errUnknown = errors.New("no pod of this node has it as a running container")

// found is a container and its pod.
type found struct {
	pod       *pod
	container container
}

// pods are those of this node that have running containers. What guards them
// is their owner's affair.
type pods struct {
	node        string // empty: any
	byUID       map[string]*pod
	byContainer map[string][]found
	bytes       int
}

func newPods(node string) *pods {
	return &pods{node: node, byUID: make(map[string]*pod), byContainer: make(map[string][]found)}
}

// put takes a pod as it is now, in place of what was known of it. It refuses one
// that is malformed or of another node, which then isn't known at all; full
// says that it would be one too many.
func (s *pods) put(o *object) (full bool, err error) {
	s.remove(o.Metadata.UID)
	p, err := o.pod()
	if err != nil {
		return false, err
	}
	if s.node != "" && p.node != s.node {
		return false, fmt.Errorf("pod %s/%s: it is on node %s", p.namespace, p.name, p.node)
	}
	if len(p.containers) == 0 {
		return false, nil
	}
	if len(s.byUID) == maxPods || s.bytes+p.size() > maxKept {
		return true, fmt.Errorf("more than %d running pods, or %d bytes of them", maxPods, maxKept)
	}
	s.byUID[p.uid] = p
	s.bytes += p.size()
	for _, c := range p.containers {
		s.byContainer[c.id] = append(s.byContainer[c.id], found{p, c})
	}
	return false, nil
}

func (s *pods) remove(uid string) {
	p := s.byUID[uid]
	if p == nil {
		return
	}
	delete(s.byUID, uid)
	s.bytes -= p.size()
	for _, c := range p.containers {
		var rest []found
		for _, f := range s.byContainer[c.id] {
			if f.pod != p {
				rest = append(rest, f)
			}
		}
		if s.byContainer[c.id] = rest; rest == nil {
			delete(s.byContainer, c.id)
		}
	}
}

// find returns a container. uid is its pod's, as its cgroup says, or empty.
func (s *pods) find(id, uid string) (found, error) {
	all := s.byContainer[id]
	var fit []found
	for _, f := range all {
		if uid == "" || f.pod.uid == uid || f.pod.hash == uid {
			fit = append(fit, f)
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return found{}, fmt.Errorf("%w: %d pods have it", attest.ErrAmbiguous, len(fit))
	case len(all) > 0:
		return found{}, fmt.Errorf("%w: its cgroup names pod %s, and pod %s has it", attest.ErrAmbiguous, uid, all[0].pod.uid)
	}
	return found{}, errUnknown
}
