//go:build pkcs11 && cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"

	"github.com/credence-id/credence/broker/keys"
)

// A signer is a key on the token and its public key.
type signer struct {
	keys  *Keys
	ref   string
	pub   crypto.PublicKey
	found atomic.Pointer[found]
}

// A found is where a key is as long as a login lasts.
type found struct {
	in  *crypto11.Context
	key crypto.Signer
}

func (k *Keys) open(ctx context.Context, ref string) (crypto.Signer, error) {
	s := &signer{keys: k, ref: ref}
	f, err := use(ctx, k, "opening key "+ref, alone(ctx, k, func(token *crypto11.Context) (*found, error) {
		key, err := find(token, ref)
		if err != nil {
			return nil, err
		}
		return &found{token, key}, usable(key.Public())
	}), nil)
	if err != nil {
		return nil, err
	}
	s.pub = f.key.Public()
	s.found.Store(f)
	return s, nil
}

// usable refuses kinds of keys that this source doesn't make.
func usable(pub crypto.PublicKey) error {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve == elliptic.P256() || pub.Curve == elliptic.P384() {
			return nil
		}
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); (bits == 2048 || bits == 3072 || bits == 4096) && pub.E >= 65537 {
			return nil
		}
	}
	return errors.New("it is of another kind than P-256, P-384 and RSA of 2048, 3072 or 4096 bits")
}

// Public returns the public key, as read when the key was opened.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign has the token sign a digest. It takes no longer than the settings'
// timeout.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	act := "signing with key " + s.ref
	asked, err := keys.Asked(s.pub, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", act, err)
	}
	opts = asked.Hash
	if asked.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: asked.Hash}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.keys.cfg.Timeout)
	defer cancel()
	sig, err := use(ctx, s.keys, act, func(token *crypto11.Context) ([]byte, error) {
		key, err := s.in(ctx, token)
		if err != nil {
			return nil, err
		}
		return key.Sign(rand.Reader, digest, opts)
	}, nil)
	if err != nil {
		return nil, err
	}
	if !asked.Verifies(s.pub, digest, sig) {
		return nil, fmt.Errorf("%s: the token answered with a signature that is not its: it is not used", act)
	}
	return sig, nil
}

// in finds the key again after another login, and makes sure that it is the
// same.
func (s *signer) in(ctx context.Context, token *crypto11.Context) (crypto.Signer, error) {
	if f := s.found.Load(); f.in == token {
		return f.key, nil
	}
	key, err := alone(ctx, s.keys, func(token *crypto11.Context) (crypto11.Signer, error) { return find(token, s.ref) })(token)
	if err != nil {
		return nil, err
	}
	if same, ok := s.pub.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(key.Public()) {
		return nil, errors.New("the token has another key by that name: put in the one that it was made on")
	}
	s.found.Store(&found{token, key})
	return key, nil
}
