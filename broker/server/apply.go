package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/store"
)

// An applied resource and what became of it.
type applied struct {
	kind, name, action string
	before, after      []byte
	owner, takenFrom   string
}

// An outcome is what a change of policy does, or would do.
type outcome struct {
	applied  []applied
	owned    int // of what was asked about, how many stood before
	deletes  int
	named    bool   // what is deleted was named, each by itself
	revision uint64 // of policy then
	stands   *state // then
}

// needsYes says whether so much is deleted that it may be a mistake: a file
// that was not there, a wrong directory, another owner's name.
func (o *outcome) needsYes() bool { return !o.named && o.deletes*10 > o.owned }

// allowed refuses to delete much that nobody said yes to.
func (o *outcome) allowed(yes bool) error {
	if yes || !o.needsYes() {
		return nil
	}
	var names []string
	for _, a := range o.applied {
		if a.action == "deleted" && len(names) < 3 {
			names = append(names, a.kind+" "+a.name)
		}
	}
	if o.deletes > len(names) {
		names = append(names, "...")
	}
	return fmt.Errorf("%w: %d of %d resources would be deleted (%s), which is more than a tenth: see what goes by the plan, and say --yes if it is meant",
		broker.ErrRequest, o.deletes, o.owned, strings.Join(names, ", "))
}

// apply makes the broker hold the resources of a text: all of them or, on any
// error, none. With prune it holds no others of the owner then. A dry run says
// what it would do.
func (s *Server) apply(ctx context.Context, actor string, r *api.ApplyRequest) (*outcome, error) {
	owner, err := checkOwner(r.GetOwner())
	if err != nil {
		return nil, err
	}
	parsed, err := s.cfg.Resources.Read(r.GetFile(), r.GetYaml())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	now, err := s.currentAt(ctx, r.GetBase())
	if err != nil {
		return nil, err
	}
	o := &outcome{owned: len(now.of(owner))}
	var changes []change
	for _, one := range parsed {
		a, err := now.judge(owner, one, r.GetTakeOver())
		if err != nil {
			return nil, fmt.Errorf("%w: %w", broker.ErrRequest, err)
		}
		o.applied = append(o.applied, a)
		if a.action == "unchanged" {
			continue
		}
		again, err := s.read(one.Kind, one.Name, a.after) // as the next start will
		if err != nil {
			return nil, fmt.Errorf("%w: %s %s would not be taken as it would be kept: %w", broker.ErrRequest, one.Kind, one.Name, err)
		}
		changes = append(changes, change{store.Change{Kind: one.Kind, Name: one.Name, Owner: owner, From: a.takenFrom, Body: a.after}, again})
	}
	if r.GetPrune() {
		gone, err := now.pruned(owner, parsed)
		if err != nil {
			return nil, err
		}
		changes = append(changes, o.remove(gone)...)
	}
	return o, s.make(ctx, now, store.Act{Actor: actor, What: "apply"}, o, parsed, changes, r)
}

// judge says what applying a resource does.
func (st *state) judge(owner string, r resource.Resource, takeOver bool) (applied, error) {
	a := applied{kind: r.Kind, name: r.Name, action: "created", owner: owner}
	var err error
	if a.after, err = r.Text(); err != nil {
		return a, r.At("", err.Error())
	}
	old, ok := st.find(r.Kind, r.Name)
	if !ok {
		return a, nil
	}
	if old.row.Owner != owner {
		if !takeOver {
			return a, r.At("", fmt.Sprintf("it belongs to owner %q; apply it with --owner %s, choose another name, or say --take-over", old.row.Owner, old.row.Owner))
		}
		a.takenFrom = old.row.Owner
	}
	if a.before, err = old.resource.Text(); err != nil {
		return a, err
	}
	a.action = "changed"
	if bytes.Equal(a.before, a.after) && a.takenFrom == "" {
		a.action = "unchanged"
	}
	return a, nil
}

