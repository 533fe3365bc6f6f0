package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// Revoked is what a cut-off did.
type Revoked struct {
	Cutoff Cutoff // as it stands: an earlier one may reach further
	// What it revokes and has not ended, newest first, up to MaxIssued; and how
	// many there are. Those of X509-SVIDs are on the CRLs of their CAs, but for
	// what Problems says.
	Serials []Issued
	Count   int
	// What the operator should know: what is not durable everywhere yet, or why
	// Serials may lack some.
	Problems []string
}

// How long Revoke waits for what it does besides: the cut-off holds before.
const (
	revokeTime = 20 * time.Second
	indexTime  = 5 * time.Second
	storeTime  = 5 * time.Second
)

// Revoke makes that nothing counts any more which was issued before c.Before,
// by default now: a node's SVID is refused here, agents erase what falls under
// it and ask again, and their validators refuse tokens. It holds in memory at
// once and is durable in the deny file, without the store, when Revoke
// returns. An error that wraps ErrRequest means that nothing was done; with any
// other the cut-off holds all the same, and the error says for how long.
//
// Validators of JWT-SVIDs know cut-offs of SPIFFE IDs and authorities alone: a
// token names neither its Identity nor its node.
func (b *Broker) Revoke(ctx context.Context, c Cutoff) (Revoked, error) {
	if err := b.checkCutoff(&c); err != nil {
		return Revoked{}, fmt.Errorf("revoking: %w", err)
	}
	// What has begun is done, though the operator may have gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTime)
	defer cancel()
	standing, kept := b.cut(c, true)
	r := Revoked{Cutoff: standing}
	saved := b.saveCutoffs(ctx)
	if kept != nil && saved != nil {
		return r, fmt.Errorf("revoking %s %s: it holds only until this broker stops: %w; %w", c.Kind, c.Value, kept, saved)
	}
	if kept != nil {
		r.Problems = append(r.Problems, fmt.Sprintf("it stands in the store only: %v", kept))
	}
	if saved != nil {
		r.Problems = append(r.Problems, fmt.Sprintf("it stands on this broker's disk only, and goes to the store when that is back: %v", saved))
	}
	refs, unrecorded := b.cfg.Audit.Append(ctx, revocation(c, standing))
	if unrecorded != nil {
		return r, fmt.Errorf("revoking %s %s: it is done, but that is not recorded: %w", c.Kind, c.Value, unrecorded)
	}
	b.list(ctx, refs[0].Sequence, &r)
	return r, nil
}

// checkCutoff refuses what cannot be meant.
func (b *Broker) checkCutoff(c *Cutoff) error {
	if err := CheckCutoff(b.cfg.TrustDomain, *c); err != nil {
		return err
	}
	now, have := b.cfg.Now(), b.cuts.Load().all
	c.MadeAt = now
	if _, stands := have[c.key()]; !stands && len(have) >= MaxCutoffs {
		return requestError("%d cut-offs stand already: revoke an identity or an authority instead of many IDs", len(have))
	}
	switch {
	case c.Before.IsZero():
		return nil
	case c.Before.After(now):
		return requestError("before %s: that is in the future, and what will be issued cannot be revoked: a Deny withholds it", c.Before.UTC().Format(time.RFC3339))
	case b.spent(*c, now):
		return requestError("before %s: all that was issued before it has ended", c.Before.UTC().Format(time.RFC3339))
	}
	return nil
}

// spent says whether nothing lives any more that a cut-off could hit.
func (b *Broker) spent(c Cutoff, now time.Time) bool {
	return now.After(c.Before.Add(b.cfg.LongestLife))
}

// cut makes a cut-off hold, and tells the sessions if tell is set; then it
// keeps it in the deny file: the error is of that. One that reaches no further
// than what stands changes nothing.
func (b *Broker) cut(c Cutoff, tell bool) (standing Cutoff, err error) {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	next, standing := b.swapCuts(c, tell)
	if next == nil {
		return standing, b.mendDeny()
	}
	b.unsaved[standing.key()] = standing
	b.listing.add(standing.key())
	return standing, b.file.append(next.all, deniedBy(standing))
}

// mendDeny writes the deny file anew if its end is not whole. The caller holds
// revoking.
func (b *Broker) mendDeny() error {
	if !b.file.dirty {
		return nil
	}
	return b.file.rewrite(b.cuts.Load().all)
}

// swapCuts is the moment from which a cut-off holds. Its time is taken here:
// whatever is released before falls under it, whatever is not is refused by
// release. The caller holds revoking.
func (b *Broker) swapCuts(c Cutoff, tell bool) (next *cuts, standing Cutoff) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.Before.IsZero() {
		c.Before = b.cfg.Now()
	}
	c.Before = wholeMillis(c.Before)
	have := b.cuts.Load().all
	standing, ok := have[c.key()]
	if ok && !standing.Before.Before(c.Before) {
		return nil, standing
	}
	all := maps.Clone(have)
	all[c.key()] = c
	next = newCuts(all)
	b.cuts.Store(next)
	if tell {
		b.tellCut(c)
	}
	return next, c
}

