package oidc

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation/endpoint"
)

// jwk is RFC 7517 with RFC 7518 §6.3.1. No x5c and no x5t: some clouds refuse
// keys that have one.
type jwk struct {
	KTY string `json:"kty"`
	KID string `json:"kid"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	N   string `json:"n"`
	E   string `json:"e"`
}

var errNoKeys = errors.New("no RS256 key is published")

// A keySet is the document of some keys. It is immutable.
type keySet struct {
	keys []authority.PublicKey
	*endpoint.Document
}

// of says whether the document is that of these keys. Nobody changes a key in
// its place.
func (s *keySet) of(keys []authority.PublicKey) bool {
	return s != nil && slices.EqualFunc(s.keys, keys, func(a, b authority.PublicKey) bool {
		x, isRSA := a.Key.(*rsa.PublicKey)
		y, _ := b.Key.(*rsa.PublicKey)
		return isRSA && x == y && a.ID == b.ID && a.Alg == b.Alg
	})
}

// keySet gives the document of the RS256 keys that are published now.
func (h *Handler) keySet() (*endpoint.Document, error) {
	keys := onlyRS256(h.keys())
	if last := h.last.Load(); last.of(keys) {
		return last.Document, nil
	}
	body, err := encode(keys)
	if err != nil {
		return nil, err
	}
	s := &keySet{keys, endpoint.NewDocument(body, h.cache)}
	h.last.Store(s)
	return s.Document, nil
}

// onlyRS256 leaves other keys out: some clouds refuse a set that has any.
func onlyRS256(all []authority.PublicKey) (keys []authority.PublicKey) {
	for _, k := range all {
		if k.Alg == "RS256" {
			keys = append(keys, k)
		}
	}
	return keys
}

// encode writes RS256 keys in the order that they have.
func encode(keys []authority.PublicKey) ([]byte, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, k := range keys {
		pub, ok := k.Key.(*rsa.PublicKey)
		if !ok || k.ID == "" {
			return nil, fmt.Errorf("key %q of RS256 is a %T", k.ID, k.Key)
		}
		set.Keys = append(set.Keys, jwk{
			KTY: "RSA", KID: k.ID, Use: "sig", Alg: "RS256",
			N: base64.RawURLEncoding.EncodeToString(pub.N.Bytes()),
			E: base64.RawURLEncoding.EncodeToString(big.NewInt(int64(pub.E)).Bytes()),
		})
	}
	if len(set.Keys) == 0 {
		return nil, errNoKeys
	}
	return json.Marshal(set)
}
