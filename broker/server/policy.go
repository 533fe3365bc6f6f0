package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/federation"
)

// state is what the stored resources mean. It is immutable and swapped whole.
type state struct {
	resources []*stored // by kind and name
	last      uint64    // revision of the last resource written
	policy    *broker.Policy
	peers     []federation.Peer
}

// stored is a resource and, but for its text, the row that it stands in.
type stored struct {
	row      store.Resource
	resource resource.Resource
}

func (a *stored) compare(b *stored) int {
	return cmp.Or(strings.Compare(a.row.Kind, b.row.Kind), strings.Compare(a.row.Name, b.row.Name))
}

func (s *Server) policyRevision() uint64 { return s.state.Load().last }

func (s *Server) wantedFacts() []string { return s.state.Load().policy.Set.WantedFacts() }

// load makes the stored resources the policy. read is a state that has some of
// them read already, or nil. The caller holds applying.
func (s *Server) load(ctx context.Context, read *state) error {
	s.behind.Store(true) // until all of it is in force
	rows, last, err := s.cfg.Store.Resources(ctx)
	if err != nil {
		return err
	}
	if read != nil && last < read.last {
		return fmt.Errorf("loading resources: %w: they stand at revision %d, not %d", store.ErrOlder, last, read.last)
	}
	all, err := s.parsedAll(rows, read)
	if err != nil {
		return fmt.Errorf("loading resources: %w", err)
	}
	slices.SortFunc(all, (*stored).compare) // a database may have an order of its own
	if all, err = s.withCopies(all, last); err != nil {
		return fmt.Errorf("loading the Denies that the snapshot lacks: %w", err)
	}
	next, err := s.compile(all, last, read)
	if err != nil {
		return fmt.Errorf("loading resources: %w", err)
	}
	return s.enforce(ctx, next)
}

// enforce makes a state the policy that is written.
func (s *Server) enforce(ctx context.Context, next *state) error {
	s.behind.Store(true)
	if err := s.adopt(ctx, next); err != nil {
		return err
	}
	s.copyDenies(ctx)
	s.behind.Store(false)
	return nil
}

// many resources leave so much garbage when they are compiled that it is worth
// giving back: what is idle then may stay so for long.
const many = 5000

// adopt swaps the policy, tells every stream, and sets the peers. If that fails
// the rest is in force.
func (s *Server) adopt(ctx context.Context, next *state) error {
	s.gone.note(s.state.Swap(next), next, s.cfg.Now())
	s.cfg.Broker.SetPolicy(next.policy)
	s.changed.ring()
	return s.cfg.Peers.SetPeers(ctx, next.peers)
}

// compile holds resources against each other, which are sorted. What before,
// which may be nil, has compiled already stays.
func (s *Server) compile(resources []*stored, last uint64, before *state) (*state, error) {
	return s.compileBy(s.policyConfig(), resources, last, before)
}

func (s *Server) compileBy(policy identity.Config, resources []*stored, last uint64, before *state) (*state, error) {
	s.grown.Store(len(resources) >= many)
	st := &state{
		resources: resources, last: last,
		policy: &broker.Policy{Revision: last, Targets: map[string]broker.Target{}},
	}
	all := identity.Resources{Identities: make([]identity.Identity, 0, len(resources))}
	for _, r := range resources {
		if err := s.collect(st, &all, r.resource, r.row.Revision); err != nil {
			return nil, err
		}
	}
	for _, h := range s.hereDenies() {
		all.Denies = append(all.Denies, h.policy())
	}
	var compiled *identity.Set
	if before != nil {
		compiled = before.policy.Set
	}
	set, err := compiled.Replace(policy, all)
	if err != nil {
		return nil, err
	}
	st.policy.Set = set
	return st, nil
}

