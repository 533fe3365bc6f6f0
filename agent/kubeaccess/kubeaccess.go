// Package kubeaccess reads the files by which a pod calls its Kubernetes API
// server: the token of its service account and the CA, which the kubelet replaces
// while they are in use. Those who call have clients of their own: they ask
// differently.
//
// It trusts whoever may write to the files. Errors hold nothing of a token.
package kubeaccess

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"
)

// Bounds of the files, in bytes.
const (
	maxToken = 16 << 10
	maxCA    = 1 << 20
)

// Token reads a bearer token: what a header can carry, without the space around.
func Token(path string) (string, error) {
	text, err := readUpTo(path, maxToken)
	if err != nil {
		return "", fmt.Errorf("reading its token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("reading its token: %s holds none", path)
	}
	return token, nil
}

// CA reads certificates in PEM: their text, by which a change is told, and what
// they verify.
func CA(path string) ([]byte, *x509.CertPool, error) {
	text, err := readUpTo(path, maxCA)
	if err != nil {
		return nil, nil, fmt.Errorf("reading its CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("reading its CA: %s holds no certificate", path)
	}
	return text, roots, nil
}

func readUpTo(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: more than %d bytes", path, most)
	}
	return text, err
}
