package vault_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority/upstream/upstreamtest"
)

// server speaks the documented API of a PKI engine at pki and of the logins:
// what it does not know it refuses.
type server struct {
	*httptest.Server
	pki     *upstreamtest.PKI
	clients *x509.CertPool // who may log in by certificate

	mu     sync.Mutex
	tokens map[string]bool // that stand
	logins int
	answer func(w http.ResponseWriter) bool // instead of the signature, if it returns true
	lease  int
	chain  bool // ca_chain is given
	paths  []string
}

func newServer(t *testing.T, p *upstreamtest.PKI) *server {
	t.Helper()
	s := &server{pki: p, tokens: map[string]bool{"root-token": true}, lease: 3600, chain: true}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func refuse(w http.ResponseWriter, code int, errors ...string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": errors})
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths = append(s.paths, r.URL.Path)
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Vault-Request") != "true" {
		refuse(w, http.StatusBadRequest, "not a request of this API")
		return
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	var body map[string]any
	if err != nil || json.Unmarshal(text, &body) != nil {
		refuse(w, http.StatusBadRequest, "failed to parse JSON input")
		return
	}
	switch path := strings.TrimPrefix(r.URL.Path, "/v1/"); path {
	case "auth/approle/login":
		s.login(w, body["role_id"] == "role" && body["secret_id"] == "secret")
	case "auth/kubernetes/login":
		s.login(w, body["role"] == "credence" && body["jwt"] == "a.b.c")
	case "auth/cert/login":
		s.login(w, r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && s.knows(r.TLS.PeerCertificates[0]) && (body["name"] == nil || body["name"] == "broker"))
	case "pki/root/sign-intermediate", "pki/issuer/seven/sign-intermediate":
		if !s.tokens[r.Header.Get("X-Vault-Token")] {
			refuse(w, http.StatusForbidden, "permission denied")
			return
		}
		if s.answer != nil && s.answer(w) {
			return
		}
		s.sign(w, body)
	default:
		refuse(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q", path))
	}
}

func (s *server) knows(c *x509.Certificate) bool {
	_, err := c.Verify(x509.VerifyOptions{Roots: s.clients, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return s.clients != nil && err == nil
}

func (s *server) login(w http.ResponseWriter, ok bool) {
	if !ok {
		refuse(w, http.StatusBadRequest, "invalid role or secret ID")
		return
	}
	s.logins++
	token := fmt.Sprintf("hvs.%d", s.logins)
	s.tokens[token] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"data": nil, "auth": map[string]any{"client_token": token, "lease_duration": s.lease, "renewable": true}})
}

var taken = []string{"csr", "format", "max_path_length", "ttl", "use_csr_values"}

func (s *server) sign(w http.ResponseWriter, body map[string]any) {
	for name := range body {
		if !slices.Contains(taken, name) {
			refuse(w, http.StatusBadRequest, "unknown field "+name)
			return
		}
	}
	text, _ := body["csr"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || body["format"] != "pem" {
		refuse(w, http.StatusBadRequest, "csr contains no data")
		return
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		refuse(w, http.StatusBadRequest, "request signature invalid")
		return
	}
	ttl, _ := body["ttl"].(string)
	life, err := time.ParseDuration(ttl)
	if err != nil || life <= 0 || body["use_csr_values"] != true || body["max_path_length"] != float64(0) {
		refuse(w, http.StatusBadRequest, "ttl, use_csr_values or max_path_length")
		return
	}
	now := time.Now().Truncate(time.Second)
	if now.Add(life).After(s.pki.CA.NotAfter) {
		refuse(w, http.StatusBadRequest, "cannot satisfy request, as TTL would result in notAfter that is beyond the expiration of the CA certificate")
		return
	}
	cert := s.certify(csr.PublicKey, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), RawSubject: csr.RawSubject, URIs: csr.URIs, NotBefore: now.Add(-30 * time.Second), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	})
	data := map[string]any{"certificate": cert, "issuing_ca": asPEM(s.pki.CA.Raw), "serial_number": "1:2:3"}
	if s.chain {
		data["ca_chain"] = []string{asPEM(s.pki.CA.Raw), asPEM(s.pki.Root.Raw)}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data, "auth": nil})
}

func (s *server) certify(pub crypto.PublicKey, template *x509.Certificate) string {
	der, err := x509.CreateCertificate(rand.Reader, template, s.pki.CA, pub, s.pki.CAKey)
	if err != nil {
		panic(err)
	}
	return asPEM(der)
}

func asPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
