// Package issuertest is an OIDC issuer for tests of the emulators: a real TLS
// server whose documents, keys and tokens a test may spoil at will. It shares
// no code with the emulators, which read what it serves.
package issuertest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// URL is the issuer of New: without a port, as clouds want it. DialContext
// leads there; the certificate is for example.com.
const URL = "https://example.com/credence"

// An Issuer serves a discovery document and a key set over TLS.
type Issuer struct {
	URL    string
	Server *httptest.Server

	mu        sync.Mutex // guards the rest
	discovery http.HandlerFunc
	jwks      http.HandlerFunc
	fetches   int
}

// New starts an issuer whose key set holds RSA() under kid "k1" and EC() under
// kid "ec1".
func New(t testing.TB) *Issuer {
	i := &Issuer{URL: URL}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	i.Server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are wanted
	i.Server.StartTLS()
	t.Cleanup(i.Server.Close)
	i.Reset(t)
	return i
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	h := i.jwks
	if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
		h = i.discovery
		i.fetches++
	}
	i.mu.Unlock()
	h(w, r)
}

// Reset undoes all Sets.
func (i *Issuer) Reset(t testing.TB) {
	i.SetDiscovery(JSON(t, i.Document(nil)))
	i.SetKeys(JSON(t, KeySet(JWK("k1", RSA().Public()), JWK("ec1", EC().Public()))))
}

// Document returns the discovery document, with changes; nil removes.
func (i *Issuer) Document(changes map[string]any) map[string]any {
	d := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/jwks", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"}}
	return change(d, changes)
}

// SetDiscovery replaces what answers for the discovery document.
func (i *Issuer) SetDiscovery(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.discovery = h
}

// SetKeys replaces what answers for the key set.
func (i *Issuer) SetKeys(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.jwks = h
}

// Fetches returns how often the discovery document was asked for.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Roots verify the issuer.
func (i *Issuer) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(i.Server.Certificate())
	return p
}

// DialContext dials the issuer whatever the address.
func (i *Issuer) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, i.Server.Listener.Addr().String())
}

// JSON answers with v.
func JSON(t testing.TB, v any) http.HandlerFunc {
	b := marshal(t, v)
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(b) }
}

// Status answers with a bare status.
func Status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// KeySet returns a JWK Set.
func KeySet(keys ...map[string]any) map[string]any { return map[string]any{"keys": keys} }

// JWK returns a public key as RFC 7518 §6 has it.
func JWK(kid string, key crypto.PublicKey) map[string]any {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return map[string]any{"kty": "RSA", "kid": kid, "use": "sig", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		half := len(point) / 2
		return map[string]any{"kty": "EC", "kid": kid, "use": "sig", "crv": k.Curve.Params().Name,
			"x": b64(point[1 : 1+half]), "y": b64(point[1+half:])}
	}
	panic("no JWK of this key")
}

// Sign returns a token by key, with header alg, kid "k1" and typ "JWT" and the
// changes to it; nil removes a name. An alg that is not RFC 7518's gets a
// signature of one byte.
func Sign(t testing.TB, key crypto.Signer, alg string, header, claims map[string]any) string {
	t.Helper()
	h := change(map[string]any{"alg": alg, "kid": "k1", "typ": "JWT"}, header)
	signed := b64(marshal(t, h)) + "." + b64(marshal(t, claims))
	return signed + "." + b64(signature(t, key, alg, signed))
}

func signature(t testing.TB, key crypto.Signer, alg, signed string) []byte {
	t.Helper()
	if len(alg) != 5 || alg[1] != 'S' || !strings.Contains("RPE", alg[:1]) {
		return []byte{1}
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	h := hash.New()
	h.Write([]byte(signed))
	sum := h.Sum(nil)
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, k, sum)
		if err != nil {
			t.Fatal(err)
		}
		size := (k.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	var opts crypto.SignerOpts = hash
	if alg[0] == 'P' {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	b, err := key.Sign(rand.Reader, sum, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// With returns a copy of claims with changes; nil removes.
func With(claims, changes map[string]any) map[string]any {
	out := map[string]any{}
	for name, v := range claims {
		out[name] = v
	}
	return change(out, changes)
}

func change(m, changes map[string]any) map[string]any {
	for name, v := range changes {
		m[name] = v
		if v == nil {
			delete(m, name)
		}
	}
	return m
}

// RSA returns one 2048-bit key for the whole test binary: making one is slow.
func RSA() *rsa.PrivateKey { return sharedRSA() }

var sharedRSA = sync.OnceValue(func() *rsa.PrivateKey { return NewRSA(2048) })

// NewRSA returns a new RSA key.
func NewRSA(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return k
}

// EC returns one P-256 key for the whole test binary.
func EC() *ecdsa.PrivateKey { return sharedEC() }

var sharedEC = sync.OnceValue(func() *ecdsa.PrivateKey { return NewEC(elliptic.P256()) })

// NewEC returns a new key on a curve.
func NewEC(c elliptic.Curve) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
