package identity

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Grant is permission to sign one SVID: an X509-SVID for one key, or a
// JWT-SVID for its audiences. Decide, ForNode and ForBroker make them; the
// zero Grant permits nothing.
type Grant struct {
	id        spiffeid.ID
	by        string // the Identity's name; "node" or "broker" for reserved IDs
	revision  uint64
	node      string
	key       KeyDigest // of an X509-SVID
	audiences []string  // of a JWT-SVID
	alg       string    // of a JWT-SVID
	claims    map[string]any
	act       string // of a JWT-SVID
	subject   string
	dnsNames  []string
	made      time.Time
	expires   time.Time
}

// IsZero says whether the grant permits nothing.
func (g Grant) IsZero() bool { return g.made.IsZero() || g.id.IsZero() }

// ID is whom the SVID names.
func (g Grant) ID() spiffeid.ID { return g.id }

// By is the name of the Identity that granted, and its revision.
func (g Grant) By() (name string, revision uint64) { return g.by, g.revision }

// Node is the SPIFFE ID of the node that asked, if one did.
func (g Grant) Node() string { return g.node }

// Key is the digest of the only key that may be certified; zero in a grant
// for a JWT-SVID.
func (g Grant) Key() KeyDigest { return g.key }

// Audiences are those of the JWT-SVID; none in a grant for an X509-SVID. The
// caller must not change them.
func (g Grant) Audiences() []string { return g.audiences }

// Alg is the algorithm of the JWT-SVID, RS256 or ES256.
func (g Grant) Alg() string { return g.alg }

// Claims are added to the JWT-SVID. The caller must not change them.
func (g Grant) Claims() map[string]any { return g.claims }

// Act is whose SVID a JWT-SVID was granted for, where that is a peer's: its act
// claim names it (RFC 8693 §4.1). Empty: it has none.
func (g Grant) Act() string { return g.act }

// Subject is the X509-SVID's, in RFC 4514 form; empty: none.
func (g Grant) Subject() string { return g.subject }

// DNSNames are the X509-SVID's. The caller must not change them.
func (g Grant) DNSNames() []string { return g.dnsNames }

// Made is when the grant was made: the authority refuses an old one.
func (g Grant) Made() time.Time { return g.made }

// Expires is when the SVID must have ended.
func (g Grant) Expires() time.Time { return g.expires }

// ForNode grants an X509-SVID to a node that proved itself to the broker, for
// the node's own key. id is how the trust domain knows the node: the last
// segment of its SPIFFE ID.
func ForNode(td spiffeid.TrustDomain, id string, key KeyDigest, now, expires time.Time) (Grant, error) {
	spiffeID, err := NodeID(td, id)
	if err != nil {
		return Grant{}, err
	}
	g, err := forReserved(spiffeID, "node", key, now, expires)
	g.node = spiffeID.String()
	if err != nil {
		return Grant{}, err
	}
	return g, nil
}

// ForBroker grants an X509-SVID to this broker itself.
func ForBroker(td spiffeid.TrustDomain, key KeyDigest, now, expires time.Time) (Grant, error) {
	if err := checkTrustDomain(td); err != nil {
		return Grant{}, fmt.Errorf("granting to the broker: %w", err)
	}
	return forReserved(BrokerID(td), "broker", key, now, expires)
}

func forReserved(id spiffeid.ID, by string, key KeyDigest, now, expires time.Time) (Grant, error) {
	switch {
	case key.IsZero():
		return Grant{}, fmt.Errorf("granting to %s: no key", id)
	case now.IsZero():
		return Grant{}, fmt.Errorf("granting to %s: no time", id)
	case !expires.After(now):
		return Grant{}, fmt.Errorf("granting to %s: it would end at %s, before it starts", id, expires.Format(time.RFC3339))
	}
	return Grant{id: id, by: by, key: key, made: now, expires: expires}, nil
}
