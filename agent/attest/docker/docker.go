// Package docker attests what Docker or Podman says of the container that a
// process is in, as the facts workload.docker.* or workload.podman.*.
//
//	id            the container's ID
//	name          its name, without the slash
//	image         the image as its creator wrote it
//	image_id      digest of the image's configuration
//	image_digest  digests of the manifests that it is known by in registries
//	labels.KEY    its labels, the image's among them
//	env.NAME      a variable that it was started with; only when wanted
//	user          uid whose rootless runtime it is; absent: root's
//
// It trusts the kernel's cgroups as far as agent/attest does, and the runtime at
// its socket. A container counts once the runtime knows it, runs it, and the
// container's first process is in the very cgroup in which the caller is, or
// above it: a name that somebody gave to a cgroup of their own proves nothing.
// A rootless runtime's socket belongs to its user, who can have it say anything
// of their own containers: only users named in the configuration are asked.
//
// A process that is in no container, or in one that another runtime's name is
// on, has no such facts; where it cannot be told, all are unknown.
package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/caller"
)

// Config is the wiring of an Attestor. Fields are required unless noted.
type Config struct {
	Runtime  string            // "docker" or "podman"
	Socket   string            // path of root's API socket; empty: no runtime of root's
	Rootless map[uint32]string // paths of the API sockets of users' own runtimes; nil: nobody's
	Timeout  time.Duration     // of a question; 0 means 2 s
	Now      func() time.Time  // nil means time.Now
}

// An Attestor tells facts of containers. It is safe for concurrent use, and asks
// the runtime once for all who wait.
type Attestor struct {
	cfg     Config
	prefix  string
	sockets map[string]*socket // by uid; empty: root's
	asking  singleflight.Group
	held    held
}

// New returns an Attestor. It asks nobody yet.
func New(c Config) (*Attestor, error) {
	if c.Runtime != "docker" && c.Runtime != "podman" {
		return nil, fmt.Errorf("attesting containers: runtime %q is neither docker nor podman", c.Runtime)
	}
	if c.Socket == "" && len(c.Rootless) == 0 {
		return nil, fmt.Errorf("attesting containers of %s: no socket", c.Runtime)
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	a := &Attestor{cfg: c, prefix: "workload." + c.Runtime, sockets: make(map[string]*socket)}
	if c.Socket != "" {
		a.sockets[""] = newSocket(c.Socket, c.Timeout)
	}
	for uid, path := range c.Rootless {
		a.sockets[fmt.Sprint(uid)] = newSocket(path, c.Timeout)
	}
	return a, nil
}

// Prefix is what the names of its facts begin with.
func (a *Attestor) Prefix() string { return a.prefix }

// Attest returns what the runtime says of the container that p is in. A variable
// is told only if wanted says so of its fact's name; unless it says so of "env",
// all are unknown.
func (a *Attestor) Attest(ctx context.Context, p *caller.Process, wanted func(name string) bool) (facts map[string][]string, unknown []string, err error) {
	return attest.Steady(p, func(place attest.Place) (map[string][]string, []string, error) {
		return a.describe(ctx, place, wanted)
	})
}

func (a *Attestor) describe(ctx context.Context, place attest.Place, wanted func(string) bool) (map[string][]string, []string, error) {
	in := place.Container
	if in == nil || in.Runtime != "" && in.Runtime != a.cfg.Runtime {
		return nil, nil, nil
	}
	api := a.sockets[in.User]
	if api == nil {
		if in.User == "" {
			return nil, nil, nil // only users' runtimes are configured: root's containers are another attestor's
		}
		return nil, nil, fmt.Errorf("it is in a container of uid %s's own %s, which is not among rootless: in the configuration", in.User, a.cfg.Runtime)
	}
	c, err := a.ask(ctx, api, in.ID)
	if errors.Is(err, errNoContainer) && in.Runtime == "" {
		return nil, nil, nil // another runtime's
	}
	if err != nil {
		return nil, nil, err
	}
	if err := attest.First(c.pid, place); err != nil {
		return nil, nil, err
	}
	facts, unknown := a.facts(c, in.User, wanted)
	return facts, unknown, nil
}

// ask asks once for all who wait, and remembers the answer for a moment: a
// container keeps its image, labels and environment as long as it lives.
func (a *Attestor) ask(ctx context.Context, api *socket, id string) (*container, error) {
	key := api.path + "\x00" + id
	if c := a.held.get(key, a.cfg.Now()); c != nil {
		return c, nil
	}
	waiting := a.asking.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timeout)
		defer cancel()
		c, err := api.inspect(ctx, id)
		if err == nil {
			a.held.put(key, c, a.cfg.Now())
		}
		return c, err
	})
	select {
	case r := <-waiting:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*container), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *Attestor) facts(c *container, user string, wanted func(string) bool) (facts map[string][]string, unknown []string) {
	t := attest.Tell(a.prefix)
	t.Put("id", c.id)
	t.Put("name", c.name)
	t.Put("image", c.image)
	t.Put("image_id", c.imageID)
	t.Put("image_digest", c.digests...)
	if c.digests == nil {
		t.Leave("image_digest")
	}
	t.Put("user", user)
	t.Group("labels", c.labels)
	if wanted == nil || !wanted(a.prefix+".env") {
		t.Leave("env")
		return t.Facts, t.Unknown
	}
	env := make(map[string]string)
	for _, v := range c.env {
		if name, value, ok := strings.Cut(v, "="); ok && wanted(a.prefix+".env."+name) {
			env[name] = value
		}
	}
	t.Group("env", env)
	return t.Facts, t.Unknown
}
