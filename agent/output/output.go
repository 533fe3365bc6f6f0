// Package output delivers what outputs of agent.yaml may have to where
// processes read it: it follows an output's view, has a Writer write each state
// and what ends before the next one, erases it when it is withdrawn, and runs
// hooks after it was written. The packages below it write one kind each; Dir is
// the file system for all of them.
//
// It trusts the agent's word about what an output may have, root, and the
// owner's configuration. It trusts nobody else who can write near where it
// writes: no symbolic link is followed, and a directory that others may change
// is refused.
package output

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
)

// A Source is where a Writer gets what is made when it is asked for. An
// *agent.Delivery is one.
type Source interface {
	JWT(ctx context.Context, audiences []string, id spiffeid.ID) (agent.JWTSVID, error)
	TargetToken(ctx context.Context, target string, toFile bool) (agent.JWTSVID, agent.Target, error)
	Exchange(ctx context.Context, target, claims string) (agent.Exchanged, error)
}

// A Feed is an output's view. An *agent.Delivery is one.
type Feed interface {
	Source
	Next(context.Context) (agent.Update, error)
}

// A Writer delivers to one place. It is for one goroutine.
type Writer interface {
	// Write replaces what was there whole, or leaves it as it was. What it could
	// not get, it leaves out and says so in the error, beside a good Written.
	Write(context.Context, Source, agent.Update) (Written, error)
	// Erase takes away all that it wrote, in this run of the agent or an earlier
	// one.
	Erase(context.Context) error
}

// Written is what a Write came to.
type Written struct {
	Changed    bool      // readers find something else than before
	Generation uint64    // for hooks; 0: the place counts none
	Again      time.Time // when to write next, at the latest; zero: when the state changes
}

// A Hook tells processes that something was written.
type Hook func(ctx context.Context, w Written) error

// Config is the wiring of Run. Fields are required unless noted.
type Config struct {
	Name   string
	Feed   Feed
	Writer Writer
	Hooks  []Hook // may be empty
	Log    *slog.Logger
	Now    func() time.Time // nil means time.Now
	// Count is told how each Write, Erase and run of a Hook ended; nil: nobody is.
	Count func(act string, err error)
}

// Acts that are counted.
const (
	ActWrite = "write"
	ActErase = "erase"
	ActHook  = "hook"
)

// Pauses after what failed.
const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// A runner is one output. What is due is done, and what failed stays due.
type runner struct {
	cfg     Config
	state   agent.Update
	written Written

	write, erase, hook bool          // due
	again, retry       time.Time     // when to do something without a change; zero: never
	pause              time.Duration // after the last failure; 0: there was none
}

// Run delivers until ctx ends. It is called once for an output.
func Run(ctx context.Context, cfg Config) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Count == nil {
		cfg.Count = func(string, error) {}
	}
	cfg.Log = cfg.Log.With("output", cfg.Name)
	r := &runner{cfg: cfg}
	for over := false; !over; {
		over = ctx.Err() != nil // one look after the end: an eviction brings it
		r.follow(ctx)
		r.act(ctx)
	}
}

// follow waits for the next state, or until something is due.
func (r *runner) follow(ctx context.Context) {
	wait, cancel := ctx, func() {}
	if at := earliest(r.again, r.retry); !at.IsZero() {
		wait, cancel = context.WithTimeout(ctx, at.Sub(r.cfg.Now()))
	}
	defer cancel()
	u, err := r.cfg.Feed.Next(wait)
	switch {
	case err == nil:
		r.state, r.write, r.erase = u, true, false
		r.good()
	case errors.Is(err, agent.ErrDenied):
		r.cfg.Log.WarnContext(ctx, "output withdrawn: what was written is erased", "reason", err.Error())
		r.state, r.write, r.hook, r.erase = agent.Update{}, false, false, true
		r.again = time.Time{}
		r.good()
	case ctx.Err() != nil:
	case wait.Err() != nil: // it is time
		r.retry = time.Time{}
		r.write = r.write || !r.again.IsZero() && !r.cfg.Now().Before(r.again)
	default:
		r.cfg.Log.WarnContext(ctx, "output waits; what was written before stays", "error", err)
		select { // it may be told again at once
		case <-ctx.Done():
		case <-time.After(firstPause):
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// act does what is due. An erasure is made though ctx has ended: an eviction
// ends the agent.
func (r *runner) act(ctx context.Context) {
	if r.erase {
		err := r.cfg.Writer.Erase(context.WithoutCancel(ctx))
		r.cfg.Count(ActErase, err)
		if err != nil {
			r.cfg.Log.ErrorContext(ctx, "output not erased", "error", err)
			r.failed()
			return
		}
		r.erase = false
		r.good()
		r.cfg.Log.InfoContext(ctx, "output erased")
	}
	if ctx.Err() == nil && r.write {
		r.deliver(ctx)
	}
	if ctx.Err() == nil && r.hook {
		r.runHooks(ctx)
	}
}

func (r *runner) deliver(ctx context.Context) {
	w, err := r.cfg.Writer.Write(ctx, r.cfg.Feed, r.state)
	if ctx.Err() != nil {
		return
	}
	r.cfg.Count(ActWrite, err)
	r.again, r.hook = w.Again, r.hook || w.Changed
	if w.Changed {
		r.written = w
		r.cfg.Log.InfoContext(ctx, "output written", "generation", w.Generation)
	}
	if err != nil {
		r.cfg.Log.WarnContext(ctx, "output not written whole", "error", err)
		r.failed()
		return
	}
	r.write = false
	r.good()
}

func (r *runner) runHooks(ctx context.Context) {
	for _, h := range r.cfg.Hooks {
		err := h(ctx, r.written)
		if err == nil || ctx.Err() == nil {
			r.cfg.Count(ActHook, err)
		}
		if err != nil && ctx.Err() == nil {
			r.cfg.Log.WarnContext(ctx, "hook failed: its process may go on with what was written before", "error", err)
			r.failed()
			return
		}
	}
	r.hook = false
}

// failed has what is due tried again after a pause that grows.
func (r *runner) failed() {
	r.pause = min(max(2*r.pause, firstPause), maxPause)
	r.retry = r.cfg.Now().Add(r.pause/2 + rand.N(r.pause/2+1))
}

func (r *runner) good() { r.pause, r.retry = 0, time.Time{} }

// HalfLife is when to write again what ends at end: at half of what is left, a
// little later for each, so that those who began together don't renew
// together.
func HalfLife(now, end time.Time) time.Time {
	left := max(end.Sub(now), 0)
	return now.Add(left/2 + rand.N(left/20+1))
}