// parsedAll reads rows on all processors: they are most of a start.
func (s *Server) parsedAll(rows []store.Resource, read *state) ([]*stored, error) {
	all := make([]*stored, len(rows))
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for first := range errs {
		wg.Go(func() {
			for i := first; i < len(rows) && errs[first] == nil; i += len(errs) {
				all[i], errs[first] = s.parsed(rows[i], read)
				rows[i].Body = nil // it has been read
			}
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

// parsed reads a row, or takes what it was read as before.
func (s *Server) parsed(row store.Resource, read *state) (*stored, error) {
	if known, ok := read.find(row.Kind, row.Name); ok && known.row.Revision == row.Revision {
		return known, nil
	}
	r, err := s.read(row.Kind, row.Name, row.Body)
	return keep(row, r), err
}

// read reads the text of one resource.
func (s *Server) read(kind, name string, text []byte) (resource.Resource, error) {
	parsed, err := s.cfg.Resources.Read("store", text) // no string for each: it is kept
	if err != nil {
		return resource.Resource{}, fmt.Errorf("%s %s: %w", kind, name, err)
	}
	if len(parsed) != 1 || parsed[0].Kind != kind || parsed[0].Name != name {
		return resource.Resource{}, fmt.Errorf("%s %s: it does not hold what its name says", kind, name)
	}
	return parsed[0], nil
}

// keep is what is kept of a resource: not its text, which can be written
// again, and what many have alike only once.
func keep(row store.Resource, r resource.Resource) *stored {
	row.Kind, row.Name, row.Body = r.Kind, r.Name, nil
	row.Owner, row.Actor = unique.Make(row.Owner).Value(), unique.Make(row.Actor).Value()
	return &stored{row, r.WithoutText()}
}

// collect adds one resource to what they mean together. The resource is shared
// with other states: its revision is set in copies.
func (s *Server) collect(st *state, all *identity.Resources, r resource.Resource, revision uint64) error {
	switch {
	case r.Identity != nil:
		i := *r.Identity
		i.Revision = revision
		all.Identities = append(all.Identities, i)
	case r.Deny != nil:
		d := *r.Deny
		d.Revision = revision
		all.Denies = append(all.Denies, d)
	case r.JoinRule != nil:
		j := *r.JoinRule
		j.Revision = revision
		st.policy.Rules = append(st.policy.Rules, j)
	case r.Peer != nil:
		p := *r.Peer
		p.Revision = revision
		if err := p.ValidateFor(s.cfg.TrustDomain); err != nil {
			return &identity.Error{Kind: "Peer", Name: r.Name, Msg: err.Error()}
		}
		st.peers = append(st.peers, p)
		all.Peers = append(all.Peers, r.Name)
	case r.Target != nil:
		wire, err := r.Target.Wire()
		if err != nil {
			return &identity.Error{Kind: "Target", Name: r.Name, Msg: err.Error()}
		}
		st.policy.Targets[r.Name] = broker.Target{Name: r.Name, Revision: revision, Flow: r.Target.Flow, Settings: wire}
		all.Targets = append(all.Targets, resource.PolicyTarget(*r.Target, revision))
	}
	return nil
}

// A change is one to write, and what it holds.
type change struct {
	store.Change
	resource resource.Resource
}

// change checks what would stand after the changes, records the act, writes
// them, and adopts what stands, which it returns; of a dry run what would. A
// mistake in what was parsed gets its place. The caller holds applying.
func (s *Server) change(ctx context.Context, now *state, act store.Act, parsed []resource.Resource, changes []change, dry bool) (*state, error) {
	if err := s.judged(ctx, now, act, changes); err != nil {
		return nil, err
	}
	next, err := s.standing(now, now, changes, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRequest, resource.Locate(err, parsed))
	}
	if dry || len(changes) == 0 {
		return next, nil
	}
	// From here on the caller's patience does not matter: what is written must
	// come into force.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	// Recorded before it is done: an act that fails after this stands in the
	// record without effect, but none has effect without standing there.
	if _, err := s.cfg.Audit.Append(ctx, changeEvents(act, changes, "")...); err != nil {
		return nil, fmt.Errorf("recording the change: %w", err)
	}
	written, err := s.cfg.Store.Apply(ctx, now.last, act, texts(changes))
	if err != nil {
		s.behind.Store(true) // somebody else wrote, or we don't know
		if _, unrecorded := s.cfg.Audit.Append(ctx, changeEvents(act, changes, err.Error())...); unrecorded != nil {
			s.cfg.Log.ErrorContext(ctx, "recording that a change failed", "error", unrecorded)
		}
		return nil, err
	}
	// Nobody wrote between, so what stands is what stood with the changes.
	s.behind.Store(true)
	stands, err := s.standing(now, next, changes, written)
	if err == nil {
		err = s.enforce(ctx, stands)
	}
	if err != nil {
		return nil, fmt.Errorf("the change is written, and comes into force when this is mended: %w", err)
	}
	return stands, nil
}

func texts(changes []change) []store.Change {
	all := make([]store.Change, len(changes))
	for i, c := range changes {
		all[i] = c.Change
	}
	return all
}

// changeTime bounds writing a change and bringing it into force.
const changeTime = 30 * time.Second

// changeEvents are the records of a change: of one that is about to be made
// or, with a reason, of one that failed.
func changeEvents(act store.Act, changes []change, failed string) []audit.Event {
	var events []audit.Event
	for _, c := range changes {
		kind := "apply"
		if c.Body == nil {
			kind = "delete"
		}
		e := audit.Event{Kind: kind, OK: failed == "", Actor: act.Actor, Reason: failed, Detail: map[string]string{
			"kind": c.Kind, "name": c.Name, "owner": c.Owner, "sha256": digest(c.Body),
		}}
		if act.What != kind {
			e.Detail["act"] = act.What // a rollback, or an apply that deletes
		}
		if c.From != "" && c.From != c.Owner {
			e.Detail["taken_from"] = c.From
		}
		events = append(events, e)
	}
	return events
}

// find returns what stands under a name; nothing does in no state.
func (st *state) find(kind, name string) (*stored, bool) {
	if st == nil {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(st.resources, &stored{row: store.Resource{Kind: kind, Name: name}}, (*stored).compare)
	if !ok {
		return nil, false
	}
	return st.resources[i], true
}

// few changes of Identities and Denies are made in what is compiled: more cost
// less together.
const few = 256

// standing is what stands after the changes, as they were written or, where
// nothing is written yet, with the last revision. compiled is now, or that with
// the changes made already.
func (s *Server) standing(now, compiled *state, changes []change, written []store.Resource) (*state, error) {
	rows := make([]*stored, len(changes))
	last := now.last
	for n, c := range changes {
		row := store.Resource{Kind: c.Kind, Name: c.Name, Revision: now.last, Owner: c.Owner}
		if written != nil {
			row = written[n]
			last = row.Revision
		}
		rows[n] = &stored{row: row}
		if c.Body != nil {
			rows[n] = keep(row, c.resource)
		}
	}
	return s.with(now, compiled, rows, last)
}

// with is what stands with rows in place of those of their names, written up to a
// revision; ones without a resource go.
func (s *Server) with(now, compiled *state, rows []*stored, last uint64) (*state, error) {
	all := now.after(rows)
	ch, ok := identityChanges(rows)
	if !ok {
		return s.compile(all, last, compiled)
	}
	set, difference, err := compiled.policy.Set.Change(ch)
	if err != nil {
		return nil, err
	}
	if compiled != now {
		difference = compiled.policy.Difference // of the same Identities and Denies
	}
	policy := *now.policy
	policy.Revision, policy.Set, policy.Difference = last, set, difference
	return &state{resources: all, last: last, policy: &policy, peers: now.peers}, nil
}

// identityChanges are few changes of Identities and Denies alone; rows without a
// resource go.
func identityChanges(rows []*stored) (ch identity.Changes, ok bool) {
	if len(rows) > few {
		return ch, false
	}
	for _, r := range rows {
		switch {
		case r.resource.Identity != nil:
			i := *r.resource.Identity
			i.Revision = r.row.Revision
			ch.Identities = append(ch.Identities, i)
		case r.resource.Deny != nil:
			d := *r.resource.Deny
			d.Revision = r.row.Revision
			ch.Denies = append(ch.Denies, d)
		case r.row.Kind == "Identity" && r.resource.Name == "":
			ch.WithoutIdentities = append(ch.WithoutIdentities, r.row.Name)
		case r.row.Kind == "Deny" && r.resource.Name == "":
			ch.WithoutDenies = append(ch.WithoutDenies, r.row.Name)
		default:
			return ch, false
		}
	}
	return ch, true
}

// after is what stands with rows in place of those of their names; ones without
// a resource go.
func (st *state) after(rows []*stored) []*stored {
	rows = slices.SortedFunc(slices.Values(rows), (*stored).compare)
	all := make([]*stored, 0, len(st.resources)+len(rows))
	left := st.resources
	for _, r := range rows {
		at, known := slices.BinarySearchFunc(left, r, (*stored).compare)
		all = append(all, left[:at]...)
		if left = left[at:]; known {
			left = left[1:]
		}
		if r.resource.Name != "" {
			all = append(all, r)
		}
	}
	return append(all, left...)
}
