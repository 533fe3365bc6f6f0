package server

import (
	"context"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
)

// Revoke makes that nothing counts any more which was issued before a time.
func (a authoritiesService) Revoke(ctx context.Context, r *api.RevokeRequest) (*api.RevokeResponse, error) {
	cutoff := broker.Cutoff{Kind: r.GetKind(), Value: r.GetValue(), Before: fromUnix(r.GetBefore()), Reason: r.GetReason(), Actor: a.s.actor(ctx)}
	if cutoff.Kind == broker.CutNode {
		n, err := (adminService{s: a.s}).findNode(cutoff.Value)
		if err != nil {
			return nil, a.fail(ctx, err)
		}
		cutoff.Value = n.ID
	}
	done, err := a.s.cfg.Broker.Revoke(ctx, cutoff)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.RevokeResponse{Before: unix(done.Cutoff.Before), Issued: wireIssued(done.Serials), Count: uint64(done.Count), Problems: done.Problems}, nil
}

// ListIssued says what somebody got: from the index, which follows the record
// within a moment.
func (a authoritiesService) ListIssued(ctx context.Context, r *api.ListIssuedRequest) (*api.ListIssuedResponse, error) {
	q := broker.IssuedQuery{
		Serial: r.GetSerial(), SPIFFEID: r.GetSpiffeId(), Identity: r.GetIdentity(), Node: r.GetNode(), Authority: r.GetAuthority(),
		From: fromUnix(r.GetFrom()), Before: fromUnix(r.GetBefore()), Limit: int(min(r.GetLimit(), broker.MaxIssued+1)),
	}
	if r.GetLive() {
		q.LiveAt = a.s.cfg.Now()
	}
	if q.Node != "" {
		if n, err := (adminService{s: a.s}).findNode(q.Node); err == nil {
			q.Node = n.ID // by its name; one that is gone stays as it was typed
		}
	}
	rows, total, err := a.s.cfg.Store.Issued(ctx, q)
	if err != nil {
		return nil, a.fail(ctx, fmt.Errorf("listing what was issued: %w", err))
	}
	return &api.ListIssuedResponse{Issued: wireIssued(rows), Count: uint64(total)}, nil
}

func wireIssued(rows []broker.Issued) []*api.Issued {
	wire := make([]*api.Issued, 0, len(rows))
	for _, i := range rows {
		wire = append(wire, &api.Issued{
			Kind: i.Kind, Serial: i.Serial, SpiffeId: i.SPIFFEID, Identity: i.Identity, Revision: i.Revision, Node: i.Node, Authority: i.Authority,
			Target: i.Target, Audiences: i.Audiences, IssuedAt: unix(i.IssuedAt), ExpiresAt: unix(i.ExpiresAt), Record: i.Record,
		})
	}
	return wire
}

func fromUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
