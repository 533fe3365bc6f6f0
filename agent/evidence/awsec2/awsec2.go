// Package awsec2 proves that a node is an instance of EC2, to the join method
// aws_ec2: it shows the identity document that instance metadata (IMDSv2) gives,
// which AWS signed, and a key of its own, by which it signs the broker's challenge.
//
// It trusts what answers at the metadata's address, as AWS' own programs do. The key
// is made once and kept in a file: the broker lets the instance back in by it alone,
// so who has the file and the document is this node.
package awsec2

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	defaultMetadata = "http://169.254.169.254"
	maxDocument     = 12 << 10
	patience        = 5 * time.Second
)

// Config says where things are. Fields are required unless noted.
type Config struct {
	TrustDomain string // of the broker
	KeyFile     string // is made if it is not there
	Metadata    string // empty: the address that EC2 has
}

// Evidence is the document and the key.
func (c Config) Evidence(ctx context.Context) ([]byte, error) {
	evidence, err := c.evidence(ctx)
	if err != nil {
		return nil, fmt.Errorf("showing the instance's identity document: %w", err)
	}
	return evidence, nil
}

func (c Config) evidence(ctx context.Context) ([]byte, error) {
	key, err := c.key()
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	document, err := c.document(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking instance metadata: %w (is this an instance of EC2, and its metadata on?)", err)
	}
	return json.Marshal(map[string]string{"document": strings.TrimSpace(document), "key": base64.StdEncoding.EncodeToString(public)})
}

// Answer signs a challenge.
func (c Config) Answer(_ context.Context, challenge []byte) ([]byte, error) {
	if len(challenge) != 32 {
		return nil, fmt.Errorf("a challenge of %d bytes: 32 are signed", len(challenge))
	}
	if c.TrustDomain == "" {
		return nil, errors.New("no trust domain to sign for is set")
	}
	key, err := c.key()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(slices.Concat([]byte("credence join aws_ec2 1\x00"), []byte(c.TrustDomain), []byte{0}, challenge))
	return ecdsa.SignASN1(rand.Reader, key, sum[:])
}

// document asks for it with a session's token, as IMDSv2 wants.
func (c Config) document(ctx context.Context) (string, error) {
	if c.Metadata == "" {
		c.Metadata = defaultMetadata
	}
	client := &http.Client{
		Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}, // at no proxy's hands
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	base := strings.TrimSuffix(c.Metadata, "/") + "/latest/"
	token, err := ask(ctx, client, http.MethodPut, base+"api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if err != nil {
		return "", err
	}
	return ask(ctx, client, http.MethodGet, base+"dynamic/instance-identity/rsa2048", "X-aws-ec2-metadata-token", token)
}

func ask(ctx context.Context, client *http.Client, verb, at, header, value string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, verb, at, http.NoBody)
	if err != nil {
		return "", err
	}
	request.Header.Set(header, value)
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxDocument+1))
	switch {
	case err != nil:
		return "", err
	case answer.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s answers with status %d", at, answer.StatusCode)
	case len(text) == 0 || len(text) > maxDocument:
		return "", fmt.Errorf("%s answers nothing, or more than %d bytes", at, maxDocument)
	}
	return string(text), nil
}

// key reads the node's key, or makes it.
func (c Config) key() (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(c.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c.makeKey()
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", c.KeyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s holds no key of P-256", c.KeyFile)
	}
	return key, nil
}

// makeKey keeps a new key on disk before anybody is shown it. Of two at once the
// first's stays.
func (c Config) makeKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(c.KeyFile), ".aws_ec2-") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), c.KeyFile); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return c.key()
}
