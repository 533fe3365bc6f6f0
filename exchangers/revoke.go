package exchangers

import (
	"encoding/json"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Cut is what was revoked and may have been exchanged at one Target.
type Cut struct {
	IDs    []spiffeid.ID // whom the SVIDs name, in order
	Issuer string        // of JWT-SVIDs; empty: none
	Now    time.Time
	Until  time.Time // when the last of the SVIDs ends; not after Now: all have
	CRLs   []CRLFile // of the CAs that signed the SVIDs
}

// A CRLFile is a CRL as an operator has it in a file.
type CRLFile struct {
	Issuer     string // key ID
	File       string
	NextUpdate time.Time
}

// Advice is what a provider knows of revocation: for a person who does it, and
// for a program.
type Advice struct {
	Sessions string    // until when what was given for the SVIDs already lives, in a sentence
	Until    time.Time // an upper bound of that
	Remedies []Remedy  // what works, in the order in which it is to be done
	Missing  []string  // what the provider has no way to do, in sentences
}

// A Remedy is one thing to do at a provider.
type Remedy struct {
	Does     string          // what stops, how soon, and what else it stops
	Limits   []string        // in sentences
	Command  []string        // a program and its arguments; words in capitals are to be filled in
	Document json.RawMessage // the same as data, where there is some: a policy, a condition
}

// A Revoker is Settings that know what their provider can do when SVIDs are
// revoked. It asks nobody.
type Revoker interface {
	Revoke(Cut) Advice
}
