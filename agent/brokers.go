package agent

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

const (
	connectTime  = 5 * time.Second  // for TCP, TLS and HTTP/2 together
	goodStream   = time.Minute      // a stream that lasted so long was no accident
	stumblesMove = 3                // calls that fail in a row while the stream stands
	moveEvery    = 30 * time.Second // on such calls
	homeEvery    = 5 * time.Minute  // to see whether an earlier broker is back
	homeSeldom   = time.Hour
)

// brokers are those of the configuration. One is talked to: stream and calls
// move together, to the next when it fails.
type brokers struct {
	mu       sync.Mutex // guards what follows
	list     []string
	at       int
	tried    int // in a row, to no end
	stumbles int // of calls, in a row
	moved    time.Time
}

func (b *brokers) current() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list[b.at]
}

// failed moves on from a broker. It says whether all have been tried since one
// was good: then it is time for a pause.
func (b *brokers) failed(address string) (pause bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stumbles = 0
	if b.list[b.at] == address {
		b.at = (b.at + 1) % len(b.list)
	}
	if b.tried++; b.tried < len(b.list) {
		return false
	}
	b.tried = 0
	return true
}

// good notes that a broker served for long enough.
func (b *brokers) good() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tried = 0
}

// called notes how a call ended, and says whether to move on: the broker holds
// its stream, but serves nobody.
func (b *brokers) called(err error, now time.Time) (move bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
	default:
		b.stumbles = 0
		return false
	}
	if b.stumbles++; b.stumbles < stumblesMove || len(b.list) < 2 || now.Sub(b.moved) < moveEvery {
		return false
	}
	b.moved = now
	return true
}

// before are those that come earlier in the list than the one talked to.
func (b *brokers) before() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list[:b.at]
}

// turn makes an earlier one that is back the one to talk to.
func (b *brokers) turn(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at, b.tried, b.stumbles = min(n, b.at), 0, 0
}

// callEnded tells of a call's end, and moves stream and calls to the next broker
// where this one serves nobody.
func (a *Agent) callEnded(ctx context.Context, l *link, err error) {
	if ctx.Err() != nil || !a.brokers.called(err, a.cfg.Now()) {
		return
	}
	a.cfg.Log.WarnContext(ctx, "the broker answers no calls; going to the next", "broker", l.address, "error", err)
	a.brokers.failed(l.address)
	a.fresh()
}

// home goes back to the earliest broker of the list that answers, until ctx
// ends: seldomer each time that it does not keep us.
func (a *Agent) home(ctx context.Context) error {
	for every := homeEvery; ; {
		a.pulses.home.rest()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every/2 + rand.N(every)):
		}
		earlier := a.brokers.before()
		if len(earlier) == 0 {
			every = homeEvery
			continue
		}
		for n, address := range earlier {
			a.pulses.home.work(a.cfg.Now())
			if a.node.mustJoin(a.cfg.Now()) != nil || !a.answers(ctx, address) {
				continue
			}
			a.cfg.Log.InfoContext(ctx, "an earlier broker is back", "broker", address)
			a.brokers.turn(n)
			a.fresh()
			every = min(2*every, homeSeldom)
			break
		}
	}
}

// answers says whether a broker takes a connection.
func (a *Agent) answers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	l, _, err := a.dial(address, a.node.certificate())
	if err != nil {
		return false
	}
	defer l.close()
	l.conn.Connect()
	for {
		switch state := l.conn.GetState(); {
		case state == connectivity.Ready:
			return true
		case state == connectivity.TransientFailure, !l.conn.WaitForStateChange(ctx, state):
			return false
		}
	}
}
