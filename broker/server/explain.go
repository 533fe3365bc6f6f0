package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
)

// How often nodes are told why: one of them, and all of them together. A look at
// every Identity takes milliseconds, and who makes up workloads is not to be told
// of many.
const (
	whyBurst, whyRate       = 10, 1.0 / 6
	allWhyBurst, allWhyRate = 30, 3
)

// Codes of explanations that policy alone doesn't give.
const (
	codeEvicted = "node_evicted"
	codeDeleted = "identity_deleted"
	codeChanged = "identity_changed"
)

// Explain says why a workload gets what it gets, or what was nearest; or, with
// reach, who can get an Identity now, or what can be got on a node.
func (a adminService) Explain(ctx context.Context, r *api.ExplainRequest) (*api.ExplainResponse, error) {
	if r.GetReach() {
		return a.reach(ctx, r)
	}
	request, node, err := a.question(r)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	set := a.s.state.Load().policy.Set
	x := set.Explain(request)
	if name := r.GetIdentity(); name != "" {
		if _, ok := set.ReachOf(name, nil); !ok {
			return nil, a.fail(ctx, a.noIdentity(name))
		}
		x = set.ExplainIdentity(request, name)
	}
	x.Because(r.GetWhy())
	switch {
	case !node.EvictedAt.IsZero():
		x.Code, x.Granted = codeEvicted, nil
		x.Withheld = fmt.Sprintf("node %s was evicted at %s: nobody on it gets anything; credence node allow %s lets it come back", node.ID, clock(node.EvictedAt), node.Name)
	case x.Code == identity.CodeNoIdentity:
		if code, text := a.s.gone.explain(a.s.policyConfig(), request, a.s.cfg.Now()); code != "" {
			x.Code, x.Withheld = code, text
		}
	}
	return a.explained(ctx, x, x.String(), len(x.Granted) > 0, x.Code)
}

func (a adminService) explained(ctx context.Context, v any, text string, granted bool, code string) (*api.ExplainResponse, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.ExplainResponse{Text: text, Json: doc, Granted: granted, Code: code}, nil
}

// question is what an operator asks about. Facts of a node that joined are
// those that it proved; without one the operator may say some.
func (a adminService) question(r *api.ExplainRequest) (q identity.Request, n broker.Node, err error) {
	q = identity.Request{Unknown: r.GetUnknown(), Audiences: r.GetAudiences(), Target: r.GetTarget(), Time: a.s.cfg.Now()}
	byRoot := map[string]map[string][]string{}
	for name, v := range r.GetFacts() {
		root, _, _ := strings.Cut(name, ".")
		if byRoot[root] == nil {
			byRoot[root] = map[string][]string{}
		}
		byRoot[root][name] = v.GetValues()
	}
	into := map[string]*identity.Facts{"workload": &q.Workload, "node": &q.Node, "user": &q.User, "peer": &q.Peer}
	for root, facts := range byRoot {
		to := into[root]
		if to == nil || root != "workload" && r.GetNode() != "" {
			return q, n, fmt.Errorf("%w: facts of %s.* are not taken: of workload.* they are, and, where no node is named, of node.*, user.* or peer.*", broker.ErrRequest, root)
		}
		if *to, err = identity.NewFacts(root, facts); err != nil {
			return q, n, fmt.Errorf("%w: %w", broker.ErrRequest, err)
		}
	}
	if r.GetNode() != "" {
		if n, err = a.findNode(r.GetNode()); err != nil {
			return q, n, err
		}
		q.NodeID, q.Node = n.ID, n.Facts
	}
	return q, n, nil
}

// noIdentity says that there is none of this name, and whether there was one a
// moment ago.
func (a adminService) noIdentity(name string) error {
	if at, ok := a.s.gone.deleted(name, a.s.cfg.Now()); ok {
		return fmt.Errorf("identity %s: %w: it was deleted %s ago", name, broker.ErrNotFound, a.s.cfg.Now().Sub(at).Round(time.Second))
	}
	return fmt.Errorf("identity %s: %w", name, broker.ErrNotFound)
}

func (a adminService) reach(ctx context.Context, r *api.ExplainRequest) (*api.ExplainResponse, error) {
	set := a.s.state.Load().policy.Set
	var reach identity.Reach
	switch {
	case len(r.GetFacts())+len(r.GetUnknown())+len(r.GetAudiences()) > 0 || r.GetTarget() != "" || (r.GetNode() == "") == (r.GetIdentity() == ""):
		return nil, a.fail(ctx, fmt.Errorf("%w: what can be reached is asked of one identity or one node, and of nothing else", broker.ErrRequest))
	case r.GetIdentity() != "":
		var ok bool
		if reach, ok = set.ReachOf(r.GetIdentity(), a.places()); !ok {
			return nil, a.fail(ctx, a.noIdentity(r.GetIdentity()))
		}
	default:
		n, err := a.findNode(r.GetNode())
		if err != nil {
			return nil, a.fail(ctx, err)
		}
		if !n.EvictedAt.IsZero() {
			x := identity.Explanation{Code: codeEvicted, Withheld: fmt.Sprintf("node %s was evicted at %s: nobody on it gets anything", n.ID, clock(n.EvictedAt))}
			return a.explained(ctx, x, x.String(), false, codeEvicted)
		}
		reach = set.ReachFrom(identity.Place{ID: n.ID, Facts: n.Facts})
	}
	got := slices.ContainsFunc(reach.Ways, func(w identity.Way) bool { return w.Callers != "" || w.Count > len(w.Denied) })
	code := identity.CodeNoIdentity
	if got {
		code = identity.CodeGranted
	}
	return a.explained(ctx, reach, reach.String(), got, code)
}

