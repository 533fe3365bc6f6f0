package aws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	algorithmRSA   = "AWS4-X509-RSA-SHA256"
	algorithmECDSA = "AWS4-X509-ECDSA-SHA256"
	maxChain       = 5
	maxCertificate = 32 << 10 // of one certificate in base64
)

var (
	errCertificate = errors.New("certificate header does not parse")
	errSignature   = errors.New("signature does not verify")
)

// authenticateX509 verifies that the request was signed, just now and for this
// endpoint, with the key of the certificate that it carries. Whether that
// certificate is worth anything is another question.
func (c *Cloud) authenticateX509(r *http.Request, body []byte, now time.Time) (*anywhereCall, error) {
	auth, err := parseAuthorization(r.Header)
	if err != nil {
		return nil, denied("Missing or malformed authentication").because("%v", err)
	}
	date, err := single(r.Header, "X-Amz-Date")
	if err != nil {
		return nil, denied("Missing or malformed date").because("%v", err)
	}
	if err := errors.Join(
		auth.checkScope(date, c.cfg.Region, "rolesanywhere", now, c.cfg.Skew),
		auth.checkSignedHeaders(r.Header, "x-amz-x509"),
	); err != nil {
		return nil, authenticationError(err)
	}
	call, err := readCertificates(r.Header)
	if err != nil {
		return nil, err
	}
	if auth.key != call.leaf.SerialNumber.String() {
		return nil, denied("Credential is not the serial number of the certificate")
	}
	toSign, err := auth.stringToSign(r, "/sessions", date, body)
	if err == nil {
		err = verifyX509(call.leaf, auth.algorithm, toSign, auth.signature)
	}
	if err != nil {
		return nil, authenticationError(err)
	}
	return call, nil
}

func authenticationError(err error) *refusal {
	switch {
	case errors.Is(err, errDate):
		return denied("Signature expired or not yet current").because("%v", err)
	case errors.Is(err, errScope):
		return denied("Credential should be scoped to the date, region and service of the request").because("%v", err)
	}
	return denied("The request signature we calculated does not match the signature you provided").because("%v", err)
}

// readCertificates reads the leaf and the chain, at most five intermediates.
func readCertificates(h http.Header) (*anywhereCall, error) {
	v, err := single(h, "X-Amz-X509")
	if err != nil {
		return nil, denied("Untrusted certificate. Insufficient certificate").because("%v", err)
	}
	call := &anywhereCall{}
	if call.leaf, err = parseCertificate(v); err != nil {
		return nil, denied("Untrusted certificate. Insufficient certificate").because("%v", err)
	}
	if len(h.Values("X-Amz-X509-Chain")) == 0 {
		return call, nil
	}
	if v, err = single(h, "X-Amz-X509-Chain"); err != nil {
		return nil, denied("Untrusted signing certificate").because("%v", err)
	}
	list := strings.Split(v, ",")
	if len(list) > maxChain {
		return nil, invalid("X-Amz-X509-Chain has %d certificates, the limit is %d", len(list), maxChain)
	}
	for _, s := range list {
		cert, err := parseCertificate(s)
		if err != nil {
			return nil, denied("Untrusted signing certificate").because("%v", err)
		}
		call.chain = append(call.chain, cert)
	}
	return call, nil
}

// parseCertificate reads one DER certificate in strict standard base64; bytes
// after it are an error of x509.
func parseCertificate(s string) (*x509.Certificate, error) {
	if len(s) > maxCertificate || strings.ContainsAny(s, "\r\n") {
		return nil, errCertificate
	}
	der, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCertificate, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCertificate, err)
	}
	return cert, nil
}

// verifyX509 verifies a signature over toSign: lower-case hex of PKCS #1 v1.5 or
// of an ASN.1 ECDSA signature, with SHA-256. The algorithm must be the key's.
func verifyX509(leaf *x509.Certificate, algorithm, toSign, signature string) error {
	sig, err := hex.DecodeString(signature)
	if err != nil || signature != strings.ToLower(signature) {
		return fmt.Errorf("%w: not in lower-case hex", errSignature)
	}
	sum := sha256.Sum256([]byte(toSign))
	switch k := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if algorithm == algorithmRSA && k.N.BitLen() >= 2048 && rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if algorithm == algorithmECDSA && k.Curve != elliptic.P224() && ecdsa.VerifyASN1(k, sum[:], sig) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s with a key of type %T", errSignature, algorithm, leaf.PublicKey)
}
