// Package unix attests what the kernel knows of a process: its user, groups and
// executable, as the facts workload.unix.*.
//
//	workload.unix.uid          effective uid at connect, decimal
//	workload.unix.user         its name, if it has one
//	workload.unix.gid          effective gid at connect, decimal
//	workload.unix.groups       supplementary groups, decimal
//	workload.unix.group_names  their names, as far as they have any
//	workload.unix.path         path of the executable
//	workload.unix.sha256       digest of the executable, lower-case hex; only when wanted
//
// It trusts the kernel, the user database (os/user) and agent/caller. What it
// could not prove it names, so that its absence is never taken for proof: a
// deny on such a fact holds.
//
// path and sha256 narrow a uid and never stand alone, for whoever has the uid
// can load a library into the program or trace it. path is proven only if it
// leads, in the agent's own mount namespace, to the very file that runs:
// otherwise any user could mount a program of theirs under a trusted name in a
// namespace of their own. For a process in a container it is therefore unknown.
package unix

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/credence-id/credence/agent/caller"
)

// The facts.
const (
	Prefix     = "workload.unix"
	UID        = Prefix + ".uid"
	User       = Prefix + ".user"
	GID        = Prefix + ".gid"
	Groups     = Prefix + ".groups"
	GroupNames = Prefix + ".group_names"
	Path       = Prefix + ".path"
	SHA256     = Prefix + ".sha256"
)

// Config is the wiring of an Attestor. The zero Config is good.
type Config struct {
	// MaxExecutable is the size in bytes over which an executable isn't read,
	// and its digest unknown; 0 means 512 MiB.
	MaxExecutable int64
	// UserName and GroupName look up a name; they return false if the id has
	// none, and an error if that could not be found out. Nil means os/user.
	UserName, GroupName func(id uint32) (name string, ok bool, err error)
	// Now tells the time for the caches; nil means time.Now.
	Now func() time.Time
}

// An Attestor tells facts of processes. It is safe for concurrent use.
type Attestor struct {
	users, groups *names
	digests       *digests
}

// New returns an Attestor.
func New(c Config) *Attestor {
	if c.MaxExecutable <= 0 {
		c.MaxExecutable = 512 << 20
	}
	if c.UserName == nil {
		c.UserName = lookupUser
	}
	if c.GroupName == nil {
		c.GroupName = lookupGroup
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Attestor{
		users:   newNames(c.UserName, c.Now),
		groups:  newNames(c.GroupName, c.Now),
		digests: newDigests(c.MaxExecutable, c.Now),
	}
}

// Attest returns what it proved about p, and in unknown the names of those
// facts that it could not prove, in order. A fact in neither is proven absent.
// On an error, which wraps caller.ErrGone or caller.ErrChanged if that is the
// reason, everything under Prefix is unknown.
//
// The digest costs a read of the whole file: it is told only if wanted says so
// of its name, and is unknown otherwise. A nil wanted wants nothing.
func (a *Attestor) Attest(ctx context.Context, p *caller.Process, wanted func(name string) bool) (facts map[string][]string, unknown []string, err error) {
	r := result{facts: map[string][]string{
		UID: {decimal(p.UID())},
		GID: {decimal(p.GID())},
	}}
	if err := a.attestNames(p, &r); err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	a.attestExecutable(ctx, p, wanted != nil && wanted(SHA256), &r)
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	// All of the above was read of the process that connected only if that is
	// still there, unchanged.
	if err := p.Check(); err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	slices.Sort(r.unknown)
	return r.facts, r.unknown, nil
}

type result struct {
	facts   map[string][]string
	unknown []string
}

// put records the values of a fact, or that it could not be proven. No values:
// proven absent.
func (r *result) put(name string, values []string, err error) {
	switch {
	case err != nil || slices.ContainsFunc(values, unprintable):
		r.unknown = append(r.unknown, name)
	case len(values) > 0:
		r.facts[name] = values
	}
}

// unprintable says whether a value could mislead who reads it in a policy or a
// record, or could not be sent as text.
func unprintable(v string) bool {
	return v == "" || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl)
}

func (a *Attestor) attestNames(p *caller.Process, r *result) error {
	gids, err := p.Groups()
	if err != nil {
		return err
	}
	slices.Sort(gids)
	gids = slices.Compact(gids)
	var groups []string
	for _, g := range gids {
		groups = append(groups, decimal(g))
	}
	r.put(Groups, groups, nil)
	user, err := a.users.of(p.UID())
	r.put(User, user, err)
	names, err := a.groups.of(gids...)
	r.put(GroupNames, names, err)
	return nil
}

func (a *Attestor) attestExecutable(ctx context.Context, p *caller.Process, hash bool, r *result) {
	path, err := p.Path()
	r.put(Path, []string{path}, err)
	if !hash {
		r.unknown = append(r.unknown, SHA256)
		return
	}
	_, f, err := p.Executable()
	if err != nil {
		r.unknown = append(r.unknown, SHA256)
		return
	}
	defer f.Close()
	digest, err := a.digests.of(ctx, p.UID(), f)
	r.put(SHA256, []string{digest}, err)
}

func decimal(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
