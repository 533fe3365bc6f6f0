package pkcs7_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/join/pkcs7"
)

// samples are messages that OpenSSL made; they are beside the method that they look
// like.
func samples(t testing.TB) (all map[string][]byte, signer *x509.Certificate) {
	t.Helper()
	const dir = "../awsec2/testdata/"
	all = map[string][]byte{}
	for _, name := range []string{"stream", "der", "certificate", "noattr", "smime"} {
		text, err := os.ReadFile(dir + name + ".p7")
		if err != nil {
			t.Fatal(err)
		}
		if all[name], err = base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\n", "")); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(dir + "region.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if signer, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return all, signer
}

// Content comes out for the certificate that signed, and for no other.
func TestVerify(t *testing.T) {
	all, signer := samples(t)
	another := twin(t, signer)
	for name, der := range all {
		m, err := pkcs7.Parse(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if content, err := m.Verify(signer); err != nil || !strings.Contains(string(content), "instanceId") || !m.By(signer) {
			t.Errorf("%s: %s, %v", name, content, err)
		}
		if content, err := m.Verify(another); err == nil || content != nil {
			t.Errorf("%s: by another key: %s", name, content)
		}
		bag, err := m.Certificates(1)
		if err != nil || (len(bag) == 1) != (m.Bag() != nil) {
			t.Errorf("%s: %d in the bag: %v", name, len(bag), err)
		}
		if _, err := m.Certificates(0); (err == nil) != (m.Bag() == nil) {
			t.Errorf("%s: the bag has no bound: %v", name, err)
		}
	}
}

// twin is another's certificate of the same name and number.
func twin(t testing.TB, of *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: of.SerialNumber, RawSubject: of.RawIssuer, NotBefore: of.NotBefore, NotAfter: of.NotAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheap(t *testing.T) {
	for bits, want := range map[uint]bool{1024: false, 2048: true, 4096: true, 16384: false} {
		key := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1), E: 65537}
		if pkcs7.Cheap(key) != want {
			t.Errorf("RSA of %d bits: %v", bits, !want)
		}
	}
	if pkcs7.Cheap(nil) {
		t.Error("no key")
	}
}

// What nobody signed has no content.
func FuzzParse(f *testing.F) {
	all, signer := samples(f)
	for _, der := range all {
		f.Add(der)
	}
	another := twin(f, signer)
	f.Fuzz(func(t *testing.T, der []byte) {
		m, err := pkcs7.Parse(der)
		if err != nil {
			return
		}
		if content, err := m.Verify(another); err == nil {
			t.Errorf("%q is signed", content)
		}
		_, _ = m.Certificates(8)
	})
}
