package unix

import (
	"errors"
	"os/user"
	"sync"
	"time"
)

const (
	nameLife = 30 * time.Second
	maxNames = 4096 // a process may have 65,536 groups: the cache is emptied rather than grown
)

func lookupUser(id uint32) (string, bool, error) {
	u, err := user.LookupId(decimal(id))
	var none user.UnknownUserIdError
	if errors.As(err, &none) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return u.Username, true, nil
}

func lookupGroup(id uint32) (string, bool, error) {
	g, err := user.LookupGroupId(decimal(id))
	var none user.UnknownGroupIdError
	if errors.As(err, &none) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return g.Name, true, nil
}

// names remembers for a short while which name an id has, or that it has none.
type names struct {
	lookup func(uint32) (string, bool, error)
	now    func() time.Time

	mu    sync.Mutex // guards known
	known map[uint32]name
}

type name struct {
	text  string
	ok    bool
	until time.Time
}

func newNames(lookup func(uint32) (string, bool, error), now func() time.Time) *names {
	return &names{lookup: lookup, now: now, known: map[uint32]name{}}
}

// of returns the names of those ids that have one. An error is of all.
func (n *names) of(ids ...uint32) ([]string, error) {
	var all []string
	for _, id := range ids {
		text, ok, err := n.one(id)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, text)
		}
	}
	return all, nil
}

// one looks up outside the lock: a slow directory service must not stop those
// whose names are known. A failure isn't remembered.
func (n *names) one(id uint32) (string, bool, error) {
	n.mu.Lock()
	k, hit := n.known[id]
	n.mu.Unlock()
	if hit && n.now().Before(k.until) {
		return k.text, k.ok, nil
	}
	text, ok, err := n.lookup(id)
	if err != nil {
		return "", false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.known) >= maxNames {
		clear(n.known)
	}
	n.known[id] = name{text, ok, n.now().Add(nameLife)}
	return text, ok, nil
}
