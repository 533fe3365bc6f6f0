package identity

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// EvidenceTTL is the longest life of a JWT-SVID that is evidence at a token
// endpoint.
const EvidenceTTL = 5 * time.Minute

// isEvidence says whether a JWT-SVID of these audiences is evidence at our
// token endpoint.
func (s *Set) isEvidence(audiences []string) bool {
	return s.config.TokenEndpoint != "" && slices.Contains(audiences, s.config.TokenEndpoint)
}

// MakesJWT says whether there is an issuer, and so any JWT-SVID.
func (s *Set) MakesJWT() bool { return s.config.JWT }

// TargetAudience is the audience of the JWT-SVID that a target's exchange
// presents, empty where it presents an X509-SVID, and whether there is such a
// target.
func (s *Set) TargetAudience(name string) (audience string, ok bool) {
	t, ok := s.targets[name]
	return t.Audience, ok
}

// presented returns what of an Identity may hold where nothing is known of the
// process: nothing if it is not the Identity under which the SVID was issued.
// It must not have changed since: what its items and its template asked of the
// process held then, and nobody asks the process now.
func (s *Set) presented(p *Presented, e *evidence) (found []survivor) {
	i, ok := s.named(p.Identity)
	if !ok || i.Revision != p.Revision {
		return nil
	}
	for _, a := range i.alternatives {
		if t := a.evalTerms(e); t != isFalse {
			found = append(found, survivor{a, t})
		}
	}
	return found
}

// fits says whether an ID may be what the template gave: a known fact stands
// for what its value is rendered as, an unknown one for any text within a
// segment, or in several where it may be a path.
func (t *idTemplate) fits(e *evidence, id spiffeid.ID) bool {
	if t.constant() {
		return t.id == id
	}
	text := id.String()
	at := make([]bool, len(text)+1) // where in the ID what was read of the template may end
	at[0] = true
	literal := func(lit string) {
		for i := len(text); i >= 0; i-- {
			at[i] = i >= len(lit) && at[i-len(lit)] && text[i-len(lit):i] == lit
		}
	}
	literal(t.lits[0])
	for n := range t.slots {
		r := &t.slots[n]
		if e.isUnknown(r.name) {
			within := false // a run of at least one byte that began before
			for i := range at {
				began := at[i]
				at[i] = within && (text[i-1] != '/' || r.splits())
				within = began || at[i]
			}
		} else {
			value, err := r.render(e, inID)
			if err != nil {
				return false
			}
			literal(value)
		}
		literal(t.lits[n+1])
	}
	return at[len(text)] && !isReserved(id.Path())
}
