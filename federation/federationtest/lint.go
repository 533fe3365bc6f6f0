package federationtest

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	oidSubject     = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidServerAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
)

// A Rule is one of an issuer's, under its number. Holds is asked of each
// certificate of the kind that it is about.
type Rule struct {
	Name   string
	Leaves bool // it is about leaves
	CAs    bool // it is about signing certificates
	Holds  func(c *x509.Certificate) bool
}

// IssuerRules are what SPIFFE X509-SVID asks of certificates that are issued in
// the trust domain td: everything that can be told from one certificate.
func IssuerRules(td string) []Rule {
	return []Rule{
		{"X509-01 one URI SAN, a SPIFFE ID of the trust domain", true, false, func(c *x509.Certificate) bool {
			uris := rawURIs(c)
			if len(uris) != 1 {
				return false
			}
			id, err := spiffeid.FromString(uris[0])
			return err == nil && id.TrustDomain().Name() == td
		}},
		{"X509-05 a path", true, false, func(c *x509.Certificate) bool {
			return len(c.URIs) == 1 && len(c.URIs[0].Path) > 1 && !strings.HasSuffix(c.URIs[0].String(), "/")
		}},
		{"X509-06 no subject, so a critical SAN", true, true, func(c *x509.Certificate) bool {
			san := find(c, oidSubject)
			return len(c.Subject.Names) > 0 || (san != nil && san.Critical)
		}},
		{"X509-08 cA and keyCertSign", false, true, func(c *x509.Certificate) bool {
			return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
		}},
		{"X509-10 its ID, if any, is the trust domain's without a path", false, true, func(c *x509.Certificate) bool {
			return len(c.URIs) == 0 || (len(c.URIs) == 1 && c.URIs[0].String() == "spiffe://"+td)
		}},
		{"X509-15 no cA", true, false, func(c *x509.Certificate) bool { return !c.IsCA }},
		{"X509-17 critical key usage", true, true, func(c *x509.Certificate) bool {
			usage := find(c, oidKeyUsage)
			return usage != nil && usage.Critical
		}},
		{"D-13 X509-18 nothing but keyCertSign and cRLSign", false, true, func(c *x509.Certificate) bool {
			return c.KeyUsage&^(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0
		}},
		{"X509-19 digitalSignature", true, false, func(c *x509.Certificate) bool {
			return c.KeyUsage&x509.KeyUsageDigitalSignature != 0
		}},
		{"X509-21 neither keyCertSign nor cRLSign", true, false, func(c *x509.Certificate) bool {
			return c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0
		}},
		{"X509-23 extended usage, if any, has serverAuth and clientAuth", true, false, func(c *x509.Certificate) bool {
			return find(c, oidExtKeyUsage) == nil ||
				slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}},
		{"X509-25 no critical extension of its own", true, true, func(c *x509.Certificate) bool {
			return len(c.UnhandledCriticalExtensions) == 0
		}},
		{"SID-15 an ID of at most 2048 bytes, its trust domain of 255", true, true, func(c *x509.Certificate) bool {
			return len(c.URIs) == 0 || len(c.URIs[0].String()) <= 2048 && len(c.URIs[0].Host) <= 255
		}},
	}
}

// rawURIs are the URI SANs of c as they were signed.
func rawURIs(c *x509.Certificate) []string {
	var names []asn1.RawValue
	if san := find(c, oidSubject); san != nil {
		if _, err := asn1.Unmarshal(san.Value, &names); err != nil {
			return nil
		}
	}
	var uris []string
	for _, name := range names {
		if name.Class == asn1.ClassContextSpecific && name.Tag == 6 {
			uris = append(uris, string(name.Bytes))
		}
	}
	return uris
}

func find(c *x509.Certificate, id asn1.ObjectIdentifier) *pkix.Extension {
	for i := range c.Extensions {
		if c.Extensions[i].Id.Equal(id) {
			return &c.Extensions[i]
		}
	}
	return nil
}
