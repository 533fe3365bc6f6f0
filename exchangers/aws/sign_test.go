package aws_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/aws"
)

// capture is a request that AWS's credential helper sent, and its steps.
type capture struct {
	Method        string              `json:"method"`
	URI           string              `json:"request_uri"`
	Host          string              `json:"host"`
	Headers       map[string][]string `json:"headers"`
	Body          string              `json:"body"`
	Canonical     string              `json:"canonical_request"`
	StringToSign  string              `json:"string_to_sign"`
	Authorization string              `json:"authorization"`
	Algorithm     string              `json:"algorithm"`
	SignedHeaders string              `json:"signed_headers"`
	Signature     string              `json:"signature_hex"`
	CertPEM       string              `json:"cert_pem"`
	KeyPEM        string              `json:"private_key_pem"`
	ChainPEM      string              `json:"intermediates_pem"`
	ResponseSent  json.RawMessage     `json:"response_sent"`
}

func captures(t *testing.T) map[string]capture {
	t.Helper()
	files, err := filepath.Glob("testdata/ra-*.json")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d captures: %v", len(files), err)
	}
	out := map[string]capture{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c capture
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[filepath.Base(file)] = c
	}
	return out
}

func certificates(t *testing.T, text string) (out []*x509.Certificate) {
	t.Helper()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
}

func privateKey(t *testing.T, text string) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

func verifies(leaf *x509.Certificate, text, signature string) bool {
	sig, err := hex.DecodeString(signature)
	if err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(text))
	switch k := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum[:], sig)
	}
	return false
}

func TestSignsAsTheHelperDoes(t *testing.T) {
	for name, c := range captures(t) {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(c.Method, "https://"+c.Host+c.URI, bytes.NewBufferString(c.Body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header = http.Header(c.Headers)
			canonical, signed := aws.Canonical(r, []byte(c.Body))
			if diff := cmp.Diff(c.Canonical, canonical); diff != "" {
				t.Errorf("canonical request (-helper +ours):\n%s", diff)
			}
			if signed != c.SignedHeaders {
				t.Errorf("signed headers %s, the helper's %s", signed, c.SignedHeaders)
			}
			lines := strings.Split(c.StringToSign, "\n")
			text := aws.StringToSign(c.Algorithm, lines[1], lines[2], canonical)
			if diff := cmp.Diff(c.StringToSign, text); diff != "" {
				t.Errorf("string to sign (-helper +ours):\n%s", diff)
			}
			leaf := certificates(t, c.CertPEM)[0]
			if !verifies(leaf, text, c.Signature) {
				t.Error("the helper's signature does not verify over our string to sign")
			}
			ours, err := aws.SignText(text, leaf, privateKey(t, c.KeyPEM))
			if err != nil || !verifies(leaf, text, hex.EncodeToString(ours)) {
				t.Errorf("our signature does not verify: %v", err)
			}
			if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA && hex.EncodeToString(ours) != c.Signature {
				t.Error("PKCS #1 v1.5 is deterministic, and ours differs from the helper's")
			}
		})
	}
}
