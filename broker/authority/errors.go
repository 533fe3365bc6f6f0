package authority

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// What an act's error is, besides a fault of the store, a key source or the
// upstream.
var (
	ErrNotYet  = errors.New("not yet")           // the text says when and why
	ErrNothing = errors.New("nothing to act on") // there is no such authority, or it is none to do this to
	ErrRefused = errors.New("refused")           // bad input: the text names the field and what it should be
	ErrFull    = errors.New("the CRL is full")   // not all that was to be revoked is on it
)

// What Records refuse a change with, and Reload what is read.
var (
	ErrConflict = errors.New("another broker changed the authorities meanwhile")
	ErrFenced   = fmt.Errorf("%w, and leads now", ErrConflict)
	ErrOlder    = errors.New("the authorities as read are older than those in use")
)

func notYet(at time.Time, format string, args ...any) error {
	return fmt.Errorf("%w, but at %s: %s", ErrNotYet, at.UTC().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

func nothing(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNothing, fmt.Sprintf(format, args...))
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// problems are why something that is due is not done, by authority ID or kind
// of work, for List.
type problems struct {
	mu sync.Mutex // guards m
	m  map[string]string
}

func (p *problems) set(of string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		delete(p.m, of)
	case p.m == nil:
		p.m = map[string]string{of: err.Error()}
	default:
		p.m[of] = err.Error()
	}
}

func (p *problems) of(names ...string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(names, func(n string) bool { return p.m[n] != "" })
	if i < 0 {
		return ""
	}
	return p.m[names[i]]
}
