package agent

import (
	"errors"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// What happened, as metrics count it.
const (
	EventNode      = "node"      // the node joined, or its SVID was renewed
	EventSVIDs     = "svids"     // the broker was asked for the SVIDs of a workload
	EventAttested  = "attested"  // Subject is the attestor, Took its time
	EventExchanged = "exchanged" // with a provider; Subject is the target, Detail its flow
	EventDelivered = "delivered" // a credential to a caller; Subject is the target, Detail its flow
	EventJWT       = "jwt"       // JWT-SVIDs to a caller, or for a target
	EventRefused   = "refused"   // a caller by this agent, the broker unasked
	EventWatched   = "watched"   // a Watch stream began, or could not, or ended
)

// Outcomes. Besides, a failed exchange's is its class (exchangers.Class), a
// refusal's its code in the broker's record.
const (
	OutcomeOK     = "ok"
	OutcomeDenied = "denied"
	OutcomeFailed = "failed"
	OutcomeCached = "cached" // ok, without asking the broker
)

// An Event is something that happened. Its words are of a known few, or names
// that an operator wrote; nothing in it is a secret, or a caller's choice.
type Event struct {
	What    string
	Subject string
	Detail  string
	Outcome string
	Took    time.Duration // of EventAttested
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
