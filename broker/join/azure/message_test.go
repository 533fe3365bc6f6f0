package azure_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
)

// A signer is a certificate and its key.
type signer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// tlv is an element of DER.
func tlv(tag byte, parts ...[]byte) []byte {
	content := slices.Concat(parts...)
	switch n := len(content); {
	case n < 0x80:
		return slices.Concat([]byte{tag, byte(n)}, content)
	case n < 0x100:
		return slices.Concat([]byte{tag, 0x81, byte(n)}, content)
	default:
		return slices.Concat([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content)
	}
}

func oid(last ...byte) []byte {
	return tlv(6, slices.Concat([]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1}, last))
}

var (
	rsaOID       = oid(1, 1)
	sha256RSAOID = oid(1, 11)
	sha256OID    = tlv(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1})
	sha1OID      = tlv(6, []byte{0x2b, 0x0e, 3, 2, 0x1a})
	noParams     = []byte{5, 0}
)

// A message is a SignedData, as Azure makes it unless a test spoils it: the digest's
// algorithm is named by the signature's, nothing is signed but the content, and the
// bag has the signer's certificate alone.
type message struct {
	by         signer
	named      *x509.Certificate // by whose issuer and serial number; nil: by's
	content    []byte
	shown      []byte              // instead of the content; nil: that
	bag        []*x509.Certificate // nil: by's
	noBag      bool
	digest     []byte
	algorithm  []byte
	more       [][]byte // signers besides
	attributes []byte   // signed ones, as what is signed
}

func (m message) info(t testing.TB) []byte {
	t.Helper()
	if m.named == nil {
		m.named = m.by.cert
	}
	if m.digest == nil {
		m.digest = sha256RSAOID
	}
	if m.algorithm == nil {
		m.algorithm = rsaOID
	}
	signed := m.content
	if m.attributes != nil {
		signed = tlv(0x31, m.attributes)
	}
	sum := sha256.Sum256(signed)
	signature, err := rsa.SignPKCS1v15(rand.Reader, m.by.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	parts := [][]byte{tlv(2, []byte{1}), tlv(0x30, m.named.RawIssuer, integer(m.named.SerialNumber)), tlv(0x30, m.digest, noParams)}
	if m.attributes != nil {
		parts = append(parts, tlv(0xa0, m.attributes))
	}
	return tlv(0x30, append(parts, tlv(0x30, m.algorithm, noParams), tlv(4, signature))...)
}

func (m message) der(t testing.TB) []byte {
	t.Helper()
	info := m.info(t)
	if m.digest == nil {
		m.digest = sha256RSAOID
	}
	if m.shown == nil {
		m.shown = m.content
	}
	if m.bag == nil {
		m.bag = []*x509.Certificate{m.by.cert}
	}
	parts := [][]byte{tlv(2, []byte{1}), tlv(0x31, tlv(0x30, m.digest, noParams)), tlv(0x30, oid(7, 1), tlv(0xa0, tlv(4, m.shown)))}
	if !m.noBag {
		var bag []byte
		for _, c := range m.bag {
			bag = append(bag, c.Raw...)
		}
		parts = append(parts, tlv(0xa0, bag))
	}
	parts = append(parts, tlv(0x31, append([][]byte{info}, m.more...)...))
	return tlv(0x30, oid(7, 2), tlv(0xa0, tlv(0x30, parts...)))
}

func integer(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return tlv(2, b)
}
