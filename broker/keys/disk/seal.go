package disk

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/keys/kek"
)

const (
	plainType  = "PRIVATE KEY"
	sealedType = "CREDENCE ENCRYPTED KEY"
)

// A sealer encrypts keys under the first of its key-encryption keys, and decrypts
// under any. The nil sealer leaves keys as they are.
type sealer struct {
	ring  *kek.Ring
	bound []byte // trust domain and purpose
}

func newSealer(cfg Config) (*sealer, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if cfg.KEKFile == "" {
		return nil, nil
	}
	if cfg.TrustDomain == "" || cfg.Purpose == "" {
		return nil, errors.New("encrypting keys: trust domain and purpose are wanted")
	}
	ring, err := kek.New(cfg.Settings, cfg.Dir, cfg.Data)
	if err != nil {
		return nil, err
	}
	return &sealer{ring, kek.Bound("credence key on disk", cfg.TrustDomain, cfg.Purpose)}, nil
}

// encode makes the file of a key.
func (s *sealer) encode(ref string, der []byte) []byte {
	if s == nil {
		return pem.EncodeToMemory(&pem.Block{Type: plainType, Bytes: der})
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealedType, Bytes: s.ring.Seal(der, s.bound, ref)})
}

// decode reads the file of a key: one block, of the kind that encode makes.
func (s *sealer) decode(ref string, file []byte) ([]byte, error) {
	block, err := oneBlock(file)
	if err != nil {
		return nil, err
	}
	if block.Type == plainType {
		if s != nil {
			return nil, errors.New("it is not encrypted, and kek_file says that keys are: rewrap the keys first")
		}
		return block.Bytes, nil
	}
	if s == nil {
		return nil, fmt.Errorf("it is encrypted under key-encryption key %s, and none is named: name its file as kek_file; %s", kek.ID(block.Bytes), kek.Lost)
	}
	der, _, err := s.ring.Open(block.Bytes, s.bound, ref)
	return der, err
}

func oneBlock(file []byte) (*pem.Block, error) {
	block, rest := pem.Decode(file)
	if block == nil || block.Type != plainType && block.Type != sealedType || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not one PEM block of type " + plainType + " or " + sealedType)
	}
	return block, nil
}
