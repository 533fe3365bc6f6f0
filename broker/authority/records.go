package authority

import (
	"context"
	"crypto"
	"math/big"
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
// names it in a Keys.
type Record struct {
	ID          string // key id: of a JWT key its kid; of a root that is not ours, of its certificate
	Use         Use
	Alg         string // "RS256", "ES256", or for certificates "P256", "P384", "RSA2048" ...
	State       State
	Broker      string   // whose issuing CA; empty: shared
	Parent      string   // the authority that it was certified under; empty: itself, or not certified yet
	KeyRef      string   // empty: the key is not ours
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
}

// Records keeps authorities durably. Save replaces the given records and the
// publication in one transaction, durable when it returns.
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
	SaveAuthorities(ctx context.Context, changed []Record, p Publication) error
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
