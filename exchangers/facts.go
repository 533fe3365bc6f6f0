package exchangers

import (
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Facts are what is so at the broker about one Target, now: what a provider
// has to be told of, and what it will be shown.
type Facts struct {
	Now         time.Time
	TrustDomain spiffeid.TrustDomain
	Target      Target
	Parties     []Party // the identities that list the Target, by name; one for each SPIFFE ID that it can grant

	Issuer    string // byte for byte as tokens say it; empty: no JWT-SVIDs
	Discovery []byte // the document at Issuer, as it is served
	JWKS      []byte // the keys that it leads to, as they are served
	Keys      []JWTKey

	Anchors    []*x509.Certificate // the X.509 authorities of the bundle
	Chain      []*x509.Certificate // of the CA that signs now: itself first, without an anchor
	SharedRoot bool                // others than us have certificates under an anchor
}

// A Party is an Identity that lists the Target.
type Party struct {
	Identity string
	SPIFFEID string // with {facts} in it that no exact term of the Identity fixes
	Subject  string // of its X509-SVIDs, such as "CN=checkout"; empty: none
	X509TTL  time.Duration
	TokenTTL time.Duration // of a JWT-SVID for the Target
}

// A JWTKey is a published one.
type JWTKey struct {
	ID        string
	Alg       string // "RS256", "ES256"
	Published time.Time
	Active    bool // it signs now
}