// tellCut tells every session what a cut-off does to it. The caller holds mu.
func (b *Broker) tellCut(c Cutoff) {
	now := b.cfg.Now()
	for node, sessions := range b.sessions {
		for _, s := range sessions {
			s.cut(c, b.ground(node), b.nodes[node], now)
		}
	}
}

// wholeMillis rounds up to what the store and the deny file keep: nothing that
// was issued before is taken for issued after.
func wholeMillis(t time.Time) time.Time {
	if down := t.Truncate(time.Millisecond); down.Before(t) {
		return down.Add(time.Millisecond)
	}
	return t
}

func revocation(asked, standing Cutoff) audit.Event {
	about := asked.query()
	return audit.Event{
		Kind: "revoke", OK: true, Actor: asked.Actor, Reason: asked.Reason,
		SPIFFEID: about.SPIFFEID, Identity: about.Identity, Node: about.Node, Authority: about.Authority,
		Detail: map[string]string{"kind": asked.Kind, "value": asked.Value, "before": standing.Before.UTC().Format(time.RFC3339Nano)},
	}
}

// list asks the index what a cut-off revokes, once all that was recorded before
// it is there: what is recorded after it is not released.
func (b *Broker) list(ctx context.Context, recorded uint64, r *Revoked) {
	indexing, cancel := context.WithTimeout(ctx, indexTime)
	defer cancel()
	if !b.indexer.wait(indexing, recorded) {
		r.Problems = append(r.Problems, "serials may lack the newest: the index is behind the record")
	}
	q := r.Cutoff.query()
	q.LiveAt, q.Limit = b.cfg.Now(), MaxIssued
	var err error
	if r.Serials, r.Count, err = b.cfg.Index.Issued(ctx, q); err != nil {
		r.Problems = append(r.Problems, fmt.Sprintf("serials are not known: %v", err))
	}
	if r.Count > len(r.Serials) {
		r.Problems = append(r.Problems, fmt.Sprintf("serials are the newest %d of %d", len(r.Serials), r.Count))
	}
	b.listing.add(r.Cutoff.key()) // though it may have been done a moment ago: what it refuses is told here
	refused, err := b.listCut(ctx, r.Cutoff.key())
	if err != nil {
		refused = []string{fmt.Sprintf("not all of it is on the CRLs yet, and will be when this is mended: %v", err)}
	}
	r.Problems = append(r.Problems, refused...)
}

// Unreplaced says how many X509-SVIDs of other authorities live without a
// successor of the same ID, Identity and node by these, and when the last of
// them ends. All that was recorded up to a place is counted; where the index
// does not get there, that is an error.
func (b *Broker) Unreplaced(ctx context.Context, recorded uint64, authorities []string) (count int, until time.Time, err error) {
	indexing, cancel := context.WithTimeout(ctx, indexTime)
	defer cancel()
	if !b.indexer.wait(indexing, recorded) {
		return 0, time.Time{}, errors.New("counting SVIDs that are not replaced: the index is behind the record")
	}
	return b.cfg.Index.Unreplaced(ctx, authorities, b.cfg.Now())
}

// Cutoffs returns the cut-offs that stand, the latest first.
func (b *Broker) Cutoffs(context.Context) ([]Cutoff, error) {
	return slices.SortedFunc(maps.Values(b.cuts.Load().all), func(x, y Cutoff) int {
		if c := y.Before.Compare(x.Before); c != 0 {
			return c
		}
		return compareCutoffs(x, y)
	}), nil
}

// loadCutoffs takes up what the deny file has and, if the store answers, what
// that has.
func (b *Broker) loadCutoffs(ctx context.Context) error {
	deny, kept, err := openDenyFile(b.cfg.DenyFile, b.cfg.TrustDomain)
	if err != nil {
		return err
	}
	b.file, b.unsaved = deny, make(map[cutKey]Cutoff)
	b.unsure = make(map[string]bool)
	all := make(map[cutKey]Cutoff)
	now := b.cfg.Now()
	for _, c := range kept {
		if !b.spent(c, now) && c.Before.After(all[c.key()].Before) {
			all[c.key()], b.unsaved[c.key()] = c, c
		}
	}
	b.cuts.Store(newCuts(all))
	for key := range all {
		b.listing.add(key) // nobody knows how far it got before
	}
	if err := b.readCutoffs(ctx); err != nil {
		b.cfg.Log.WarnContext(ctx, "revocations of other brokers are not known until the store answers", "error", err)
	}
	return nil
}

// readCutoffs makes hold here all that stands in the store, until that has
// worked once: what is written from then on is taken as it comes.
func (b *Broker) readCutoffs(ctx context.Context) error {
	if b.read.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	stored, _, err := b.cfg.Store.Cutoffs(ctx, 0)
	if err != nil {
		return err
	}
	if err := b.takeCutoffs(stored); err != nil {
		return err
	}
	b.read.Store(true)
	return nil
}

