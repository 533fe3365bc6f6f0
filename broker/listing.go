package broker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// A Lister keeps the CRLs of our CAs.
type Lister interface {
	// List puts X509-SVIDs on the CRLs of the CAs that signed them, durably;
	// those that are there already stay. What no CRL takes is in refused, in
	// words for the operator. An error means that it is worth another try.
	List(ctx context.Context, rows []Issued, reason string) (refused []string, err error)
}

// A listing knows which cut-offs revoke X509-SVIDs that may not be on a CRL
// yet. It need not survive: whatever stands is looked at anew at the start.
type listing struct {
	turn chan struct{} // holds one while SVIDs are put on CRLs
	wake chan struct{} // of capacity 1

	mu  sync.Mutex // guards due
	due map[cutKey]bool
}

func newListing() *listing {
	return &listing{turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), due: make(map[cutKey]bool)}
}

func (l *listing) add(key cutKey) {
	l.mu.Lock()
	l.due[key] = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *listing) take(key cutKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.due[key]
	delete(l.due, key)
	return due
}

func (l *listing) all() []cutKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.due))
}

// indexed is told of rows after they are in the index. Those that a cut-off
// revokes were not there when it was made, or may not have been.
func (b *Broker) indexed(rows []Issued) {
	cuts, now := b.cuts.Load(), b.cfg.Now()
	if len(cuts.all) == 0 {
		return
	}
	for _, i := range rows {
		if i.Kind != KindX509 || !i.ExpiresAt.After(now) {
			continue
		}
		if cut, hit := cuts.hit(i); hit && cut.Value != "" { // else nobody knows whose CRL it would be
			b.listing.add(cut.key())
		}
	}
}

// listCut puts on the CRLs what a cut-off revokes and is in the index, a page at
// a time, unless that has been done. What fails is due again.
func (b *Broker) listCut(ctx context.Context, key cutKey) (refused []string, err error) {
	select {
	case b.listing.turn <- struct{}{}:
		defer func() { <-b.listing.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !b.listing.take(key) {
		return nil, nil
	}
	cut, stands := b.cuts.Load().all[key]
	if !stands {
		return nil, nil
	}
	q := cut.query()
	q.Kind, q.LiveAt, q.Limit = KindX509, b.cfg.Now(), MaxIssued
	for {
		rows, _, err := b.cfg.Index.Issued(ctx, q)
		if err == nil && len(rows) > 0 {
			var more []string
			more, err = b.cfg.CRLs.List(ctx, rows, cut.Reason)
			refused = append(refused, more...)
		}
		if err != nil {
			b.listing.add(key)
			return nil, err
		}
		if len(rows) < q.Limit {
			slices.Sort(refused)
			return slices.Compact(refused), nil
		}
		q.After = &rows[len(rows)-1]
	}
}

// query asks what a cut-off revokes.
func (c Cutoff) query() IssuedQuery {
	q := IssuedQuery{Before: c.Before}
	switch c.Kind {
	case CutID:
		q.SPIFFEID = c.Value
	case CutIdentity:
		q.Identity = c.Value
	case CutNode:
		q.Node = c.Value
	case CutAuthority:
		q.Authority = c.Value
	}
	return q
}

// How long the listing waits after a failure.
const (
	listPause    = time.Second
	listMaxPause = 30 * time.Second
)

// keepListing puts on CRLs what is due, until ctx ends.
func (b *Broker) keepListing(ctx context.Context) {
	pause := listPause
	for {
		failed := false
		for _, key := range b.listing.all() {
			refused, err := b.listCut(ctx, key)
			if err != nil && ctx.Err() == nil {
				failed = true
				b.cfg.Log.WarnContext(ctx, "what is revoked is not on the CRLs yet; the cut-off holds", "kind", key.kind, "value", key.value, "error", err)
			}
			for _, why := range refused {
				b.cfg.Log.WarnContext(ctx, "not all that is revoked is on a CRL; the cut-off holds", "kind", key.kind, "value", key.value, "reason", why)
			}
		}
		wake := b.listing.wake
		var again <-chan time.Time
		if failed {
			wake, again = nil, time.After(pause)
			pause = min(2*pause, listMaxPause)
		} else {
			pause = listPause
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
	}
}
