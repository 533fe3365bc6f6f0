package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// devWeb is dev's own web PKI: what public CAs are for a real issuer and real
// clouds. Its CA is kept with the state, so that a ca_file once handed out
// stays good.
type devWeb struct {
	roots *x509.CertPool
	file  string // PEM of the CA, for other programs
	leaf  *tls.Certificate
}

func (w *devWeb) certificate() (*tls.Certificate, error) { return w.leaf, nil }

func openDevWeb(dir, file string) (*devWeb, error) {
	ca, err := loadDevCA(filepath.Join(dir, "ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = makeDevCA(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("dev's web CA: %w", err)
	}
	w := &devWeb{roots: x509.NewCertPool(), file: file}
	w.roots.AddCert(ca.Leaf)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Leaf.Raw})
	if err := renameio.WriteFile(file, text, 0o644, renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return nil, err
	}
	w.leaf, err = devSign(webLeafTemplate(loopbackNames, time.Now()), ca)
	return w, err
}

func loadDevCA(file string) (*tls.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &cert, nil
}

func makeDevCA(dir string) (*tls.Certificate, error) {
	cert, err := devSign(webCATemplate("Credence dev", loopbackNames, time.Now()), nil)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw}) // a Buffer takes everything
	_ = pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return cert, renameio.WriteFile(filepath.Join(dir, "ca.pem"), text.Bytes(), 0o600, renameio.WithTempDir(dir))
}

// loopbackNames are those of a server for this machine alone.
var loopbackNames = []string{"localhost", "127.0.0.1", "::1"}

// webCATemplate is a CA for web servers of these names alone.
func webCATemplate(organization string, names []string, now time.Time) *x509.Certificate {
	dns, ips := splitNames(names)
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{organization}, CommonName: "Web CA of one machine"},
		NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(2, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: dns,
	}
	for _, ip := range ips {
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))})
	}
	return template
}

// webLeafTemplate is a web server of these names.
func webLeafTemplate(names []string, now time.Time) *x509.Certificate {
	dns, ips := splitNames(names)
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(0, 0, 90),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: dns, IPAddresses: ips,
	}
}

func splitNames(names []string) (dns []string, ips []net.IP) {
	for _, name := range names {
		if ip := net.ParseIP(name); ip == nil {
			dns = append(dns, name)
		} else if four := ip.To4(); four != nil {
			ips = append(ips, four)
		} else {
			ips = append(ips, ip)
		}
	}
	return dns, ips
}

// devSign makes a key and a certificate for it, under ca or by itself.
func devSign(template *x509.Certificate, ca *tls.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
