// Package exchangertest is for tests of checks: what a broker is that nothing
// is wrong with, for one fault to be put in.
package exchangertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
)

// What Question says.
const (
	Issuer  = "https://id.example.org/td"
	Subject = "spiffe://example.org/ns/shop/checkout"
	KeyID   = "k1"
)

// Now is the time of Question.
var Now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// A CA is a certificate and its key.
type CA struct {
	*x509.Certificate
	Key crypto.Signer
}

// Certify makes a CA of a P-256 key, under parent, or by itself where that is
// nil. The template may be changed before.
func Certify(t testing.TB, parent *CA, name string, change func(*x509.Certificate)) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return CertifyKey(t, parent, name, key, change)
}

// CertifyKey is Certify for a key.
func CertifyKey(t testing.TB, parent *CA, name string, key crypto.Signer, change func(*x509.Certificate)) *CA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name}, NotBefore: Now.Add(-time.Hour), NotAfter: Now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	if parent == nil {
		parent = &CA{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Certificate, key.Public(), parent.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{c, key}
}

// Chain certifies CAs under each other, the first by itself, and returns the
// facts of them: the first is the anchor.
func Chain(t testing.TB, names ...string) (anchors, chain []*x509.Certificate) {
	t.Helper()
	var above *CA
	for _, name := range names {
		above = Certify(t, above, name, nil)
		if anchors == nil {
			anchors = []*x509.Certificate{above.Certificate}
			continue
		}
		chain = append([]*x509.Certificate{above.Certificate}, chain...)
	}
	return anchors, chain
}

// Key is the JWK of an RSA key of so many bits.
func Key(kid string, bits int) map[string]any {
	n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
	return map[string]any{"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(n.Bytes())}
}

// KeySet is a document of keys.
func KeySet(t testing.TB, keys ...map[string]any) []byte {
	return JSON(t, map[string]any{"keys": keys})
}

// Discovery is the document of an issuer, with changes; nil removes.
func Discovery(t testing.TB, issuer string, changes map[string]any) []byte {
	d := map[string]any{
		"issuer": issuer, "jwks_uri": issuer + "/keys", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
	}
	for name, v := range changes {
		d[name] = v
		if v == nil {
			delete(d, name)
		}
	}
	return JSON(t, d)
}

// JSON is v's.
func JSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Question is about a Target that one Identity lists, of which nothing is wrong.
func Question(t testing.TB, settings exchangers.Settings) exchangers.Question {
	t.Helper()
	anchors, chain := Chain(t, "root", "issuing")
	return exchangers.Question{Facts: exchangers.Facts{
		Now: Now, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"),
		Target:  exchangers.Target{Name: "orders", Revision: 1, Flow: "flow", Settings: settings},
		Parties: []exchangers.Party{{Identity: "checkout", SPIFFEID: Subject, Subject: "CN=checkout", X509TTL: time.Hour, TokenTTL: 15 * time.Minute}},
		Issuer:  Issuer, Discovery: Discovery(t, Issuer, nil), JWKS: KeySet(t, Key(KeyID, 2048), Key("k2", 3072)),
		Keys: []exchangers.JWTKey{
			{ID: KeyID, Alg: "RS256", Published: Now.Add(-72 * time.Hour), Active: true},
			{ID: "k2", Alg: "RS256", Published: Now.Add(-72 * time.Hour)},
		},
		Anchors: anchors, Chain: chain,
	}}
}

// A Fault is what is put into a Question, and what it is found as.
type Fault struct {
	Name  string
	Put   func(*exchangers.Question)
	Code  string // of the last finding; empty: nothing is wrong
	Field string
	Warns string // codes of the warnings before, by spaces
}

// Run puts each fault into a fresh question and looks at how the walk ends.
func Run(t *testing.T, question func(testing.TB) exchangers.Question, faults []Fault) {
	t.Helper()
	for _, f := range faults {
		t.Run(f.Name, func(t *testing.T) {
			q := question(t)
			f.Put(&q)
			Ends(t, q.Target.Settings.(exchangers.Checker).Check(q), f)
		})
	}
}

// Ends compares findings with those of a fault.
func Ends(t testing.TB, all []exchangers.Finding, want Fault) {
	t.Helper()
	var warns, problems []string
	for i, f := range all {
		switch f.State {
		case exchangers.Done:
			if f.Found == "" || f.Code != "" {
				t.Errorf("done: %+v", f)
			}
			continue
		case exchangers.Warning:
			warns = append(warns, f.Code)
		case exchangers.Problem:
			problems = append(problems, f.Code)
			if i != len(all)-1 || want.Field != f.Field {
				t.Errorf("finding %d of %d: %+v, want it of the field %q", i+1, len(all), f, want.Field)
			}
		}
		if f.Found == "" || f.Change == "" || f.Step == "" || strings.ContainsAny(f.Found+f.Change, "\n\r") {
			t.Errorf("%+v", f)
		}
	}
	if got := strings.Join(problems, " "); got != want.Code {
		t.Errorf("it ends with %q, want %q: %s", got, want.Code, last(all))
	}
	if got := strings.Join(warns, " "); got != want.Warns {
		t.Errorf("it warns of %q, want %q", got, want.Warns)
	}
}

func last(all []exchangers.Finding) string {
	if len(all) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%+v", all[len(all)-1])
}
