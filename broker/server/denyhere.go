package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/store"
)

// A hereDeny is a Deny that was made here and that the store does not have: it
// stands in the deny file, and in policy beside what is stored.
type hereDeny struct {
	kept     broker.KeptDeny
	resource resource.Resource
	unkept   bool // it holds, and is not in the file
}

func (h hereDeny) policy() identity.Deny {
	d := *h.resource.Deny
	d.Here = true
	return d
}

func (h hereDeny) change() change {
	return change{store.Change{Kind: "Deny", Name: h.kept.Name, Owner: h.kept.Owner, Body: h.kept.Text}, h.resource}
}

// readHere reads those in the deny file.
func (s *Server) readHere() error {
	s.here = make(map[string]hereDeny)
	if s.cfg.Keeper == nil { // as after a restore: nothing is started from but the store
		if err := s.cfg.Broker.ForgetDenies(func(k broker.KeptDeny) bool { return k.Revision != 0 }); err != nil {
			return err
		}
	}
	for _, k := range s.cfg.Broker.KeptDenies() {
		if k.Revision != 0 {
			continue
		}
		r, err := s.read("Deny", k.Name, k.Text)
		if err != nil {
			return fmt.Errorf("reading the Denies that were made here: %w", err)
		}
		s.here[k.Name] = hereDeny{kept: k, resource: r}
	}
	s.heres.Store(int32(len(s.here)))
	return nil
}

// withHere is a state with more Denies that were made here, or without some.
func (st *state) withHere(put []hereDeny, drop ...string) (*state, error) {
	var ch identity.Changes
	for _, h := range put {
		ch.Denies = append(ch.Denies, h.policy())
	}
	for _, name := range drop {
		ch.WithoutDenies = append(ch.WithoutDenies, identity.HereDeny(name))
	}
	next, policy := *st, *st.policy
	var err error
	policy.Set, policy.Difference, err = st.policy.Set.Change(ch)
	next.policy = &policy
	return &next, err
}

// applyHere is apply of Denies that needs no store: they hold on this broker when it
// returns, over a restart too, and go to the store, and with it to the other
// brokers, when that is back. It says what of that is still to come; empty: nothing
// is.
func (s *Server) applyHere(ctx context.Context, actor string, r *api.ApplyRequest) (o *outcome, problem string, err error) {
	if r.GetDryRun() || r.GetPrune() || r.GetTakeOver() || r.GetBase() != 0 {
		return nil, "", fmt.Errorf("%w: what is made here is neither planned nor does it prune or take over", broker.ErrRequest)
	}
	owner, err := checkOwner(r.GetOwner())
	if err != nil {
		return nil, "", err
	}
	parsed, err := s.cfg.Resources.Read(r.GetFile(), r.GetYaml())
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	if o, err = s.denyHere(ctx, actor, owner, parsed); err != nil {
		return nil, "", err
	}
	if err := s.saveHere(ctx); err != nil {
		problem = fmt.Sprintf("what is denied here holds on this broker alone, over a restart too, and goes to the database when that is back: %v", err)
	}
	return o, problem, nil
}

func (s *Server) denyHere(ctx context.Context, actor, owner string, parsed []resource.Resource) (*outcome, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	now := s.state.Load()
	o := &outcome{}
	var put []hereDeny
	var changes []change
	var kept []broker.KeptDeny
	for _, one := range parsed {
		a, err := s.judgeHere(now, owner, one)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", broker.ErrRequest, err)
		}
		if o.applied = append(o.applied, a); a.action == "unchanged" {
			continue
		}
		again, err := s.read(one.Kind, one.Name, a.after)
		if err != nil {
			return nil, fmt.Errorf("%w: %s %s would not be taken as it would be kept: %w", broker.ErrRequest, one.Kind, one.Name, err)
		}
		h := hereDeny{kept: broker.KeptDeny{Name: one.Name, Owner: owner, Actor: actor, At: s.cfg.Now(), Text: a.after}, resource: again}
		put, changes, kept = append(put, h), append(changes, h.change()), append(kept, h.kept)
	}
	act := store.Act{Actor: actor, What: "apply"}
	if err := s.judged(ctx, now, act, changes); err != nil {
		return nil, err
	}
	next, err := now.withHere(put)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRequest, resource.Locate(err, parsed))
	}
	o.stands, o.revision = next, now.last
	if len(put) == 0 {
		return o, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	if err := s.recordHere(ctx, act, changes, ""); err != nil {
		return nil, err
	}
	unkept := s.cfg.Broker.KeepDenies(kept...)
	if errors.Is(unkept, broker.ErrRequest) {
		return nil, errors.Join(unkept, s.recordHere(ctx, act, changes, unkept.Error()))
	}
	for _, h := range put {
		h.unkept = unkept != nil
		s.here[h.kept.Name] = h
	}
	s.heres.Store(int32(len(s.here)))
	if err := errors.Join(s.adopt(ctx, next), unkept); err != nil {
		return nil, fmt.Errorf("it is denied on this broker until it stops: %w", err)
	}
	return o, nil
}

