// Package disk is a CA of the owner's as files: its key certifies our CAs.
//
// It trusts the files that the configuration names, and nobody's but its own
// user's key file. It reads them at each signature, so that a renewed CA is
// taken up by itself. Whether the outcome may be used is broker/authority's to
// judge.
package disk

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/credence-id/credence/broker/authority/upstream"
)

// Config says where the CA is. Cert and Key are required.
type Config struct {
	Cert  string           `yaml:"cert"`  // PEM: the CA's certificate, then what stands above it
	Key   string           `yaml:"key"`   // PEM, readable by our user alone
	Roots string           `yaml:"roots"` // PEM: the roots it ends in; empty: those that stand in Cert
	Now   func() time.Time `yaml:"-"`     // nil means time.Now
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Cert == "" || c.Key == "" {
		return errors.New("cert and key are both wanted: PEM files of a CA that may sign ours")
	}
	return nil
}

// A CA signs with a key on disk. It may be used concurrently.
type CA struct{ cfg Config }

// New returns the CA that cfg names. It reads nothing yet.
func New(cfg Config) (*CA, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("upstream disk: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &CA{cfg}, nil
}

// maxFile bounds each file.
const maxFile = 1 << 20

// backdate is for clocks that lag.
const backdate = time.Minute

// Sign certifies the key of csr (PKCS #10, DER) as a CA that signs leaves only,
// for life or as long as the CA itself has left. Of the CSR it takes the key,
// the subject and the URIs.
func (c *CA) Sign(_ context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("upstream disk: reading the request: %w", err)
	}
	above, anchors, key, err := c.load()
	if err != nil {
		return nil, nil, fmt.Errorf("upstream disk: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("upstream disk: making a serial number: %w", err)
	}
	now := c.cfg.Now().UTC().Truncate(time.Second)
	spki := sha256.Sum256(request.RawSubjectPublicKeyInfo)
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: request.RawSubject, URIs: request.URIs,
		NotBefore: later(now.Add(-backdate), above[0].NotBefore), NotAfter: earlier(now.Add(life), above[0].NotAfter),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		SubjectKeyId: spki[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above[0], request.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("upstream disk: signing: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("upstream disk: reading back what was signed: %w", err)
	}
	return append([]*x509.Certificate{cert}, below(above, anchors)...), anchors, nil
}

// load reads the files, and refuses a CA that may not sign another.
func (c *CA) load() (above, anchors []*x509.Certificate, key crypto.Signer, err error) {
	if above, err = upstream.Certificates(c.cfg.Cert); err != nil {
		return nil, nil, nil, err
	}
	if anchors, err = c.roots(above); err != nil {
		return nil, nil, nil, err
	}
	if key, err = privateKey(c.cfg.Key); err != nil {
		return nil, nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	ca := above[0]
	switch {
	case err != nil:
		return nil, nil, nil, fmt.Errorf("%s: %w", c.cfg.Key, err)
	case !bytes.Equal(spki, ca.RawSubjectPublicKeyInfo):
		return nil, nil, nil, fmt.Errorf("%s is not the key of the first certificate in %s", c.cfg.Key, c.cfg.Cert)
	case !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, nil, nil, fmt.Errorf("%s: its first certificate may not sign others: CA:TRUE and keyCertSign are wanted", c.cfg.Cert)
	case ca.MaxPathLen == 0 && ca.MaxPathLenZero:
		return nil, nil, nil, fmt.Errorf("%s: its first certificate has path length 0, so it may sign no CA: 1 or more is wanted", c.cfg.Cert)
	case !c.cfg.Now().Before(ca.NotAfter):
		return nil, nil, nil, fmt.Errorf("%s: its first certificate ended at %s: renew it", c.cfg.Cert, ca.NotAfter.UTC().Format(time.RFC3339))
	}
	return above, anchors, key, nil
}

func (c *CA) roots(above []*x509.Certificate) ([]*x509.Certificate, error) {
	if c.cfg.Roots != "" {
		return upstream.Certificates(c.cfg.Roots)
	}
	var roots []*x509.Certificate
	for _, cert := range above {
		if cert.CheckSignatureFrom(cert) == nil {
			roots = append(roots, cert)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s holds no root: add it, or name a file of roots", c.cfg.Cert)
	}
	return roots, nil
}

// below is the chain without its anchors.
func below(chain, anchors []*x509.Certificate) []*x509.Certificate {
	var some []*x509.Certificate
	for _, cert := range chain {
		anchor := false
		for _, a := range anchors {
			anchor = anchor || a.Equal(cert)
		}
		if !anchor {
			some = append(some, cert)
		}
	}
	return some
}

func privateKey(path string) (crypto.Signer, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %s: a plain file that only its owner can touch is wanted: chmod 600", path, info.Mode())
	}
	text, err := upstream.Read(path, maxFile)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
			return nil, fmt.Errorf("%s: a key of type %T does not sign", path, key)
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	}
	return nil, fmt.Errorf("%s holds no PEM private key that is not encrypted", path)
}

func later(t, u time.Time) time.Time {
	if u.After(t) {
		return u
	}
	return t
}

func earlier(t, u time.Time) time.Time {
	if u.Before(t) {
		return u
	}
	return t
}
