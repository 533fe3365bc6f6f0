package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/identity"
)

// ErrNoStanding says that an SVID of ours, which verifies, counts no more or
// never did.
var ErrNoStanding = errors.New("it has no standing")

// A Standing is an SVID of ours that counted when it was looked at.
type Standing struct{ who bearer }

// Stand says whether an X509-SVID of ours counts as whom it names: the index knows
// it, no cut-off has hit it, and the Identity that gave it is unchanged; of a
// workload's besides, that its node is welcome, and that no Deny may hold. What a
// person's facts were when they logged in is not known any more: a Deny on those
// holds from the next login on. The error wraps ErrNoStanding where it does not.
func (b *Broker) Stand(ctx context.Context, e Evidence) (Standing, error) {
	if e.Kind != KindX509 || e.ID.TrustDomain() != b.cfg.TrustDomain || identity.IsReserved(e.ID) {
		return Standing{}, fmt.Errorf("%w: %s is no workload's or person's", ErrNoStanding, e.ID)
	}
	who, err := b.issuedTo(ctx, e)
	if err != nil {
		if why := (*refusedError)(nil); errors.As(err, &why) {
			err = fmt.Errorf("%w: %w", ErrNoStanding, err)
		}
		return Standing{}, err
	}
	s := Standing{who}
	return s, b.StillStands(s)
}

// issuedTo finds out whose an SVID is.
func (b *Broker) issuedTo(ctx context.Context, e Evidence) (bearer, error) {
	row, err := b.lookUp(ctx, e)
	if err != nil {
		return bearer{}, err
	}
	who := bearer{Evidence: e, row: row, request: identity.Request{Ends: e.Expires}}
	if row.Node == "" {
		return who, nil
	}
	if who.node, _ = b.node(row.Node); who.node.ID == "" {
		return who, refused(DeniedEvicted, "%s, to which it was issued, has not joined", row.Node)
	}
	who.request.NodeID, who.request.Node = row.Node, who.node.Facts
	who.request.Presented = &identity.Presented{Identity: row.Identity, Revision: row.Revision, ID: e.ID}
	return who, nil
}

// StillStands looks again at what stood, without the store. The error wraps
// ErrNoStanding where it does not any more.
func (b *Broker) StillStands(s Standing) error {
	who, now := s.who, b.cfg.Now()
	set := b.policy.Load().Set
	switch {
	case who.row.Serial == "":
		return ErrNoStanding
	case !who.Expires.After(now):
		return fmt.Errorf("%w: it has ended", ErrNoStanding)
	case !set.Stands(who.row.Identity, who.row.Revision):
		return fmt.Errorf("%w: Identity %s, which gave it, is gone or has changed: get a new one", ErrNoStanding, who.row.Identity)
	}
	if err := b.stands(who); err != nil {
		return fmt.Errorf("%w: %w", ErrNoStanding, err)
	}
	if who.row.Node == "" {
		return nil
	}
	request := who.request
	request.Time = now
	if _, err := decideOne(b.policy.Load(), request, ""); err != nil {
		return fmt.Errorf("%w: %w", ErrNoStanding, err)
	}
	return nil
}