// places are the nodes that are welcome, by ID.
func (a adminService) places() (all []identity.Place) {
	for _, n := range a.s.cfg.Broker.Nodes() {
		if n.EvictedAt.IsZero() {
			all = append(all, identity.Place{ID: n.ID, Facts: n.Facts})
		}
	}
	slices.SortFunc(all, func(x, y identity.Place) int { return strings.Compare(x.ID, y.ID) })
	return all
}

// Explain tells a node what one of its workloads misses.
func (n nodeService) Explain(ctx context.Context, r *api.NodeExplainRequest) (*api.NodeExplainResponse, error) {
	w, set, err := workload(r.GetWorkload())
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	node := callerNode(ctx)
	wait, ok := n.s.whys.take(node.ID)
	if ok {
		wait, ok = n.s.allWhys.take("")
	}
	if !ok {
		return nil, withReason(codes.ResourceExhausted, fmt.Sprintf("asked too often why: again in %s", wait.Round(time.Second)), "TOO_MANY")
	}
	if err := n.prove(ctx, shows(&w, r.GetWorkload())...); err != nil {
		return nil, n.fail(ctx, err)
	}
	why, err := n.s.cfg.Broker.Explain(ctx, node, broker.JWTRequest{Workload: w, Set: set, Audiences: r.GetAudiences(), Target: r.GetTarget()})
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	response := &api.NodeExplainResponse{Granted: why.Denial == nil, Denial: denial(why.Denial)}
	for _, m := range why.Near {
		response.Near = append(response.Near, &api.NodeExplainResponse_Near{Identity: m.Identity, Item: uint32(m.Item), Missing: m.Missing, When: m.When, Code: m.Code})
	}
	return response, nil
}

// What was changed or deleted is told of for a while.
const (
	maxGone  = 16
	goneTime = 10 * time.Minute
)

// gone are the Identities that stood a moment ago, as they stood: who has just
// lost one asks why.
type gone struct {
	mu  sync.Mutex // guards all
	all []former
}

type former struct {
	identity.Identity
	at      time.Time
	changed bool // it stands, otherwise
}

// note compares what stands with what stood; both are sorted.
func (g *gone) note(before, after *state, now time.Time) {
	if before == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	next := after.resources
	for _, r := range before.resources {
		if len(next) > 0 && next[0] == r {
			next = next[1:]
			continue
		}
		for len(next) > 0 && next[0].compare(r) < 0 {
			next = next[1:]
		}
		same := len(next) > 0 && next[0].compare(r) == 0
		if r.resource.Identity == nil || same && next[0].row.Revision == r.row.Revision {
			continue
		}
		g.all = append(g.all, former{*r.resource.Identity, now, same})
		if len(g.all) > maxGone {
			g.all = slices.Delete(g.all, 0, 1)
		}
	}
}

// recent are those of the last minutes, the last of each name.
func (g *gone) recent(now time.Time) map[string]former {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make(map[string]former, len(g.all))
	for _, f := range g.all {
		if now.Sub(f.at) < goneTime {
			all[f.Name] = f
		}
	}
	return all
}

func (g *gone) deleted(name string, now time.Time) (time.Time, bool) {
	f, ok := g.recent(now)[name]
	return f.at, ok && !f.changed
}

// explain says whether an Identity that is gone would have granted it; a code,
// or none.
func (g *gone) explain(config identity.Config, r identity.Request, now time.Time) (code, text string) {
	recent := g.recent(now)
	if len(recent) == 0 {
		return "", ""
	}
	var then identity.Resources
	for _, f := range recent {
		then.Identities = append(then.Identities, f.Identity)
		then.Peers = append(then.Peers, f.FederatesWith...)
		for _, name := range f.Targets {
			then.Targets = append(then.Targets, identity.Target{Name: name, Audience: name})
		}
	}
	slices.Sort(then.Peers)
	then.Peers = slices.Compact(then.Peers)
	slices.SortFunc(then.Targets, func(x, y identity.Target) int { return strings.Compare(x.Name, y.Name) })
	then.Targets = slices.CompactFunc(then.Targets, func(x, y identity.Target) bool { return x.Name == y.Name })
	set, err := identity.NewSet(config, then)
	if err != nil {
		return "", ""
	}
	all := set.Explain(r).Granted
	if len(all) == 0 {
		return "", ""
	}
	granted := all[0]
	f := recent[granted.Identity]
	ago := now.Sub(f.at).Round(time.Second)
	if f.changed {
		return codeChanged, fmt.Sprintf("Identity %s gave it %s until it was changed %s ago", granted.Identity, granted.SPIFFEID, ago)
	}
	return codeDeleted, fmt.Sprintf("Identity %s gave it %s until it was deleted %s ago", granted.Identity, granted.SPIFFEID, ago)
}
