// Package azurekvtest is Azure Key Vault as far as azurekv uses it, and the
// Microsoft Entra endpoint that its challenge names, for tests: the same REST
// API over TLS, and as strict as the documentation says. It keeps its keys in
// memory and trusts nobody but who has its token.
package azurekvtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/credence-id/credence/broker/keys/keystest"
)

// URL is the vault's, and Tenant its owner's.
const (
	URL    = "https://" + host
	Tenant = "8f3c2a54-6d0f-4c0e-9a55-0a6f6d3b7c11"
)

const (
	host      = "credence-test.vault.azure.net"
	loginHost = "login.microsoftonline.com"
	resource  = "https://vault.azure.net"
	token     = "eyJ0eXAi.the-brokers-token"
)

// Service is a vault. Faults are by operation, create, get, sign and delete,
// "challenge" and "token", and by the URL of a key's version; Broken ones also
// by "get.kid" and "sign.kid".
type Service struct {
	keystest.Faults
	Client *http.Client // trusts it, and finds it whatever name is asked for

	mu   sync.Mutex
	keys map[string]*Key // by name
}

// A Key is what the service knows of a key and its one version.
type Key struct {
	Ref, Kty, Crv string
	KeyOps        []string
	Tags          map[string]string
	Attributes    map[string]any
	Deleted       bool
	Signer        crypto.Signer
}

// New starts a service that ends with the test.
func New(t testing.TB) *Service {
	s := &Service{keys: map[string]*Key{}}
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	own := server.Client().Transport.(*http.Transport).Clone()
	own.TLSClientConfig.ServerName = "example.com" // as its certificate says
	own.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	own.TLSClientConfig.MinVersion = tls.VersionTLS12
	t.Cleanup(own.CloseIdleConnections)
	s.Client = &http.Client{Transport: own}
	return s
}

// Key returns a copy of what is known of the key whose version is ref.
func (s *Service) Key(ref string) Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.Ref == ref {
			return *k
		}
	}
	return Key{}
}

// Keys returns the URLs of all keys' versions.
func (s *Service) Keys() (refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		refs = append(refs, k.Ref)
	}
	return refs
}

// Change changes the key whose version is ref.
func (s *Service) Change(ref string, change func(*Key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.Ref == ref {
			change(k)
		}
	}
}

// A refusal is the service's error.
type refusal struct {
	status               int
	code, inner, message string
}

func refuse(status int, code, inner, format string, args ...any) *refusal {
	return &refusal{status, code, inner, fmt.Sprintf(format, args...)}
}

func bad(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, "BadParameter", "", format, args...)
}

// ServeHTTP speaks for the vault and for Entra.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host == loginHost {
		s.login(w, r)
		return
	}
	answer, refused := s.serve(w, r)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Ms-Request-Id", "4f4f0b6e-2d0a-4d3b-8c1a-0b6a1f2c3d4e")
	if refused != nil {
		w.WriteHeader(refused.status)
		about := map[string]any{"code": refused.code, "message": refused.message}
		if refused.inner != "" {
			about["innererror"] = map[string]string{"code": refused.inner}
		}
		answer = map[string]any{"error": about}
	}
	_ = json.NewEncoder(w).Encode(answer) // the client may have left
}

func (s *Service) serve(w http.ResponseWriter, r *http.Request) (any, *refusal) {
	if r.Host != host {
		return nil, refuse(http.StatusNotFound, "VaultNotFound", "", "%s", r.Host)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return nil, bad("%v", err)
	}
	if got := r.Header.Get("Authorization"); got != "Bearer "+token {
		challenge := fmt.Sprintf(`Bearer authorization="https://%s/%s", resource="%s"`, loginHost, Tenant, resource)
		if s.Enter(r.Context(), "challenge", "") == keystest.Broken {
			challenge = `Bearer authorization="nowhere", resource="` + resource + `"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		if got == "" {
			return nil, refuse(http.StatusUnauthorized, "Unauthorized", "", "AKV10000: Request is missing a Bearer or PoP token.")
		}
		return nil, refuse(http.StatusUnauthorized, "Unauthorized", "", "AKV10022: Invalid audience or token.")
	}
	if r.URL.RawQuery != "api-version=2025-07-01" {
		return nil, bad("The api-version %q is not supported.", r.URL.RawQuery)
	}
	return s.route(r, body)
}

var pathPattern = regexp.MustCompile(`^/keys/([0-9a-zA-Z-]{1,127})(?:/([0-9a-f]{32}))?(/create|/sign)?$`)

func (s *Service) route(r *http.Request, body []byte) (any, *refusal) {
	m := pathPattern.FindStringSubmatch(r.URL.EscapedPath())
	if m == nil {
		return nil, bad("The path %s has no key.", r.URL.Path)
	}
	name, version, op := m[1], m[2], strings.TrimPrefix(m[3], "/")
	switch {
	case r.Method == http.MethodPost && op == "create" && version == "":
	case r.Method == http.MethodPost && op == "sign" && version != "":
	case r.Method == http.MethodGet && op == "" && version != "":
		op = "get"
	case r.Method == http.MethodDelete && op == "" && version == "":
		op = "delete"
	default:
		return nil, refuse(http.StatusMethodNotAllowed, "BadParameter", "", "Method %s does not allow this operation.", r.Method)
	}
	if has := len(body) > 0; has != (r.Method == http.MethodPost) || has && r.Header.Get("Content-Type") != "application/json" {
		return nil, bad("a body of %q", r.Header.Get("Content-Type"))
	}
	ref := ""
	s.mu.Lock()
	if k := s.keys[name]; k != nil {
		ref = k.Ref
	}
	s.mu.Unlock()
	fault := s.Enter(r.Context(), op, ref)
	switch {
	case r.Context().Err() != nil:
		return nil, bad("the caller left")
	case fault == keystest.Denied:
		return nil, refuse(http.StatusForbidden, "Forbidden", "ForbiddenByRbac", "Caller is not authorized to perform action on resource.\r\nIf role assignments were changed recently, please observe propagation time.\r\nAction: 'Microsoft.KeyVault/vaults/keys/%s'\r\nVault: credence-test;location=westeurope\r\n", op)
	case fault == keystest.Throttled:
		return nil, refuse(http.StatusTooManyRequests, "Throttled", "", "Request was not processed because too many requests were received.")
	}
	switch op {
	case "create":
		return s.create(name, body)
	case "get":
		return s.get(name, version, fault == keystest.Broken)
	case "sign":
		return s.sign(name, version, body, fault == keystest.Broken)
	}
	return s.delete(name)
}

// read is strict: what azurekv doesn't send is not known here.
func read(body []byte, into any) *refusal {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return bad("%v", err)
	}
	return nil
}
