package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lengths that SPIFFE-ID §2.1 and §2.3 set, in bytes.
const (
	maxTrustDomain = 255
	maxID          = 2048
)

// Paths that no Identity may grant.
const (
	reserved   = "/credence"
	brokerPath = reserved + "/broker"
	nodePrefix = reserved + "/node/"
)

// ParseID parses a SPIFFE ID that came from outside, by the rules of SPIFFE-ID
// §2: go-spiffe's, and the lengths, which it leaves to its callers. Nothing is
// folded, decoded or normalised.
func ParseID(s string) (spiffeid.ID, error) {
	if len(s) > maxID {
		return spiffeid.ID{}, fmt.Errorf("parsing a SPIFFE ID of %d bytes: at most %d are taken", len(s), maxID)
	}
	if strings.ContainsAny(s, "?#") { // go-spiffe's character sets exclude them too: this holds if those ever widen
		return spiffeid.ID{}, fmt.Errorf("parsing SPIFFE ID %q: it has a query or a fragment", s)
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("parsing SPIFFE ID %q: %w", s, err)
	}
	if err := checkTrustDomain(id.TrustDomain()); err != nil {
		return spiffeid.ID{}, fmt.Errorf("parsing a SPIFFE ID: %w", err)
	}
	return id, nil
}

// ParseTrustDomain parses the name of a trust domain that came from outside.
// Unlike go-spiffe's function it takes a bare name alone, no SPIFFE ID.
func ParseTrustDomain(s string) (spiffeid.TrustDomain, error) {
	if strings.ContainsAny(s, ":/") || len(s) > maxTrustDomain {
		return spiffeid.TrustDomain{}, fmt.Errorf("parsing a trust domain: want a name of at most %d bytes such as example.org", maxTrustDomain)
	}
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("parsing trust domain %q: %w", s, err)
	}
	return td, nil
}

func checkTrustDomain(td spiffeid.TrustDomain) error {
	switch n := len(td.Name()); {
	case n == 0:
		return errors.New("no trust domain")
	case n > maxTrustDomain:
		return fmt.Errorf("trust domain of %d bytes: at most %d are taken", n, maxTrustDomain)
	}
	return nil
}

// BrokerID returns the SPIFFE ID of td's brokers.
func BrokerID(td spiffeid.TrustDomain) spiffeid.ID {
	id, err := spiffeid.FromPath(td, brokerPath)
	if err != nil { // td is zero: so is what it names
		return spiffeid.ID{}
	}
	return id
}

// NodeID returns the SPIFFE ID of the node that td knows as id, which must be
// fit to be one segment of a path.
func NodeID(td spiffeid.TrustDomain, id string) (spiffeid.ID, error) {
	if err := checkTrustDomain(td); err != nil {
		return spiffeid.ID{}, fmt.Errorf("naming a node: %w", err)
	}
	if err := spiffeid.ValidatePathSegment(id); err != nil {
		return spiffeid.ID{}, fmt.Errorf("naming node %q: %w", id, err)
	}
	return ParseID(td.IDString() + nodePrefix + id)
}

// IsNodeID says whether id is one of td's nodes.
func IsNodeID(td spiffeid.TrustDomain, id spiffeid.ID) bool {
	if td.IsZero() || id.IsZero() || !id.MemberOf(td) {
		return false
	}
	last, ok := strings.CutPrefix(id.Path(), nodePrefix)
	return ok && last != "" && !strings.Contains(last, "/")
}

// isReserved says whether path is Credence's own.
// IsReserved says whether an ID is of Credence's own: a broker's, a node's, or one
// that nobody has.
func IsReserved(id spiffeid.ID) bool { return isReserved(id.Path()) }

func isReserved(path string) bool {
	return path == reserved || strings.HasPrefix(path, reserved+"/")
}
