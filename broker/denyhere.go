package broker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// kindDeny is a Deny's in the deny file.
const kindDeny = "deny"

// Bounds of Denies in the deny file.
const (
	MaxKeptDenies = MaxCutoffs / 8 // made here, and as many that were not
	maxKeptDeny   = 16 << 10       // bytes of one
)

// A KeptDeny is a Deny in this broker's deny file: one that was made here and that
// the store does not have, or a copy of one that a snapshot of the store may lack.
// What it says is the caller's to read.
type KeptDeny struct {
	Name, Owner, Actor string
	At                 time.Time
	Revision           uint64 // in the store; 0: it was made here
	Text               []byte
}

type denyKey struct {
	name string
	here bool
}

func (k KeptDeny) key() denyKey { return denyKey{k.Name, k.Revision == 0} }

func (k KeptDeny) denied() denied {
	return denied{Kind: kindDeny, Value: k.Name, Before: k.At, Actor: k.Actor, Owner: k.Owner, Revision: k.Revision, Resource: string(k.Text)}
}

func (k KeptDeny) check() error {
	switch {
	case k.Name == "" || len(k.Name) > maxCutName || len(k.Owner) > maxCutName || len(k.Actor) > maxCutReason:
		return requestError("a Deny without a name, or one with too long a name, owner or actor")
	case k.At.IsZero():
		return requestError("Deny %s has no time", k.Name)
	case len(k.Text) == 0 || len(k.Text) > maxKeptDeny:
		return requestError("Deny %s has %d bytes: 1 to %d are kept here: make several of it", k.Name, len(k.Text), maxKeptDeny)
	}
	line, err := json.Marshal(k.denied())
	if err == nil && len(line) >= maxDenyLine { // what must be escaped takes more
		err = requestError("Deny %s takes %d bytes of the deny file, less than %d are taken: make several of it", k.Name, len(line), maxDenyLine)
	}
	return err
}

// KeptDenies returns the Denies in the deny file, by when they were made.
func (b *Broker) KeptDenies() []KeptDeny {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	return slices.SortedFunc(maps.Values(b.file.denies), func(x, y KeptDeny) int {
		return cmp.Or(x.At.Compare(y.At), strings.Compare(x.Name, y.Name))
	})
}

// KeepDenies makes Denies durable in the deny file, all at once. An error that
// wraps ErrRequest means that they are not taken.
func (b *Broker) KeepDenies(all ...KeptDeny) error {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	next := maps.Clone(b.file.denies)
	for _, k := range all {
		if err := k.check(); err != nil {
			return fmt.Errorf("keeping a Deny here: %w", err)
		}
		next[k.key()] = k
	}
	if len(next) > 2*MaxKeptDenies {
		return fmt.Errorf("keeping a Deny here: %w", requestError("%d would be kept, at most %d are", len(next), 2*MaxKeptDenies))
	}
	lines := make([]denied, len(all))
	for n, k := range all {
		lines[n] = k.denied()
	}
	had := b.file.denies
	b.file.denies = next
	err := b.file.append(b.cuts.Load().all, lines...)
	if err != nil {
		b.file.denies = had
	}
	return err
}

// ForgetDenies takes those Denies out of the deny file that drop says.
func (b *Broker) ForgetDenies(drop func(KeptDeny) bool) error {
	b.revoking.Lock()
	defer b.revoking.Unlock()
	next := maps.Clone(b.file.denies)
	maps.DeleteFunc(next, func(_ denyKey, k KeptDeny) bool { return drop(k) })
	if len(next) == len(b.file.denies) {
		return b.mendDeny() // one that could not be kept may be there all the same
	}
	had := b.file.denies
	b.file.denies = next
	if err := b.file.rewrite(b.cuts.Load().all); err != nil {
		b.file.denies = had
		return err
	}
	return nil
}
