package federation_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation/federationtest"
)

var (
	example  = spiffeid.RequireTrustDomainFromString("example.org")
	partner  = spiffeid.RequireTrustDomainFromString("partner.example")
	third    = spiffeid.RequireTrustDomainFromString("third.example")
	epoch    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	endpoint = spiffeid.RequireFromPath(partner, "/credence/broker")
)

type ca = federationtest.CA

func newKey(t testing.TB) *ecdsa.PrivateKey { return federationtest.NewKey(t) }

func newCA(t testing.TB, edit func(*x509.Certificate)) *ca {
	return federationtest.NewCA(t, epoch, edit)
}

func pemOf(certs ...*x509.Certificate) []byte {
	var b strings.Builder
	for _, cert := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return []byte(b.String())
}

// jwkMembers is the inside of the JWK of key.
func jwkMembers(t testing.TB, key any) string {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(data), "{}")
}

func x509Entry(t testing.TB, cert *x509.Certificate) string {
	t.Helper()
	return `{"use":"x509-svid",` + jwkMembers(t, cert.PublicKey) + `,"x5c":["` + base64.StdEncoding.EncodeToString(cert.Raw) + `"]}`
}
