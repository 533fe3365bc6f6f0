package aws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The signing process of IAM Roles Anywhere: Signature Version 4, but the
// string to sign is signed by the certificate's key; no key is derived.
const (
	algorithmRSA   = "AWS4-X509-RSA-SHA256"
	algorithmECDSA = "AWS4-X509-ECDSA-SHA256"
	path           = "/sessions"
	dateFormat     = "20060102T150405Z"
	maxChain       = 5 // certificates beside the leaf
)

// sign sets X-Amz-Date, the certificates and Authorization. body is the
// request's.
func sign(r *http.Request, body []byte, chain []*x509.Certificate, key crypto.Signer, region string, now time.Time) error {
	leaf := chain[0]
	algorithm, err := algorithmOf(leaf.PublicKey)
	if err != nil {
		return err
	}
	date := now.UTC().Format(dateFormat)
	r.Header.Set("X-Amz-Date", date)
	r.Header.Set("X-Amz-X509", base64.StdEncoding.EncodeToString(leaf.Raw))
	if len(chain) > 1 {
		r.Header.Set("X-Amz-X509-Chain", encodeChain(chain[1:]))
	}
	scope := date[:8] + "/" + region + "/rolesanywhere/aws4_request"
	canonical, signed := canonicalRequest(r, body)
	signature, err := signText(stringToSign(algorithm, date, scope, canonical), leaf, key)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%x",
		algorithm, leaf.SerialNumber, scope, signed, signature))
	return nil
}

func algorithmOf(public crypto.PublicKey) (string, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return algorithmRSA, nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return algorithmECDSA, nil
		}
	}
	return "", errors.New("the X509-SVID's key must be P-256, P-384 or RSA of 2048 bits or more")
}

func encodeChain(chain []*x509.Certificate) string {
	out := make([]string, len(chain))
	for i, c := range chain {
		out[i] = base64.StdEncoding.EncodeToString(c.Raw)
	}
	return strings.Join(out, ",")
}

// canonicalRequest returns it and the names of the headers in it. The path is
// the constant that AWS's own client signs.
func canonicalRequest(r *http.Request, body []byte) (canonical, signed string) {
	headers := map[string]string{"host": r.URL.Host}
	if r.Host != "" {
		headers["host"] = r.Host
	}
	names := []string{"host"}
	for name, values := range r.Header {
		name = strings.ToLower(name)
		if unsigned(name) {
			continue
		}
		headers[name] = strings.Join(strings.Fields(strings.Join(values, ",")), " ")
		names = append(names, name)
	}
	slices.Sort(names)
	signed = strings.Join(names, ";")
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, path, canonicalQuery(r.URL.Query()))
	for _, name := range names {
		fmt.Fprintf(&b, "%s:%s\n", name, headers[name])
	}
	fmt.Fprintf(&b, "\n%s\n%s", signed, hexSHA256(string(body)))
	return b.String(), signed
}

// unsigned are the headers that proxies and transports add or change.
func unsigned(name string) bool {
	switch name {
	case "authorization", "user-agent", "x-amzn-trace-id", "accept-encoding", "content-length", "connection":
		return true
	}
	return false
}

// canonicalQuery sorts by name and escapes all but RFC 3986's unreserved
// characters; QueryEscape differs from that by the space alone.
func canonicalQuery(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }

func stringToSign(algorithm, date, scope, canonical string) string {
	return strings.Join([]string{algorithm, date, scope, hexSHA256(canonical)}, "\n")
}

func hexSHA256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// signText signs PKCS #1 v1.5 or ASN.1 ECDSA, as crypto.Signer does for SHA-256
// by default, and verifies with the certificate: AWS's refusal of a key that is
// not the certificate's says nothing.
func signText(text string, leaf *x509.Certificate, key crypto.Signer) ([]byte, error) {
	sum := sha256.Sum256([]byte(text))
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing with the X509-SVID's key: %w", err)
	}
	var good bool
	switch public := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature) == nil
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, sum[:], signature)
	}
	if !good {
		return nil, errors.New("the key is not the X509-SVID's")
	}
	return signature, nil
}
