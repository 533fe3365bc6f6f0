package authority

import (
	"context"
	"slices"
	"time"
)

// PublishRoot makes a new root of our own and publishes it beside the active
// one, which goes on signing: one at a time. Called again, it returns the same.
func (a *Authority) PublishRoot(ctx context.Context) (Status, error) {
	var st Status
	err := a.act("publishing a root", ctx, func(now time.Time) error {
		if a.cfg.Upstream != nil || a.byHand() {
			return refused("upstream %s brings the roots: take it out of the configuration first", a.cfg.UpstreamName)
		}
		s := a.live.Load()
		for _, r := range s.of(Root, "") {
			if r.State == Published && r.KeyRef != "" {
				st = a.status(r.ID)
				return nil
			}
		}
		if err := a.oneAtATime(s, ""); err != nil {
			return err
		}
		if err := a.lead(ctx); err != nil {
			return err
		}
		r, err := a.newRoot(ctx, now)
		if err != nil {
			return err
		}
		if err := a.change(ctx, r); err != nil {
			return err
		}
		a.cfg.Log.InfoContext(ctx, "root published", "authority", r.ID, "not_after", r.NotAfter)
		st = a.status(r.ID)
		return nil
	})
	return st, err
}

// oneAtATime refuses another root while one is on its way in or out, but for
// the root named, and for one that nobody can go back to.
func (a *Authority) oneAtATime(s *snapshot, but string) error {
	for _, r := range s.of(Root, "") {
		switch {
		case r.ID == but || r.Reason == keyIsLost:
		case r.State == Published:
			return refused("root %s is published and not active yet: activate it or roll back first", r.ID)
		case r.State == Old:
			return refused("root %s is old and still published: drop it or roll back first", r.ID)
		}
	}
	return nil
}

func (a *Authority) root(id string) (Record, error) {
	r, ok := a.live.Load().find(id)
	if !ok || r.Use != Root {
		return Record{}, nothing("there is no root %q", id)
	}
	return r, nil
}

// ActivateRoot has issuing CAs signed under a published root from now on, and
// makes a new one at once, in one change; the other root is Old and stays in
// the bundle. Whether all that verify our SVIDs have the new root by now is the
// caller's to know: Status.Waits says until when to wait.
func (a *Authority) ActivateRoot(ctx context.Context, id string) (Status, error) {
	var st Status
	err := a.act("activating a root", ctx, func(now time.Time) error {
		root, err := a.root(id)
		if err != nil {
			return err
		}
		switch {
		case root.State == Active:
			st = a.status(id)
			return nil
		case root.State == Old:
			return refused("root %s was active before: roll back to it", id)
		case root.State != Published:
			return nothing("root %s is %s: only a published one can be activated", id, root.State)
		}
		changed, err := a.activation(ctx, now, root)
		if err != nil {
			return err
		}
		if _, err := a.takeInUse(ctx, changed); err != nil {
			return err
		}
		a.cfg.Log.InfoContext(ctx, "root active", "authority", id)
		st = a.status(id)
		return nil
	})
	return st, err
}

func (a *Authority) activation(ctx context.Context, now time.Time, root Record) ([]Record, error) {
	s := a.live.Load()
	if waiting, ok := s.waiting(a.cfg.Broker); ok && waiting.Parent == root.ID {
		return a.takeOverFromUpstream(now, waiting)
	}
	signer, ok := s.signerUnder(root, Published, Prepared)
	if !ok {
		return nil, nothing("nobody certifies us under root %s: have our CA certified (csr, install)", root.ID)
	}
	return a.takeOver(ctx, now, root, signer)
}

// DropRoot takes an old root out of the bundle for good. While SVIDs under it
// may live it is ErrNotYet, unless force: those are then believed no more.
func (a *Authority) DropRoot(ctx context.Context, id string, force bool) (Status, error) {
	var st Status
	err := a.act("dropping a root", ctx, func(now time.Time) error {
		root, err := a.root(id)
		if err != nil {
			return err
		}
		s := a.live.Load()
		until, signing := s.svidsUnder(id)
		switch {
		case root.State == Revoked:
			st = a.status(id)
			return nil
		case root.State == Published:
			return refused("root %s is not active yet: roll back takes it out", id)
		case root.State != Old:
			return refused("root %s is active: publish and activate another first", id)
		case !force && signing != "":
			return notYet(until, "broker %s still signs under root %s", signing, id)
		case !force && now.Before(until):
			return notYet(until, "SVIDs under root %s live until then, and nobody would believe them", id)
		}
		if err := a.change(ctx, dropped(s, root, now)...); err != nil {
			return err
		}
		a.cfg.Log.WarnContext(ctx, "root dropped", "authority", id, "forced", force && now.Before(until))
		st = a.status(id)
		return nil
	})
	return st, err
}

// dropped are a root and what stands under it, ended: by force, another
// broker's issuing CA too, which the bundle no longer verifies.
func dropped(s *snapshot, root Record, now time.Time) []Record {
	root.State, root.RevokedAt = Revoked, now
	changed := []Record{root}
	for _, r := range s.records {
		if r.ID != root.ID && (r.Use == Domain || r.Use == Issuing) && r.State != Revoked && s.rootOf(r) == root.ID {
			r.State = Revoked
			changed = append(changed, r)
		}
	}
	return changed
}

// RollbackRoot undoes what PublishRoot, Install or ActivateRoot began, until the
// drop. A root that is only published leaves the bundle. After an activation
// the old root is active again, with a new issuing CA at once; the other one
// leaves the bundle when the last SVID under it has ended, by Tick.
func (a *Authority) RollbackRoot(ctx context.Context) (Status, error) {
	var st Status
	err := a.act("rolling back the root", ctx, func(now time.Time) error {
		if a.cfg.Upstream != nil {
			return refused("upstream %s brings the roots", a.cfg.UpstreamName)
		}
		s := a.live.Load()
		active, ok := activeRoot(s)
		if !ok {
			return nothing("there is no active root to go back to")
		}
		st = a.status(active.ID)
		roots := s.of(Root, "")
		if i := slices.IndexFunc(roots, func(r Record) bool { return r.State == Published }); i >= 0 {
			return a.change(ctx, dropped(s, roots[i], now)...)
		}
		before, err := predecessor(s, active)
		if err != nil {
			return err
		}
		signer, ok := s.signerUnder(before, Old)
		if !ok {
			return nothing("nobody certifies us under root %s any more", before.ID)
		}
		changed, err := a.takeOver(ctx, now, before, signer)
		if err != nil {
			return err
		}
		if _, err := a.takeInUse(ctx, changed); err != nil {
			return err
		}
		a.cfg.Log.WarnContext(ctx, "root rolled back", "authority", before.ID, "aside", active.ID)
		st = a.status(before.ID)
		return nil
	})
	return st, err
}

// predecessor is the old root that was active before the active one.
func predecessor(s *snapshot, active Record) (Record, error) {
	for _, r := range s.of(Root, "") {
		switch {
		case r.State != Old:
		case s.putAside(r):
			return r, nothing("root %s is active again already; %s leaves the bundle when its SVIDs have ended", active.ID, r.ID)
		default:
			return r, nil
		}
	}
	return Record{}, nothing("no root was published or activated since the last drop")
}
