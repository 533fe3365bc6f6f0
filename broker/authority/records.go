package authority

import (
	"context"
	"crypto"
	"math/big"
	"slices"
	"time"
)

// Use says what an authority's key is for.
type Use string

// The uses of a key.
const (
	Root    Use = "root" // an anchor in the bundle: our own root, somebody else's, or (anchor "ours") our CA under one
	Domain  Use = "ca"   // our trust-domain CA under somebody else's root: signs issuing CAs; in no bundle
	Issuing Use = "x509" // an issuing CA's, never in a bundle
	JWTKey  Use = "jwt"
)

// State is where an authority stands in its life (design: prepared →
// published → active → old → revoked).
type State string

// The states of an authority.
const (
	Prepared  State = "prepared"
	Published State = "published"
	Active    State = "active"
	Old       State = "old"
	Revoked   State = "revoked"
)

// A Record is what is kept of one authority. It holds no private key: KeyRef
// names it in a Keys, or Sealed holds it where a SealedKeys alone can use it.
type Record struct {
	ID          string // key id: of a JWT key its kid; of a root that is not ours, of its certificate
	Use         Use
	Alg         string // "RS256", "ES256", or for certificates "P256", "P384", "RSA2048" ...
	State       State
	Broker      string   // whose issuing CA; empty: shared
	Parent      string   // the authority that it was certified under; empty: itself, or not certified yet
	KeyRef      string   // empty: the key is not ours
	Sealed      []byte   // the private key, encrypted for this ID, use, algorithm and state (SealedKeys); none: it is where KeyRef says
	PublicKey   []byte   // PKIX DER
	Chain       [][]byte // DER, this certificate first, without the anchor; none for JWT keys
	PublishedAt time.Time
	ActivatedAt time.Time
	LastExpiry  time.Time // no SVID that it signed lives longer
	NotAfter    time.Time
	RevokedAt   time.Time // when an operator ended it early
	Reason      string    // the operator's: why it was ended, or what else a root signs
}

// A Publication is the state of the trust domain's own bundle.
type Publication struct {
	Sequence uint64 // spiffe_sequence (SPIFFE Trust Domain and Bundle §4.1.1)
	Digest   []byte // SHA-256 of what was published under that sequence
	Version  Version
}

// A Version says how new a reading of the authorities is, in revisions of the
// store, which only grow. A LastExpiry that was raised makes nothing newer.
type Version struct {
	All    uint64 // of the last change of any authority, or of the publication
	Shared uint64 // of the last one of what all brokers share
}

// A Change is what one broker writes at once, having decided on what it had
// seen.
type Change struct {
	Broker      string               // whose it is
	Records     []Record             // take the place of those of the same ID; LastExpiry never falls
	LastExpiry  map[string]time.Time // of others, by ID: raised, never lowered
	Publication Publication          // Sequence 0: stays as it is
	Seen        Version
	All         bool   // it was decided on what other brokers have for themselves, too
	Fence       uint64 // of the lease under which what is shared is changed; 0: there is none
}

// Shared says whether the change is of what all brokers share, or of what
// another broker has for itself: more than raising a LastExpiry.
func (c Change) Shared() bool {
	return c.Publication.Sequence != 0 || slices.ContainsFunc(c.Records, func(r Record) bool { return r.Broker != c.Broker })
}

// Saved are the versions before and after a change.
type Saved struct{ Before, After Version }

// Records keeps authorities durably, for one broker or for several. Save makes
// a change in one transaction, durable when it returns.
//
// It refuses with ErrConflict a change that was decided on less than it should
// have seen (Seen.Shared, and with All Seen.All), and one that raises the
// LastExpiry of an authority that is not there or is revoked; with ErrFenced one
// of what is shared if the lease was given a higher fence. A change of nothing
// but LastExpiry has seen enough, and has the zero Saved.
//
// SaveRevocations keeps revocations (by issuer and serial number; one that is
// there stays as it is) and CRLs (one for each issuer), all in one transaction.
// It refuses all if a CRL's number is not above that of the one in its place.
// With a CRL it may forget those of the issuer's revocations whose NotAfter
// lies before the ThisUpdate of the CRL that was in its place: they were on one
// made after they had ended (RFC 5280 §3.3). It may forget what ended long ago,
// and CRLs that nobody renewed since.
type Records interface {
	Authorities(ctx context.Context) ([]Record, Publication, error)
	SaveAuthorities(ctx context.Context, c Change) (Saved, error)
	Revocations(ctx context.Context) ([]Revocation, []CRL, error)
	SaveRevocations(ctx context.Context, added []Revocation, lists []CRL) error
}

// A Revocation ends a certificate before its time.
type Revocation struct {
	Serial   *big.Int
	Issuer   string    // authority ID of the CA that signed it
	At       time.Time // since when it is not to be believed
	NotAfter time.Time // the certificate's: it leaves the CRL after that
	Reason   string    // the operator's words
}

// A CRL is a certificate revocation list (RFC 5280 §5).
type CRL struct {
	Issuer     string   // authority ID
	Chain      [][]byte // DER, the issuer's certificate first, without the anchor unless it is that; CRLs fills it in, Records don't keep it
	DER        []byte
	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
}

// Keys is a source of private keys. Create makes a key of alg and keeps it
// durably before it returns; Open finds one again.
type Keys interface {
	Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error)
	Open(ctx context.Context, ref string) (crypto.Signer, error)
}

// SealedKeys are Keys whose keys lie encrypted in the records, so that brokers
// share them: Create keeps a key nowhere. What is sealed opens only with the
// same bound words, in the same order: who writes the store can neither swap
// keys nor give one another state.
type SealedKeys interface {
	Keys
	Seal(key crypto.Signer, bound ...string) ([]byte, error)
	Unseal(sealed []byte, bound ...string) (crypto.Signer, error)
	// Current says whether it is sealed as Seal would do it today.
	Current(sealed []byte, bound ...string) (bool, error)
}
