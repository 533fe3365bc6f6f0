package gcp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// The limits of X.509 providers.
const (
	maxAnchors       = 3
	maxIntermediates = 10
	maxCertificates  = 10 // sent and in the trust store's intermediates
	maxDepth         = 5  // leaf and anchor counted
	maxCertificate   = 32 << 10
	maxLeafLife      = 390 * 24 * time.Hour
	maxAlike         = 5 // intermediates of one subject and key
)

// A TrustStore says which certificates an X.509 provider takes.
type TrustStore struct {
	Anchors       []*x509.Certificate // 1 to 3
	Intermediates []*x509.Certificate // at most 10
}

func (p Provider) checkX509() error {
	s := p.TrustStore
	switch {
	case p.Issuer != "" || p.KeySet != nil || p.AllowedAudiences != nil:
		return fmt.Errorf("provider %q: an X.509 provider has no issuer, keys or audiences", p.ID)
	case len(s.Anchors) < 1 || len(s.Anchors) > maxAnchors || len(s.Intermediates) > maxIntermediates:
		return fmt.Errorf("provider %q: %d trust anchors and %d intermediates, 1 to %d and at most %d",
			p.ID, len(s.Anchors), len(s.Intermediates), maxAnchors, maxIntermediates)
	}
	for _, c := range slices.Concat(s.Anchors, s.Intermediates) {
		if err := checkCA(c); err != nil {
			return fmt.Errorf("provider %q: certificate of %q: %w", p.ID, c.Subject, err)
		}
	}
	return nil
}

func checkCA(c *x509.Certificate) error {
	switch {
	case len(c.Raw) > maxCertificate:
		return errors.New("more than 32 KB")
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("not a CA")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("no key usage keyCertSign")
	}
	return checkKey(c)
}

// checkKey wants RSA of 2048 to 4096 bits, P-256 or P-384, and a signature over
// SHA-256 or better.
func checkKey(c *x509.Certificate) error {
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return fmt.Errorf("signature algorithm %s", c.SignatureAlgorithm)
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= 4096 {
			return nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	}
	return errors.New("its key is not RSA of 2048 to 4096 bits, P-256 or P-384")
}

// MTLS serves POST /v1/token of sts.mtls.googleapis.com, for X.509 providers.
// Its listener must ask for a client certificate and not judge it
// ([crypto/tls.RequestClientCert]): the
// judgement is an answer, not an alert.
func (c *Cloud) MTLS() http.Handler {
	return c.MTLSFaults.Wrap(sandbox.Serve("gcp_sts_mtls", c.now, c.cfg.Log, func(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
		c.serveSTS(w, r, e, c.exchangeX509)
	}))
}

// exchangeX509 is the subject of an X.509 provider.
func (c *Cloud) exchangeX509(r *http.Request, f map[string]string) (verified, []string, *refusal) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return verified{}, nil, invalid("A client certificate is required.", nil)
	}
	p, scopes, no := c.target(f, mtlsType)
	if no != nil {
		return verified{}, nil, no
	}
	if p.TrustStore == nil {
		return verified{}, nil, invalid(`Invalid value for "subject_token_type"`, errors.New("the provider is an OIDC provider"))
	}
	chain, err := parseChain(f["subject_token"])
	if err != nil {
		return verified{}, nil, invalid(`Invalid value for "subject_token"`, err)
	}
	leaf := chain[0]
	if !bytes.Equal(leaf.Raw, r.TLS.PeerCertificates[0].Raw) {
		return verified{}, nil, invalidGrant("The leaf certificate in the subject token is not the client certificate.", nil)
	}
	if err = c.checkLeaf(leaf); err == nil {
		err = c.checkChain(p.TrustStore, chain)
	}
	if err != nil {
		return verified{}, nil, invalidGrant("The client certificate could not be validated.", err)
	}
	return verified{p, assertion(leaf), leaf.NotAfter}, scopes, nil
}

