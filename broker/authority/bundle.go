package authority

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Bundle is what relying parties believe of the trust domain. It is
// immutable.
type Bundle struct {
	TrustDomain     spiffeid.TrustDomain
	Sequence        uint64        // SPIFFE Trust Domain and Bundle §4.1.1
	RefreshHint     time.Duration // §4.1.2
	Document        []byte        // §4, as JSON
	X509Authorities []*x509.Certificate
	JWTKeys         []PublicKey

	changed chan struct{}
}

// A PublicKey verifies JWT-SVIDs.
type PublicKey struct {
	ID  string // kid
	Alg string // RS256 or ES256
	Key crypto.PublicKey
}

// Changed is closed when another bundle has taken this one's place.
func (b *Bundle) Changed() <-chan struct{} { return b.changed }

func (b *Bundle) digest() []byte {
	d := sha256.Sum256(b.Document)
	return d[:]
}

func (b *Bundle) is(digest []byte) bool { return bytes.Equal(b.digest(), digest) }

// vouchesFor says whether one of the bundle's roots signed c.
func (b *Bundle) vouchesFor(c *x509.Certificate) bool {
	for _, root := range b.X509Authorities {
		if c.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}

// verifies says whether ca's chain leads to one of the bundle's roots, each
// signed by the next, or is itself one of them.
func (b *Bundle) verifies(ca *issuingCA) bool {
	if len(ca.chain) == 0 {
		return slices.ContainsFunc(b.X509Authorities, ca.cert.Equal)
	}
	for i, c := range ca.chain[1:] {
		if ca.chain[i].CheckSignatureFrom(c) != nil {
			return false
		}
	}
	return b.vouchesFor(ca.chain[len(ca.chain)-1])
}

// makeBundle collects what is published, in the order of the records.
func makeBundle(td spiffeid.TrustDomain, records []Record, sequence uint64, hint time.Duration) (*Bundle, error) {
	b := &Bundle{TrustDomain: td, Sequence: sequence, RefreshHint: hint, changed: make(chan struct{})}
	doc := document{Keys: []jose.JSONWebKey{}, Sequence: sequence, RefreshHint: int64(hint / time.Second)}
	for _, r := range records {
		switch {
		case r.Use == Root && r.published():
			chain, err := parseChain(r)
			if err != nil {
				return nil, err
			}
			if err := checkRoot(r, chain[0], td); err != nil {
				return nil, fmt.Errorf("root %s: %w", r.ID, err)
			}
			b.X509Authorities = append(b.X509Authorities, chain[0])
			// SPIFFE X509-SVID §6.1: no kid, one certificate.
			doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: chain[0].PublicKey, Use: "x509-svid", Certificates: chain[:1]})
		case r.Use == JWTKey && r.published():
			key, err := x509.ParsePKIXPublicKey(r.PublicKey)
			if err != nil {
				return nil, fmt.Errorf("parsing JWT key %s: %w", r.ID, err)
			}
			b.JWTKeys = append(b.JWTKeys, PublicKey{ID: r.ID, Alg: r.Alg, Key: key})
			// SPIFFE JWT-SVID §6.1; no alg: Trust Domain and Bundle §4.2.
			doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: key, KeyID: r.ID, Use: "jwt-svid"})
		}
	}
	var err error
	b.Document, err = json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle of %s: %w", td, err)
	}
	return b, nil
}

// document is SPIFFE Trust Domain and Bundle §4.1. go-spiffe's own encoder
// writes the keys in the order of a map.
type document struct {
	Keys        []jose.JSONWebKey `json:"keys"`
	Sequence    uint64            `json:"spiffe_sequence"`
	RefreshHint int64             `json:"spiffe_refresh_hint"`
}

// checkRoot refuses the root of another trust domain: a data directory given
// to the wrong broker. Who else made a root gave it any name.
func checkRoot(r Record, c *x509.Certificate, td spiffeid.TrustDomain) error {
	own := r.KeyRef != "" && bytes.Equal(c.RawSubject, c.RawIssuer)
	if own && (len(c.URIs) != 1 || c.URIs[0].String() != td.IDString()) {
		return fmt.Errorf("its certificate is not one of %s", td)
	}
	if !c.IsCA {
		return fmt.Errorf("its certificate is no CA's")
	}
	return nil
}
