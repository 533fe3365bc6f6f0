package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
)

// maxCutoffs is more than any broker keeps.
const maxCutoffs = 1 << 14

// backdate is how far the iat of a broker's JWT-SVID lies before the time when
// it was issued; of one that lives for less than twice as long, by half of its
// life.
const backdate = 60 * time.Second

// Cutoffs are the revocations that JWT-SVIDs of our own trust domain are held
// against. They are immutable; nil knows of none and refuses all.
type Cutoffs struct {
	td          spiffeid.TrustDomain
	ids         map[spiffeid.ID]time.Time
	authorities map[string]time.Time
}

// NewCutoffs reads what a broker sent. What it says of a kind that this agent
// doesn't know is an error: it could not be obeyed.
func NewCutoffs(td spiffeid.TrustDomain, all []*api.Cutoff) (*Cutoffs, error) {
	if len(all) > maxCutoffs {
		return nil, fmt.Errorf("%d cut-offs, at most %d are taken", len(all), maxCutoffs)
	}
	c := &Cutoffs{td, make(map[spiffeid.ID]time.Time), make(map[string]time.Time)}
	for _, m := range all {
		before := time.UnixMilli(m.GetBefore())
		if m.GetBefore() <= 0 || m.GetValue() == "" {
			return nil, fmt.Errorf("a cut-off of %.40q %.200q before %d", m.GetKind(), m.GetValue(), m.GetBefore())
		}
		switch m.GetKind() {
		case "id":
			id, err := spiffeid.FromString(m.GetValue())
			if err != nil {
				return nil, fmt.Errorf("a cut-off: %w", err)
			}
			if before.After(c.ids[id]) {
				c.ids[id] = before
			}
		case "authority":
			if before.After(c.authorities[m.GetValue()]) {
				c.authorities[m.GetValue()] = before
			}
		default:
			return nil, fmt.Errorf("a cut-off of %.40q, which this agent does not know: it is older than its broker", m.GetKind())
		}
	}
	return c, nil
}

// errRevoked is the reason that a validator's caller is told.
var errRevoked = errors.New("it has been revoked")

// Check refuses a JWT-SVID of our trust domain that was issued, or may have
// been, before a cut-off of its ID or of the key that signed it. iat and exp
// are its claims; a zero iat means that it has none.
func (c *Cutoffs) Check(id spiffeid.ID, authority string, iat, exp time.Time) error {
	if c == nil {
		return fmt.Errorf("%w: what is revoked is not known yet", ErrUnavailable)
	}
	if id.TrustDomain() != c.td {
		return nil // revocation is its own domain's
	}
	before := c.ids[id]
	if t := c.authorities[authority]; t.After(before) {
		before = t
	}
	if before.IsZero() {
		return nil
	}
	issued := iat.Add(min(backdate, exp.Sub(iat)/2).Truncate(time.Second))
	if issued.Before(before) { // as is the zero time
		return errRevoked
	}
	return nil
}

// Cutoffs are those that the broker told last; nil: it has told none yet.
func (a *Agent) Cutoffs() *Cutoffs { return a.cutoffs.Load() }

// takeCutoffs makes a message's cut-offs hold. Where they cannot be read, no
// token can be judged any more.
func (a *Agent) takeCutoffs(m *api.WatchResponse) error {
	if !m.GetCutoffsSet() {
		return nil
	}
	c, err := NewCutoffs(a.cfg.TrustDomain, m.GetCutoffs())
	a.cutoffs.Store(c)
	a.node.renewIfRevoked(c, a.cfg.Now())
	return err
}
