// Package acmetest is a CA that speaks ACME (RFC 8555) and validates by
// TLS-ALPN-01 (RFC 8737), for tests: as strict as these say, and sharing no code
// with the client. It keeps all in memory and trusts nobody; where hosts live it
// is told.
package acmetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
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

	"github.com/go-jose/go-jose/v4"
)

// A CA certifies hosts that prove to be where it was told.
type CA struct {
	Directory string         // URL
	TLSRoots  *x509.CertPool // verify Directory
	Roots     *x509.CertPool // verify what it issues
	RootPEM   []byte         // the certificate of Directory

	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	mu       sync.Mutex
	at       map[string]string // address by host
	life     time.Duration
	down     bool
	nonces   map[string]bool
	accounts map[string]*account // by URL
	orders   []*order
	refused  []string
	issued   int
}

type account struct {
	key        *jose.JSONWebKey
	thumbprint string
	Contact    []string
}

type order struct {
	id         int
	account    string
	hosts      []string
	authz      []string // state by host
	tokens     []string
	state      string
	chain      []byte
	identifier []identifier
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// New starts a CA that ends with the test. Hosts are at nowhere.
func New(t testing.TB) *CA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &CA{
		t: t, key: key, cert: cert, Roots: x509.NewCertPool(), TLSRoots: x509.NewCertPool(), life: 90 * 24 * time.Hour,
		at: map[string]string{}, nonces: map[string]bool{}, accounts: map[string]*account{},
	}
	ca.Roots.AddCert(cert)
	server := httptest.NewTLSServer(ca)
	t.Cleanup(server.Close)
	ca.TLSRoots.AddCert(server.Certificate())
	ca.RootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	ca.Directory = server.URL + "/directory"
	return ca
}

// Host says where the port 443 of a host leads to.
func (ca *CA) Host(host, address string) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.at[host] = address
}

// Down has the CA answer nobody, or everybody again.
func (ca *CA) Down(down bool) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.down = down
}

// Issued is how many certificates it gave, and Refused what it refused, and why.
func (ca *CA) Issued() int { ca.mu.Lock(); defer ca.mu.Unlock(); return ca.issued }

// Refused are the requests that it refused.
func (ca *CA) Refused() []string { ca.mu.Lock(); defer ca.mu.Unlock(); return slices.Clone(ca.refused) }

// Contacts are the addresses that accounts gave.
func (ca *CA) Contacts() (all []string) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for _, a := range ca.accounts {
		all = append(all, a.Contact...)
	}
	return all
}