// judgeHere says what it does to make a Deny here.
func (s *Server) judgeHere(now *state, owner string, r resource.Resource) (applied, error) {
	if r.Deny == nil {
		return applied{}, r.At("", "it is no Deny: all else waits for the database")
	}
	a, err := now.judge(owner, r, false)
	if err != nil || a.action == "unchanged" {
		return a, err
	}
	if a.action == "changed" {
		return a, r.At("name", "a Deny of this name is in the database: choose another, for here it is not changed")
	}
	if old, ok := s.here[r.Name]; ok {
		if old.kept.Owner != owner {
			return a, r.At("", fmt.Sprintf("it belongs to owner %q", old.kept.Owner))
		}
		if a.before, a.action = old.kept.Text, "changed"; bytes.Equal(a.before, a.after) && !old.unkept {
			a.action = "unchanged"
		}
	}
	return a, nil
}

// recordHere records what is done here, or with a reason that it failed.
func (s *Server) recordHere(ctx context.Context, act store.Act, changes []change, failed string) error {
	events := changeEvents(act, changes, failed)
	for _, e := range events {
		e.Detail["here"] = "true"
	}
	if _, err := s.cfg.Audit.Append(ctx, events...); err != nil {
		return fmt.Errorf("recording the change: %w", err)
	}
	return nil
}

// saveHere takes to the store what was denied here, by whomever: they were judged
// then, and not who asks now. What cannot go there stays here.
func (s *Server) saveHere(ctx context.Context) error {
	ctx = context.WithValue(ctx, operatorKey{}, nil)
	s.applying.Lock()
	defer s.applying.Unlock()
	var failed error
	for _, h := range s.hereDenies() {
		if err := s.cfg.Store.Writable(); err != nil {
			return err
		}
		if err := s.saveDeny(ctx, h); err != nil {
			failed = errors.Join(failed, err)
		}
		if s.behind.Load() { // the store took it not, as it would take no other
			return failed
		}
	}
	return failed
}

// hereDenies are those that were made here, by name. The caller holds applying.
func (s *Server) hereDenies() (all []hereDeny) {
	for _, h := range s.here {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b hereDeny) int { return strings.Compare(a.kept.Name, b.kept.Name) })
	return all
}

// saveDeny is saveHere of one. It leaves policy only when it stands in it as a
// resource. The caller holds applying.
func (s *Server) saveDeny(ctx context.Context, h hereDeny) error {
	now, err := s.current(ctx)
	if err != nil {
		return err
	}
	if old, ok := now.find("Deny", h.kept.Name); !ok {
		if _, err := s.change(ctx, now, store.Act{Actor: h.kept.Actor, What: "apply"}, nil, []change{h.change()}, false); err != nil {
			return err
		}
	} else if text, err := old.resource.Text(); err != nil || old.row.Owner != h.kept.Owner || !bytes.Equal(text, h.kept.Text) {
		return errors.Join(err, fmt.Errorf("the database has another Deny %s, of owner %s: the one that was made here holds until credence delete deny %[1]s --here", h.kept.Name, old.row.Owner))
	}
	return s.dropHere(ctx, h.kept.Name)
}

// dropHere ends a Deny that was made here. The caller holds applying.
func (s *Server) dropHere(ctx context.Context, name string) error {
	next, err := s.state.Load().withHere(nil, name)
	if err == nil {
		err = s.cfg.Broker.ForgetDenies(func(k broker.KeptDeny) bool { return k.Revision == 0 && k.Name == name })
	}
	if err != nil {
		return err
	}
	delete(s.here, name)
	s.heres.Store(int32(len(s.here)))
	return s.adopt(ctx, next)
}

// removeHere is remove of what was made here.
func (s *Server) removeHere(ctx context.Context, actor, owner, kind, name string) error {
	owner, err := checkOwner(owner)
	if err != nil {
		return err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	h, ok := s.here[name]
	switch {
	case kind != "Deny" || !ok:
		return fmt.Errorf("deleting %.60q %.60q: none was made here that the database does not have: %w", kind, name, broker.ErrNotFound)
	case h.kept.Owner != owner:
		return fmt.Errorf("deleting %s %s: %w: it belongs to owner %q; say --owner %s", kind, name, broker.ErrRequest, h.kept.Owner, h.kept.Owner)
	}
	act, gone := store.Act{Actor: actor, What: "delete"}, h.change()
	if err := s.judged(ctx, s.state.Load(), act, []change{gone}); err != nil { // as who would make it
		return err
	}
	gone.Body = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	if err := s.recordHere(ctx, act, []change{gone}, ""); err != nil {
		return err
	}
	return s.dropHere(ctx, name)
}
