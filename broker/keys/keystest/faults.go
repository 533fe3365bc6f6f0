package keystest

import (
	"context"
	"sync"
)

// A Fault is what a fake does to a request.
type Fault int

// The faults.
const (
	None Fault = iota
	Denied
	Throttled
	Broken // what the service answers is damaged on its way
)

// Faults are what a test has a fake do wrong. The zero value does nothing
// wrong and counts calls.
type Faults struct {
	mu     sync.Mutex
	calls  map[string]int
	faults map[string]*fault
}

type fault struct {
	kind             Fault
	left             int // calls to go; negative: all
	arrived, release chan struct{}
	once             sync.Once
}

// Enter counts a call of op on key, waits while it hangs, until ctx ends, and
// returns what is to go wrong with it.
func (f *Faults) Enter(ctx context.Context, op, key string) Fault {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[op]++
	kind, hang := None, (*fault)(nil)
	for _, at := range []string{op, op + " " + key} {
		x := f.faults[at]
		switch {
		case x == nil || x.left == 0:
		case x.arrived != nil:
			hang = x
		default:
			x.left--
			kind = x.kind
		}
	}
	f.mu.Unlock()
	if hang != nil {
		hang.once.Do(func() { close(hang.arrived) })
		select {
		case <-hang.release:
		case <-ctx.Done():
		}
	}
	return kind
}

// Calls returns how often op was called.
func (f *Faults) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Set lets the next n calls of op fail; a negative n: all, until restore.
func (f *Faults) Set(op string, kind Fault, n int) (restore func()) {
	return f.put(op, &fault{kind: kind, left: n})
}

// Hang lets the calls of op on key wait; an empty key: on any.
func (f *Faults) Hang(op, key string) (arrived <-chan struct{}, release func()) {
	x := &fault{left: -1, arrived: make(chan struct{}), release: make(chan struct{})}
	at := op
	if key != "" {
		at += " " + key
	}
	restore := f.put(at, x)
	return x.arrived, sync.OnceFunc(func() { restore(); close(x.release) })
}

func (f *Faults) put(at string, x *fault) (restore func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.faults == nil {
		f.faults = map[string]*fault{}
	}
	f.faults[at] = x
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.faults, at)
	}
}
