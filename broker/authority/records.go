package authority

import (
	"context"
	"crypto"
	"time"
)

// Use says what an authority's key is for.
type Use string

// The uses of a key.
const (
	Root    Use = "root"
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
	ID          string // key id: of a JWT key its kid
	Use         Use
	Alg         string // "RS256", "ES256", or for certificates "P256", "P384", "RSA2048" ...
	State       State
	Broker      string // whose issuing CA; empty: shared
	KeyRef      string
	PublicKey   []byte   // PKIX DER
	Chain       [][]byte // DER, this certificate first; none for JWT keys
	PublishedAt time.Time
	ActivatedAt time.Time
	LastExpiry  time.Time // no SVID that it signed lives longer
	NotAfter    time.Time
}

// A Publication is the state of the trust domain's own bundle.
type Publication struct {
	Sequence uint64 // spiffe_sequence (SPIFFE Trust Domain and Bundle §4.1.1)
	Digest   []byte // SHA-256 of what was published under that sequence
}

// Records keeps authorities durably. Save replaces the given records and the
// publication in one transaction, durable when it returns.
type Records interface {
	Authorities(ctx context.Context) ([]Record, Publication, error)
	SaveAuthorities(ctx context.Context, changed []Record, p Publication) error
}

// Keys is a source of private keys. Create makes a key of alg and keeps it
// durably before it returns; Open finds one again.
type Keys interface {
	Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error)
	Open(ctx context.Context, ref string) (crypto.Signer, error)
}
