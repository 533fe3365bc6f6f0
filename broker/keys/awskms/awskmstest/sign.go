package awskmstest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"strings"
)

// hashes are what each kind of key signs.
var hashes = map[string]crypto.Hash{"SHA_256": crypto.SHA256, "SHA_384": crypto.SHA384, "SHA_512": crypto.SHA512}

func (s *Service) sign(body []byte, broken bool) (any, *refusal) {
	var in struct {
		KeyId, MessageType, SigningAlgorithm string
		Message                              []byte
	}
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	k, bad := s.find(in.KeyId)
	if bad == nil {
		bad = k.mayUse()
	}
	s.mu.Unlock()
	if bad != nil {
		return nil, bad
	}
	opts, bad := k.opts(in.SigningAlgorithm)
	if bad != nil {
		return nil, bad
	}
	if in.MessageType != "DIGEST" {
		return nil, refuse("ValidationException", "a MessageType of %q is hashed once more", in.MessageType)
	}
	if len(in.Message) != opts.HashFunc().Size() {
		return nil, refuse("ValidationException", "Digest is invalid length for algorithm %s.", in.SigningAlgorithm)
	}
	sig, err := k.Signer.Sign(rand.Reader, in.Message, opts)
	if err != nil {
		return nil, refuse("KMSInternalException", "%v", err)
	}
	if broken {
		sig[len(sig)-1] ^= 1
	}
	return map[string]any{"KeyId": k.ARN, "Signature": sig, "SigningAlgorithm": in.SigningAlgorithm}, nil
}

func (k *Key) mayUse() *refusal {
	switch k.State {
	case "Enabled":
		return nil
	case "Disabled":
		return refuse("DisabledException", "%s is disabled.", k.ARN)
	case "PendingDeletion":
		return refuse("KMSInvalidStateException", "%s is pending deletion.", k.ARN)
	}
	return refuse("KMSInvalidStateException", "%s is %s.", k.ARN, k.State)
}

func (k *Key) opts(algorithm string) (crypto.SignerOpts, *refusal) {
	_, isRSA := k.Signer.(*rsa.PrivateKey)
	at := strings.Index(algorithm, "SHA_")
	if at < 0 {
		return nil, refuse("ValidationException", "SigningAlgorithm %q", algorithm)
	}
	hash, ok := hashes[algorithm[at:]]
	bits := strings.TrimPrefix(k.Spec, "ECC_NIST_P")
	scheme := algorithm[:at]
	switch {
	case !ok:
	case isRSA && scheme == "RSASSA_PKCS1_V1_5_":
		return hash, nil
	case isRSA && scheme == "RSASSA_PSS_":
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}, nil
	case !isRSA && scheme == "ECDSA_" && strings.HasSuffix(algorithm, bits):
		return hash, nil
	}
	return nil, refuse("InvalidKeyUsageException", "%s key usage is SIGN_VERIFY which is not valid for %s.", k.ARN, algorithm)
}
