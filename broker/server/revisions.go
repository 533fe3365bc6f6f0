package server

import (
	"bytes"
	"context"
	"fmt"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/store"
)

// How many revisions are listed.
const (
	listedRevisions = 20
	maxRevisions    = 1000
)

// maxTexts bounds the texts of one answer: beyond it they are left off.
const maxTexts = 32 << 20

// getAt returns what stood at a revision.
func (s *Server) getAt(ctx context.Context, r *api.GetRequest) (*api.GetResponse, error) {
	kind, err := kindNamed(r.GetKind())
	if err != nil {
		return nil, err
	}
	rows, revision, err := s.cfg.Store.ResourcesAt(ctx, r.GetRevision())
	if err != nil {
		return nil, err
	}
	response := &api.GetResponse{Revision: revision}
	for _, row := range rows {
		if (kind == "" || row.Kind == kind) && (r.GetName() == "" || row.Name == r.GetName()) {
			response.Resources = append(response.Resources, &api.Resource{
				Kind: row.Kind, Name: row.Name, Revision: row.Revision, Owner: row.Owner, Yaml: row.Body, Actor: row.Actor, WrittenAt: unix(row.WrittenAt),
			})
		}
	}
	return response, nil
}

// ListRevisions lists changes of policy, the newest first, or tells one with
// all that it wrote.
func (a adminService) ListRevisions(ctx context.Context, r *api.ListRevisionsRequest) (*api.ListRevisionsResponse, error) {
	response, err := a.s.listRevisions(ctx, r)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

func (s *Server) listRevisions(ctx context.Context, r *api.ListRevisionsRequest) (*api.ListRevisionsResponse, error) {
	kind, err := kindNamed(r.GetKind())
	if err != nil {
		return nil, err
	}
	if (kind == "") != (r.GetName() == "") {
		return nil, fmt.Errorf("%w: a resource is named by its kind and its name", broker.ErrRequest)
	}
	limit, before := int(min(r.GetLimit(), maxRevisions)), r.GetBefore()
	if limit == 0 {
		limit = listedRevisions
	}
	if r.GetRevision() != 0 {
		limit, before = 1, r.GetRevision()+1
	}
	all, oldest, err := s.cfg.Store.Revisions(ctx, before, kind, r.GetName(), limit)
	if err != nil {
		return nil, err
	}
	response := &api.ListRevisionsResponse{Oldest: oldest}
	for _, one := range all {
		response.Revisions = append(response.Revisions, &api.ListRevisionsResponse_Revision{
			Revision: one.Revision, Act: one.What, Actor: one.Actor, Owner: one.Owner, WrittenAt: unix(one.WrittenAt),
			Created: uint32(one.Created), Changed: uint32(one.Changed), Deleted: uint32(one.Deleted), Some: one.Some,
		})
	}
	if r.GetRevision() == 0 {
		return response, nil
	}
	if len(all) == 0 || all[0].Revision != r.GetRevision() {
		return nil, fmt.Errorf("a change of policy of revision %d: %w: those since revision %d are kept", r.GetRevision(), broker.ErrNotFound, oldest)
	}
	return response, s.addWritten(ctx, response.Revisions[0], oldest)
}

// addWritten adds what a revision wrote.
func (s *Server) addWritten(ctx context.Context, r *api.ListRevisionsResponse_Revision, oldest uint64) error {
	wrote, err := s.cfg.Store.Written(ctx, r.Revision)
	if err != nil {
		return err
	}
	r.NoBefore = r.Revision == oldest && r.Changed+r.Deleted > 0
	var all []applied
	for _, w := range wrote {
		one := applied{kind: w.Kind, name: w.Name, action: "created", before: w.Before, after: w.Body, owner: w.Owner, takenFrom: w.TakenFrom}
		switch {
		case w.Body == nil:
			one.action = "deleted"
		case w.Before != nil:
			one.action = "changed"
		case r.NoBefore:
			one.action = "written"
		}
		all = append(all, one)
	}
	r.Wrote = wire(all)
	return nil
}

// wire is what was applied as it is answered.
func wire(all []applied) []*api.ApplyResponse_Applied {
	room := maxTexts
	out := make([]*api.ApplyResponse_Applied, len(all))
	for i, a := range all {
		out[i] = &api.ApplyResponse_Applied{Kind: a.kind, Name: a.name, Action: a.action, Owner: a.owner, TakenFrom: a.takenFrom}
		if size := len(a.before) + len(a.after); size <= room {
			out[i].Before, out[i].After = a.before, a.after
			room -= size
		} else {
			room = 0
		}
	}
	return out
}

// Rollback writes what stood at a revision under a new one: all of it, one
// owner's, or one resource.
func (a adminService) Rollback(ctx context.Context, r *api.RollbackRequest) (*api.ApplyResponse, error) {
	o, err := a.s.rollback(ctx, a.s.actor(ctx), r)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return a.answer(ctx, o, r.GetDryRun()), nil
}

func (s *Server) rollback(ctx context.Context, actor string, r *api.RollbackRequest) (*outcome, error) {
	scope, err := scopeOf(r)
	if err != nil {
		return nil, err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	now, err := s.currentAt(ctx, r.GetBase())
	if err != nil {
		return nil, err
	}
	rows, revision, err := s.cfg.Store.ResourcesAt(ctx, r.GetRevision())
	if err != nil {
		return nil, err
	}
	o := &outcome{named: scope.name != ""}
	changes, err := s.restored(now, scope, o, rows)
	if err != nil {
		return nil, fmt.Errorf("going back to revision %d: %w", revision, err)
	}
	gone, err := scope.gone(now, o, rows)
	if err != nil {
		return nil, fmt.Errorf("going back to revision %d: %w", revision, err)
	}
	changes = append(changes, o.remove(gone)...)
	if o.named && len(o.applied) == 0 {
		return nil, fmt.Errorf("%s %s at revision %d: %w, and there is none now", scope.kind, scope.name, revision, broker.ErrNotFound)
	}
	if err := s.make(ctx, now, store.Act{Actor: actor, What: fmt.Sprintf("rollback to %d", revision)}, o, nil, changes, r); err != nil {
		return nil, fmt.Errorf("going back to revision %d: %w", revision, err)
	}
	return o, nil
}

// A scope is what a rollback is about: one resource, an owner's, or all.
type scope struct{ kind, name, owner string }

func scopeOf(r *api.RollbackRequest) (s scope, err error) {
	s = scope{name: r.GetName(), owner: r.GetOwner()}
	if s.kind, err = kindNamed(r.GetKind()); err != nil {
		return s, err
	}
	if (s.kind == "") != (s.name == "") {
		return s, fmt.Errorf("%w: a resource is named by its kind and its name", broker.ErrRequest)
	}
	if s.owner != "" {
		s.owner, err = checkOwner(s.owner)
	}
	return s, err
}

func (s scope) holds(r store.Resource) bool {
	return (s.kind == "" || s.kind == r.Kind && s.name == r.Name) && (s.owner == "" || s.owner == r.Owner)
}

// restored returns the changes that bring back what stood, as far as it is not
// as it was. What another owner has by now, or had then, is not touched on
// behalf of one.
func (s *Server) restored(now *state, scope scope, o *outcome, rows []store.Resource) (changes []change, err error) {
	for _, row := range rows {
		old, stands := now.find(row.Kind, row.Name)
		if stands && scope.holds(old.row) != scope.holds(row) {
			return nil, fmt.Errorf("%w: %s %s belonged to owner %q and belongs to %q now: go back for all owners, or name neither", broker.ErrRequest, row.Kind, row.Name, row.Owner, old.row.Owner)
		}
		if !scope.holds(row) {
			continue
		}
		a := applied{kind: row.Kind, name: row.Name, action: "created", owner: row.Owner}
		if stands && old.row.Revision == row.Revision {
			if a.action = "unchanged"; o.named {
				o.applied = append(o.applied, a)
			}
			continue
		}
		r, err := s.read(row.Kind, row.Name, row.Body)
		if err != nil {
			return nil, fmt.Errorf("%w: as it was then it is not taken any more: %w", broker.ErrRequest, err)
		}
		if a.after, err = r.Text(); err != nil {
			return nil, err
		}
		if stands {
			if a.before, err = old.resource.Text(); err != nil {
				return nil, err
			}
			a.action = "changed"
			if old.row.Owner != row.Owner {
				a.takenFrom = old.row.Owner
			} else if bytes.Equal(a.before, a.after) {
				a.action = "unchanged"
			}
		}
		if a.action != "unchanged" {
			changes = append(changes, change{store.Change{Kind: row.Kind, Name: row.Name, Owner: row.Owner, From: a.takenFrom, Body: a.after}, r})
		} else if !o.named {
			continue
		}
		o.applied = append(o.applied, a)
	}
	return changes, nil
}

// gone returns what stands and did not then.
func (s scope) gone(now *state, o *outcome, rows []store.Resource) (gone []applied, err error) {
	stood := make(map[[2]string]bool, len(rows))
	for _, row := range rows {
		stood[[2]string{row.Kind, row.Name}] = true
	}
	for _, r := range now.resources {
		if !s.holds(r.row) {
			continue
		}
		o.owned++
		if stood[[2]string{r.row.Kind, r.row.Name}] {
			continue
		}
		a := applied{kind: r.row.Kind, name: r.row.Name, action: "deleted", owner: r.row.Owner}
		if a.before, err = r.resource.Text(); err != nil {
			return nil, err
		}
		gone = append(gone, a)
	}
	return gone, nil
}
