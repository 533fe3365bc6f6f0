package audit

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Bounds of heads that come back from elsewhere.
const (
	MaxHead  = 16 << 10 // bytes of one line, newline included
	MaxHeads = 1 << 20  // of one file
	maxChain = 8
)

// A Head says how far the record of one broker had got, and how it went until
// then: its hash stands for all records before. Those that others keep show what
// was changed since, also by somebody who can sign anew; the signature shows that
// it was the broker, and not who keeps it, that said so.
//
// Its canonical form is one line of JSON, members in this order. What is signed
// is headContext followed by that line without signature and chain.
type Head struct {
	TrustDomain string    `json:"trust_domain"`
	Origin      string    `json:"origin"` // name of the broker
	Sequence    uint64    `json:"sequence"`
	Hash        string    `json:"hash"` // hex
	Time        time.Time `json:"time"` // UTC, when it was signed
	Signature   []byte    `json:"signature,omitempty"`
	Chain       [][]byte  `json:"chain,omitempty"` // DER, the signer's certificate first, without the root
}

const headContext = "credence audit head v1\n"

// SignHead makes the head of one broker's record. The key is that of the first
// certificate in chain, which is the broker's X509-SVID.
func SignHead(h Head, key crypto.Signer, chain [][]byte) (Head, error) {
	h.Time, h.Signature, h.Chain = h.Time.UTC(), nil, nil
	sum, err := h.digest()
	if err == nil {
		h.Signature, err = key.Sign(rand.Reader, sum, crypto.SHA256)
	}
	if err != nil {
		return Head{}, fmt.Errorf("signing the audit record's head: %w", err)
	}
	h.Chain = chain
	return h, h.check()
}

func (h Head) digest() ([]byte, error) {
	h.Signature, h.Chain = nil, nil
	text, err := h.Line()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte(headContext), text...))
	return sum[:], nil
}

// HeadOf is the unsigned head at a place.
func HeadOf(trustDomain, origin string, ref Ref, now time.Time) Head {
	return Head{TrustDomain: trustDomain, Origin: origin, Sequence: ref.Sequence, Hash: hex.EncodeToString(ref.Hash[:]), Time: now.UTC()}
}

// Line returns the head's canonical form, without a newline.
func (h Head) Line() ([]byte, error) { return marshal(h) }

// Ref returns the place that the head is about.
func (h Head) Ref() Ref { return Record{Sequence: h.Sequence, Hash: h.Hash}.Ref() }

// ParseHead reads one line, without its newline. It refuses what is not in the
// canonical form. Whether the signature is good, only Check says.
func ParseHead(line []byte) (Head, error) {
	var h Head
	if len(line) >= MaxHead {
		return h, fmt.Errorf("it has %d bytes, at most %d are taken", len(line), MaxHead-1)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return Head{}, fmt.Errorf("it is no head of a record: %w", err)
	}
	if err := h.check(); err != nil {
		return Head{}, fmt.Errorf("it is no head of a record: %w", err)
	}
	if again, err := h.Line(); err != nil || !bytes.Equal(again, line) {
		return Head{}, errors.New("it is not in the canonical form")
	}
	return h, nil
}

func (h Head) check() error {
	switch {
	case h.TrustDomain == "" || len(h.TrustDomain) > 255:
		return errors.New("it names no trust domain")
	case h.Sequence == 0 || h.Ref().Hash == [32]byte{} || h.Hash != strings.ToLower(h.Hash):
		return errors.New("it has no sequence number, or no hash")
	case h.Time.IsZero() || h.Time.Location() != time.UTC:
		return errors.New("it has no time in UTC")
	case len(h.Chain) > maxChain || (len(h.Chain) == 0) != (len(h.Signature) == 0):
		return fmt.Errorf("a signature and a chain of 1 to %d go together", maxChain)
	}
	return checkOrigin(h.Origin)
}

// Check verifies the signature: by a certificate for the broker of the head's
// trust domain, that a root verified at the time of the head.
func (h Head) Check(roots *x509.CertPool) error {
	if len(h.Chain) == 0 {
		return errors.New("it is not signed")
	}
	var chain []*x509.Certificate
	between := x509.NewCertPool()
	for i, der := range h.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
		if chain = append(chain, c); i > 0 {
			between.AddCert(c)
		}
	}
	leaf := chain[0]
	if id := "spiffe://" + h.TrustDomain + "/credence/broker"; len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		return fmt.Errorf("its certificate is not for %s", id)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: h.Time, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	sum, err := h.digest()
	if err != nil {
		return err
	}
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(key, sum, h.Signature) {
		return errors.New("its signature is not by the key of its certificate")
	}
	return nil
}

// ReadHeads reads heads, one a line.
func ReadHeads(r io.Reader) ([]Head, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), MaxHead)
	var all []Head
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		h, err := ParseHead(lines.Bytes())
		if err == nil && len(all) == MaxHeads {
			err = fmt.Errorf("more than %d heads", MaxHeads)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		all = append(all, h)
	}
	return all, lines.Err()
}
