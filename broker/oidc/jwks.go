package oidc

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
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

// keySet encodes the RS256 keys in the order that they have. Some clouds
// refuse a set with others in it.
func (h *Handler) keySet() ([]byte, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, k := range h.keys() {
		if k.Alg != "RS256" {
			continue
		}
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
