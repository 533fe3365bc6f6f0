package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How often a node whose evidence was refused looks for other evidence, where
// that costs nothing, and shows what it has to a broker again.
const (
	lookForEvidence = 2 * time.Second
	showAgain       = 15 * time.Second
	showSeldom      = 5 * time.Minute
)

// establish goes on with the kept SVID, or joins, trying again while the
// broker is away.
func (a *Agent) establish(ctx context.Context) error {
	if err := a.enter(ctx); err != nil {
		return err
	}
	return a.relink()
}

// rejoin joins again in place: what is held and valid is served meanwhile, open
// streams stay open, and go on with what comes after.
func (a *Agent) rejoin(ctx context.Context, why error) error {
	a.cfg.Log.WarnContext(ctx, "no broker takes this node's SVID any more; joining again", "reason", why)
	return a.establish(ctx)
}

// enter joins, unless the node's SVID is good, until it has or ctx ends. A node
// that never joined is told what it lacks and ends; one that did rather waits
// for a person.
func (a *Agent) enter(ctx context.Context) error {
	var p pause
	var r shown
	for why := a.node.mustJoin(a.cfg.Now()); why != nil; why = a.node.mustJoin(a.cfg.Now()) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.pulses.watch.work(a.cfg.Now()) // with each broker anew
		evidence, err := a.evidence(ctx)
		if err == nil && r.stands(evidence, a.cfg.Join.File != "", a.cfg.Now()) {
			a.sleep(ctx, lookForEvidence/2+rand.N(lookForEvidence))
			continue
		}
		all := true // brokers have been tried
		if err == nil {
			address := a.brokers.current()
			if err = a.join(ctx, evidence); err != nil {
				all = a.brokers.failed(address)
			}
		}
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case status.Code(err) == codes.FailedPrecondition:
			return a.out(fmt.Errorf("%w: joining: %s: this node was evicted, or the broker's state changed under it", ErrFatal, status.Convert(err).Message()))
		}
		a.triedNode(err)
		if person := a.forPerson(err); person != nil {
			if a.node.certificate() == nil {
				if errors.As(err, new(notAccepted)) && !all {
					continue // another broker may be the right one
				}
				return fmt.Errorf("%w: %w", ErrFatal, person)
			}
			a.waitForPerson(ctx, why, person)
			if errors.Is(err, errEvidence) {
				a.sleep(ctx, lookForEvidence)
			} else {
				r.refused(evidence, a.cfg.Now())
			}
			continue
		}
		a.contact.stream(false, err)
		if !all {
			continue
		}
		p.longer(a.cfg.Now(), maxPause)
		p.after(a.cfg.Now(), err)
		a.cfg.Log.WarnContext(ctx, "not joined yet", "error", status.Convert(err).Message(), "brokers", a.cfg.Broker)
		a.rest(ctx, p)
	}
	a.contact.need("")
	return nil
}

// tokenMethod is the one method whose nodes renew.
const tokenMethod = "token"

// errEvidence says that there is nothing to show.
var errEvidence = errors.New("making evidence")

func (a *Agent) evidence(ctx context.Context) ([]byte, error) {
	if a.cfg.Join.Evidence == nil {
		return nil, fmt.Errorf("%w: there is no join method", errEvidence)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	evidence, err := a.cfg.Join.Evidence(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEvidence, err)
	}
	return evidence, nil
}

// shown is what was shown last, in vain.
type shown struct {
	sum   [sha256.Size]byte
	until time.Time
	pause time.Duration // 0: nothing was refused
}

func (r *shown) refused(evidence []byte, now time.Time) {
	if sum := sha256.Sum256(evidence); sum != r.sum {
		r.sum, r.pause = sum, 0
	}
	r.pause = min(max(2*r.pause, showAgain), showSeldom)
	r.until = now.Add(r.pause/2 + rand.N(r.pause))
}

// stands says whether to show nothing yet: evidence that is made anew each time
// tells nothing by being another.
func (r *shown) stands(evidence []byte, fixed bool, now time.Time) bool {
	return r.pause > 0 && now.Before(r.until) && (!fixed || sha256.Sum256(evidence) == r.sum)
}

// forPerson is what somebody has to mend; nil: time will.
func (a *Agent) forPerson(err error) error {
	said := status.Convert(err).Message()
	switch {
	case errors.Is(err, ErrFatal), errors.Is(err, errEvidence), errors.As(err, new(notAccepted)):
		return err
	case status.Code(err) == codes.Unauthenticated && a.cfg.Join.Method == tokenMethod:
		return fmt.Errorf("joining: %s: the token is spent, expired, or made by another broker; make a new one with: %s", said, a.newToken())
	case status.Code(err) == codes.Unauthenticated, status.Code(err) == codes.PermissionDenied,
		status.Code(err) == codes.InvalidArgument, status.Code(err) == codes.Unimplemented:
		return fmt.Errorf("joining: %s", said)
	}
	return nil
}

// newToken is the command that lets this node join again.
func (a *Agent) newToken() string {
	node, file := "NAME", a.cfg.Join.File
	if cert := a.node.certificate(); cert != nil {
		node = path.Base(cert.Leaf.URIs[0].Path)
	}
	if file == "" {
		file = "FILE"
	}
	return "credence token create --node " + node + " -o token > " + file
}

// waitForPerson says once what is needed. Where the broker has disowned an SVID
// that has not ended, this node was revoked, evicted or lost: what it holds may
// be withdrawn, and nobody could tell it.
func (a *Agent) waitForPerson(ctx context.Context, why, person error) {
	left := "serving what is valid"
	if errors.Is(why, errDisowned) {
		a.withdraw()
		left = "what it held is erased"
	}
	a.contact.stream(false, person)
	need := person.Error()
	if a.cfg.Join.Method == tokenMethod && !errors.As(person, new(notAccepted)) {
		need = a.newToken()
	}
	if a.contact.need(need) {
		a.cfg.Log.ErrorContext(ctx, "this node cannot join again by itself", "left", left, "reason", why, "error", person, "needs", need)
	}
}

// withdraw erases all that was granted on this node.
func (a *Agent) withdraw() {
	a.tokens.forget(nil)
	a.sets.erase(nil)
	a.sources.drop(nil)
	a.kept.forget()
}

// sleep pauses, whoever waits.
func (a *Agent) sleep(ctx context.Context, d time.Duration) {
	a.pulses.watch.rest()
	defer func() { a.pulses.watch.work(a.cfg.Now()) }()
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
