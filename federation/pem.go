package federation

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ParseAny reads a bundle that an operator gave: a SPIFFE bundle document, or
// CA certificates in PEM (SPIFFE Federation §5.2.2.2). In PEM nothing is
// ignored: what is no CA certificate refuses the whole.
func ParseAny(td spiffeid.TrustDomain, data []byte) (*Bundle, error) {
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("parsing the bundle of %s: larger than %d bytes", td, MaxDocument)
	}
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		return ParseBundle(td, data)
	}
	if td.IsZero() {
		return nil, errors.New("parsing a bundle: no trust domain given")
	}
	b := &Bundle{Bundle: spiffebundle.New(td)}
	if err := b.parsePEM(data); err != nil {
		return nil, fmt.Errorf("parsing the PEM bundle of %s: %w", td, err)
	}
	document, err := b.Marshal()
	if err != nil {
		return nil, fmt.Errorf("parsing the PEM bundle of %s: %w", td, err)
	}
	b.document = document
	return b, nil
}

func (b *Bundle) parsePEM(data []byte) error {
	for i := 1; len(data) > 0; i++ {
		block, rest := pem.Decode(data)
		switch {
		case block == nil:
			return fmt.Errorf("no PEM block at number %d", i)
		case block.Type != "CERTIFICATE":
			return fmt.Errorf("block %d is a %s: give CA certificates only", i, clip(block.Type))
		case i > MaxKeys:
			return fmt.Errorf("more than %d certificates", MaxKeys)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		if err := checkAuthority(cert); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		b.AddX509Authority(cert)
		data = bytes.TrimSpace(rest)
	}
	return nil
}
