package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/join"
)

const (
	maxRoots = 256
	maxPCR   = 23
)

// Settings are those of a JoinRule. At least one of Roots and EKHashes is given.
type Settings struct {
	// Roots (PEM) that EK certificates lead to: those of the TPMs' makers. A CA below
	// such a root may stand for it, which helps where TPMs hold no more than their own
	// certificate. None is built in.
	Roots string `yaml:"roots,omitempty"`
	// EK is, beside roots, the kind of all endorsement keys that count: rsa (the
	// default) or ecc. Most TPMs have certificates for one of each: by the other one a
	// machine would be another node, and back after it was banned.
	EK string `yaml:"ek,omitempty"`
	// EKHashes are machines known beforehand, by the name that each is to have:
	// "sha256:" and the hex SHA-256 of the EK (DER, SubjectPublicKeyInfo), as
	// credence agent tpm prints it there.
	EKHashes map[string]string `yaml:"ek_hashes,omitempty"`
	// PCRs (of the SHA-256 bank) whose values are facts, node.tpm.pcr_7 and so on.
	PCRs []int `yaml:"pcrs,omitempty"`
}

var hashPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Validate implements join.Settings.
func (s *Settings) Validate() error {
	if _, err := s.roots(); err != nil {
		return err
	}
	if s.Roots == "" && len(s.EKHashes) == 0 {
		return errors.New("ek_hashes: these or roots are required")
	}
	if s.EK != "" && (s.Roots == "" || s.EK != "rsa" && s.EK != "ecc") {
		return fmt.Errorf("ek: %.20q: rsa or ecc is wanted, beside roots", s.EK)
	}
	names := map[string]string{}
	for name, hash := range s.EKHashes {
		if name == "" || name == "." || name == ".." || join.NodeName(name) != name {
			return fmt.Errorf("ek_hashes: %.64q is no node's name: 1 to 63 of A-Z, a-z, 0-9, dots, dashes and underscores are", name)
		}
		if !hashPattern.MatchString(hash) {
			return fmt.Errorf("ek_hashes: %s: sha256: and 64 lower-case hex digits are wanted, as credence agent tpm prints them", name)
		}
		if other, ok := names[hash]; ok {
			return fmt.Errorf("ek_hashes: %s and %s are the same TPM", min(name, other), max(name, other))
		}
		names[hash] = name
	}
	for n, pcr := range s.sorted() {
		if pcr < 0 || pcr > maxPCR || n > 0 && s.sorted()[n-1] == pcr {
			return fmt.Errorf("pcrs: %d: each from 0 to %d is taken once", pcr, maxPCR)
		}
	}
	return nil
}

// counts says whether an endorsement key is of the kind that does.
func (s *Settings) counts(ek crypto.PublicKey) bool {
	_, ecc := ek.(*ecdsa.PublicKey)
	return s.Roots == "" || ecc == (s.EK == "ecc")
}

func (s *Settings) sorted() []int { return slices.Sorted(slices.Values(s.PCRs)) }

// Endings are when the roots end.
func (s *Settings) Endings() []join.Ending {
	all, _ := s.roots()
	return join.EndingsOf(all...)
}

func (s *Settings) roots() (all []*x509.Certificate, err error) {
	if s.Roots == "" {
		return nil, nil
	}
	rest := []byte(s.Roots)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" || !c.IsCA {
			return nil, fmt.Errorf("roots: the PEM block %d is no CA certificate", len(all)+1)
		}
		if err := cheap(c); err != nil {
			return nil, fmt.Errorf("roots: the PEM block %d: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 || len(all) > maxRoots || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("roots: 1 to %d CA certificates in PEM are wanted, and nothing else", maxRoots)
	}
	return all, nil
}
