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
// for its value, an unknown one for any text within a segment.
func (t *template) fits(e *evidence, id spiffeid.ID) bool {
	if len(t.names) == 0 {
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
	for n, name := range t.names {
		switch values := e.get(name); {
		case e.isUnknown(name):
			within := false // a run of at least one byte that began before
			for i := range at {
				began := at[i]
				at[i] = within && text[i-1] != '/'
				within = began || at[i]
			}
		case len(values) == 1:
			literal(values[0])
		default:
			return false
		}
		literal(t.lits[n+1])
	}
	return at[len(text)] && !isReserved(id.Path())
}
