package authority

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// checkStrict is what OpenSSL with -x509_strict asks of a CA and crypto/x509
// does not (RFC 5280 §4.1.2.6, §4.2.1.1, §4.2.1.2, §4.2.1.9). issuer is c itself
// at the end of a chain.
func checkStrict(c, issuer *x509.Certificate) error {
	switch {
	case len(c.Subject.Names) == 0:
		return errors.New("subject: is empty, should name the CA")
	case len(c.Issuer.Names) == 0:
		return errors.New("issuer: is empty, should name the CA that signed it")
	case !critical(c, oidBasicConstraints):
		return errors.New("basicConstraints: is not critical, should be")
	case len(c.SubjectKeyId) == 0:
		return errors.New("subjectKeyIdentifier: is missing, should be there")
	case critical(c, oidSubjectKey):
		return errors.New("subjectKeyIdentifier: is critical, should not be")
	case critical(c, oidAuthorityKey):
		return errors.New("authorityKeyIdentifier: is critical, should not be")
	case c != issuer && len(c.AuthorityKeyId) == 0:
		return errors.New("authorityKeyIdentifier: has no keyIdentifier, should have that of its issuer")
	case c == issuer && !selfSigned(c): // where it goes on is not known
		return nil
	}
	return checkAuthorityKey(c, issuer)
}

var (
	oidSubjectKey   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidAuthorityKey = asn1.ObjectIdentifier{2, 5, 29, 35}
)

func extension(c *x509.Certificate, id asn1.ObjectIdentifier) *pkix.Extension {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	if i < 0 {
		return nil
	}
	return &c.Extensions[i]
}

func critical(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	e := extension(c, id)
	return e != nil && e.Critical
}

// authorityKey is RFC 5280 §4.2.1.1.
type authorityKey struct {
	Key    []byte        `asn1:"optional,tag:0"`
	Issuer asn1.RawValue `asn1:"optional,tag:1"`
	Serial *big.Int      `asn1:"optional,tag:2"`
}

// checkAuthorityKey says whether what c says of its issuer's certificate is
// true of issuer: OpenSSL looks no further if it is not.
func checkAuthorityKey(c, issuer *x509.Certificate) error {
	e := extension(c, oidAuthorityKey)
	if e == nil {
		return nil
	}
	var aki authorityKey
	if rest, err := asn1.Unmarshal(e.Value, &aki); err != nil || len(rest) > 0 {
		return errors.New("authorityKeyIdentifier: does not parse, should be as RFC 5280 §4.2.1.1 says")
	}
	switch name, ok := directoryName(aki.Issuer.Bytes); {
	case len(aki.Key) > 0 && !bytes.Equal(aki.Key, issuer.SubjectKeyId):
		return fmt.Errorf("authorityKeyIdentifier: is %X, should be %X, the subjectKeyIdentifier of %q", aki.Key, issuer.SubjectKeyId, issuer.Subject.String())
	case aki.Serial != nil && aki.Serial.Cmp(issuer.SerialNumber) != 0:
		return fmt.Errorf("authorityKeyIdentifier: has serial number %X, should have %X, that of %q", aki.Serial, issuer.SerialNumber, issuer.Subject.String())
	case ok && !bytes.Equal(name, issuer.RawIssuer):
		return fmt.Errorf("authorityKeyIdentifier: names another issuer than %q, which is that of %q", issuer.Issuer.String(), issuer.Subject.String())
	}
	return nil
}

// directoryName is the first one of GeneralNames.
func directoryName(names []byte) (der []byte, ok bool) {
	for len(names) > 0 {
		var name asn1.RawValue
		rest, err := asn1.Unmarshal(names, &name)
		if err != nil {
			return nil, false
		}
		if name.Class == asn1.ClassContextSpecific && name.Tag == tagDirectoryName {
			return name.Bytes, true
		}
		names = rest
	}
	return nil, false
}

const tagDirectoryName = 4

// generalNames are the kinds that crypto/x509 does not hold against name
// constraints, by tag (RFC 5280 §4.2.1.6).
var generalNames = map[int]string{0: "otherName", 3: "x400Address", tagDirectoryName: "directoryName", 5: "ediPartyName", 8: "registeredID"}

// checkConstraintTypes refuses constraints of names that some verifiers hold
// against our certificates and others do not know: OpenSSL holds a CA's subject
// against those of directory names, and what we are called is not theirs.
func checkConstraintTypes(c *x509.Certificate) error {
	e := extension(c, oidNameConstraints)
	if e == nil {
		return nil
	}
	type subtree struct {
		Base    asn1.RawValue
		Minimum int `asn1:"optional,tag:0"`
		Maximum int `asn1:"optional,tag:1"`
	}
	var constraints struct {
		Permitted []subtree `asn1:"optional,tag:0"`
		Excluded  []subtree `asn1:"optional,tag:1"`
	}
	if rest, err := asn1.Unmarshal(e.Value, &constraints); err != nil || len(rest) > 0 {
		return errors.New("nameConstraints: does not parse, should be as RFC 5280 §4.2.1.10 says")
	}
	for _, t := range slices.Concat(constraints.Permitted, constraints.Excluded) {
		if kind, ok := generalNames[t.Base.Tag]; ok {
			return fmt.Errorf("nameConstraints: bounds names of kind %s, should bound URIs, DNS names, mail and IP addresses at most", kind)
		}
	}
	return nil
}
