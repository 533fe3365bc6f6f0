package gcpkms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/credence-id/credence/broker/keys"
)

var (
	// errMaking is the error of a key that the service still makes.
	errMaking = errors.New("it is still being made")
	// errDamaged is the error of what arrived otherwise than it was sent.
	errDamaged = errors.New("it was damaged on its way: its CRC32C differs")
)

// A kind is what an algorithm of the service's comes to.
type kind struct {
	key  string // as kindOf says it
	hash crypto.Hash
}

func kindBy(a kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) (kind, error) {
	switch a {
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256:
		return kind{"RSA 2048", crypto.SHA256}, nil
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256:
		return kind{"RSA 3072", crypto.SHA256}, nil
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256:
		return kind{"RSA 4096", crypto.SHA256}, nil
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA512:
		return kind{"RSA 4096", crypto.SHA512}, nil
	case kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256:
		return kind{"P-256", crypto.SHA256}, nil
	case kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384:
		return kind{"P-384", crypto.SHA384}, nil
	}
	return kind{}, fmt.Errorf("it is of %s: RSA_SIGN_PKCS1_*, EC_SIGN_P256_SHA256 or EC_SIGN_P384_SHA384 is wanted", a)
}

func kindOf(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprint("RSA ", pub.N.BitLen())
	case *ecdsa.PublicKey:
		return pub.Curve.Params().Name
	}
	return ""
}

// A signer is a key version and its public key.
type signer struct {
	keys *Keys
	ref  string
	kind kind
	pub  crypto.PublicKey
}

func (k *Keys) open(ctx context.Context, ref string) (crypto.Signer, error) {
	c := call{act: "opening key " + ref, permission: "cloudkms.cryptoKeyVersions.get", role: "roles/cloudkms.viewer"}
	v, err := k.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: ref}, c.options())
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if err := usable(ref, v); err != nil {
		return nil, fmt.Errorf("%s: %w", c.act, err)
	}
	kind, err := kindBy(v.GetAlgorithm())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.act, err)
	}
	c.permission, c.role = "cloudkms.cryptoKeyVersions.viewPublicKey", "roles/cloudkms.publicKeyViewer"
	out, err := k.client.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: ref}, c.options())
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	pub, err := publicKey(ref, v.GetAlgorithm(), out)
	if err == nil && kindOf(pub) != kind.key {
		err = fmt.Errorf("its public key is of %q, the service says %s", kindOf(pub), v.GetAlgorithm())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: reading its public key: %w", c.act, err)
	}
	return &signer{keys: k, ref: ref, kind: kind, pub: pub}, nil
}

// usable says why a key can't sign for us.
func usable(ref string, v *kmspb.CryptoKeyVersion) error {
	switch state := v.GetState(); {
	case v.GetName() != ref:
		return errors.New("the answer is about another key")
	case state == kmspb.CryptoKeyVersion_PENDING_GENERATION:
		return errMaking
	case state == kmspb.CryptoKeyVersion_DESTROYED:
		return fmt.Errorf("it was destroyed: %w", os.ErrNotExist)
	case state == kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		return errors.New("it waits for its destruction: gcloud kms keys versions restore, then enable, bring it back")
	case state == kmspb.CryptoKeyVersion_DISABLED:
		return errors.New("it is disabled: gcloud kms keys versions enable enables it")
	case state != kmspb.CryptoKeyVersion_ENABLED:
		return fmt.Errorf("its state is %s, ENABLED is wanted", state)
	}
	return nil
}

func publicKey(ref string, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, out *kmspb.PublicKey) (crypto.PublicKey, error) {
	if out.GetName() != ref || out.GetAlgorithm() != algorithm {
		return nil, errors.New("the answer is about another key")
	}
	if sum := out.GetPemCrc32C(); sum == nil || sum.GetValue() != crc32c([]byte(out.GetPem())) {
		return nil, errDamaged
	}
	block, rest := pem.Decode([]byte(out.GetPem()))
	if block == nil || block.Type != "PUBLIC KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not one PEM block of type PUBLIC KEY")
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

func crc32c(data []byte) int64 {
	return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// Public returns the public key, as read when the key was opened.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign has the service sign a digest. It takes no longer than the settings'
// timeout.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	asked, err := s.asked(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with key %s: %w", s.ref, err)
	}
	request := s.request(digest)
	ctx, cancel := context.WithTimeout(context.Background(), s.keys.cfg.Timeout)
	defer cancel()
	c := call{act: "signing with key " + s.ref, permission: "cloudkms.cryptoKeyVersions.useToSign", role: "roles/cloudkms.signer"}
	for left := 2; ; left-- { // a bit may flip, but not again and again
		out, err := s.keys.client.AsymmetricSign(ctx, request, c.options())
		if err != nil {
			return nil, c.failure(ctx, err)
		}
		if err = s.check(out, asked, digest); err == nil {
			return out.GetSignature(), nil
		}
		if left == 0 || !errors.Is(err, errDamaged) {
			return nil, fmt.Errorf("%s: %w", c.act, err)
		}
	}
}

// asked refuses what this key doesn't sign: it has one hash, and for RSA one
// padding.
func (s *signer) asked(digest []byte, opts crypto.SignerOpts) (keys.Signature, error) {
	asked, err := keys.Asked(s.pub, digest, opts)
	switch {
	case err != nil:
		return asked, err
	case asked.PSS:
		return asked, errors.New("PSS: this key signs PKCS #1 v1.5 alone, as Google binds a key to one padding")
	case asked.Hash != s.kind.hash:
		return asked, fmt.Errorf("%v: this key signs %v alone, as Google binds a key to one hash", asked.Hash, s.kind.hash)
	}
	return asked, nil
}

func (s *signer) request(digest []byte) *kmspb.AsymmetricSignRequest {
	request := &kmspb.AsymmetricSignRequest{Name: s.ref, DigestCrc32C: wrapperspb.Int64(crc32c(digest)), Digest: &kmspb.Digest{}}
	switch s.kind.hash {
	case crypto.SHA384:
		request.Digest.Digest = &kmspb.Digest_Sha384{Sha384: digest}
	case crypto.SHA512:
		request.Digest.Digest = &kmspb.Digest_Sha512{Sha512: digest}
	default:
		request.Digest.Digest = &kmspb.Digest_Sha256{Sha256: digest}
	}
	return request
}

// check holds an answer against what was asked.
func (s *signer) check(out *kmspb.AsymmetricSignResponse, asked keys.Signature, digest []byte) error {
	sig := out.GetSignature()
	switch {
	case out.GetName() != s.ref:
		return errors.New("the answer is about another key")
	case !out.GetVerifiedDigestCrc32C():
		return fmt.Errorf("the digest: %w", errDamaged)
	case out.GetSignatureCrc32C() == nil || out.GetSignatureCrc32C().GetValue() != crc32c(sig):
		return fmt.Errorf("the signature: %w", errDamaged)
	case !asked.Verifies(s.pub, digest, sig):
		return errors.New("the service answered with a signature that is not its: it is not used")
	}
	return nil
}
