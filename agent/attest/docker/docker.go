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
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/caller"
)

// Bounds of what is told: a node reports 64 KiB of facts in all.
const (
	maxGroup = 128
	maxBytes = 24 << 10
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
	place, err := attest.Of(p)
	if err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	facts, unknown, err = a.describe(ctx, place, wanted)
	if err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	// It was in that container all the time.
	again, err := attest.Of(p)
	if err == nil && again.Cgroup != place.Cgroup {
		err = fmt.Errorf("it moved from %s to %s meanwhile", place.Cgroup, again.Cgroup)
	}
	if err = errors.Join(err, p.Check()); err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	return facts, unknown, nil
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
	if err := sameCgroup(c.pid, place); err != nil {
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

// sameCgroup holds what the runtime says against the kernel's word.
func sameCgroup(pid int, place attest.Place) error {
	first, err := caller.Open(pid)
	if err != nil {
		return fmt.Errorf("the container's first process: %w", err)
	}
	defer first.Close()
	there, err := attest.Of(first)
	if err != nil {
		return fmt.Errorf("the container's first process: %w", err)
	}
	if there.Container == nil || *there.Container != *place.Container || there.Cgroup != place.Cgroup {
		return fmt.Errorf("%w: it is in the cgroup %s, and the runtime has that container's first process in %s", attest.ErrAmbiguous, place.Cgroup, there.Cgroup)
	}
	return nil
}

// told are facts as they are gathered.
type told struct {
	prefix  string
	facts   map[string][]string
	unknown []string
}

func (t *told) put(name string, values ...string) {
	switch {
	case slices.ContainsFunc(values, func(v string) bool { return !printable(v) }):
		t.leave(name)
	case len(values) > 0 && values[0] != "":
		t.facts[t.prefix+"."+name] = values
	}
}

// leave leaves a fact, or all below it, unknown.
func (t *told) leave(name string) {
	t.unknown = append(t.unknown, t.prefix+"."+name)
	maps.DeleteFunc(t.facts, func(fact string, _ []string) bool { return strings.HasPrefix(fact, t.prefix+"."+name+".") })
}

// group tells facts below a name: all, or, where one of them cannot be told,
// none, for there may be too many to list those.
func (t *told) group(name string, all map[string]string) {
	n := 0
	for key, value := range all {
		n += len(key) + len(value)
		if !printable(value) || n > maxBytes || len(all) > maxGroup {
			t.leave(name)
			return
		}
		if usable(key) { // else no policy can name it
			t.put(name+"."+key, value)
		}
	}
}

func (a *Attestor) facts(c *container, user string, wanted func(string) bool) (facts map[string][]string, unknown []string) {
	t := &told{prefix: a.prefix, facts: make(map[string][]string)}
	t.put("id", c.id)
	t.put("name", c.name)
	t.put("image", c.image)
	t.put("image_id", c.imageID)
	t.put("image_digest", c.digests...)
	if c.digests == nil {
		t.leave("image_digest")
	}
	t.put("user", user)
	t.group("labels", c.labels)
	if wanted == nil || !wanted(a.prefix+".env") {
		t.leave("env")
		return t.facts, t.unknown
	}
	env := make(map[string]string)
	for _, v := range c.env {
		if name, value, ok := strings.Cut(v, "="); ok && wanted(a.prefix+".env."+name) {
			env[name] = value
		}
	}
	t.group("env", env)
	return t.facts, t.unknown
}

// usable says whether a key can end a fact's name.
func usable(key string) bool {
	return key != "" && len(key) <= 256 && printable(key) && !strings.ContainsAny(key, " {}") &&
		!strings.HasPrefix(key, ".") && !strings.HasSuffix(key, ".") && !strings.Contains(key, "..")
}

// printable says whether a value could neither mislead who reads it in a policy
// or a record, nor fail to be sent as text.
func printable(v string) bool {
	return utf8.ValidString(v) && !strings.ContainsFunc(v, unicode.IsControl)
}
