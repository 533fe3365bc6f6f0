package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxPath bounds an installed chain with its anchor, and cloudPath what Google
// Cloud takes, our own certificates counted.
const (
	maxPath   = 8
	cloudPath = 5
)

// checkPath holds a chain, ours first and its anchor last, against what
// verifiers ask of one: Go, OpenSSL with -x509_strict, and a Roles Anywhere
// anchor. Its algorithms have been checked (checkAlgorithms). until is how long
// all of it must last at least; hand, whether ours signs issuing CAs, unless its
// path length is 0. Errors name the certificate, the field, and what it should
// be.
func (a *Authority) checkPath(path []*x509.Certificate, hand bool, now, until time.Time) error {
	if len(path) > maxPath {
		return fmt.Errorf("chain: has %d certificates, should have %d at most", len(path), maxPath)
	}
	below := 0 // CAs of ours under the first
	if hand && !leavesOnly(path[0]) {
		below = 1
	}
	for i, c := range path {
		if slices.ContainsFunc(path[:i], c.Equal) {
			return fmt.Errorf("%s: is in the chain twice, should be once", describe(path, i))
		}
		if err := checkCA(c, i+below, now, until); err != nil {
			return fmt.Errorf("%s: %w", describe(path, i), err)
		}
		if err := a.checkNames(c); err != nil {
			return fmt.Errorf("%s: %w", describe(path, i), err)
		}
		if i > 0 {
			if err := issued(c, path[i-1]); err != nil {
				return fmt.Errorf("%s: issuer: %w", describe(path, i-1), err)
			}
		}
	}
	for i, c := range path {
		if err := checkStrict(c, path[min(i+1, len(path)-1)]); err != nil {
			return fmt.Errorf("%s: %w", describe(path, i), err)
		}
	}
	return a.checkOurs(path)
}

func describe(path []*x509.Certificate, i int) string {
	return fmt.Sprintf("certificate %d of %d (%q)", i+1, len(path), path[i].Subject.String())
}

// issued says whether parent signed c.
func issued(parent, c *x509.Certificate) error {
	if !bytes.Equal(parent.RawSubject, c.RawIssuer) {
		return fmt.Errorf("is %q, should be the next certificate, %q: put them in order, ours first", c.Issuer.String(), parent.Subject.String())
	}
	if err := c.CheckSignatureFrom(parent); err != nil {
		return fmt.Errorf("its signature does not verify with the key of %q: %w", parent.Subject.String(), err)
	}
	return nil
}

// checkCA holds one certificate against RFC 5280 §4.2.1 for a CA over below
// more, and against what our verifiers take.
func checkCA(c *x509.Certificate, below int, now, until time.Time) error {
	switch {
	case c.Version != 3:
		return fmt.Errorf("version: is %d, should be 3", c.Version)
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("basicConstraints: is no CA's (a leaf), should be CA:TRUE")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("keyUsage: lacks keyCertSign")
	case (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < below:
		return fmt.Errorf("basicConstraints: path length is %d, should be %d at least, or none", c.MaxPathLen, below)
	}
	if err := checkConstraintTypes(c); err != nil {
		return err
	}
	switch {
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("extension %s: is critical and nobody here understands it, should not be", c.UnhandledCriticalExtensions[0])
	case now.Before(c.NotBefore):
		return fmt.Errorf("notBefore: is %s, should not lie after the present, %s (is a clock wrong?)", date(c.NotBefore), date(now))
	case c.NotAfter.Before(until):
		return fmt.Errorf("notAfter: is %s, should be %s at the earliest", date(c.NotAfter), date(until))
	}
	return checkUsage(c)
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkUsage: a CA's extended usages bound those of the leaves for many
// verifiers, and SVIDs are for both (X509-SVID §4.4). OpenSSL takes
// anyExtendedKeyUsage in a CA for neither.
func checkUsage(c *x509.Certificate) error {
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 {
		return nil
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return errors.New("extendedKeyUsage: lacks serverAuth or clientAuth, should have both by name, or be absent")
	}
	return nil
}

// checkAlgorithms comes before anything that verifies a signature: crypto/x509
// takes a weak one for none, and what it then says of the chain misleads.
func checkAlgorithms(path []*x509.Certificate) error {
	for i, c := range path {
		if err := checkAlgorithm(c); err != nil {
			return fmt.Errorf("%s: %w", describe(path, i), err)
		}
	}
	return nil
}

func checkAlgorithm(c *x509.Certificate) error {
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default: // SHA-1 and MD5 among them
		return fmt.Errorf("signatureAlgorithm: is %s, should be RSA or ECDSA with SHA-256, SHA-384 or SHA-512", c.SignatureAlgorithm)
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("key: is RSA of %d bits, should be RSA of 2048 at least, P-256 or P-384", k.N.BitLen())
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	}
	return fmt.Errorf("key: is %s, should be RSA of 2048 bits at least, P-256 or P-384", c.PublicKeyAlgorithm)
}

// algOf is a certificate's key as records name it.
func algOf(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return strings.ReplaceAll(k.Curve.Params().Name, "-", "")
	}
	return c.PublicKeyAlgorithm.String()
}

