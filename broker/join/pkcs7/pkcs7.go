// Package pkcs7 reads messages that a cloud signed about a machine (PKCS #7, now
// Cryptographic Message Syntax, RFC 5652), for the join methods whose evidence is
// one: it is what they share, and no method itself.
//
// Of the many shapes of a message it takes one: SHA-256 with RSA (PKCS #1 v1.5), the
// content within, and exactly one signer. It trusts nothing: content comes out only
// for a certificate that signed it. Whose certificate that has to be is left to the
// methods, and a message's bag of certificates says nothing of it: in it may be
// anybody's.
package pkcs7

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// Object identifiers, encoded with tag and length. Azure names sha256WithRSA where
// the digest's is wanted, and the digest's where the signature's is: what is meant is
// one thing, and nothing else is computed.
var (
	oidData          = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}
	oidSignedData    = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2}
	oidContentType   = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3}
	oidMessageDigest = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4}
	oidRSA           = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}
	oidSHA256RSA     = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11}
	oidSHA256        = []byte{6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}
	null             = []byte{5, 0}
)

// Tags of what a message is made of.
const (
	tagInteger     = 0x02
	tagOctets      = 0x04
	tagManyOctets  = 0x24 // an OCTET STRING in parts
	tagSequence    = 0x30
	tagSet         = 0x31
	tagZero        = 0xa0 // [0], constructed
	maxAttributes  = 8
	maxContent     = 8 << 10
	maxDepth       = 16
	maxElementSize = 16 << 10
)

// A Message is a SignedData (RFC 5652 §5).
type Message struct {
	content   []byte
	bag       []byte // nil: there is none
	issuer    []byte // of the signer's certificate, encoded
	serial    []byte // as its INTEGER says
	signed    []byte // what the signature is over
	signature []byte
}

// Parse reads a message. Nothing of it is believed before Verify.
func Parse(text []byte) (*Message, error) {
	m, err := parse(text)
	if err == nil && (len(m.content) == 0 || len(m.content) > maxContent) {
		err = fmt.Errorf("it holds %d bytes: 1 to %d are taken", len(m.content), maxContent)
	}
	if err != nil {
		return nil, err
	}
	return &m, nil
}

func parse(text []byte) (m Message, err error) {
	outer := reader{rest: text}
	info := outer.inner(tagSequence)
	outer.end()
	info.exactly(oidSignedData)
	explicit := info.inner(tagZero)
	info.end()
	data := explicit.inner(tagSequence)
	explicit.end()
	data.integer(1)
	algorithms := data.inner(tagSet)
	algorithms.algorithm(oidSHA256, oidSHA256RSA)
	algorithms.end()
	encapsulated := data.inner(tagSequence)
	encapsulated.exactly(oidData)
	within := encapsulated.inner(tagZero)
	encapsulated.end()
	m.content = within.octets()
	within.end()
	if data.next(tagZero) {
		m.bag = data.inner(tagZero).rest
	}
	signers := data.inner(tagSet) // no revocation lists before it
	data.end()
	m.signer(signers)
	signers.end() // and no second signer
	for _, r := range []*reader{&outer, info, explicit, data, algorithms, encapsulated, within, signers} {
		if r.err != nil {
			return Message{}, r.err
		}
	}
	return m, nil
}

// signer reads the one SignerInfo (RFC 5652 §5.3).
func (m *Message) signer(signers *reader) {
	s := signers.inner(tagSequence)
	s.integer(1)
	name := s.inner(tagSequence)
	m.issuer = name.element(tagSequence).raw
	m.serial = name.element(tagInteger).content
	name.end()
	s.algorithm(oidSHA256, oidSHA256RSA)
	m.signed = m.content
	if s.next(tagZero) {
		attributes := s.element(tagZero)
		if s.err == nil && attributes.indefinite {
			s.fail("its signed attributes are not in DER")
		}
		if s.err == nil {
			// What is signed is their SET, whatever tag they have here (§5.4).
			m.signed = append([]byte{tagSet}, attributes.raw[1:]...)
			s.err = checkAttributes(attributes.content, m.content)
		}
	}
	s.algorithm(oidRSA, oidSHA256RSA, oidSHA256)
	m.signature = s.element(tagOctets).content
	s.end() // no unsigned attributes
	if signers.err == nil {
		signers.err = errors.Join(name.err, s.err)
	}
}

