package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
	MinConnectTimeout: connectTime,
}

// watch keeps one Watch stream to a broker, opening it again with pauses that
// grow, until ctx ends or a person is needed. Of several brokers each gets its
// turn before a pause.
func (a *Agent) watch(ctx context.Context) error {
	var p pause
	if a.cfg.Spread > 0 && a.node.restarted {
		// All agents of a building start at one time.
		a.rest(ctx, spreadOver(a.cfg.Now(), a.cfg.Spread))
	}
	for unknown := 0; ; {
		if why := a.node.mustJoin(a.cfg.Now()); why != nil {
			if err := a.rejoin(ctx, why); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			p = pause{}
		}
		started := a.cfg.Now()
		a.pulses.watch.work(started)
		l := a.fresh()
		served, err := a.watchOnce(ctx, l)
		a.contact.stream(false, err)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errRelinked):
			p = pause{}
			continue
		case status.Code(err) == codes.PermissionDenied:
			return a.evicted()
		case status.Code(err) == codes.Unauthenticated:
			// One that joined by another broker just now may not be known yet.
			if unknown++; unknown >= len(a.cfg.Broker) {
				unknown = 0
				a.node.disown()
				continue
			}
		case a.node.mustJoin(a.cfg.Now()) != nil:
			continue
		}
		if a.cfg.Now().Sub(started) > goodStream {
			a.brokers.good()
			p, unknown = pause{}, 0
		}
		a.observe(Event{What: EventWatched, Outcome: OutcomeFailed})
		all := a.brokers.failed(l.address)
		a.fresh() // calls go with it
		if a.contact.news(err) {
			a.cfg.Log.WarnContext(ctx, "not connected to a broker; serving what is held", "broker", l.address, "error", err)
		}
		switch {
		case served && a.cfg.Spread > 0:
			// All agents of a broker that went away lose it at one time.
			a.rest(ctx, spreadOver(a.cfg.Now(), a.cfg.Spread))
		case !all:
			continue
		}
		if all {
			p.apart(a.cfg.Spread)
			p.longer(a.cfg.Now(), maxPause)
			a.rest(ctx, p)
		}
	}
}

// rest pauses. Where the broker has been heard or a caller waits for it, it
// does so for no longer than hungryPause.
func (a *Agent) rest(ctx context.Context, p pause) {
	a.pulses.watch.rest()
	defer func() { a.pulses.watch.work(a.cfg.Now()) }()
	full := p.until.Sub(a.cfg.Now())
	short := time.After(min(full, hungryPause/4+rand.N(hungryPause*3/4)))
	select {
	case <-ctx.Done():
		return
	case <-time.After(full):
		return
	case <-a.poke:
	}
	select {
	case <-ctx.Done():
	case <-short:
	}
}

// wanting ends a long rest.
func (a *Agent) wanting() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// evicted erases everything that was granted on this node.
func (a *Agent) evicted() error {
	return a.out(fmt.Errorf("%w: the broker has evicted this node; credence node allow lets it come back", ErrFatal))
}

// out is the end of a node that the broker shut out.
func (a *Agent) out(err error) error {
	a.sets.end(&Denied{Reason: "this node has been evicted", Code: NodeEvicted})
	a.tokens.forget(nil)
	a.sources.drop(nil)
	a.node.drop()
	a.kept.forget()
	return err
}

// heard notes that the broker answers.
func (a *Agent) heard() {
	a.contact.hear(a.cfg.Now())
	a.sets.back()
	a.tokens.heard()
	a.wanting()
}

// errRelinked says that the connection was replaced by a newer one.
var errRelinked = errors.New("relinked")

// errSilent says that a broker took the stream and told nothing.
var errSilent = errors.New("the broker does not answer")

// watchOnce heeds one stream, and says whether the broker served it.
func (a *Agent) watchOnce(ctx context.Context, l *link) (served bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(callTime, func() { cancel(errSilent) })
	defer silent.Stop()
	go func() {
		select {
		case <-l.gone:
			cancel(errRelinked)
		case <-ctx.Done():
		}
	}()
	stream, err := api.NewNodeClient(l.conn).Watch(ctx)
	if err != nil {
		return false, cause(ctx, err)
	}
	// A failed Send means that the stream has ended: Recv knows why.
	_ = stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}})
	for first := true; ; first = false {
		a.pulses.watch.rest()
		m, err := stream.Recv()
		a.pulses.watch.work(a.cfg.Now())
		if err != nil {
			return !first, cause(ctx, err)
		}
		silent.Stop()
		a.heed(ctx, m, first)
		if asked := m.GetHeadsWanted(); asked != 0 {
			_ = stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Heads_{Heads: &api.WatchRequest_Heads{Asked: asked, Heads: a.heads.told()}}})
		}
		_ = stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: m.GetRevision()}})
	}
}

// cause is why we ended a stream, where we did.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); errors.Is(why, errRelinked) || errors.Is(why, errSilent) {
		return why
	}
	return err
}

// heed does what a message says: erase first, then what is revoked and bundles,
// then what to ask for again.
func (a *Agent) heed(ctx context.Context, m *api.WatchResponse, first bool) {
	for _, c := range m.GetChanges() {
		if c.GetErase() {
			a.erase(c.GetSet())
		}
	}
	if err := a.takeCutoffs(m); err != nil {
		a.cfg.Log.ErrorContext(ctx, "what is revoked cannot be read; no JWT-SVID is validated", "error", err)
	}
	a.take(ctx, m)
	if m.GetWantedSet() {
		a.want(m.GetWantedFacts())
	}
	for _, c := range m.GetChanges() {
		if !c.GetErase() {
			a.tokens.forget(c.GetSet())
			a.sets.askAgain(c.GetSet())
		}
	}
	if line := m.GetSignedHead(); len(line) > 0 {
		if err := a.heads.take(line); err != nil {
			a.cfg.Log.WarnContext(ctx, "a head of the broker's record is not kept", "error", err)
		}
	}
	a.contact.hear(a.cfg.Now())
	if first {
		a.contact.stream(true, nil)
		a.observe(Event{What: EventWatched, Outcome: OutcomeOK})
		a.kept.forget()
		a.tokens.doubt()
		// The broker remembers per stream what it decided: tell it what we
		// hold by asking for everything again.
		a.sets.askAgain(nil)
		a.sets.back()
		a.tokens.heard()
		a.reports.Nudge()
		a.once.Do(func() { close(a.ready) })
	}
}

// want notes which costly facts are wanted. If these are others than before,
// open streams attest again.
func (a *Agent) want(names []string) {
	wanted := make(map[string]bool, len(names))
	for _, name := range names {
		wanted[name] = true
	}
	if !maps.Equal(wanted, *a.wanted.Load()) {
		a.wanted.Store(&wanted)
		a.bundles.changed.ring()
	}
}

// erase drops what was granted on a set of facts, credentials and all.
func (a *Agent) erase(set []byte) {
	a.tokens.forget(set)
	for _, id := range a.sets.erase(set) {
		a.tokens.forget(id)
		a.sources.drop(id)
	}
	a.sources.drop(set)
	a.kept.nudge(true)
}
