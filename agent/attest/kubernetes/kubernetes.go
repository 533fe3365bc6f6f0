// Package kubernetes attests in which pod's container a process is, as the facts
// workload.kubernetes.*.
//
//	namespace, service_account, pod, pod_uid, node
//	owner_kind, owner_name   the pod's controller, such as ReplicaSet
//	container, container_id  the container's name in the pod, and its ID
//	image                    as the runtime calls what the container runs
//	image_digest             digest of that image's manifest
//	labels.KEY               the pod's labels
//
// It trusts the kernel's cgroups as far as agent/attest does, and one source:
// the API server, whose pods of this node it watches, or this node's kubelet,
// which it asks for its pods. A container counts once exactly one pod of the
// source has it, by its ID, as running, and that pod's UID is the one in the
// cgroup, where the cgroup names one. Names that others than root could have
// given to a cgroup are refused: here nobody says which process is a
// container's first. What a container runs is read from the pod's status, which
// the kubelet writes, not from its spec, which may be ahead of it.
//
// While the source is away, what it last said of a container counts: of all
// facts only labels and the owner can have changed. These two are what whoever
// may write the pod says, and a namespace is as safe as the cluster's rules about
// who may make pods in it.
//
// A process that is in no container has no such facts; where it cannot be told,
// and of a container in no pod known here, all are unknown. A token that is bound
// to the pod, which a workload has in a file, is handed on: the broker judges what
// it proves.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/caller"
)

// Prefix is what the names of its facts begin with.
const Prefix = "workload.kubernetes"

// Config is the wiring of an Attestor. Either API or Kubelet is wanted.
type Config struct {
	API     *Server       // the API server, whose pods of this node are watched
	Kubelet *Server       // the kubelet, which is asked for its pods
	Node    string        // this node's name in the cluster; required with API, and held against the kubelet's word
	Wait    time.Duration // for a container that the source doesn't know yet; 0 means 2 s
	Proof   string        // a path in workloads, of the token that proves their pod; empty: none is looked for
	Fresh   time.Duration // for how long the kubelet's answer counts without asking again; 0 means 5 s
	Pause   time.Duration // the first before another attempt to watch, and between two questions to the kubelet; 0 means 500 ms
	Log     *slog.Logger  // nil discards
	Now     func() time.Time
}

// An Attestor tells facts of pods' containers. It is safe for concurrent use.
type Attestor struct {
	source source
	run    func(context.Context) error
	prover prover
}

// A source knows the pods of this node.
type source interface {
	// find returns a running container, waiting for it if the source may still
	// learn of it. pod is the UID that its cgroup names, or empty.
	find(ctx context.Context, id, pod string) (found, error)
}

// New returns an Attestor. It asks nobody yet.
func New(c Config) (*Attestor, error) {
	if (c.API == nil) == (c.Kubelet == nil) {
		return nil, errors.New("attesting pods: either the API server or the kubelet is wanted")
	}
	if c.Node == "" && c.API != nil {
		return nil, errors.New("attesting pods: the API server is watched for one node's pods: this node's name is wanted")
	}
	if c.Node != "" && !subdomain(c.Node) {
		return nil, fmt.Errorf("attesting pods: %q is not a node's name", c.Node)
	}
	c.complete()
	if c.Kubelet != nil {
		api, err := newClient(*c.Kubelet)
		if err != nil {
			return nil, fmt.Errorf("attesting pods: the kubelet: %w", err)
		}
		return &Attestor{source: newKubelet(c, api), prover: newProver(c.Proof)}, nil
	}
	api, err := newClient(*c.API)
	if err != nil {
		return nil, fmt.Errorf("attesting pods: the API server: %w", err)
	}
	w := newWatch(c, api)
	return &Attestor{source: w, run: w.run, prover: newProver(c.Proof)}, nil
}

func (c *Config) complete() {
	for _, d := range []struct {
		to       *time.Duration
		standard time.Duration
	}{{&c.Wait, 2 * time.Second}, {&c.Fresh, 5 * time.Second}, {&c.Pause, 500 * time.Millisecond}} {
		if *d.to <= 0 {
			*d.to = d.standard
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Run watches the API server until ctx ends, and until then Attest has answers.
// With a kubelet it only waits.
func (a *Attestor) Run(ctx context.Context) error {
	if a.run != nil {
		return a.run(ctx)
	}
	<-ctx.Done()
	return ctx.Err()
}

// Attest returns the facts of the pod's container that p is in; none if it is in
// no container. No fact is costly.
func (a *Attestor) Attest(ctx context.Context, p *caller.Process, _ func(string) bool) (facts map[string][]string, unknown []string, err error) {
	return attest.Steady(p, func(place attest.Place) (map[string][]string, []string, error) {
		return a.describe(ctx, place)
	})
}

func (a *Attestor) describe(ctx context.Context, place attest.Place) (map[string][]string, []string, error) {
	in := place.Container
	switch {
	case in == nil:
		return nil, nil, nil
	case in.Claimed:
		return nil, nil, fmt.Errorf("%w: others than root can have named the cgroup %s", attest.ErrAmbiguous, place.Cgroup)
	case in.User != "":
		return nil, nil, fmt.Errorf("%w: its container is of uid %s's own runtime, and no pod's", attest.ErrAmbiguous, in.User)
	}
	f, err := a.source.find(ctx, in.ID, in.Pod)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for the pod of container %.12s: %w", in.ID, err)
	}
	t := f.told()
	return t.Facts, t.Unknown, nil
}

func (f found) told() *attest.Told {
	t := attest.Tell(Prefix)
	t.Put("namespace", f.pod.namespace)
	t.Put("service_account", f.pod.account)
	t.Put("pod", f.pod.name)
	t.Put("pod_uid", f.pod.uid)
	t.Put("node", f.pod.node)
	t.Put("owner_kind", f.pod.ownerKind)
	t.Put("owner_name", f.pod.ownerName)
	t.Put("container", f.container.name)
	t.Put("container_id", f.container.id)
	t.Put("image", f.container.image)
	t.Put("image_digest", f.container.digest)
	if f.container.digest == "" {
		t.Leave("image_digest")
	}
	if f.pod.wide {
		t.Leave("labels")
	} else {
		t.Group("labels", f.pod.labels)
	}
	return t
}
