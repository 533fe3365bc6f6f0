package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
)

// hintsForPeers is how many refresh hints a peer is given to have a bundle: it
// may have polled just before, and miss one poll.
const hintsForPeers = 3

// rootView finds out all that the replacement of the root depends on.
func (a authoritiesService) rootView(ctx context.Context) (rootView, error) {
	s := a.s
	v := rootsOf(s.cfg.Authority.List())
	v.now, v.nodes = s.cfg.Now(), len(s.cfg.Broker.Nodes())
	sequence := s.cfg.Authority.Bundle().Sequence
	v.connected, v.holding = s.cfg.Broker.Holding(sequence)
	others, err := s.otherReplicas(ctx)
	if err != nil {
		return v, err
	}
	for _, r := range others {
		v.connected += r.Connected
		if r.Holds >= sequence {
			v.holding += r.Connected
		}
	}
	newest := v.newest()
	if newest == nil {
		return v, nil
	}
	if s.cfg.Listen["spiffe"] != "" || s.cfg.Listen["web"] != "" {
		v.peersUntil = newest.PublishedAt.Add(hintsForPeers * s.cfg.RefreshHint)
	}
	for _, row := range s.state.Load().resources {
		if t := row.resource.Target; t != nil && t.Flow == "aws_roles_anywhere" {
			v.anchors = append(v.anchors, t.Name)
		}
	}
	if v.confirmed, err = s.cfg.Store.ConfirmedAnchors(ctx, newest.ID); err != nil || v.old == nil {
		return v, err
	}
	v.left, v.leftUntil, v.unknown = s.cfg.Broker.Unreplaced(ctx, s.cfg.Audit.Head().Sequence, v.under)
	return v, nil
}

// AdvanceRoot replaces the root, as many steps as may be taken now.
func (a authoritiesService) AdvanceRoot(ctx context.Context, r *api.AdvanceRootRequest) (*api.RootPlan, error) {
	response := &api.RootPlan{}
	err := a.confirm(ctx, r.GetConfirm())
	for more := err == nil && !r.GetLook(); more && err == nil && !response.Done; {
		more, err = a.advance(ctx, r, response)
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	if response.Done {
		return response, nil
	}
	v, err := a.rootView(ctx)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	for _, s := range v.plan(r.GetNow()) {
		response.Steps = append(response.Steps, &api.RootPlan_Step{Name: s.name, State: s.state, Detail: s.detail})
	}
	return response, nil
}

// advance takes the next step if it may be taken.
func (a authoritiesService) advance(ctx context.Context, r *api.AdvanceRootRequest, response *api.RootPlan) (moved bool, err error) {
	v, err := a.rootView(ctx)
	if err != nil {
		return false, err
	}
	steps := v.plan(r.GetNow())
	if slices.ContainsFunc(steps, func(s step) bool { return s.state == stepWaits }) {
		if !r.GetForce() {
			return false, nil
		}
		response.Lines = append(response.Lines, v.breaks(steps)...)
	}
	switch {
	case v.newest() == nil:
		return true, a.act(ctx, "root.publish", r.GetReason(), nil, func(ctx context.Context) error {
			st, err := a.s.cfg.Authority.PublishRoot(ctx)
			if err == nil {
				response.Lines = append(response.Lines, "root "+st.ID+" is in the bundle")
			}
			return err
		})
	case v.next != nil:
		response.Lines = append(response.Lines, "root "+v.next.ID+" signs from now on")
		return true, a.act(ctx, "root.activate", r.GetReason(), map[string]string{"root": v.next.ID}, func(ctx context.Context) error {
			return a.activate(ctx, v.next.ID, r.GetReason(), r.GetResign())
		})
	}
	response.Done = true
	response.Lines = append(response.Lines, fmt.Sprintf("root %s has left the bundle; root %s signs", v.old.ID, v.active.ID))
	return true, a.act(ctx, "root.drop", r.GetReason(), map[string]string{"root": v.old.ID}, func(ctx context.Context) error {
		// What is left under it was looked at here: nothing, or forced.
		_, err := a.s.cfg.Authority.DropRoot(ctx, v.old.ID, true)
		return err
	})
}

// activate lets a root sign, and has what stands under the one before signed
// anew.
func (a authoritiesService) activate(ctx context.Context, id, reason string, resign bool) error {
	before := a.signers(authority.Active, authority.Old)
	if _, err := a.s.cfg.Authority.ActivateRoot(ctx, id); err != nil {
		return err
	}
	if err := a.s.renewOwn(ctx); err != nil {
		return err
	}
	if !resign {
		return nil
	}
	return a.cutOffAll(ctx, before, reason)
}

// signers are the authorities in some states of which SVIDs may live.
func (a authoritiesService) signers(in ...authority.State) (ids []string) {
	for _, st := range a.s.cfg.Authority.List() {
		if (st.Use == authority.Issuing || st.Use == authority.Domain) && slices.Contains(in, st.State) && st.LastExpiry.After(a.s.cfg.Now()) {
			ids = append(ids, st.ID)
		}
	}
	return ids
}

// cutOffAll cuts off those that sign no more.
func (a authoritiesService) cutOffAll(ctx context.Context, ids []string, reason string) error {
	active := a.signers(authority.Active)
	for _, id := range slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(active, id) }) {
		if err := a.cutOff(ctx, id, reason); err != nil {
			return err
		}
	}
	return nil
}

// confirm keeps that the clouds of targets have the newest root as an anchor.
func (a authoritiesService) confirm(ctx context.Context, targets []string) error {
	if len(targets) == 0 {
		return nil
	}
	v, err := a.rootView(ctx)
	if err != nil {
		return err
	}
	for _, target := range targets {
		switch {
		case v.newest() == nil:
			return fmt.Errorf("%w: confirming %.64s: no root is being replaced: credence ca replace root begins", broker.ErrRequest, target)
		case !slices.Contains(v.anchors, target):
			return fmt.Errorf("%w: confirming %.64s: no Target of flow aws_roles_anywhere has that name", broker.ErrRequest, target)
		}
		id := v.newest().ID
		err := a.act(ctx, "root.confirm", "", map[string]string{"root": id, "target": target}, func(ctx context.Context) error {
			return a.s.cfg.Store.ConfirmAnchor(ctx, id, target, a.s.actor(ctx))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// RollbackRoot undoes a replacement whose old root is not dropped.
func (a authoritiesService) RollbackRoot(ctx context.Context, r *api.RollbackRootRequest) (*api.ActResponse, error) {
	response := &api.ActResponse{}
	err := a.act(ctx, "root.rollback", r.GetReason(), nil, func(ctx context.Context) error {
		before, active := a.signers(authority.Active, authority.Old), a.signers(authority.Active)
		st, err := a.s.cfg.Authority.RollbackRoot(ctx)
		if err != nil {
			return err
		}
		response.Authorities = append(response.Authorities, info(st))
		response.Lines = append(response.Lines, fmt.Sprintf("root %s signs", st.ID))
		if slices.Equal(active, a.signers(authority.Active)) {
			response.Lines = append(response.Lines, "the root that was only published has left the bundle")
			return nil
		}
		response.Lines = append(response.Lines, "what the other root's CAs signed is signed anew; that root leaves the bundle when the last of it has ended")
		if err := a.s.renewOwn(ctx); err != nil {
			return err
		}
		return a.cutOffAll(ctx, before, r.GetReason())
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}
