package boundkeypair

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/join"
)

// Method is the name of this join method.
const Method = "bound_keypair"

const (
	maxRSA       = 4096
	maxKeyText   = 2 << 10 // of a public key, as it is written
	defaultLimit = 1
	maxLimit     = 1000
)

// Settings are those of a JoinRule.
type Settings struct {
	// Keys are the nodes' public keys by node.name, in base64 (of the DER
	// SubjectPublicKeyInfo) or PEM: ECDSA on P-256 or P-384, Ed25519, or RSA of 2048
	// to 4096 bits. credence agent key create prints one. Required.
	Keys map[string]string `yaml:"keys"`
	// Recovery is how often a node may join that lost the state of its last join.
	Recovery Recovery `yaml:"recovery,omitempty"`
}

// Recovery bounds joins that show nothing of the one before.
type Recovery struct {
	// Limit is how many there may be, until credence node allow; default 1. A node's
	// first join is none.
	Limit *int `yaml:"limit,omitempty"`
	// Mode is standard, the default, or relaxed: there may be any number. A state that
	// is not the last one is a clone's in both.
	Mode string `yaml:"mode,omitempty"`
}

// Validate implements join.Settings.
func (s *Settings) Validate() error {
	if _, err := s.keys(); err != nil {
		return err
	}
	switch r := s.Recovery; {
	case r.Mode != "" && r.Mode != "standard" && r.Mode != "relaxed":
		return fmt.Errorf("recovery.mode: %.40q: standard or relaxed is wanted", r.Mode)
	case r.Limit != nil && r.Mode == "relaxed":
		return errors.New("recovery.limit: mode relaxed has none")
	case r.Limit != nil && (*r.Limit < 0 || *r.Limit > maxLimit):
		return fmt.Errorf("recovery.limit: %d: 0 to %d are wanted", *r.Limit, maxLimit)
	}
	return nil
}

// lets says whether a key that recovered so often may once more.
func (r Recovery) lets(recoveries uint64) bool {
	limit := uint64(defaultLimit)
	if r.Limit != nil {
		limit = uint64(*r.Limit)
	}
	return r.Mode == "relaxed" || recoveries < limit
}

// A registered key is a node's.
type registered struct {
	name, digest, kind string
	key                crypto.PublicKey
}

// keys are the registered ones, by digest.
func (s *Settings) keys() (map[string]registered, error) {
	if len(s.Keys) == 0 {
		return nil, errors.New("keys: are required: the nodes' public keys, by name; credence agent key create prints one")
	}
	found := make(map[string]registered, len(s.Keys))
	for _, name := range slices.Sorted(maps.Keys(s.Keys)) {
		if name == "" || join.NodeName(name) != name {
			return nil, fmt.Errorf("keys: %.80q: a name has 1 to 63 letters, digits, dots, hyphens and underscores", name)
		}
		der, err := decodeKey(s.Keys[name])
		if err != nil {
			return nil, fmt.Errorf("keys: %s: %w", name, err)
		}
		r := registered{name: name, digest: digestOf(der)}
		if r.key, r.kind, err = parseKey(der); err != nil {
			return nil, fmt.Errorf("keys: %s: %w", name, err)
		}
		if other, twice := found[r.digest]; twice {
			return nil, fmt.Errorf("keys: %s: it is the key of %s too: each node has its own", name, other.name)
		}
		found[r.digest] = r
	}
	return found, nil
}

// decodeKey reads base64 or PEM. Its errors quote nothing: what is pasted in the
// wrong place may be a secret.
func decodeKey(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxKeyText {
		return nil, fmt.Errorf("%d bytes: a public key has at most %d", len(text), maxKeyText)
	}
	if !strings.HasPrefix(text, "-----BEGIN ") {
		der, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || len(der) == 0 {
			return nil, errors.New("a public key in base64 or PEM is wanted")
		}
		return der, nil
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil || len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("one public key in PEM is wanted, and nothing else")
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, errors.New("this is a private key, which never leaves its node: make another one, and register its public half")
	case block.Type != "PUBLIC KEY":
		return nil, errors.New("a PEM block PUBLIC KEY is wanted")
	}
	return block.Bytes, nil
}

func parseKey(der []byte) (key crypto.PublicKey, kind string, err error) {
	if key, err = x509.ParsePKIXPublicKey(der); err != nil {
		return nil, "", errors.New("it is no public key (SubjectPublicKeyInfo)")
	}
	// One key has one text, and one digest.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, der) {
		return nil, "", errors.New("its public key is not in DER, as it would be written")
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return k, "ecdsa-" + strings.ToLower(k.Params().Name), nil
		}
	case ed25519.PublicKey:
		return k, "ed25519", nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= maxRSA && k.E >= 65537 {
			return k, fmt.Sprintf("rsa-%d", n), nil
		}
	}
	return nil, "", fmt.Errorf("keys on P-256 and P-384, Ed25519, and RSA of 2048 to %d bits are taken", maxRSA)
}

func digestOf(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}
