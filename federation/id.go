package federation

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lengths that SPIFFE-ID §2.1 and §2.3 set, in bytes.
const (
	maxID          = 2048
	maxTrustDomain = 255
)

// ParseID parses a SPIFFE ID that came from outside, by the rules of SPIFFE-ID
// §2: go-spiffe's, and the lengths, which it leaves to its callers. Nothing is
// folded, decoded or normalised.
func ParseID(s string) (spiffeid.ID, error) {
	if len(s) > maxID {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID is longer than %d bytes", maxID)
	}
	id, err := spiffeid.FromString(s)
	switch {
	case err != nil:
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID %q: %w", clip(s), err)
	case len(id.TrustDomain().Name()) > maxTrustDomain:
		return spiffeid.ID{}, fmt.Errorf("trust domain is longer than %d bytes", maxTrustDomain)
	}
	return id, nil
}

// ParseTrustDomain parses the name of a trust domain that came from outside: a
// bare name, no SPIFFE ID.
func ParseTrustDomain(s string) (spiffeid.TrustDomain, error) {
	if len(s) > maxTrustDomain || strings.ContainsAny(s, ":/") {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: want a name of at most %d bytes such as example.org", clip(s), maxTrustDomain)
	}
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: %w", clip(s), err)
	}
	return td, nil
}
