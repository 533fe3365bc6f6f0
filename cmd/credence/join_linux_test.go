package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A machine that has a certificate of the owner's PKI becomes a node by it, and
// one that has another does not.
func TestJoinByCertificate(t *testing.T) {
	s := newSide(t, "example.org")
	pair := func(name, host string, by *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if by == nil {
			template.IsCA, template.KeyUsage, template.ExtKeyUsage, by, signer = true, x509.KeyUsageCertSign, nil, template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		s.write(name+".crt", text)
		s.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
		return c, key, text
	}
	root, rootKey, text := pair("root", "root.acme.example", nil, nil)
	other, otherKey, _ := pair("other", "root.acme.example", nil, nil)
	pair("n7", "n7.acme.example", root, rootKey)
	pair("n8", "n8.evil.example", root, rootKey)
	pair("n9", "n9.acme.example", other, otherKey)
	s.credence(fmt.Sprintf("kind: JoinRule\nname: pki\nx509:\n  roots: |\n    %s\nallow: [{node.x509.dns: '*.acme.example'}]\n", strings.ReplaceAll(text, "\n", "\n    ")), "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string) *exec.Cmd {
		return exec.Command("credence", "agent", "run", "-c", s.write(name+".yaml", fmt.Sprintf(
			"trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: x509, cert: %s, key: %s}\n",
			s.path(name), s.ports[0], pin[1], s.path(name+".crt"), s.path(name+".key"))))
	}
	if _, err := startCmd(t, run("n7")).await("joined", 0); err != nil {
		t.Fatal(err)
	}
	if out := s.credence("", "node", "list"); !strings.Contains(out, "n7.acme.example") {
		t.Errorf("nodes:\n%s", out)
	}
	for _, name := range []string{"n8", "n9"} {
		if out, err := run(name).CombinedOutput(); err == nil || !strings.Contains(string(out), "joining: ") {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
}