// checkNames holds URI name constraints against our SPIFFE IDs as the strictest
// verifiers read RFC 5280 §4.2.1.10: a host, or the hosts under a dot.
func (a *Authority) checkNames(c *x509.Certificate) error {
	td := a.cfg.TrustDomain.Name()
	covers := func(constraint string) bool {
		constraint = strings.ToLower(constraint)
		return constraint == td || strings.HasPrefix(constraint, ".") && strings.HasSuffix(td, constraint)
	}
	if len(c.PermittedURIDomains) > 0 && !slices.ContainsFunc(c.PermittedURIDomains, covers) {
		return fmt.Errorf("nameConstraints: permitted URIs are %q, should permit the host %s", c.PermittedURIDomains, td)
	}
	for _, x := range c.ExcludedURIDomains {
		if covers(x) || strings.HasSuffix(td, "."+strings.ToLower(x)) {
			return fmt.Errorf("nameConstraints: excludes URI %q, should not exclude the host %s", x, td)
		}
	}
	return nil
}

// checkOurs holds the first certificate of a chain, which is ours, against
// X509-SVID §3.2 and §4.3: it may have no other SPIFFE ID than the trust
// domain's, and its key usage is critical.
func (a *Authority) checkOurs(path []*x509.Certificate) error {
	if !critical(path[0], oidKeyUsage) {
		return fmt.Errorf("%s: keyUsage: is not critical, should be", describe(path, 0))
	}
	for _, u := range path[0].URIs {
		if u.String() != a.cfg.TrustDomain.IDString() {
			return fmt.Errorf("%s: subjectAltName: has URI %s, should have %s or none", describe(path, 0), u, a.cfg.TrustDomain.IDString())
		}
	}
	return nil
}

// tryChain signs an SVID with the CA that path begins with (by hand and unless
// its path length is 0, over an issuing CA), and verifies it against the path's
// end, for both of its uses. Nothing of it is kept.
func (a *Authority) tryChain(key crypto.Signer, path []*x509.Certificate, hand bool, now time.Time) error {
	trial, err := newTrial(a, now)
	if err != nil {
		return err
	}
	ca, signer := path[0], key
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	opts.Roots.AddCert(path[len(path)-1])
	for _, c := range path[:len(path)-1] {
		opts.Intermediates.AddCert(c)
	}
	if hand && !leavesOnly(ca) {
		template, err := a.caTemplate("Credence issuing CA", trial.Record, now, earliest(now.Add(time.Hour), ca.NotAfter))
		if err != nil {
			return err
		}
		template.MaxPathLenZero = true
		if ca, err = create(template, ca, trial.key, signer); err != nil {
			return fmt.Errorf("signing a trial issuing CA: %w", err)
		}
		opts.Intermediates.AddCert(ca)
		signer = trial.key
	}
	leaf, err := create(trial.leaf, ca, trial.key, signer)
	if err != nil {
		return fmt.Errorf("signing a trial SVID: %w", err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			return fmt.Errorf("chain: a trial SVID under it does not verify: %w", err)
		}
	}
	return nil
}

// trial is a key and an SVID's certificate for it.
type trial struct {
	Record
	key  crypto.Signer
	leaf *x509.Certificate
}

func newTrial(a *Authority, now time.Time) (*trial, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a trial key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-a.cfg.Lives.Backdate), NotAfter: now.Add(time.Minute),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          subjectKeyID(spki),
		URIs:                  []*url.URL{a.cfg.TrustDomain.ID().URL().JoinPath("credence", "trial")},
	}
	return &trial{Record{ID: digest(spki).String()[:32], PublicKey: spki}, key, leaf}, nil
}

func create(template, parent *x509.Certificate, key, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
