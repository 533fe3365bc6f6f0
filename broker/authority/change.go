package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// sync reads the records again where what is durable may be something else than
// what is in use: where other brokers write too, or where a save failed.
func (a *Authority) sync(ctx context.Context) error {
	a.mu.Lock()
	stale := a.stale
	a.mu.Unlock()
	if !stale && a.cfg.Leases == nil {
		return nil
	}
	return a.read(ctx)
}

// read takes into use what the records are now. Beside what is saved here
// meanwhile it reads again; what stays older is ErrOlder, and changes nothing.
func (a *Authority) read(ctx context.Context) (err error) {
	for range 3 {
		records, publication, err := a.cfg.Records.Authorities(ctx)
		if err != nil {
			return err
		}
		a.mu.Lock()
		clear(a.unopened) // what was missing may be there by now
		a.mu.Unlock()
		err = a.withKeys(ctx, func() error { return a.takeLocked(records, publication) })
		if !errors.Is(err, ErrOlder) {
			return err
		}
	}
	return fmt.Errorf("reading authorities: %w", ErrOlder)
}

func (a *Authority) takeLocked(records []Record, publication Publication) error {
	if last := a.live.Load(); last != nil {
		if publication.Version.All < a.publication.Version.All || publication.Sequence < a.publication.Sequence {
			return ErrOlder
		}
		for i, r := range records {
			known, ok := last.find(r.ID)
			if ok && known.State == Revoked && r.State != Revoked && r.KeyRef != "" {
				return fmt.Errorf("reading authorities: %s was revoked and is %s now: the store was put back, or tampered with: start the broker anew if it was a restore", r.ID, r.State)
			}
			records[i].LastExpiry = latest(r.LastExpiry, known.LastExpiry)
		}
	}
	next, err := a.snapshot(records, publication.Sequence)
	if err != nil {
		return err
	}
	a.install(next, publication)
	a.stale = false
	return nil
}

// Reload takes into use what other brokers wrote: a new bundle, other JWT keys,
// an end of one, revocations. What is due here because of it Run does next. A
// reading that is older than what is in use is ErrOlder, and changes nothing.
func (a *Authority) Reload(ctx context.Context) error {
	if err := a.read(ctx); err != nil {
		return err
	}
	if err := a.readRevocations(ctx); err != nil {
		return err
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return nil
}

// change saves the changed records, with a new sequence number if they change
// the bundle, and only then lets them be seen and used. The error is ErrConflict
// where another broker changed what it was decided on: see decide.
func (a *Authority) change(ctx context.Context, changed ...Record) error {
	save := func() error {
		return a.withKeys(ctx, func() error { return a.changeLocked(ctx, changed...) })
	}
	err := save()
	if errors.Is(err, errUnled) {
		if err := a.lead(ctx); err != nil {
			return err
		}
		err = save()
	}
	if errors.Is(err, ErrFenced) {
		a.lease = Lease{}
	}
	return err
}

func (a *Authority) changeLocked(ctx context.Context, changed ...Record) error {
	if a.stale {
		return errors.New("changing authorities: an earlier change may or may not have been kept; they are read again first")
	}
	if a.publication.Version.Shared != a.decided.Shared { // it was read again since
		return ErrConflict
	}
	last := a.live.Load()
	changed, err := a.sealed(last, changed)
	if err != nil {
		return err
	}
	records := merge(last.records, changed)
	publication := a.publication
	next, err := a.snapshot(records, publication.Sequence)
	if err != nil {
		return err
	}
	if err := a.checkNext(next); err != nil {
		return err
	}
	c := a.asChange(last, changed)
	if a.republish(last, next) {
		// SPIFFE Trust Domain and Bundle §4.1.1: it grows at every change, also
		// when an old state of the store comes back.
		publication.Sequence = max(publication.Sequence+1, uint64(max(a.cfg.Now().UnixMilli(), 0)))
		if next, err = a.snapshot(records, publication.Sequence); err != nil {
			return err
		}
		publication.Digest = next.bundle.digest()
		c.Publication = publication
	}
	if len(c.Records)+len(c.LastExpiry) == 0 && c.Publication.Sequence == 0 {
		return nil
	}
	if a.cfg.Leases != nil && c.Shared() && c.Fence == 0 {
		return errUnled
	}
	saved, err := a.cfg.Records.SaveAuthorities(ctx, c)
	if err != nil {
		a.stale = true
		return err
	}
	if saved.Before.All == a.publication.Version.All { // else another broker wrote for itself: that is seen at the next reading
		publication.Version.All = saved.After.All
	}
	publication.Version.Shared = max(publication.Version.Shared, saved.After.Shared)
	a.install(next, publication)
	a.decided = publication.Version
	return nil
}

// republish says whether next is another bundle than what was published last.
// Brokers that were configured differently each serve the bundle in their way,
// and don't publish it back and forth.
func (a *Authority) republish(last, next *snapshot) bool {
	if a.cfg.Leases != nil && a.opened {
		return !bytes.Equal(last.bundle.Document, next.bundle.Document)
	}
	return !next.bundle.is(a.publication.Digest)
}

// asChange tells what is more than a LastExpiry that rises: another broker's
// change of that is no conflict.
func (a *Authority) asChange(last *snapshot, changed []Record) Change {
	c := Change{Broker: a.cfg.Broker, LastExpiry: map[string]time.Time{}, Seen: a.decided, Fence: a.lease.Fence}
	for _, r := range changed {
		old, ok := last.find(r.ID)
		switch {
		case !ok || !old.sameBut(r):
			c.Records = append(c.Records, r)
			c.All = c.All || r.Broker != "" && r.Broker != a.cfg.Broker || r.Use == Root && r.State == Revoked
		case r.LastExpiry.After(old.LastExpiry):
			c.LastExpiry[r.ID] = r.LastExpiry
		}
	}
	return c
}

// sameBut says whether nothing differs but the last expiry.
func (r Record) sameBut(o Record) bool {
	return r.ID == o.ID && r.Use == o.Use && r.Alg == o.Alg && r.State == o.State && r.Broker == o.Broker && r.Parent == o.Parent &&
		r.KeyRef == o.KeyRef && bytes.Equal(r.Sealed, o.Sealed) && bytes.Equal(r.PublicKey, o.PublicKey) &&
		slices.EqualFunc(r.Chain, o.Chain, bytes.Equal) && r.PublishedAt.Equal(o.PublishedAt) && r.ActivatedAt.Equal(o.ActivatedAt) &&
		r.NotAfter.Equal(o.NotAfter) && r.RevokedAt.Equal(o.RevokedAt) && r.Reason == o.Reason
}

// merge returns the records with those changed, a signing key's last expiry
// never falling: SVIDs are signed while a change is prepared.
func merge(records, changed []Record) []Record {
	records = slices.Clone(records)
	for i, c := range changed {
		j := slices.IndexFunc(records, func(r Record) bool { return r.ID == c.ID })
		if j < 0 {
			records = append(records, c)
			continue
		}
		if records[j].LastExpiry.After(c.LastExpiry) {
			changed[i].LastExpiry = records[j].LastExpiry
		}
		records[j] = changed[i]
	}
	return records
}
