package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A KeyDigest is the SHA-256 of a public key's DER SubjectPublicKeyInfo.
type KeyDigest [sha256.Size]byte

// DigestKey returns the digest of pub.
func DigestKey(pub crypto.PublicKey) (KeyDigest, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return KeyDigest{}, fmt.Errorf("digesting a public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// String returns the digest in lower-case hex.
func (d KeyDigest) String() string { return hex.EncodeToString(d[:]) }

// IsZero says whether this is no key's digest.
func (d KeyDigest) IsZero() bool { return d == KeyDigest{} }

// A Request holds everything that a decision may depend on, the time
// included.
type Request struct {
	NodeID     string        // SPIFFE ID of the node, for the record; empty for people and peers
	Node       Facts         // node.*
	Workload   Facts         // workload.*
	User, Peer Facts         // of people and of a peer's workloads: then there is no Node
	Unknown    []string      // names or prefixes whose prover failed: a deny on them holds
	Audiences  []string      // none for an X509-SVID
	Target     string        // or for this target's exchange: its audience, RS256
	ToFile     bool          // a target's token that goes to a file lives longer
	SPIFFEID   spiffeid.ID   // only this one; zero: all
	Presented  *Presented    // an SVID of ours is the evidence, and no process: then there is no Workload
	Keys       []KeyDigest   // spare keys for X509-SVIDs: each Decision takes one; without one it has no Grant
	TTL        time.Duration // asked for; zero means the identity's; more than that is a LifeError
	Ends       time.Time     // what is granted ends no later; zero: no bound
	Time       time.Time
}

// Presented is an SVID of ours that somebody shows who has no agent at hand.
// What its process is was proven when it was issued, and is not known now: the
// Identity must stand as it stood then, what the facts of the node refute is
// refused, and a Deny that reads workload.* holds as on anything unknown.
type Presented struct {
	Identity string
	Revision uint64 // of the Identity, when the SVID was issued
	ID       spiffeid.ID
}

// exchange says whether an SVID is the evidence, ours or a peer's: then what is
// granted must not be evidence again.
func (r *Request) exchange() bool { return r.Presented != nil || r.Peer.Len() > 0 }

// A Decision is one identity that the caller has.
type Decision struct {
	Grant         Grant // the zero Grant, where no key was left for it
	Identity      string
	Revision      uint64
	ID            spiffeid.ID
	Hint          string
	FederatesWith []string
	Targets       []string
	JWTAudiences  []Audience          // what the Workload API may be asked for, each with the use that counts for it
	Depends       map[string][]string // decision 1: every fact that this Identity or any Deny names; nil values: absent
	Use           Use                 // of the JWT-SVID
	Names         []string            // subject and DNS names of the X509-SVID, where facts stand in them
}