// checkAttributes holds the signed attributes against the content: both that must
// be there once, others at will, none twice (RFC 5652 §11).
func checkAttributes(text, content []byte) error {
	sum := sha256.Sum256(content)
	want := map[string][]byte{string(oidContentType): oidData, string(oidMessageDigest): append([]byte{tagOctets, sha256.Size}, sum[:]...)}
	all, seen := reader{rest: text}, map[string]bool{}
	for len(all.rest) > 0 && all.err == nil {
		one := all.inner(tagSequence)
		kind := string(one.element(6).raw)
		values := one.inner(tagSet)
		one.end()
		if err := errors.Join(all.err, one.err, values.err); err != nil {
			return err
		}
		if seen[kind] || len(seen) == maxAttributes {
			return errors.New("a signed attribute stands there twice, or there are too many")
		}
		seen[kind] = true
		if value, ok := want[kind]; ok {
			if !bytes.Equal(values.rest, value) {
				return errors.New("its signed attributes are of another content")
			}
			delete(want, kind)
		}
	}
	if all.err == nil && len(want) > 0 {
		return errors.New("its signed attributes lack the content's type or digest")
	}
	return all.err
}

// By says whether a message names a certificate as its signer's. Others may have its
// issuer and serial number too: Verify tells.
func (m *Message) By(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, m.issuer) && bytes.Equal(integer(c), m.serial)
}

// Verify returns what a message holds if a certificate's key, of RSA, signed it.
func (m *Message) Verify(c *x509.Certificate) ([]byte, error) {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || !m.By(c) {
		return nil, errors.New("it is not signed by that certificate's key")
	}
	sum := sha256.Sum256(m.signed)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], m.signature); err != nil {
		return nil, err
	}
	return m.content, nil
}

// Bag is what a message's bag of certificates holds, as it stands there; nil: there
// is none.
func (m *Message) Bag() []byte { return m.bag }

// Certificates are those in the bag: at most some, each with a key that costs little
// to verify by.
func (m *Message) Certificates(most int) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for bag := (reader{rest: m.bag}); len(bag.rest) > 0; {
		raw := bag.element(tagSequence).raw
		if bag.err != nil {
			return nil, bag.err
		}
		if len(all) == most {
			return nil, fmt.Errorf("its bag holds more than %d certificates", most)
		}
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("a certificate in its bag: %w", err)
		}
		if !Cheap(c.PublicKey) {
			return nil, errors.New("a certificate in its bag has a key that is none of RSA of 2048 to 4096 bits, nor of an elliptic curve")
		}
		all = append(all, c)
	}
	return all, nil
}

// Cheap says whether to verify by a key costs little: strangers choose it.
func Cheap(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096
	case *ecdsa.PublicKey:
		return true
	}
	return false
}