// A problem is RFC 8555 §6.7.
type problem struct {
	status int
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

func refuse(kind, format string, args ...any) *problem {
	return &problem{http.StatusBadRequest, "urn:ietf:params:acme:error:" + kind, fmt.Sprintf(format, args...)}
}

// A signed request is one whose JWS holds.
type signed struct {
	path    string
	payload []byte // empty: POST-as-GET (§6.3)
	kid     string // of a known account, or else:
	jwk     *jose.JSONWebKey
}

func (ca *CA) url(path string) string { return strings.TrimSuffix(ca.Directory, "/directory") + path }

// ServeHTTP is one of the resources of RFC 8555 §7.1.
func (ca *CA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.down {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Replay-Nonce", ca.nonce())
	w.Header().Set("Cache-Control", "no-store")
	if r.Header.Get("User-Agent") == "" {
		ca.problem(w, r, refuse("malformed", "no User-Agent (§6.1)"))
		return
	}
	switch {
	case r.URL.Path == "/directory" && r.Method == http.MethodGet:
		ca.answer(w, http.StatusOK, map[string]any{
			"newNonce": ca.url("/nonce"), "newAccount": ca.url("/account"), "newOrder": ca.url("/order"), "revokeCert": ca.url("/revoke"), "keyChange": ca.url("/key"),
			"meta": map[string]any{"termsOfService": ca.url("/terms")},
		})
	case r.URL.Path == "/nonce" && r.Method == http.MethodHead:
	case r.Method == http.MethodPost:
		s, bad := ca.verify(r)
		if bad == nil {
			bad = ca.serve(w, s)
		}
		if bad != nil {
			ca.problem(w, r, bad)
		}
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (ca *CA) nonce() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // it never fails
	n := base64.RawURLEncoding.EncodeToString(b)
	ca.nonces[n] = true
	return n
}

func (ca *CA) problem(w http.ResponseWriter, r *http.Request, p *problem) {
	ca.refused = append(ca.refused, r.URL.Path+": "+p.Detail)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.status)
	_ = json.NewEncoder(w).Encode(p) // the client may have left
}

func (ca *CA) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// verify is RFC 8555 §6.2 to §6.5.
func (ca *CA) verify(r *http.Request) (*signed, *problem) {
	if r.Header.Get("Content-Type") != "application/jose+json" {
		return nil, refuse("malformed", "Content-Type %q (§6.2)", r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return nil, refuse("malformed", "reading: %v", err)
	}
	var flat map[string]json.RawMessage
	if err := json.Unmarshal(body, &flat); err != nil || flat["header"] != nil || flat["signatures"] != nil || flat["protected"] == nil {
		return nil, refuse("malformed", "it is no flattened JWS with a protected header alone (§6.2): %v", err)
	}
	jws, err := jose.ParseSignedJSON(string(body), []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil || len(jws.Signatures) != 1 {
		return nil, refuse("badSignatureAlgorithm", "%v", err)
	}
	header := jws.Signatures[0].Protected
	if !ca.nonces[header.Nonce] {
		return nil, refuse("badNonce", "nonce %q", header.Nonce)
	}
	delete(ca.nonces, header.Nonce)
	if url, _ := header.ExtraHeaders["url"].(string); url != ca.url(r.URL.Path) {
		return nil, refuse("unauthorized", "it is signed for %q (§6.4)", url)
	}
	if (header.JSONWebKey == nil) == (header.KeyID == "") {
		return nil, refuse("malformed", "one of jwk and kid is wanted (§6.2)")
	}
	s := &signed{path: r.URL.Path, kid: header.KeyID, jwk: header.JSONWebKey}
	key := s.jwk
	if s.kid != "" {
		if ca.accounts[s.kid] == nil {
			return nil, refuse("accountDoesNotExist", "%q", s.kid)
		}
		key = ca.accounts[s.kid].key
	}
	if s.payload, err = jws.Verify(key); err != nil {
		return nil, refuse("malformed", "the signature does not verify")
	}
	return s, nil
}

func (ca *CA) serve(w http.ResponseWriter, s *signed) *problem {
	if (s.path == "/account") != (s.jwk != nil) {
		return refuse("malformed", "jwk is for newAccount, kid for all else (§6.2)")
	}
	var resource string
	var n, i int
	switch {
	case s.path == "/account":
		return ca.newAccount(w, s)
	case s.path == "/order":
		return ca.newOrder(w, s)
	}
	if c, _ := fmt.Sscanf(strings.ReplaceAll(s.path, "/", " "), " %s %d %d", &resource, &n, &i); c < 2 || n >= len(ca.orders) {
		return refuse("malformed", "there is no %s", s.path)
	}
	o := ca.orders[n]
	if o.account != s.kid || i >= len(o.hosts) {
		return refuse("unauthorized", "it is another account's")
	}
	if resource != "chall" && resource != "finalize" && resource != "authz" && len(s.payload) > 0 {
		return refuse("malformed", "POST-as-GET has no payload (§6.3)")
	}
	switch resource {
	case "o":
		ca.answer(w, http.StatusOK, ca.view(o))
	case "authz":
		return ca.authorization(w, s, o, i)
	case "chall":
		return ca.challenge(w, s, o, i)
	case "finalize":
		return ca.finalize(w, s, o)
	case "cert":
		if o.state != "valid" {
			return refuse("malformed", "there is no certificate yet")
		}
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(o.chain)
	default:
		return refuse("malformed", "there is no %s", s.path)
	}
	return nil
}

// newAccount is §7.3.
func (ca *CA) newAccount(w http.ResponseWriter, s *signed) *problem {
	var request struct {
		Contact []string `json:"contact"`
		Agreed  bool     `json:"termsOfServiceAgreed"`
		Only    bool     `json:"onlyReturnExisting"`
	}
	if err := json.Unmarshal(s.payload, &request); err != nil {
		return refuse("malformed", "%v", err)
	}
	sum, err := s.jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return refuse("badPublicKey", "%v", err)
	}
	thumbprint := base64.RawURLEncoding.EncodeToString(sum)
	url, status := ca.url("/acct/"+thumbprint), http.StatusOK
	if ca.accounts[url] == nil {
		switch {
		case request.Only:
			return refuse("accountDoesNotExist", "no account with that key")
		case !request.Agreed:
			return refuse("userActionRequired", "the terms of service are not agreed to")
		}
		for _, c := range request.Contact {
			if !strings.HasPrefix(c, "mailto:") {
				return refuse("unsupportedContact", "%q", c)
			}
		}
		ca.accounts[url] = &account{key: s.jwk, thumbprint: thumbprint, Contact: request.Contact}
		status = http.StatusCreated
	}
	w.Header().Set("Location", url)
	ca.answer(w, status, map[string]any{"status": "valid", "contact": ca.accounts[url].Contact, "orders": url + "/orders"})
	return nil
}

// newOrder is §7.4.
func (ca *CA) newOrder(w http.ResponseWriter, s *signed) *problem {
	var request struct {
		Identifiers []identifier `json:"identifiers"`
	}
	if err := json.Unmarshal(s.payload, &request); err != nil || len(request.Identifiers) == 0 {
		return refuse("malformed", "no identifiers: %v", err)
	}
	o := &order{id: len(ca.orders), account: s.kid, state: "pending", identifier: request.Identifiers}
	for _, id := range request.Identifiers {
		if id.Type != "dns" || id.Value != strings.ToLower(id.Value) {
			return refuse("unsupportedIdentifier", "%v", id)
		}
		o.hosts, o.authz, o.tokens = append(o.hosts, id.Value), append(o.authz, "pending"), append(o.tokens, ca.nonce())
	}
	ca.orders = append(ca.orders, o)
	w.Header().Set("Location", ca.url(fmt.Sprintf("/o/%d", o.id)))
	ca.answer(w, http.StatusCreated, ca.view(o))
	return nil
}

func (ca *CA) view(o *order) map[string]any {
	authorizations := []string{}
	for i := range o.hosts {
		authorizations = append(authorizations, ca.url(fmt.Sprintf("/authz/%d/%d", o.id, i)))
	}
	v := map[string]any{"status": o.state, "identifiers": o.identifier, "authorizations": authorizations, "finalize": ca.url(fmt.Sprintf("/finalize/%d", o.id))}
	if o.state == "valid" {
		v["certificate"] = ca.url(fmt.Sprintf("/cert/%d", o.id))
	}
	return v
}

// authorization is §7.5, and its deactivation §7.5.2.
func (ca *CA) authorization(w http.ResponseWriter, s *signed, o *order, i int) *problem {
	if len(s.payload) > 0 {
		if string(s.payload) != `{"status":"deactivated"}` {
			return refuse("malformed", "an authorization is only deactivated")
		}
		o.authz[i], o.state = "deactivated", "invalid"
	}
	ca.answer(w, http.StatusOK, map[string]any{"identifier": o.identifier[i], "status": o.authz[i], "challenges": []any{ca.challengeOf(o, i)}})
	return nil
}

func (ca *CA) challengeOf(o *order, i int) map[string]any {
	return map[string]any{"type": "tls-alpn-01", "url": ca.url(fmt.Sprintf("/chall/%d/%d", o.id, i)), "token": o.tokens[i], "status": o.authz[i]}
}

// challenge is §7.5.1: the client says that it is ready.
func (ca *CA) challenge(w http.ResponseWriter, s *signed, o *order, i int) *problem {
	if string(s.payload) != "{}" || o.authz[i] != "pending" {
		return refuse("malformed", "payload %q to a challenge that is %s", s.payload, o.authz[i])
	}
	o.authz[i] = "valid"
	if err := validate(o.hosts[i], ca.at[o.hosts[i]], o.tokens[i]+"."+ca.accounts[s.kid].thumbprint); err != nil {
		ca.refused = append(ca.refused, "validating "+o.hosts[i]+": "+err.Error())
		o.authz[i], o.state = "invalid", "invalid"
	}
	if !slices.ContainsFunc(o.authz, func(state string) bool { return state != "valid" }) {
		o.state = "ready"
	}
	w.Header().Set("Link", "<"+ca.url(fmt.Sprintf("/authz/%d/%d", o.id, i))+`>;rel="up"`)
	ca.answer(w, http.StatusOK, ca.challengeOf(o, i))
	return nil
}

// finalize is §7.4.
func (ca *CA) finalize(w http.ResponseWriter, s *signed, o *order) *problem {
	if o.state != "ready" {
		return &problem{http.StatusForbidden, "urn:ietf:params:acme:error:orderNotReady", "the order is " + o.state}
	}
	var request struct {
		CSR string `json:"csr"`
	}
	if err := json.Unmarshal(s.payload, &request); err != nil {
		return refuse("malformed", "%v", err)
	}
	der, err := base64.RawURLEncoding.DecodeString(request.CSR)
	if err != nil {
		return refuse("badCSR", "%v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return refuse("badCSR", "%v", err)
	}
	names, hosts := slices.Sorted(slices.Values(csr.DNSNames)), slices.Sorted(slices.Values(o.hosts))
	cn := csr.Subject.CommonName
	if !slices.Equal(names, hosts) || cn != "" && !slices.Contains(hosts, cn) || len(csr.IPAddresses)+len(csr.URIs)+len(csr.EmailAddresses) > 0 {
		return refuse("badCSR", "it names %q and %v, the order %v", cn, names, hosts)
	}
	if key, ok := ca.accounts[s.kid].key.Key.(*ecdsa.PublicKey); ok && key.Equal(csr.PublicKey) {
		return refuse("badCSR", "its key is the account's (§11.1)")
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return refuse("serverInternal", "%v", err)
	}
	now := time.Now()
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, DNSNames: o.hosts, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(ca.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return refuse("badCSR", "%v", err)
	}
	o.chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})
	o.chain = append(o.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	o.state = "valid"
	ca.issued++
	w.Header().Set("Location", ca.url(fmt.Sprintf("/o/%d", o.id)))
	ca.answer(w, http.StatusOK, ca.view(o))
	return nil
}
