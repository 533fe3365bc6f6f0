package federation

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// Marshal is the SPIFFE bundle document of b: the same bytes for the same
// content, and keys an array also when it is empty (SPIFFE Trust Domain and
// Bundle §4.1.3). go-spiffe's own writes null then, and JWT keys in any order.
func Marshal(b *spiffebundle.Bundle) ([]byte, error) {
	doc := struct {
		Sequence *uint64           `json:"spiffe_sequence,omitempty"`
		Hint     *int64            `json:"spiffe_refresh_hint,omitempty"`
		Keys     []jose.JSONWebKey `json:"keys"`
	}{Keys: []jose.JSONWebKey{}}
	if n, ok := b.SequenceNumber(); ok {
		doc.Sequence = &n
	}
	if hint, ok := b.RefreshHint(); ok {
		seconds := int64(hint / time.Second)
		doc.Hint = &seconds
	}
	for _, cert := range b.X509Authorities() {
		doc.Keys = append(doc.Keys, jose.JSONWebKey{
			Use: useX509, Key: cert.PublicKey, Certificates: []*x509.Certificate{cert},
		})
	}
	doc.Keys = appendKeys(doc.Keys, useJWT, b.JWTAuthorities())
	doc.Keys = appendKeys(doc.Keys, useWIT, b.WITAuthorities())
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("writing the bundle of %s: %w", b.TrustDomain(), err)
	}
	return data, nil
}

func appendKeys(to []jose.JSONWebKey, use string, keys map[string]crypto.PublicKey) []jose.JSONWebKey {
	for _, kid := range slices.Sorted(maps.Keys(keys)) {
		to = append(to, jose.JSONWebKey{Use: use, KeyID: kid, Key: keys[kid]})
	}
	return to
}
