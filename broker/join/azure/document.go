package azure

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/join/pkcs7"
)

const (
	maxBag   = 8 // certificates
	maxNames = 64
	// maxLife of a document: they have six hours.
	maxLife = 24 * time.Hour
	// timeLayout is how Azure writes a time.
	timeLayout = "01/02/06 15:04:05 -0700"
)

// A document is what attested data says that matters.
type document struct {
	subscription string
	machine      string // vmId
}

// signers are whose documents are taken.
type signers struct {
	roots         *x509.CertPool
	intermediates []*x509.Certificate // Azure sends the signer's certificate alone
	name          string              // of the cloud's metadata service
}

// nonce is what a document has to hold: 32 letters, the most that instance metadata
// takes, of the digest of whom it is for, our challenge and the node's key.
func nonce(trustDomain string, challenge []byte, key identity.KeyDigest) string {
	sum := sha256.Sum256(slices.Concat([]byte("credence join azure 1\x00"), []byte(trustDomain), []byte{0}, challenge, key[:]))
	return hex.EncodeToString(sum[:16])
}

// read verifies a message and reads the document that was signed, and no other text.
func (s *signers) read(message []byte, nonce string, now time.Time) (*document, error) {
	m, err := pkcs7.Parse(message)
	if err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	content, err := s.verify(m, now)
	if err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	return readDocument(content, nonce, now)
}

// verify returns what a message holds, if the one certificate that it names as its
// signer's, and whose key signed it, is the metadata service's.
func (s *signers) verify(m *pkcs7.Message, now time.Time) ([]byte, error) {
	bag, err := m.Certificates(maxBag)
	if err != nil {
		return nil, err
	}
	is := func(c *x509.Certificate) bool { return m.By(c) }
	at := slices.IndexFunc(bag, is)
	if at < 0 || slices.ContainsFunc(bag[at+1:], is) {
		return nil, errors.New("its bag holds no certificate of its signer, or two")
	}
	signer := bag[at]
	content, err := m.Verify(signer)
	if err != nil {
		return nil, err
	}
	if signer.IsCA || len(signer.DNSNames) > maxNames || !slices.ContainsFunc(signer.DNSNames, s.named) {
		return nil, fmt.Errorf("its signer is none of %s", s.name)
	}
	pool := x509.NewCertPool()
	for _, c := range slices.Concat(slices.Delete(slices.Clone(bag), at, at+1), s.intermediates) {
		pool.AddCert(c)
	}
	_, err = signer.Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: pool, CurrentTime: now})
	if err != nil {
		return nil, fmt.Errorf("its signer, of issuer %.200q, is of none of the rule's roots (intermediates of the rule may be missing): %w", signer.Issuer.CommonName, err)
	}
	return content, nil
}

// named says whether a DNS name is the metadata service's, or of one of its regions.
func (s *signers) named(name string) bool {
	name = strings.ToLower(name)
	return name == s.name || strings.HasSuffix(name, "."+s.name)
}

// readDocument reads what was verified, each member once. Others are Azure's to add.
func readDocument(text []byte, nonce string, now time.Time) (*document, error) {
	all, err := bearer.Object(text)
	if err != nil {
		return nil, err
	}
	if said, _ := all["nonce"].(string); subtle.ConstantTimeCompare([]byte(said), []byte(nonce)) != 1 {
		return nil, errors.New("it is not for this challenge and key")
	}
	d := &document{}
	for name, to := range map[string]*string{"subscriptionId": &d.subscription, "vmId": &d.machine} {
		said, _ := all[name].(string)
		if *to = strings.ToLower(said); !guid.MatchString(*to) {
			return nil, fmt.Errorf("its %s is none: %.80q", name, said)
		}
	}
	stamp, _ := all["timeStamp"].(map[string]any)
	created, err := readTime(stamp, "createdOn")
	if err != nil {
		return nil, err
	}
	expires, err := readTime(stamp, "expiresOn")
	switch {
	case err != nil:
		return nil, err
	case created.After(now.Add(bearer.Skew)):
		return nil, fmt.Errorf("it was made at %s, and it is %s here", created.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !expires.After(now.Add(-bearer.Skew)) || !expires.After(created) || expires.Sub(created) > maxLife:
		return nil, fmt.Errorf("it is good from %s to %s", created.UTC().Format(time.RFC3339), expires.UTC().Format(time.RFC3339))
	}
	return d, nil
}

func readTime(stamp map[string]any, name string) (time.Time, error) {
	said, _ := stamp[name].(string)
	t, err := time.Parse(timeLayout, said)
	if err != nil {
		return time.Time{}, fmt.Errorf("its %s is no time: %.80q", name, said)
	}
	return t, nil
}