// of returns what belongs to an owner.
func (st *state) of(owner string) (all []*stored) {
	for _, r := range st.resources {
		if r.row.Owner == owner {
			all = append(all, r)
		}
	}
	return all
}

// pruned returns what an owner has that is not among those.
func (st *state) pruned(owner string, keep []resource.Resource) (gone []applied, err error) {
	kept := make(map[[2]string]bool, len(keep))
	for _, r := range keep {
		kept[[2]string{r.Kind, r.Name}] = true
	}
	for _, r := range st.of(owner) {
		if kept[[2]string{r.row.Kind, r.row.Name}] {
			continue
		}
		a := applied{kind: r.row.Kind, name: r.row.Name, action: "deleted", owner: owner}
		if a.before, err = r.resource.Text(); err != nil {
			return nil, err
		}
		gone = append(gone, a)
	}
	return gone, nil
}

// remove adds deletions, and returns them as changes.
func (o *outcome) remove(gone []applied) (changes []change) {
	for _, a := range gone {
		changes = append(changes, change{Change: store.Change{Kind: a.kind, Name: a.name, Owner: a.owner}})
	}
	o.applied, o.deletes = append(o.applied, gone...), o.deletes+len(gone)
	return changes
}

// make makes an outcome come true. The caller holds applying.
func (s *Server) make(ctx context.Context, now *state, act store.Act, o *outcome, parsed []resource.Resource, changes []change, how interface {
	GetDryRun() bool
	GetYes() bool
}) error {
	if !how.GetDryRun() {
		if err := o.allowed(how.GetYes()); err != nil {
			return err
		}
	}
	stands, err := s.change(ctx, now, act, parsed, changes, how.GetDryRun())
	o.stands = stands
	o.revision = s.policyRevision()
	return err
}

// currentAt returns what stands, if it is of that revision; 0 is any. The
// caller holds applying.
func (s *Server) currentAt(ctx context.Context, base uint64) (*state, error) {
	now, err := s.current(ctx)
	if err == nil && base != 0 && base != now.last {
		return nil, fmt.Errorf("%w: policy is of revision %d now, not %d: see what changed (credence history), and plan again", broker.ErrConflict, now.last, base)
	}
	return now, err
}

// checkOwner takes a name of the form that resources have; none is "default".
func checkOwner(owner string) (string, error) {
	if owner == "" {
		return "default", nil
	}
	if err := token.CheckName(owner); err != nil {
		return "", fmt.Errorf("%w: owner: %w", broker.ErrRequest, err)
	}
	return owner, nil
}

// remove deletes one resource.
func (s *Server) remove(ctx context.Context, actor, owner, kind, name string) error {
	owner, err := checkOwner(owner)
	if err != nil {
		return err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	now, err := s.current(ctx)
	if err != nil {
		return err
	}
	old, ok := now.find(kind, name)
	if !ok {
		return fmt.Errorf("deleting %.60q %.60q: %w", kind, name, broker.ErrNotFound)
	}
	if old.row.Owner != owner {
		return fmt.Errorf("deleting %s %s: %w: it belongs to owner %q; say --owner %s", kind, name, broker.ErrRequest, old.row.Owner, old.row.Owner)
	}
	act := store.Act{Actor: actor, What: "delete"}
	_, err = s.change(ctx, now, act, nil, []change{{Change: store.Change{Kind: kind, Name: name, Owner: owner}}}, false)
	return err
}

// kindNamed is a kind of resource, however its name is spelt; none is none.
func kindNamed(name string) (string, error) {
	i := slices.IndexFunc(resource.Kinds, func(k string) bool { return strings.EqualFold(k, name) })
	if i < 0 && name != "" {
		return "", fmt.Errorf("%w: kind %.60q is none of %s", broker.ErrRequest, name, strings.Join(resource.Kinds, ", "))
	}
	if i < 0 {
		return "", nil
	}
	return resource.Kinds[i], nil
}
