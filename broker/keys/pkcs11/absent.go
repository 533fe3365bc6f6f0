//go:build !pkcs11 || !cgo

package pkcs11

import (
	"context"
	"crypto"
	"errors"
)

var errAbsent = errors.New("this build has no PKCS#11: build it with CGO_ENABLED=1 go build -tags pkcs11 ./cmd/credence")

// Keys are the keys of a token, in builds that have PKCS#11.
type Keys struct{}

// New refuses, and says how to build a program that has PKCS#11.
func New(cfg Config) (*Keys, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return nil, errAbsent
}

// Create refuses, as New does.
func (*Keys) Create(context.Context, string) (string, crypto.Signer, error) {
	return "", nil, errAbsent
}

// Open refuses, as New does.
func (*Keys) Open(context.Context, string) (crypto.Signer, error) { return nil, errAbsent }

// Remove refuses, as New does.
func (*Keys) Remove(context.Context, string) error { return errAbsent }

// Close has nothing to close.
func (*Keys) Close() error { return nil }
