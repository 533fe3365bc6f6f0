package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Found is a TPM's endorsement key.
type Found struct {
	Kind   string // "rsa" or "ecc"
	Public []byte // DER, SubjectPublicKeyInfo
	Hash   string // by which a JoinRule registers it
	Chain  []*x509.Certificate
	// Passed is why a certificate that the TPM holds is not in Chain.
	Passed string
}

// Find says which endorsement key the machine would join by.
func (n *Node) Find(context.Context) (found Found, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.with(func(tpm transport.TPM) error {
		found, err = n.find(tpm)
		return err
	})
	return found, err
}

func (n *Node) find(tpm transport.TPM) (f Found, err error) {
	k, chain, err := n.choose(tpm)
	if err != nil {
		return f, err
	}
	ek, err := n.endorsement(tpm, k)
	if err != nil {
		return f, err
	}
	public, err := tpm2.Pub(ek.public)
	if err != nil {
		return f, fmt.Errorf("reading the TPM's endorsement key: %w", err)
	}
	f.Kind = k.name
	if f.Public, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return f, fmt.Errorf("reading the TPM's endorsement key: %w", err)
	}
	f.Hash = digest(f.Public)
	if n.cfg.Cert != "" {
		if digestOf(chain[0]) != f.Hash {
			return f, fmt.Errorf("join.cert: its first certificate is of another key than this TPM's endorsement key (%s)", k.name)
		}
		f.Chain = chain
		return f, nil
	}
	der, err := readNV(tpm, k.certificate)
	if err != nil || der == nil {
		return f, err
	}
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		f.Passed = fmt.Sprintf("it cannot be read: %v", err)
	case digestOf(c) != f.Hash:
		f.Passed = "it is of another key than the one by the TCG's default template"
	default:
		f.Chain = []*x509.Certificate{c}
	}
	return f, nil
}

// choose says which kind of EK is meant, and reads the certificate file.
func (n *Node) choose(tpm transport.TPM) (*kind, []*x509.Certificate, error) {
	var chain []*x509.Certificate
	if n.cfg.Cert != "" {
		var err error
		if chain, err = readChain(n.cfg.Cert); err != nil {
			return nil, nil, fmt.Errorf("join.cert: %w", err)
		}
	}
	switch {
	case n.cfg.EK == eccEK.name:
		return &eccEK, chain, nil
	case n.cfg.EK == rsaEK.name:
		return &rsaEK, chain, nil
	case chain != nil:
		if _, ok := chain[0].PublicKey.(*ecdsa.PublicKey); ok {
			return &eccEK, chain, nil
		}
		return &rsaEK, chain, nil
	}
	for _, k := range []*kind{&rsaEK, &eccEK} {
		_, err := tpm2.NVReadPublic{NVIndex: k.certificate}.Execute(tpm)
		if err == nil {
			return k, nil, nil
		}
		if !errors.Is(err, tpm2.TPMRCHandle) {
			return nil, nil, fmt.Errorf("looking for an endorsement key's certificate in the TPM: %w", err)
		}
	}
	return &rsaEK, nil, nil
}

const (
	maxCertificate = 8 << 10
	maxChain       = 4
)

// readNV reads a certificate that the TPM holds; nil: it holds none. Some makers fill
// up what it does not need.
func readNV(tpm transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	about, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for an endorsement key's certificate in the TPM: %w", err)
	}
	public, err := about.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("looking for an endorsement key's certificate in the TPM: %w", err)
	}
	if public.DataSize > maxCertificate {
		return nil, fmt.Errorf("the endorsement key's certificate in the TPM has %d bytes: at most %d are read", public.DataSize, maxCertificate)
	}
	const chunk = 256 // every TPM gives as much
	var der []byte
	for at := 0; at < int(public.DataSize); at += chunk {
		out, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: about.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: about.NVName},
			Size:       uint16(min(chunk, int(public.DataSize)-at)), Offset: uint16(at),
		}.Execute(tpm)
		if err != nil {
			return nil, fmt.Errorf("reading the endorsement key's certificate in the TPM: %w", err)
		}
		der = append(der, out.Data.Buffer...)
	}
	var first asn1.RawValue
	if _, err := asn1.Unmarshal(der, &first); err == nil {
		return first.FullBytes, nil
	}
	return der, nil
}

func readChain(path string) (chain []*x509.Certificate, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", path, len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) > maxChain {
		return nil, fmt.Errorf("%s: %d certificates: brokers take at most %d", path, len(chain), maxChain)
	}
	if len(chain) == 0 || strings.TrimSpace(string(text)) != "" {
		return nil, fmt.Errorf("%s: certificates in PEM are wanted, the endorsement key's first, and nothing else", path)
	}
	return chain, nil
}

func digestOf(c *x509.Certificate) string {
	der, err := x509.MarshalPKIXPublicKey(c.PublicKey)
	if err != nil {
		return "" // a kind that no endorsement key of ours has
	}
	return digest(der)
}

func digest(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}
