package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/federation"
)

// How long the store is waited for, and since when brokers are told of that are
// there no more.
const (
	statusTime = 2 * time.Second
	goneFor    = 24 * time.Hour
)

// Status says how the broker does, whether the store answers or not.
func (a adminService) Status(ctx context.Context, _ *api.StatusRequest) (*api.StatusResponse, error) {
	s, o := a.s, a.s.Overview()
	r := &api.StatusResponse{
		TrustDomain: s.cfg.TrustDomain.Name(), Version: s.cfg.Version, Issuer: s.cfg.Issuer, StartedAt: s.started.Unix(), Listen: s.cfg.Listen,
		Revision: o.Written, PolicyRevision: o.Revision, Identities: uint32(o.Identities), Cutoffs: uint32(o.Counts.Cutoffs), SvidEnds: unix(o.OwnEnds), Unready: o.Unready,
		Nodes: uint32(o.Counts.Nodes + o.Counts.Ended + o.Counts.Evicted),
		Store: &api.StoreStatus{Away: o.Store.Away, Since: unix(o.Store.Since), Error: o.Store.Error, Revision: o.Written, Taken: o.Taken},
		Record: &api.RecordStatus{
			Sequence: o.Audit.Head.Sequence, Head: o.Audit.Head.Hash[:], Indexed: o.Counts.Indexed, FailingSince: unix(o.Audit.FailingSince),
			Error: o.Audit.Error, Free: o.Audit.Free, Waiting: uint32(o.Audit.Waiting),
		},
		NodeStates: &api.NodesStatus{
			Joined: uint32(o.Counts.Nodes), Ended: uint32(o.Counts.Ended), Evicted: uint32(o.Counts.Evicted), Overdue: uint32(o.Counts.Overdue),
			FirstEnds: unix(o.Counts.FirstEnds), Connected: uint32(o.Counts.Connected), Sessions: uint32(o.Counts.Sessions),
		},
	}
	for _, one := range o.Authorities {
		r.Authorities = append(r.Authorities, info(one))
	}
	for _, p := range o.Peers {
		r.Peers = append(r.Peers, peerInfo(p))
	}
	problems := s.problems(o)
	if s.cfg.Replica != nil {
		r.Name = s.cfg.Replica.Name
		r.Replicas, problems = s.replicas(ctx, problems)
	}
	r.Problems, r.Problem = problems, strings.Join(problems, "; ")
	return r, nil
}

// replicas are the brokers over the store, with what is wrong with them added.
func (s *Server) replicas(ctx context.Context, problems []string) ([]*api.ReplicaStatus, []string) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	now := s.cfg.Now()
	all, err := s.cfg.Store.Replicas(ctx, goneFor)
	if err != nil {
		return nil, append(problems, fmt.Sprintf("the other brokers are not known: %v", err))
	}
	var told []*api.ReplicaStatus
	for _, r := range all {
		gone := now.Sub(r.SeenAt) > store.GoneAfter
		if gone && r.Name != s.cfg.Replica.Name {
			problems = append(problems, fmt.Sprintf("broker %s was last seen at %s: start it; one that is gone for good is told of for a day", r.Name, stamp(r.SeenAt)))
		}
		told = append(told, &api.ReplicaStatus{
			Name: r.Name, Version: r.Version, StartedAt: unix(r.StartedAt), SeenAt: unix(r.SeenAt), Taken: r.Applied, Sequence: r.Head.Sequence, Connected: uint32(r.Connected), Gone: gone,
		})
	}
	return told, problems
}

// problems are what a person has to see to, the worst first.
func (s *Server) problems(o Overview) []string {
	all := slices.Concat(o.Unready, o.Notes)
	if !o.BehindSince.IsZero() && len(all) == 0 {
		all = append(all, fmt.Sprintf("resources are written that are not in force since %s: the log says why", stamp(o.BehindSince)))
	}
	for _, st := range o.Authorities {
		if st.Problem != "" && !strings.Contains(strings.Join(o.Unready, " "), st.Problem) {
			all = append(all, fmt.Sprintf("%s %s: %s", st.Use, st.ID, st.Problem))
		}
	}
	if n := o.Counts.Unsaved; n > 0 {
		all = append(all, fmt.Sprintf("%d revocations hold here and are not in the store yet: other brokers learn of them when it is back", n))
	}
	if lag := o.Counts.Record - o.Counts.Indexed; lag > indexBehind {
		all = append(all, fmt.Sprintf("the issuance index lacks the last %d records: what was just issued is not listed, nor put on CRLs; the log says why", lag))
	}
	if n := o.Counts.Overdue; n > 0 {
		all = append(all, fmt.Sprintf("%d nodes have not renewed their SVID, the first ends at %s (credence node list)", n, stamp(o.Counts.FirstEnds)))
	}
	for _, p := range o.Peers {
		if p.State == federation.Holding || p.State == federation.Closed || p.State == federation.Stale {
			all = append(all, fmt.Sprintf("peer %s is %s (credence peer show %s)", p.TrustDomain, p.State, p.TrustDomain))
		}
	}
	if s.cfg.AuditProblems != nil {
		all = append(all, s.cfg.AuditProblems()...)
	}
	return all
}

// indexBehind is how many records the index may lack: a second's at a high rate.
const indexBehind = 10_000
