package tpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"

	"github.com/credence-id/credence/broker/join/bearer"
)

// Of the TPM 2.0 Library, part 2 §6.2, §6.3 and §6.9.
const (
	generatedValue = 0xff544347
	attestQuote    = 0x8018
	algSHA256      = 0x000b
)

const (
	maxQuote     = 512
	maxSignature = 80
)

func readAnswer(answer []byte) (quote, signature []byte, pcrs [][]byte, err error) {
	all, err := bearer.Object(answer)
	if err != nil {
		return nil, nil, nil, err
	}
	list, ok := all["pcrs"].([]any)
	if !ok || len(all) != 3 || len(list) > maxPCR+1 {
		return nil, nil, nil, errors.New("the answer: quote, signature and pcrs are wanted, and nothing else")
	}
	if quote, err = bytesOf(all["quote"], maxQuote); err != nil {
		return nil, nil, nil, fmt.Errorf("the quote: %w", err)
	}
	if signature, err = bytesOf(all["signature"], maxSignature); err != nil {
		return nil, nil, nil, fmt.Errorf("the quote's signature: %w", err)
	}
	for _, v := range list {
		pcr, err := bytesOf(v, sha256.Size)
		if err != nil || len(pcr) != sha256.Size {
			return nil, nil, nil, errors.New("the answer: a PCR is not of SHA-256")
		}
		pcrs = append(pcrs, pcr)
	}
	return quote, signature, pcrs, nil
}

// A quote is what a TPM says of itself, to data that it was given.
type quote struct {
	data   []byte
	pcrs   []int
	digest []byte
}

// readQuote reads a TPMS_ATTEST (TPM 2.0 Library, part 2 §10.12.12) of type quote, over
// PCRs of the SHA-256 bank or none, to its last byte.
func readQuote(text []byte) (q quote, err error) {
	s := cryptobyte.String(text)
	var magic, lists uint32
	var kind, alg uint16
	var signer, data, digest cryptobyte.String
	if !s.ReadUint32(&magic) || magic != generatedValue {
		return q, errors.New("the quote is not of a TPM's making")
	}
	if !s.ReadUint16(&kind) || kind != attestQuote {
		return q, errors.New("what was signed is no quote")
	}
	const clock, firmware = 8 + 4 + 4 + 1, 8
	if !s.ReadUint16LengthPrefixed(&signer) || !s.ReadUint16LengthPrefixed(&data) || !s.Skip(clock+firmware) || !s.ReadUint32(&lists) || lists > 1 {
		return q, errBadQuote
	}
	if lists == 1 {
		var bits cryptobyte.String
		if !s.ReadUint16(&alg) || alg != algSHA256 || !s.ReadUint8LengthPrefixed(&bits) {
			return q, errBadQuote
		}
		for pcr := range 8 * len(bits) {
			if bits[pcr/8]>>(pcr%8)&1 == 1 {
				q.pcrs = append(q.pcrs, pcr)
			}
		}
	}
	if !s.ReadUint16LengthPrefixed(&digest) || !s.Empty() {
		return q, errBadQuote
	}
	q.data, q.digest = data, digest
	return q, nil
}

var errBadQuote = errors.New("the quote has not the form of one over PCRs of SHA-256")

// has says whether exactly these PCRs were quoted, with these values.
func (q quote) has(pcrs []int, values [][]byte) error {
	if !slices.Equal(q.pcrs, pcrs) || len(values) != len(pcrs) {
		return fmt.Errorf("the quote is over PCRs %v: %v are wanted", q.pcrs, pcrs)
	}
	if sum := sha256.Sum256(bytes.Join(values, nil)); !bytes.Equal(q.digest, sum[:]) {
		return errors.New("the PCRs' values are not those of the quote")
	}
	return nil
}
