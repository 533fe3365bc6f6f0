package azurekv

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/credence-id/credence/broker/keys"
)

// A signer is a key version in a vault and its public key.
type signer struct {
	keys               *Keys
	ref, name, version string
	pub                crypto.PublicKey
}

func (k *Keys) open(ctx context.Context, ref string) (crypto.Signer, error) {
	name, version, err := k.parseRef(ref)
	if err != nil {
		return nil, err
	}
	c := call{act: "opening key " + ref, permission: "keys/get"}
	out, err := do(ctx, &c, func(ctx context.Context) (azkeys.GetKeyResponse, error) {
		return k.client.GetKey(ctx, name, version, nil)
	})
	if err != nil {
		return nil, err
	}
	pub, err := publicKey(ref, out.KeyBundle, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.act, err)
	}
	return &signer{keys: k, ref: ref, name: name, version: version, pub: pub}, nil
}

// publicKey reads what the vault says of a key, or says why it can't sign for
// us.
func publicKey(ref string, b azkeys.KeyBundle, now time.Time) (crypto.PublicKey, error) {
	j, a := b.Key, b.Attributes
	if j == nil || j.KID == nil || string(*j.KID) != ref {
		return nil, errors.New("the answer is about another key")
	}
	if a == nil || a.Enabled == nil || !*a.Enabled {
		return nil, errors.New("it is disabled: az keyvault key set-attributes --enabled true enables it")
	}
	if a.Expires != nil && !now.Before(*a.Expires) {
		return nil, fmt.Errorf("it expired at %s: az keyvault key set-attributes --expires lets it live on", a.Expires.UTC().Format(time.RFC3339))
	}
	if a.NotBefore != nil && now.Before(*a.NotBefore) {
		return nil, fmt.Errorf("it is not valid before %s: az keyvault key set-attributes --not-before changes that", a.NotBefore.UTC().Format(time.RFC3339))
	}
	signs := false
	for _, op := range j.KeyOps {
		signs = signs || op != nil && *op == azkeys.KeyOperationSign
	}
	if !signs {
		return nil, errors.New("it is not for signing: one whose key_ops hold sign is wanted")
	}
	if j.Kty == nil {
		return nil, errors.New("the vault does not say what kind it is of")
	}
	switch *j.Kty {
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		return ecKey(j)
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		return rsaKey(j)
	}
	return nil, fmt.Errorf("it is of kind %.32q: EC, RSA or one of these in hardware is wanted", *j.Kty)
}

func ecKey(j *azkeys.JSONWebKey) (crypto.PublicKey, error) {
	var name azkeys.CurveName
	if j.Crv != nil {
		name = *j.Crv
	}
	curve := map[azkeys.CurveName]elliptic.Curve{azkeys.CurveNameP256: elliptic.P256(), azkeys.CurveNameP384: elliptic.P384()}[name]
	if curve == nil {
		return nil, fmt.Errorf("it is on the curve %.32q: P-256 or P-384 is wanted", name)
	}
	size := curve.Params().BitSize / 8
	if len(j.X) > size || len(j.Y) > size {
		return nil, errors.New("its public key is longer than its curve")
	}
	point := make([]byte, 1+2*size)
	point[0] = 4 // uncompressed, SEC 1 §2.3.3
	copy(point[1+size-len(j.X):], j.X)
	copy(point[1+2*size-len(j.Y):], j.Y)
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("reading its public key: %w", err)
	}
	return pub, nil
}

func rsaKey(j *azkeys.JSONWebKey) (crypto.PublicKey, error) {
	n, e := new(big.Int).SetBytes(j.N), new(big.Int).SetBytes(j.E)
	if bits := n.BitLen(); bits != 2048 && bits != 3072 && bits != 4096 {
		return nil, fmt.Errorf("it is of RSA %d: 2048, 3072 or 4096 is wanted", bits)
	}
	if e.BitLen() > 31 || e.Int64() < 65537 || e.Bit(0) == 0 {
		return nil, fmt.Errorf("its public exponent is %.32s: 65537 is wanted", e)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// Public returns the public key, as read when the key was opened.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign has the vault sign a digest. It takes no longer than the settings'
// timeout.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	act := "signing with key " + s.ref
	asked, err := keys.Asked(s.pub, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", act, err)
	}
	alg := s.algorithm(asked)
	ctx, cancel := context.WithTimeout(context.Background(), s.keys.cfg.Timeout)
	defer cancel()
	c := call{act: act, permission: "keys/sign"}
	out, err := do(ctx, &c, func(ctx context.Context) (azkeys.SignResponse, error) {
		return s.keys.client.Sign(ctx, s.name, s.version, azkeys.SignParameters{Algorithm: &alg, Value: digest}, nil)
	})
	if err != nil {
		return nil, err
	}
	sig, ok := s.encoded(out.Result)
	if out.KID == nil || string(*out.KID) != s.ref || !ok || !asked.Verifies(s.pub, digest, sig) {
		return nil, fmt.Errorf("%s: the vault answered with a signature that is not its: it is not used", act)
	}
	return sig, nil
}

// algorithm is the vault's name of a signature (RFC 7518 §3.1).
func (s *signer) algorithm(asked keys.Signature) azkeys.SignatureAlgorithm {
	scheme := "RS"
	switch _, ec := s.pub.(*ecdsa.PublicKey); {
	case ec:
		scheme = "ES"
	case asked.PSS:
		scheme = "PS"
	}
	return azkeys.SignatureAlgorithm(fmt.Sprint(scheme, asked.Bits()))
}

// encoded is a signature as crypto.Signer has it: the vault gives ECDSA's r
// and s side by side, as RFC 7518 §3.4.
func (s *signer) encoded(raw []byte) (sig []byte, ok bool) {
	pub, ec := s.pub.(*ecdsa.PublicKey)
	if !ec {
		return raw, true
	}
	size := pub.Curve.Params().BitSize / 8
	if len(raw) != 2*size {
		return nil, false
	}
	sig, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:])})
	return sig, err == nil
}
