package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Of the TCG EK Credential Profile for TPM Family 2.0, §3.
var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidAltName       = asn1.ObjectIdentifier{2, 5, 29, 17}
	directory        = map[string]string{ // what the directory name there says of the TPM, and the fact
		"2.23.133.2.1": "manufacturer", "2.23.133.2.2": "model", "2.23.133.2.3": "version",
	}
)

// Bounds of what a stranger may show.
const (
	maxChain = 4
	maxNames = 16
	maxValue = 64 // of what a certificate says of its TPM, in bytes
)

// cheap refuses what would be dear to verify, or weak.
func cheap(c *x509.Certificate) error {
	if n := len(c.DNSNames) + len(c.URIs) + len(c.EmailAddresses) + len(c.IPAddresses) + len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage); n > maxNames {
		return fmt.Errorf("%d names and usages, at most %d are taken", n, maxNames)
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 {
			return fmt.Errorf("an RSA key of %d bits: 2048 to 4096 are taken", n)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return errors.New("an elliptic curve that is neither P-256 nor P-384")
		}
	default:
		return fmt.Errorf("a key of an unknown kind, %T", k)
	}
	return nil
}

// certified verifies the chain of an EK, and returns what its maker says of it.
func (m *method) certified(chain []*x509.Certificate, now time.Time) (map[string][]string, error) {
	leaf := chain[0]
	if err := purpose(leaf); err != nil {
		return nil, err
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	// A critical alternative name with nothing but a directory name in it is left to
	// us by crypto/x509; readDirectory reads it once it is verified.
	known := *leaf
	known.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oidAltName.Equal)
	found, err := known.Verify(x509.VerifyOptions{Roots: m.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("the endorsement key's certificate: %w", err)
	}
	i := slices.IndexFunc(found, mayCertifyEKs)
	if i < 0 {
		return nil, errors.New("the endorsement key's certificate is signed by a CA for other uses")
	}
	facts, err := readDirectory(leaf)
	if err != nil {
		return nil, fmt.Errorf("the endorsement key's certificate: %w", err)
	}
	facts["certificate_serial"] = []string{hex.EncodeToString(leaf.SerialNumber.Bytes())}
	facts["root_key"] = []string{digest(found[i][len(found[i])-1].RawSubjectPublicKeyInfo)}
	if cn := leaf.Issuer.CommonName; cn != "" {
		facts["issuer_cn"] = []string{cn}
	}
	return facts, nil
}

// purpose holds a leaf against EK Credential Profile §3.2: the maker's CA may certify
// other things too, whose keys need not be in a TPM.
func purpose(leaf *x509.Certificate) error {
	usage := x509.KeyUsageKeyEncipherment
	if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok {
		usage = x509.KeyUsageKeyAgreement
	}
	if leaf.IsCA || leaf.KeyUsage&usage == 0 || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("the certificate is no endorsement key's: a CA's, or not for encryption")
	}
	if !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return errors.New("the certificate is no endorsement key's: its extended key usage lacks tcg-kp-EKCertificate; ek_hashes may name such a TPM")
	}
	return nil
}

// mayCertifyEKs says that no CA between leaf and root is restricted to other uses.
func mayCertifyEKs(chain []*x509.Certificate) bool {
	for _, c := range chain[1:max(1, len(chain)-1)] {
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 &&
			!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) && !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
			return false
		}
	}
	return true
}

// readDirectory reads what the directory name of the alternative name says of the
// TPM (EK Credential Profile §3.1.2 and §3.2.9).
func readDirectory(leaf *x509.Certificate) (map[string][]string, error) {
	facts := map[string][]string{}
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidAltName) })
	if i < 0 {
		return facts, nil
	}
	value, names := cryptobyte.String(leaf.Extensions[i].Value), cryptobyte.String(nil)
	if !value.ReadASN1(&names, cryptobyteasn1.SEQUENCE) || !value.Empty() {
		return nil, errBadName
	}
	directoryName := cryptobyteasn1.Tag(4).ContextSpecific().Constructed()
	for n := 0; !names.Empty(); n++ {
		var name cryptobyte.String
		var tag cryptobyteasn1.Tag
		if n == maxNames || !names.ReadAnyASN1(&name, &tag) {
			return nil, errBadName
		}
		if tag != directoryName {
			continue // a hardware module's name, say
		}
		var all pkix.RDNSequence
		if rest, err := asn1.Unmarshal(name, &all); err != nil || len(rest) > 0 {
			return nil, errBadName
		}
		if err := addDirectory(facts, all); err != nil {
			return nil, err
		}
	}
	return facts, nil
}

var errBadName = errors.New("its alternative name is none that the EK Credential Profile has")

func addDirectory(facts map[string][]string, all pkix.RDNSequence) error {
	for _, set := range all {
		for _, a := range set {
			fact := directory[a.Type.String()]
			if fact == "" {
				continue
			}
			text, ok := a.Value.(string)
			if !ok || text == "" || len(text) > maxValue || slices.ContainsFunc([]byte(text), func(b byte) bool { return b < ' ' || b > '~' }) || facts[fact] != nil {
				return errBadName
			}
			facts[fact] = []string{text}
		}
	}
	return nil
}

// hashOf is by what an EK is registered, and banned.
func hashOf(ek any) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(ek)
	return digest(der), err
}

func digest(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}