// takeCutoffs makes hold here what stands in the store.
func (b *Broker) takeCutoffs(stored []Cutoff) error {
	now := b.cfg.Now()
	var failed error
	for _, c := range stored {
		if b.spent(c, now) {
			continue
		}
		err := CheckCutoff(b.cfg.TrustDomain, c)
		if err == nil {
			_, err = b.cut(c, true)
		}
		failed = errors.Join(failed, err)
		b.cutoffSaved(c)
	}
	return failed
}

// cutoffSaved notes that the store has a cut-off.
func (b *Broker) cutoffSaved(c Cutoff) {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	if have, ok := b.unsaved[c.key()]; ok && !have.Before.After(c.Before) {
		delete(b.unsaved, c.key())
	}
}

// saveCutoffs takes to the store what it does not have yet.
func (b *Broker) saveCutoffs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	b.revoking.Lock()
	unsaved := slices.Collect(maps.Values(b.unsaved))
	b.revoking.Unlock()
	for _, c := range unsaved {
		if err := b.cfg.Store.SaveCutoff(ctx, c); err != nil {
			return err
		}
		b.cutoffSaved(c)
	}
	return nil
}

// dropCutoffs forgets the cut-offs that nothing alive falls under.
func (b *Broker) dropCutoffs(ctx context.Context) error {
	now := b.cfg.Now()
	if err := b.dropHere(now); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	return b.cfg.Store.ForgetCutoffs(ctx, now.Add(-b.cfg.LongestLife-time.Millisecond))
}

func (b *Broker) dropHere(now time.Time) error {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	all := maps.Clone(b.cuts.Load().all)
	before := len(all)
	maps.DeleteFunc(all, func(_ cutKey, c Cutoff) bool { return b.spent(c, now) })
	if len(all) == before {
		return b.mendDeny()
	}
	maps.DeleteFunc(b.unsaved, func(k cutKey, _ Cutoff) bool { _, stands := all[k]; return !stands })
	b.mu.Lock()
	b.cuts.Store(newCuts(all))
	for _, sessions := range b.sessions {
		for _, s := range sessions {
			s.signal()
		}
	}
	b.mu.Unlock()
	return b.file.rewrite(all)
}

// What Run does, and how often.
const (
	tendEvery    = time.Second
	dropEvery    = time.Minute
	forgetAfter  = 24 * time.Hour // from an SVID's end
	forgetNode   = 30 * 24 * time.Hour
	forgetAtOnce = 500 // rows
	forgetRounds = 40
)

// Run keeps the issuance index up with the record, and the CRLs with what is
// revoked, and forgets what no longer matters, until ctx ends. It returns nil
// then. Nothing that is issued waits for it, and without changes it asks the store
// once a minute.
func (b *Broker) Run(ctx context.Context) error {
	indexing := make(chan struct{})
	go func() { b.indexer.run(ctx); close(indexing) }()
	defer func() { <-indexing }()
	listing := make(chan struct{})
	go func() { b.keepListing(ctx); close(listing) }()
	defer func() { <-listing }()
	var dropped time.Time
	away := false
	for {
		err := errors.Join(b.readCutoffs(ctx), b.saveCutoffs(ctx), b.saveEvictions(ctx))
		if now := b.cfg.Now(); now.Sub(dropped).Abs() >= dropEvery {
			dropped = now
			err = errors.Join(err, b.dropCutoffs(ctx), b.forgetIssued(ctx, now), b.forgetNodes(ctx, now))
		}
		if err != nil && !away && ctx.Err() == nil {
			b.cfg.Log.WarnContext(ctx, "revocations are not in step with the store; those that are known hold", "error", err)
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tendEvery):
		}
	}
}

// forgetNodes removes nodes that joined by a JoinRule and have been gone for
// thirty days, or for one where their durable key has a later node. They prove
// themselves anew when they come back, as they would have had to.
func (b *Broker) forgetNodes(ctx context.Context, now time.Time) error {
	ids, err := b.cfg.Store.ForgetNodes(ctx, Ended{Before: now.Add(-forgetNode), FormerBefore: now.Add(-forgetAfter), Most: forgetAtOnce})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		if n := b.nodes[id]; n.ExpiresAt.Before(now.Add(-forgetAfter)) { // it has not joined again since
			delete(b.nodes, id)
		}
	}
	return nil
}

// forgetIssued removes what ended a day ago from the index, some at a time.
func (b *Broker) forgetIssued(ctx context.Context, now time.Time) error {
	for range forgetRounds {
		n, err := b.cfg.Index.ForgetIssued(ctx, now.Add(-forgetAfter), forgetAtOnce)
		if err != nil || n < forgetAtOnce {
			return err
		}
	}
	return nil
}
