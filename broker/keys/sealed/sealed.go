// Package sealed makes private keys that lie, encrypted, wherever brokers share
// their records: each opens them under a key-encryption key that it has in a file.
//
// It trusts no place that they lie in: what is sealed opens only as what it was
// sealed for (whose, what for, in which state), so that who writes the records
// can neither swap keys nor give one another state. To keep what is sealed, and to
// forget it, is left to broker/authority.
package sealed

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/credence-id/credence/broker/keys"
	"github.com/credence-id/credence/broker/keys/kek"
)

// Config says what keys are encrypted under. All fields are required.
type Config struct {
	kek.Settings
	// Data is the broker's data directory, which no key-encryption key may be in.
	Data string
	// TrustDomain and Purpose are bound into what is sealed.
	TrustDomain, Purpose string
}

// Keys seals keys. Its methods may be called concurrently.
type Keys struct {
	ring  *kek.Ring
	bound []byte
}

// New reads the key-encryption keys.
func New(cfg Config) (*Keys, error) {
	if cfg.TrustDomain == "" || cfg.Purpose == "" || cfg.Data == "" {
		return nil, errors.New("sealing keys: trust domain, purpose and data directory are wanted")
	}
	ring, err := kek.New(cfg.Settings, cfg.Data)
	if err != nil {
		return nil, err
	}
	return &Keys{ring, kek.Bound("credence key in the store", cfg.TrustDomain, cfg.Purpose)}, nil
}

// Prefix begins the names of sealed keys.
const Prefix = "sealed:"

// Create makes a key of alg, in memory alone: Seal is the caller's next step.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	if key, err = keys.Generate(alg); err != nil {
		return "", nil, err
	}
	// A caller that stopped waiting meanwhile will never use this key.
	if err := ctx.Err(); err != nil {
		return "", nil, fmt.Errorf("making a key of %s: %w", alg, err)
	}
	name := make([]byte, 16)
	rand.Read(name) // never fails: it ends the program instead
	return Prefix + strings.ToLower(alg) + "-" + hex.EncodeToString(name), key, nil
}

// Open refuses: what is sealed is not found by its name.
func (k *Keys) Open(_ context.Context, ref string) (crypto.Signer, error) {
	return nil, fmt.Errorf("opening key %.128q: it lies in the store, and not by its name", ref)
}

// Seal encrypts a key under the newest key-encryption key. It opens only with the
// same words.
func (k *Keys) Seal(key crypto.Signer, bound ...string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return k.ring.Seal(der, k.bound, string(kek.Bound("", bound...))), nil
}

// Unseal opens what Seal made for the same words.
func (k *Keys) Unseal(sealed []byte, bound ...string) (crypto.Signer, error) {
	key, _, err := k.open(sealed, bound)
	return key, err
}

// Current says whether a sealed key is under the newest key-encryption key.
func (k *Keys) Current(sealed []byte, bound ...string) (bool, error) {
	_, current, err := k.open(sealed, bound)
	return current, err
}

func (k *Keys) open(sealed []byte, bound []string) (crypto.Signer, bool, error) {
	der, current, err := k.ring.Open(sealed, k.bound, string(kek.Bound("", bound...)))
	if err != nil {
		return nil, false, err
	}
	key, err := keys.Parse(der)
	return key, current, err
}