// parseChain reads a JSON list of 1 to 10 certificates in DER and standard
// base64, without line breaks.
func parseChain(text string) ([]*x509.Certificate, error) {
	d := json.NewDecoder(strings.NewReader(text))
	var list []string
	if err := d.Decode(&list); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the list")
	}
	if len(list) < 1 || len(list) > maxCertificates {
		return nil, fmt.Errorf("%d certificates, 1 to %d", len(list), maxCertificates)
	}
	var chain []*x509.Certificate
	for i, e := range list {
		der, err := base64.StdEncoding.Strict().DecodeString(e)
		if err != nil || strings.ContainsAny(e, "\r\n") || len(der) > maxCertificate {
			return nil, fmt.Errorf("element %d is not base64 of at most 32 KB", i)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

func (c *Cloud) checkLeaf(leaf *x509.Certificate) error {
	now := c.now()
	switch {
	case leaf.Version != 3 || !leaf.BasicConstraintsValid || leaf.IsCA:
		return errors.New("the leaf does not say that it is no CA")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return errors.New("the leaf's key usage is not digitalSignature, or is keyCertSign too")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("the leaf has no extended key usage clientAuth")
	case leaf.NotAfter.Sub(leaf.NotBefore) > maxLeafLife:
		return errors.New("the leaf lives more than 390 days")
	case now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter):
		return errors.New("the leaf is not yet, or no more, valid")
	}
	return checkKey(leaf)
}

// checkChain wants a path of at most five from the leaf to an anchor, on which
// each CA is one that could stand in a trust store.
func (c *Cloud) checkChain(s *TrustStore, sent []*x509.Certificate) error {
	if n := len(sent) + len(s.Intermediates); n > maxCertificates {
		return fmt.Errorf("%d certificates with the trust store's intermediates, at most %d", n, maxCertificates)
	}
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: c.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, a := range s.Anchors {
		o.Roots.AddCert(a)
	}
	alike := map[string]int{}
	for _, i := range slices.Concat(sent[1:], s.Intermediates) {
		name := string(i.RawSubject) + string(i.RawSubjectPublicKeyInfo)
		if alike[name]++; alike[name] > maxAlike {
			return fmt.Errorf("more than %d intermediates of one subject and key", maxAlike)
		}
		o.Intermediates.AddCert(i)
	}
	paths, err := sent[0].Verify(o)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err = checkPath(path); err == nil {
			return nil
		}
	}
	return err
}

func checkPath(path []*x509.Certificate) error {
	if len(path) > maxDepth {
		return fmt.Errorf("a path of %d, at most %d", len(path), maxDepth)
	}
	for _, ca := range path[1:] {
		if err := checkCA(ca); err != nil {
			return fmt.Errorf("CA %q: %w", ca.Subject, err)
		}
	}
	return nil
}

// assertion is what mappings and conditions see of a leaf. What it does not
// have is absent.
func assertion(leaf *x509.Certificate) map[string]any {
	sum := sha256.Sum256(leaf.Raw)
	san := map[string]any{}
	if len(leaf.DNSNames) > 0 {
		san["dns"] = leaf.DNSNames[0]
	}
	if len(leaf.URIs) > 0 {
		san["uri"] = leaf.URIs[0].String()
	}
	serial := leaf.SerialNumber.Text(16)
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	return map[string]any{
		"serialNumberHex":   serial,
		"subject":           map[string]any{"dn": distinguished(leaf.Subject)},
		"issuer":            map[string]any{"dn": distinguished(leaf.Issuer)},
		"san":               san,
		"sha256Fingerprint": base64.StdEncoding.EncodeToString(sum[:]),
	}
}

func distinguished(n pkix.Name) map[string]any {
	out := map[string]any{}
	if n.CommonName != "" {
		out["cn"] = n.CommonName
	}
	if len(n.Organization) > 0 {
		out["o"] = n.Organization[0]
	}
	if len(n.OrganizationalUnit) > 0 {
		out["ou"] = n.OrganizationalUnit[0]
	}
	return out
}
