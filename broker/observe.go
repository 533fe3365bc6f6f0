package broker

import (
	"errors"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// What happened, as metrics count it.
const (
	EventIssued  = "issued"  // SVIDs were asked for: Subject is their kind or "login" or "exchange", Count how many were signed, Took the time until the record had them
	EventDenied  = "denied"  // of what is asked for in an EventIssued, Outcome is the code in the record
	EventJoined  = "joined"  // a machine tried to become a node; Subject is the method, Took its time
	EventRenewed = "renewed" // a node asked for its own SVID anew, without a join
)

// Outcomes. Besides, a failed join's is a word or two of its own.
const (
	OutcomeOK     = "ok"
	OutcomeDenied = "denied"
	OutcomeFailed = "failed"
)

// What an EventIssued and an EventDenied may be about, besides KindX509 and KindJWT.
const (
	AskedLogin    = "login"
	AskedExchange = "exchange"
)

// An Event is something that happened. Its words are of a known few, or names of
// join methods that this program has: nothing in it is a caller's choice.
type Event struct {
	What    string
	Subject string
	Outcome string
	Count   int
	Took    time.Duration
}

func (b *Broker) observe(e Event) {
	if b.cfg.Observe != nil {
		b.cfg.Observe(e)
	}
}

// issuing tells of one call that asked for SVIDs, when it is done.
func (b *Broker) issuing(asked string) (done func(signed int, denied []*Denial, err error)) {
	if b.cfg.Observe == nil {
		return func(int, []*Denial, error) {}
	}
	began := b.cfg.Now()
	return func(signed int, denied []*Denial, err error) {
		outcome := outcomeOf(err)
		for _, d := range denied {
			if d != nil && err == nil {
				outcome = OutcomeDenied
				b.observe(Event{What: EventDenied, Subject: asked, Outcome: d.Code})
			}
		}
		if signed > 0 && err == nil {
			outcome = OutcomeOK
		}
		b.observe(Event{What: EventIssued, Subject: asked, Outcome: outcome, Count: signed, Took: b.cfg.Now().Sub(began)})
	}
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return OutcomeOK
	case errors.Is(err, identity.ErrDenied), errors.Is(err, ErrRequest), errors.As(err, new(*refusedError)):
		return OutcomeDenied
	}
	return OutcomeFailed
}
