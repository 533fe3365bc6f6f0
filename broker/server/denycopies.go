package server

import (
	"context"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
)

// A snapshot to start from is written some time after a change. Meanwhile copies of
// the Denies that it lacks stand in the deny file, so that no start forgets one that
// has held here.

// copied is what the copies were made of last.
type copied struct {
	state *state
	kept  uint64 // revision of the snapshot
}

// copyDenies has the deny file hold the Denies that the snapshot lacks, and no
// others. The caller holds applying.
func (s *Server) copyDenies(ctx context.Context) {
	if s.cfg.Keeper == nil {
		return
	}
	now := copied{s.state.Load(), s.cfg.Keeper.Kept()}
	if now.kept == 0 || now == s.copied { // without a snapshot nothing is started from
		return
	}
	s.copied = now
	lacks := map[string]uint64{}
	var fresh []broker.KeptDeny
	had := map[string]uint64{}
	for _, k := range s.cfg.Broker.KeptDenies() {
		if k.Revision != 0 {
			had[k.Name] = k.Revision
		}
	}
	var failed error
	for _, r := range now.state.resources {
		if r.row.Kind > "Deny" {
			break // they are sorted
		}
		if r.resource.Deny == nil || r.row.Revision <= now.kept {
			continue
		}
		lacks[r.row.Name] = r.row.Revision
		if had[r.row.Name] == r.row.Revision {
			continue
		}
		text, err := r.resource.Text()
		if err != nil {
			failed = err
		}
		fresh = append(fresh, broker.KeptDeny{Name: r.row.Name, Owner: r.row.Owner, Actor: r.row.Actor, At: r.row.WrittenAt, Revision: r.row.Revision, Text: text})
	}
	if failed == nil && len(lacks) <= broker.MaxKeptDenies && len(fresh) > 0 {
		failed = s.cfg.Broker.KeepDenies(fresh...)
	}
	if failed != nil || len(lacks) > broker.MaxKeptDenies {
		s.cfg.Keeper.Hurry()
	}
	err := s.cfg.Broker.ForgetDenies(func(k broker.KeptDeny) bool { return k.Revision != 0 && lacks[k.Name] != k.Revision })
	if failed != nil || err != nil {
		s.cfg.Log.WarnContext(ctx, "denies hold, and are not in the deny file: a start without the database forgets them until the next snapshot", "error", failed, "forgetting", err)
	}
}

// withCopies puts the copies over what a snapshot said that stands in for the store.
// Once the store is back, what was written after the snapshot is taken over, these
// among it.
func (s *Server) withCopies(all []*stored, last uint64) ([]*stored, error) {
	if absence, away := s.cfg.Store.Away(); !away || absence.Snapshot.IsZero() {
		return all, nil
	}
	var rows []*stored
	for _, k := range s.cfg.Broker.KeptDenies() {
		if k.Revision <= max(last, s.cfg.Since) {
			continue
		}
		r, err := s.read("Deny", k.Name, k.Text)
		if err != nil {
			return nil, err
		}
		rows = append(rows, keep(store.Resource{Name: k.Name, Revision: k.Revision, Owner: k.Owner, Actor: k.Actor, WrittenAt: k.At}, r))
	}
	return (&state{resources: all}).after(rows), nil
}
