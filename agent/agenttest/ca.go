package agenttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
)

// A CA is a trust domain's authority: a root, and a key for JWT-SVIDs.
type CA struct {
	TrustDomain spiffeid.TrustDomain
	Root        *x509.Certificate
	Key         crypto.Signer
	JWTKey      *ecdsa.PrivateKey
	JWTKeyID    string
}

// NewCA makes an authority.
func NewCA(t testing.TB, td string) *CA {
	t.Helper()
	ca := &CA{TrustDomain: spiffeid.RequireTrustDomainFromString(td), JWTKey: newKey(), JWTKeyID: "k-" + td}
	key := newKey()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "root of " + td}, URIs: []*url.URL{ca.TrustDomain.ID().URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	ca.Root, ca.Key = mustSign(template, template, key.Public(), key), key
	return ca
}

// Sign makes a leaf that ends at end.
func (ca *CA) Sign(id spiffeid.ID, public crypto.PublicKey, end time.Time) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: serial(), URIs: []*url.URL{id.URL()}, NotBefore: time.Now().Add(-time.Minute), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return mustSign(template, ca.Root, public, ca.Key)
}

// Bundle is the trust domain's.
func (ca *CA) Bundle() *spiffebundle.Bundle {
	b := spiffebundle.New(ca.TrustDomain)
	b.AddX509Authority(ca.Root)
	must(b.AddJWTAuthority(ca.JWTKeyID, ca.JWTKey.Public()))
	b.SetRefreshHint(time.Minute)
	return b
}

// Document is the bundle as SPIFFE JSON.
func (ca *CA) Document() []byte {
	document, err := ca.Bundle().Marshal()
	must(err)
	return document
}

// CRL is a list of what the root revoked, of this number, current until end.
func (ca *CA) CRL(number int64, end time.Time, serials ...*big.Int) *api.CRL {
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: end}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Root, ca.Key)
	must(err)
	return &api.CRL{Der: der, Issuer: [][]byte{ca.Root.Raw}}
}

// Pin is what ca_pin says of the root.
func (ca *CA) Pin() string {
	sum := sha256.Sum256(ca.Root.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(err)
	return n
}

func mustSign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	must(err)
	c, err := x509.ParseCertificate(der)
	must(err)
	return c
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("agenttest: %v", err))
	}
}
