package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/credence-id/credence/broker/keys"
)

// A signer is a key in KMS and its public key.
type signer struct {
	keys *Keys
	ref  string
	pub  crypto.PublicKey
}

// open reads what KMS says of a key. One made just now may not be known
// everywhere yet.
func (k *Keys) open(ctx context.Context, ref string, fresh bool) (crypto.Signer, error) {
	c := call{act: "opening key " + ref, permission: "kms:DescribeKey", fresh: fresh}
	about, err := k.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(ref)}, c.options)
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if err := usable(ref, about.KeyMetadata); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", ref, err)
	}
	c.permission = "kms:GetPublicKey"
	out, err := k.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: aws.String(ref)}, c.options)
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if aws.ToString(out.KeyId) != ref || out.KeyUsage != types.KeyUsageTypeSignVerify || out.KeySpec != about.KeyMetadata.KeySpec {
		return nil, fmt.Errorf("opening key %s: the answer is about another key: %s, %s, %s", ref, aws.ToString(out.KeyId), out.KeyUsage, out.KeySpec)
	}
	pub, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: reading its public key: %w", ref, err)
	}
	if got := kindOf(pub); got != out.KeySpec {
		return nil, fmt.Errorf("opening key %s: its public key is of %q, KMS says %s", ref, got, out.KeySpec)
	}
	return &signer{keys: k, ref: ref, pub: pub}, nil
}

// usable says why a key can't sign for us.
func usable(ref string, m *types.KeyMetadata) error {
	kinds := []types.KeySpec{types.KeySpecRsa2048, types.KeySpecRsa3072, types.KeySpecRsa4096, types.KeySpecEccNistP256, types.KeySpecEccNistP384}
	switch {
	case m == nil || aws.ToString(m.Arn) != ref:
		return errors.New("the answer is about another key")
	case m.KeyUsage != types.KeyUsageTypeSignVerify:
		return fmt.Errorf("it is for %s: one for SIGN_VERIFY is wanted", m.KeyUsage)
	case !slices.Contains(kinds, m.KeySpec):
		return fmt.Errorf("it is of %s: one of %v is wanted", m.KeySpec, kinds)
	case m.KeyState == types.KeyStatePendingDeletion:
		return errors.New("it waits for its deletion: aws kms cancel-key-deletion, then enable-key, bring it back")
	case m.KeyState == types.KeyStateDisabled:
		return errors.New("it is disabled: aws kms enable-key enables it")
	case m.KeyState != types.KeyStateEnabled:
		return fmt.Errorf("its state is %s, Enabled is wanted", m.KeyState)
	}
	return nil
}

func kindOf(pub crypto.PublicKey) types.KeySpec {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return types.KeySpec(fmt.Sprint("RSA_", pub.N.BitLen()))
	case *ecdsa.PublicKey:
		return types.KeySpec("ECC_NIST_" + strings.ReplaceAll(pub.Curve.Params().Name, "-", ""))
	}
	return ""
}

// Public returns the public key, as read when the key was opened.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign has KMS sign a digest. It takes no longer than the settings' timeout.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	asked, err := keys.Asked(s.pub, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with key %s: %w", s.ref, err)
	}
	alg := s.algorithm(asked)
	ctx, cancel := context.WithTimeout(context.Background(), s.keys.cfg.Timeout)
	defer cancel()
	c := call{act: "signing with key " + s.ref, permission: "kms:Sign"}
	out, err := s.keys.client.Sign(ctx, &kms.SignInput{
		KeyId: aws.String(s.ref), Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: alg,
	}, c.options)
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if aws.ToString(out.KeyId) != s.ref || out.SigningAlgorithm != alg || !asked.Verifies(s.pub, digest, out.Signature) {
		return nil, fmt.Errorf("signing with key %s: KMS answered with a signature that is not its: it is not used", s.ref)
	}
	return out.Signature, nil
}

// algorithm is KMS's name of a signature.
func (s *signer) algorithm(asked keys.Signature) types.SigningAlgorithmSpec {
	scheme := "RSASSA_PKCS1_V1_5"
	switch _, ec := s.pub.(*ecdsa.PublicKey); {
	case ec:
		scheme = "ECDSA"
	case asked.PSS:
		scheme = "RSASSA_PSS"
	}
	return types.SigningAlgorithmSpec(fmt.Sprintf("%s_SHA_%d", scheme, asked.Bits()))
}
