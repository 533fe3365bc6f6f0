// Package identity says which workloads, people and peers get which SPIFFE
// IDs, and decides. It is the only maker of Grants, without which the
// authority signs nothing.
//
// It does no I/O and reads no clock: a Request carries everything that a
// decision may depend on, the time included. It trusts that the facts in a
// Request were proven by those who put them there; proving them is left to the
// join methods and the agents' attestors, signing to broker/authority, and the
// record to broker/audit.
//
// Three values (true, false, unknown) run through every evaluation: an
// Identity needs true, a Deny holds on true and on unknown. Unknown, absent
// and empty never widen what is granted.
package identity

import (
	"errors"
	"fmt"
	"time"
)

// ErrDenied says that nothing is granted. It carries no reason: Explain finds
// reasons, for the operator, at its own cost.
var ErrDenied = errors.New("denied")

// A LifeError is an ErrDenied of a request for a life that is not given. An
// identity's life is its cap: nothing that is asked for lengthens it, and what
// is longer is refused whole, not cut, so that nobody gets less than they
// reckon with.
type LifeError struct {
	Asked time.Duration
	Least time.Duration // that any identity gives; 0: Asked is not under it
	Most  time.Duration // that all granted identities give; 0: Asked is not over it
}

// Error names the bound.
func (e *LifeError) Error() string {
	if e.Most > 0 {
		return fmt.Sprintf("%s: a life of %s is asked for, and at most %s is given", ErrDenied, e.Asked, e.Most)
	}
	return fmt.Sprintf("%s: a life of %s is asked for, and none under %s is given", ErrDenied, e.Asked, e.Least)
}

// Is makes a LifeError an ErrDenied.
func (e *LifeError) Is(err error) bool { return err == ErrDenied }

// A Term is one condition on one fact: it holds if one of the fact's strings
// equals Pattern or matches it. `*` is a run without `/`, `**` any run; at
// most four stars; anchored, case-sensitive, bytes.
type Term struct {
	Name    string // a fact's dotted name, such as "workload.unix.uid"
	Pattern string
}

// An Item is one alternative of a match: all of its terms must hold, and When
// (a CEL expression), if set, must be true.
type Item struct {
	Terms   []Term
	When    string
	AnyNode bool // permits an Item without an exact node.* term
}

// An Identity says who gets a SPIFFE ID, and with what.
type Identity struct {
	Name          string
	Revision      uint64 // of the stored resource; for the record
	SPIFFEID      string // a path, or a full ID in our trust domain; {fact} renders a fact's only value
	Match         []Item // any of them
	X509          *X509  // nil: the defaults
	JWT           *JWT   // nil: no JWT-SVID through the Workload API
	FederatesWith []string
	Hint          string // at most 1024 bytes (SPIFFE Workload API §5.2.1)
	Targets       []string
}

// X509 is what an Identity says of its X509-SVIDs.
type X509 struct {
	TTL      time.Duration // 0: the set's default
	Subject  string        // RFC 4514, "CN=..." and RDNs that Config.Subjects permits; empty: no subject
	DNSNames []string      // must lie under Config.DNSSuffixes
}

// JWT is what an Identity says of its JWT-SVIDs.
type JWT struct {
	TTL       time.Duration  // 0: the set's default
	Audiences []Audience     // what the Workload API may be asked for; "**" is any; empty is none
	Claims    map[string]any // added claims; never a registered name
	Alg       string         // "", "RS256" or "ES256"
}

// A Deny withholds SPIFFE IDs. It wins over every Identity, also when a fact
// that it reads is unknown.
type Deny struct {
	Name      string
	Revision  uint64
	Match     []Item
	SPIFFEIDs []string // patterns over paths (or full IDs); empty: all
	Reason    string   // for the operator only
	Here      bool     // of one broker alone: in a Set it stands beside the one of its name, as HereDeny(Name)
}

// HereDeny is the name by which a Set has a Deny that is Here.
func HereDeny(name string) string { return "here/" + name }

// A Target is what a decision needs to know of an exchange.
type Target struct {
	Name     string
	Revision uint64
	Audience string        // of the JWT-SVID that the exchange presents; empty: it presents an X509-SVID
	TTL      time.Duration // of that JWT-SVID at most; 0: the set's
	Limits   Limits        // for Lint alone
}

// Limits are what a Target's provider takes; a zero is unknown or no bound.
type Limits struct {
	Provider    string // for people
	SPIFFEID    int    // bytes
	WantsRDN    string // what X509.Subject needs, such as "CN"; "any" attribute will do
	App         string // whose credentials name the SPIFFE IDs, one each
	Credentials int    // that an App can have
}
