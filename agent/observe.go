package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/exchangers"
)

// What happened, as metrics count it.
const (
	EventNode      = "node"      // the node joined, or its SVID was renewed
	EventSVIDs     = "svids"     // the broker was asked for the SVIDs of a workload
	EventAttested  = "attested"  // Subject is the attestor, Took its time
	EventExchanged = "exchanged" // with a provider; Subject is the target, Detail its flow
	EventDelivered = "delivered" // a credential to a caller; Subject is the target, Detail its flow
	EventCalled    = "called"    // the broker answered a call, or not: Subject is the method, Outcome the code of gRPC, Took its time
	EventRefused   = "refused"   // a caller by this agent, the broker unasked
	EventWatched   = "watched"   // a Watch stream began, or could not, or ended
)

// Outcomes. Besides, a failed exchange's is its class (exchangers.Class), a
// refusal's its code in the broker's record.
const (
	OutcomeOK     = "ok"
	OutcomeDenied = "denied"
	OutcomeFailed = "failed"
)

// An Event is something that happened. Its words are of a known few, or names
// that an operator wrote; nothing in it is a secret, or a caller's choice.
type Event struct {
	What    string
	Subject string
	Detail  string
	Outcome string
	Took    time.Duration // of EventAttested and EventCalled
}

// called counts the calls of the broker.
func (a *Agent) called(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	began := a.cfg.Now()
	err := call(ctx, method, req, reply, conn, opts...)
	a.observe(Event{
		What: EventCalled, Subject: method[strings.LastIndexByte(method, '/')+1:], Outcome: status.Code(err).String(), Took: a.cfg.Now().Sub(began),
	})
	return err
}

func (a *Agent) observe(e Event) {
	if a.cfg.Observe != nil {
		a.cfg.Observe(e)
	}
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return OutcomeOK
	case errors.Is(err, ErrDenied):
		return OutcomeDenied
	}
	return OutcomeFailed
}

// classOf is the outcome of an exchange.
func classOf(e exchangers.Event) string {
	if e.OK {
		return OutcomeOK
	}
	return string(e.Class)
}
