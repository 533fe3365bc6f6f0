package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/credence-id/credence/agent/attest"
)

const (
	// maxList bounds a list of pods, of which a node has some hundreds that run
	// and, where many jobs end, some thousands that have.
	maxList = 64 << 20
	// maxEvent bounds one change of a pod: an object has at most 1.5 MiB in etcd.
	maxEvent = 8 << 20

	maxContainers = 512 // of a pod
	maxImage      = 4096
)

// A pod is what is kept of one that has running containers.
type pod struct {
	namespace, name, uid, account, node string
	ownerKind, ownerName                string
	hash                                string // UID that the kubelet gave to a static pod; else empty
	labels                              map[string]string
	wide                                bool // its labels are more than are told
	containers                          []container
}

// A container is a running one.
type container struct{ id, name, image, digest string }

// object is as much of a pod as is read (Kubernetes API v1, Pod).
type object struct {
	Metadata struct {
		Namespace, Name, UID, ResourceVersion string
		Labels, Annotations                   map[string]string
		OwnerReferences                       []struct {
			Kind, Name string
			Controller bool
		}
	}
	Spec struct {
		NodeName, ServiceAccountName string
	}
	Status struct {
		ContainerStatuses, InitContainerStatuses, EphemeralContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name, Image, ImageID, ContainerID string
	State                             struct{ Running *struct{} }
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dotted    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	uid       = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$|^[0-9a-f]{32}$`)
	kind      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,62}$`)
	runtimeID = regexp.MustCompile(`^[a-z0-9-]{1,32}://([0-9a-f]{64})$`)
	manifest  = regexp.MustCompile(`@(sha256:[0-9a-f]{64})$`)
)

// subdomain says whether a name is one of DNS, as most of Kubernetes' are.
func subdomain(name string) bool { return dotted.MatchString(name) }

// pod holds an object against what Kubernetes itself lets pass: names go into
// SPIFFE IDs. A pod without a running container has none in the answer.
func (o *object) pod() (*pod, error) {
	m := &o.Metadata
	switch {
	case !uid.MatchString(m.UID):
		return nil, fmt.Errorf("a pod with the UID %.64q", m.UID)
	case !label.MatchString(m.Namespace), !subdomain(m.Name):
		return nil, fmt.Errorf("a pod called %.64q in %.64q", m.Name, m.Namespace)
	case !subdomain(o.Spec.NodeName):
		return nil, fmt.Errorf("pod %s/%s: it is on node %.64q", m.Namespace, m.Name, o.Spec.NodeName)
	case o.Spec.ServiceAccountName != "" && !subdomain(o.Spec.ServiceAccountName):
		return nil, fmt.Errorf("pod %s/%s: its service account is %.64q", m.Namespace, m.Name, o.Spec.ServiceAccountName)
	}
	p := &pod{namespace: m.Namespace, name: m.Name, uid: m.UID, account: o.Spec.ServiceAccountName, node: o.Spec.NodeName, hash: o.static()}
	for _, owner := range m.OwnerReferences {
		if owner.Controller && kind.MatchString(owner.Kind) && subdomain(owner.Name) {
			p.ownerKind, p.ownerName = owner.Kind, owner.Name
			break // there is at most one
		}
	}
	if p.wide = !attest.Fits(m.Labels); !p.wide {
		p.labels = m.Labels
	}
	return p, p.take(o)
}

// static is the UID by which the kubelet runs a static pod, whose mirror in the
// API server has another. Any pod's author may write the annotation; a mirror
// has both, and can name no service account.
func (o *object) static() string {
	a := o.Metadata.Annotations
	hash := a["kubernetes.io/config.hash"]
	if hash == "" || a["kubernetes.io/config.mirror"] != hash || o.Spec.ServiceAccountName != "" || !uid.MatchString(hash) {
		return ""
	}
	return hash
}

// take takes the running containers of a pod's status.
func (p *pod) take(o *object) error {
	s := &o.Status
	for _, all := range [][]containerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for _, c := range all {
			id := runtimeID.FindStringSubmatch(c.ContainerID)
			if id == nil || c.State.Running == nil {
				continue
			}
			if !label.MatchString(c.Name) || len(c.Image) > maxImage || len(c.ImageID) > maxImage || len(p.containers) == maxContainers {
				return fmt.Errorf("pod %s/%s: its container %.64q is none that is taken", p.namespace, p.name, c.Name)
			}
			took := container{id: id[1], name: c.Name, image: c.Image}
			if digest := manifest.FindStringSubmatch(c.ImageID); digest != nil {
				took.digest = digest[1]
			}
			p.containers = append(p.containers, took)
		}
	}
	return nil
}

// size is about what a pod takes of memory.
func (p *pod) size() int {
	n := 512 + len(p.name)
	for key, value := range p.labels {
		n += 64 + len(key) + len(value)
	}
	for _, c := range p.containers {
		n += 256 + len(c.image)
	}
	return n
}

// parseList reads a PodList, a pod at a time: what isn't kept takes no memory.
// more continues a list that has further parts.
func parseList(r io.Reader, each func(*object) error) (version, more string, err error) {
	limited := &io.LimitedReader{R: r, N: maxList + 1}
	d := json.NewDecoder(limited)
	var meta struct{ ResourceVersion, Continue string }
	err = fields(d, func(name string) error {
		switch name {
		case "kind":
			var kind string
			if err := d.Decode(&kind); err != nil || kind != "PodList" {
				return errors.Join(fmt.Errorf("it is a %.32q, no PodList", kind), err)
			}
			return nil
		case "metadata":
			return d.Decode(&meta)
		case "items":
			return items(d, each)
		}
		var other json.RawMessage
		return d.Decode(&other)
	})
	if limited.N <= 0 {
		err = fmt.Errorf("more than %d bytes", maxList)
	}
	return meta.ResourceVersion, meta.Continue, err
}

func fields(d *json.Decoder, each func(name string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("it is no JSON object"), err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		if err := each(name.(string)); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func items(d *json.Decoder, each func(*object) error) error {
	t, err := d.Token()
	if err != nil || t == nil { // null: none
		return err
	}
	if t != json.Delim('[') {
		return errors.New("its items are no list")
	}
	for d.More() {
		var o object
		if err := d.Decode(&o); err != nil {
			return err
		}
		if err := each(&o); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// An event is one of a watch.
type event struct {
	Type   string
	Object json.RawMessage
}

// events reads a watch's, each at most maxEvent long.
type events struct {
	d     *json.Decoder
	limit *io.LimitedReader
}

func newEvents(r io.Reader) *events {
	limit := &io.LimitedReader{R: r}
	return &events{json.NewDecoder(limit), limit}
}

// next returns io.EOF after the last.
func (e *events) next() (v event, err error) {
	e.limit.N = maxEvent
	err = e.d.Decode(&v)
	if err != nil && e.limit.N <= 0 {
		err = fmt.Errorf("an event of more than %d bytes", maxEvent)
	}
	return v, err
}
