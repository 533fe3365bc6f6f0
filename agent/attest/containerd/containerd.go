// Package containerd attests what containerd says of the container that a
// process is in, as the facts workload.containerd.*.
//
//	id            the container's ID
//	namespace     containerd's own, such as k8s.io
//	image         the image as its creator named it
//	image_digest  digest of the manifest that this name stands for, unless the
//	              name was given to another since the container was made
//	labels.KEY    its labels, its image's among them
//
// It trusts the kernel's cgroups as far as agent/attest does, and containerd at
// its socket. A container counts once exactly one of the namespaces asked has it
// running, with its first process in the very cgroup in which the caller is, or
// above it: a name that somebody gave to a cgroup of their own proves nothing.
//
// A process that is in no container, or in one that another runtime's name is
// on, has no such facts; where it cannot be told, and in a container of a user's
// own runtime, all are unknown.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/caller"
)

// Prefix is what the names of its facts begin with.
const Prefix = "workload.containerd"

// Docker is the namespace in which Docker keeps its containers.
const Docker = "moby"

// Config is the wiring of an Attestor. Fields are required unless noted.
type Config struct {
	Socket     string        // path of containerd's socket
	Namespaces []string      // that are asked
	Timeout    time.Duration // of all questions about a container; 0 means 2 s
}

// An Attestor tells facts of containers. It is safe for concurrent use, and asks
// containerd once for all who wait.
type Attestor struct {
	cfg    Config
	socket *socket
	asking singleflight.Group
}

// New returns an Attestor. It asks nobody yet.
func New(c Config) (*Attestor, error) {
	if c.Socket == "" || len(c.Namespaces) == 0 {
		return nil, errors.New("attesting containers of containerd: a socket and namespaces are wanted")
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	s, err := newSocket(c.Socket)
	if err != nil {
		return nil, fmt.Errorf("attesting containers of containerd: %w", err)
	}
	return &Attestor{cfg: c, socket: s}, nil
}

// Attest returns what containerd says of the container that p is in. No fact is
// costly.
func (a *Attestor) Attest(ctx context.Context, p *caller.Process, _ func(string) bool) (facts map[string][]string, unknown []string, err error) {
	return attest.Steady(p, func(place attest.Place) (map[string][]string, []string, error) {
		return a.describe(ctx, place)
	})
}

func (a *Attestor) describe(ctx context.Context, place attest.Place) (map[string][]string, []string, error) {
	in := place.Container
	if in == nil || !a.may(in.Runtime) {
		return nil, nil, nil
	}
	if in.User != "" {
		return nil, nil, fmt.Errorf("it is in a container of uid %s's own runtime, which is not asked", in.User)
	}
	all, err := a.ask(ctx, in.ID)
	if err != nil {
		return nil, nil, err
	}
	if len(all) == 0 && in.Runtime == "" {
		return nil, nil, nil // another runtime's
	}
	c, err := one(all, place)
	if err != nil {
		return nil, nil, fmt.Errorf("container %.12s: %w", in.ID, err)
	}
	t := attest.Tell(Prefix)
	t.Put("id", c.id)
	t.Put("namespace", c.namespace)
	t.Put("image", c.image)
	t.Put("image_digest", c.digest)
	if c.digest == "" {
		t.Leave("image_digest")
	}
	t.Group("labels", c.labels)
	return t.Facts, t.Unknown, nil
}

// may says whether a container with that runtime's name may be containerd's.
func (a *Attestor) may(runtime string) bool {
	return runtime == "" || runtime == "containerd" || runtime == "docker" && slices.Contains(a.cfg.Namespaces, Docker)
}

// one is the container of which the kernel says the same.
func one(all []container, place attest.Place) (container, error) {
	var there []container
	err := errors.New("no namespace that is asked has it")
	for _, c := range all {
		if err = attest.First(c.pid, place); err == nil {
			there = append(there, c)
		}
	}
	switch len(there) {
	case 0:
		return container{}, err
	case 1:
		return there[0], nil
	}
	return container{}, fmt.Errorf("%w: %d namespaces have it", attest.ErrAmbiguous, len(there))
}

// ask asks every namespace for a container, once for all who wait.
func (a *Attestor) ask(ctx context.Context, id string) ([]container, error) {
	waiting := a.asking.DoChan(id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timeout)
		defer cancel()
		var all []container
		for _, namespace := range a.cfg.Namespaces {
			c, err := a.socket.inspect(ctx, namespace, id)
			if errors.Is(err, errNoContainer) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("asking %s of container %.12s in %s: %w", a.cfg.Socket, id, namespace, err)
			}
			all = append(all, c)
		}
		return all, nil
	})
	select {
	case r := <-waiting:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]container), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