// integer is a certificate's serial number as an INTEGER has it.
func integer(c *x509.Certificate) []byte {
	b := c.SerialNumber.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

// A reader reads elements one after the other. Its first error stays, and all
// that follows it is empty.
type reader struct {
	rest  []byte
	depth int
	err   error
}

// An element is one of BER: definite lengths as DER has them, and indefinite ones,
// which AWS' signer uses.
type element struct {
	tag          byte
	content, raw []byte
	indefinite   bool
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.rest = nil
}

func (r *reader) next(tag byte) bool { return len(r.rest) > 0 && r.rest[0] == tag }

// element takes the next one, which must be of a tag.
func (r *reader) element(tag byte) element {
	if r.err != nil {
		return element{}
	}
	e, rest, err := read(r.rest, r.depth)
	switch {
	case err != nil:
		r.fail("%w", err)
		return element{}
	case e.tag != tag:
		r.fail("tag %#x stands where %#x is wanted", e.tag, tag)
		return element{}
	}
	r.rest = rest
	return e
}

// inner reads what is in the next element.
func (r *reader) inner(tag byte) *reader {
	e := r.element(tag)
	return &reader{rest: e.content, depth: r.depth + 1, err: r.err}
}

func (r *reader) end() {
	if r.err == nil && len(r.rest) > 0 {
		r.fail("something stands where nothing is wanted")
	}
}

func (r *reader) exactly(raw []byte) {
	if e := r.element(raw[0]); r.err == nil && !bytes.Equal(e.raw, raw) {
		r.fail("%x stands where %x is wanted", e.raw, raw)
	}
}

func (r *reader) integer(n byte) { r.exactly([]byte{tagInteger, 1, n}) }

// algorithm takes an AlgorithmIdentifier of one of some, without parameters.
func (r *reader) algorithm(oids ...[]byte) {
	in := r.inner(tagSequence)
	kind := in.element(6).raw
	if len(in.rest) > 0 {
		in.exactly(null)
	}
	in.end()
	known := false
	for _, oid := range oids {
		known = known || bytes.Equal(kind, oid)
	}
	switch {
	case r.err != nil:
	case in.err != nil:
		r.fail("%w", in.err)
	case !known:
		r.fail("algorithm %x is not one that is taken", kind)
	}
}

// octets takes an OCTET STRING, whole or in parts.
func (r *reader) octets() []byte {
	if !r.next(tagManyOctets) {
		return r.element(tagOctets).content
	}
	parts := r.inner(tagManyOctets)
	var all []byte
	for len(parts.rest) > 0 && parts.err == nil {
		all = append(all, parts.element(tagOctets).content...)
	}
	if parts.err != nil {
		r.fail("%w", parts.err)
	}
	return all
}

var errTruncated = errors.New("it is truncated")

// read takes one element off b.
func read(b []byte, depth int) (e element, rest []byte, err error) {
	if len(b) < 2 {
		return e, nil, errTruncated
	}
	if depth > maxDepth {
		return e, nil, fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	e.tag = b[0]
	switch {
	case e.tag&0x1f == 0x1f:
		return e, nil, errors.New("a tag of many bytes is in it")
	case b[1] == 0x80:
		return readIndefinite(b, depth)
	}
	size, header := int(b[1]), 2
	if b[1] > 0x80 { // as DER wants it: in as few bytes as do
		n := int(b[1] & 0x7f)
		if n > 2 || len(b) < 2+n {
			return e, nil, errors.New("a length is too large, or truncated")
		}
		size = 0
		for _, digit := range b[2 : 2+n] {
			size = size<<8 | int(digit)
		}
		if size < 0x80 || n == 2 && size < 0x100 {
			return e, nil, errors.New("a length is in more bytes than it needs")
		}
		header = 2 + n
	}
	if size > maxElementSize || len(b)-header < size {
		return e, nil, errTruncated
	}
	e.content, e.raw = b[header:header+size], b[:header+size]
	return e, b[header+size:], nil
}

// readIndefinite takes an element that ends with two zeros (X.690 §8.1.3.6).
func readIndefinite(b []byte, depth int) (e element, rest []byte, err error) {
	e.tag, e.indefinite = b[0], true
	if e.tag&0x20 == 0 {
		return e, nil, errors.New("a primitive has no length")
	}
	for rest = b[2:]; ; {
		if len(rest) >= 2 && rest[0] == 0 && rest[1] == 0 {
			end := len(b) - len(rest)
			e.content, e.raw = b[2:end], b[:end+2]
			return e, rest[2:], nil
		}
		if _, rest, err = read(rest, depth+1); err != nil {
			return e, nil, err
		}
	}
}
