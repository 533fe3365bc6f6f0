package aws

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	errAuthority = errors.New("incorrect basic constraints for CA certificate")
	errCRL       = errors.New("revocation list is not acceptable")
)

// sha2 are the signature algorithms that Roles Anywhere takes in certificates.
var sha2 = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
}

// checkAuthority says whether a certificate may be a CA here.
func checkAuthority(c *x509.Certificate) error {
	switch {
	case c == nil:
		return fmt.Errorf("%w: no certificate", errAuthority)
	case !c.BasicConstraintsValid || !c.IsCA:
		return fmt.Errorf("%w: %s is no CA", errAuthority, c.Subject)
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%w: %s lacks keyCertSign", errAuthority, c.Subject)
	case !slices.Contains(sha2, c.SignatureAlgorithm) || !keyFits(c):
		return fmt.Errorf("%w: %s has a weak or unknown key or signature", errAuthority, c.Subject)
	}
	return nil
}

func keyFits(c *x509.Certificate) bool {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048
	case *ecdsa.PublicKey:
		return k.Curve != elliptic.P224()
	}
	return false
}

// checkLeaf checks what a signing certificate must be by itself.
func checkLeaf(c *x509.Certificate, now time.Time) error {
	insufficient := denied("Untrusted certificate. Insufficient certificate")
	switch {
	case len(c.Subject.Names) == 0:
		return insufficient.because("empty subject")
	case !c.BasicConstraintsValid || c.IsCA: // without extensions: versions 1 and 2
		return insufficient.because("basic constraints do not say CA:FALSE")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0 || c.KeyUsage&x509.KeyUsageCertSign != 0:
		return insufficient.because("key usage without digitalSignature, or of a CA")
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return insufficient.because("extended key usage without clientAuth")
	case !slices.Contains(sha2, c.SignatureAlgorithm) || !keyFits(c):
		return insufficient.because("weak or unknown key or signature")
	case now.Before(c.NotBefore) || now.After(c.NotAfter):
		return denied("Untrusted certificate. Certificate is expired or not yet valid").because("valid %s to %s", c.NotBefore, c.NotAfter)
	}
	return nil
}

// checkCertificates verifies the leaf, a path from it to the anchor, and that
// nothing on the path is revoked.
func (a *anywhereCall) checkCertificates(anchor anchor, now time.Time) error {
	if err := checkLeaf(a.leaf, now); err != nil {
		return err
	}
	paths, err := a.paths(anchor, now)
	if err != nil {
		return denied("Untrusted signing certificate").because("%v", err)
	}
	var last error
	for _, path := range paths {
		if last = anchor.checkRevoked(path); last == nil {
			return nil
		}
	}
	return last
}

// paths returns the paths from the leaf to the anchor (RFC 5280 §6.1), all of
// whose issuers are fit to be one.
func (a *anywhereCall) paths(anchor anchor, now time.Time) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range anchor.certificates {
		opts.Roots.AddCert(c)
	}
	for _, c := range a.chain {
		opts.Intermediates.AddCert(c)
	}
	all, err := a.leaf.Verify(opts)
	if err != nil {
		return nil, err
	}
	fit := slices.DeleteFunc(all, func(path []*x509.Certificate) bool {
		return slices.ContainsFunc(path[1:], func(c *x509.Certificate) bool { return checkAuthority(c) != nil })
	})
	if len(fit) == 0 {
		return nil, fmt.Errorf("%w: an issuer on the path", errAuthority)
	}
	return fit, nil
}

// crl is a checked CRL.
type crl struct {
	list     *x509.RevocationList
	enabled  bool
	byAnchor bool // one of the anchor's certificates signed it
}

// with returns the anchor with one more list.
func (a anchor) with(in CRL) (anchor, error) {
	if len(a.crls) >= 2 {
		return a, fmt.Errorf("%w: the trust anchor has two already", errCRL)
	}
	der := in.Data
	if block, rest := pem.Decode(in.Data); block != nil {
		if block.Type != "X509 CRL" || len(rest) > 0 {
			return a, fmt.Errorf("%w: PEM of %s, or more than one block", errCRL, block.Type)
		}
		der = block.Bytes
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return a, fmt.Errorf("%w: %w", errCRL, err)
	}
	for _, ext := range list.Extensions {
		if ext.Critical {
			return a, fmt.Errorf("%w: critical extension %s is not understood", errCRL, ext.Id)
		}
	}
	c := crl{list: list, enabled: in.Enabled}
	for _, cert := range a.certificates {
		c.byAnchor = c.byAnchor || list.CheckSignatureFrom(cert) == nil
	}
	a.crls = append(slices.Clone(a.crls), c)
	return a, nil
}

// checkRevoked looks for each certificate below the anchor in the enabled lists.
func (a anchor) checkRevoked(path []*x509.Certificate) error {
	for i, cert := range path[:len(path)-1] {
		for _, c := range a.crls {
			if c.enabled && string(c.list.RawIssuer) == string(cert.RawIssuer) {
				if err := c.check(cert, path[i+1]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// check looks for cert in a list in its issuer's name. A list that another key of
// that name signed says nothing of cert; one that nobody signed whom we know
// could be the right one, damaged, so it refuses.
func (c crl) check(cert, issuer *x509.Certificate) error {
	if err := c.list.CheckSignatureFrom(issuer); err != nil {
		if c.byAnchor {
			return nil
		}
		return denied("Certificate revocation list does not verify").because("%v", err)
	}
	for _, e := range c.list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return denied("Certificate revoked").because("serial %s of %s", cert.SerialNumber, cert.Issuer)
		}
	}
	return nil
}
