package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second},
	MinConnectTimeout: 5 * time.Second,
}

// watch keeps one Watch stream to a broker, opening it again with pauses that
// grow, until ctx ends or a person is needed.
func (a *Agent) watch(ctx context.Context) error {
	wait := 100 * time.Millisecond
	for {
		started := time.Now()
		err := a.watchOnce(ctx, a.link.Load())
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errRelinked):
			wait = 100 * time.Millisecond
			continue
		case status.Code(err) == codes.PermissionDenied:
			a.sets.erase(nil, &Denied{Reason: "this node has been evicted"})
			a.tokens.clear()
			a.sources.dropAll()
			a.node.drop()
			return fmt.Errorf("%w: the broker has evicted this node; credence node allow lets it come back", ErrFatal)
		case status.Code(err) == codes.Unauthenticated:
			if err := a.rejoin(ctx); err != nil {
				return err
			}
		}
		if time.Since(started) > time.Minute {
			wait = 100 * time.Millisecond
		}
		a.cfg.Log.WarnContext(ctx, "not connected to a broker; serving what is held", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// errRelinked says that the connection was replaced by a newer one.
var errRelinked = errors.New("relinked")

func (a *Agent) watchOnce(ctx context.Context, l *link) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-l.gone:
			cancel(errRelinked)
		case <-ctx.Done():
		}
	}()
	stream, err := api.NewNodeClient(l.conn).Watch(ctx)
	if err != nil {
		return relinked(ctx, err)
	}
	if err := stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}}); err != nil {
		_, err = stream.Recv()
		return relinked(ctx, err)
	}
	for first := true; ; first = false {
		m, err := stream.Recv()
		if err != nil {
			return relinked(ctx, err)
		}
		if err := a.heed(m, first); err != nil {
			return err
		}
		ack := &api.WatchRequest{Step: &api.WatchRequest_Acknowledged{Acknowledged: m.GetRevision()}}
		if err := stream.Send(ack); err != nil {
			_, err = stream.Recv()
			return relinked(ctx, err)
		}
	}
}

// relinked is errRelinked where that is why a stream ended.
func relinked(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errRelinked) {
		return errRelinked
	}
	return err
}

// heed does what a message says: erase first, then bundles, then what to ask
// for again.
func (a *Agent) heed(m *api.WatchResponse, first bool) error {
	for _, c := range m.GetChanges() {
		if c.GetErase() {
			a.erase(c.GetSet())
		}
	}
	if err := a.take(m); err != nil {
		return err
	}
	if m.GetWantedSet() {
		wanted := make(map[string]bool, len(m.GetWantedFacts()))
		for _, name := range m.GetWantedFacts() {
			wanted[name] = true
		}
		a.wanted.Store(&wanted)
		a.bundles.changed.ring() // open streams attest again
	}
	for _, c := range m.GetChanges() {
		if !c.GetErase() {
			a.sets.askAgain(c.GetSet())
			a.tokens.forget(c.GetSet())
		}
	}
	if first {
		// The broker remembers per stream what it decided: tell it what we
		// hold by asking for everything again.
		a.sets.askAgain(nil)
		a.once.Do(func() { close(a.ready) })
	}
	return nil
}

// erase drops what was granted on a set of facts, credentials and all. The set
// is asked for again: another identity may still be granted.
func (a *Agent) erase(set []byte) {
	a.tokens.forget(set)
	a.sources.drop(set)
	a.sets.erase(set, nil)
}
