package awsec2_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"
)

// A signer is a certificate and its key.
type signer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

func newSigner(t testing.TB, serial int64, key *rsa.PrivateKey, ends time.Time) signer {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"Amazon Web Services LLC"}},
		NotBefore: start.AddDate(-1, 0, 0), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, cert}
}

// Making keys is slow.
var ours, theirs = sync.OnceValue(newRSA), sync.OnceValue(newRSA)

func newRSA() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // the system has no randomness
	}
	return key
}

func (s signer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}))
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
	sha256OID = tlv(6, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1})
	sha1OID   = tlv(6, []byte{0x2b, 0x0e, 3, 2, 0x1a})
	noParams  = []byte{5, 0}
)

// A message is a SignedData that a test may spoil before it is written.
type message struct {
	contentOID, content []byte
	digests             [][]byte // algorithms
	bag                 []byte   // contents of [0]; nil: none
	lists               []byte   // contents of [1]
	signers             [][]byte
	after               []byte // them
	version             byte
}

// An info is a SignerInfo.
type info struct {
	by         signer
	named      *x509.Certificate // by whose issuer and serial number; nil: by's
	digest     []byte            // algorithm
	algorithm  []byte
	attributes [][]byte // nil: none
	signs      []byte   // what is signed; nil: as it should be
	unsigned   []byte
}

func attribute(kind []byte, values ...[]byte) []byte { return tlv(0x30, kind, tlv(0x31, values...)) }

func attributesOf(content []byte) [][]byte {
	sum := sha256.Sum256(content)
	return [][]byte{attribute(oid(9, 3), oid(7, 1)), attribute(oid(9, 4), tlv(4, sum[:]))}
}

func (i info) der(t testing.TB, content []byte) []byte {
	t.Helper()
	if i.named == nil {
		i.named = i.by.cert
	}
	if i.signs == nil {
		i.signs = content
		if i.attributes != nil {
			i.signs = tlv(0x31, i.attributes...)
		}
	}
	if i.digest == nil {
		i.digest = sha256OID
	}
	if i.algorithm == nil {
		i.algorithm = oid(1, 1)
	}
	sum := sha256.Sum256(i.signs)
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.by.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	out := [][]byte{tlv(2, []byte{1}), tlv(0x30, i.named.RawIssuer, tlv(2, []byte{0}, i.named.SerialNumber.Bytes())), tlv(0x30, i.digest, noParams)}
	if i.attributes != nil {
		out = append(out, tlv(0xa0, i.attributes...))
	}
	out = append(out, tlv(0x30, i.algorithm, noParams), tlv(4, signature))
	if i.unsigned != nil {
		out = append(out, tlv(0xa1, i.unsigned))
	}
	return tlv(0x30, out...)
}

func (m message) der() []byte {
	if m.version == 0 {
		m.version = 1
	}
	if m.contentOID == nil {
		m.contentOID = oid(7, 1)
	}
	if m.digests == nil {
		m.digests = [][]byte{tlv(0x30, sha256OID, noParams)}
	}
	encapsulated := m.contentOID
	if m.content != nil {
		encapsulated = slices.Concat(m.contentOID, tlv(0xa0, tlv(4, m.content)))
	}
	parts := [][]byte{tlv(2, []byte{m.version}), tlv(0x31, m.digests...), tlv(0x30, encapsulated)}
	if m.bag != nil {
		parts = append(parts, tlv(0xa0, m.bag))
	}
	if m.lists != nil {
		parts = append(parts, tlv(0xa1, m.lists))
	}
	parts = append(parts, tlv(0x31, m.signers...), m.after)
	return tlv(0x30, oid(7, 2), tlv(0xa0, tlv(0x30, parts...)))
}

func (m message) text() string { return base64.StdEncoding.EncodeToString(m.der()) }

// signed is a message as AWS makes it.
func signed(t testing.TB, by signer, content string) message {
	t.Helper()
	i := info{by: by, attributes: attributesOf([]byte(content))}
	return message{content: []byte(content), signers: [][]byte{i.der(t, []byte(content))}}
}

// rsa1024 is a certificate of the kind that AWS had before.
func rsa1024(t testing.TB) (string, error) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		return "", err
	}
	return newSigner(t, 1, key, start.AddDate(1, 0, 0)).pem(), nil
}
