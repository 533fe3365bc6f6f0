package vault_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority/upstream/upstreamtest"
	"github.com/credence-id/credence/broker/authority/upstream/vault"
)

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config leads to s by a token.
func (s *server) config(t *testing.T) vault.Config {
	t.Helper()
	return vault.Config{Address: s.URL, CAFile: file(t, "ca.pem", asPEM(s.Certificate().Raw)), TokenFile: file(t, "token", "root-token\n")}
}

func open(t *testing.T, cfg vault.Config) *vault.PKI {
	t.Helper()
	p, err := vault.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestContract(t *testing.T) {
	p := upstreamtest.New(t)
	for name, change := range map[string]func(*server, *vault.Config){
		"token":      func(*server, *vault.Config) {},
		"one issuer": func(_ *server, c *vault.Config) { c.Issuer = "seven" },
		"approle": func(_ *server, c *vault.Config) {
			c.TokenFile, c.AppRole = "", &vault.AppRole{RoleID: "role", SecretIDFile: file(t, "secret", "secret")}
		},
		"kubernetes": func(_ *server, c *vault.Config) {
			c.TokenFile, c.Kubernetes = "", &vault.Kubernetes{Role: "credence", TokenFile: file(t, "jwt", "a.b.c")}
		},
		"certificate": func(s *server, c *vault.Config) {
			cert, key := client(t, p)
			s.clients = x509.NewCertPool()
			s.clients.AddCert(p.Root)
			c.TokenFile, c.TLSCert = "", &vault.TLSCert{Name: "broker", Cert: cert, Key: key}
		},
		"roots in a file": func(s *server, c *vault.Config) { s.chain, c.Roots = false, file(t, "roots.pem", asPEM(p.Root.Raw)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, p)
			cfg := s.config(t)
			change(s, &cfg)
			upstreamtest.Run(t, p, open(t, cfg))
		})
	}
}

// client is a certificate by which to log in, with its chain.
func client(t *testing.T, p *upstreamtest.PKI) (cert, key string) {
	t.Helper()
	k := upstreamtest.Key(t)
	leaf := upstreamtest.Sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(9), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, p.Root, k.Public(), p.RootKey)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return file(t, "client.pem", asPEM(leaf.Raw)), file(t, "client_key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// A token is kept for half of its life, and asked for anew when the server has
// forgotten it.
func TestTokensAreKept(t *testing.T) {
	s, now := newServer(t, upstreamtest.New(t)), time.Now()
	cfg := s.config(t)
	cfg.TokenFile, cfg.AppRole = "", &vault.AppRole{RoleID: "role", SecretIDFile: file(t, "secret", "secret")}
	cfg.Now = func() time.Time { return now }
	p := open(t, cfg)
	sign := func(logins int) {
		t.Helper()
		if _, _, err := p.Sign(t.Context(), upstreamtest.Request(t, upstreamtest.Key(t)), time.Hour); err != nil {
			t.Fatal(err)
		}
		if s.logins != logins {
			t.Errorf("%d logins, want %d", s.logins, logins)
		}
	}
	sign(1)
	sign(1)
	now = now.Add(31 * time.Minute)
	sign(2)
	clear(s.tokens) // revoked
	sign(3)
}

func TestRefusals(t *testing.T) {
	p := upstreamtest.New(t)
	say := func(code int, text string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool {
			w.WriteHeader(code)
			fmt.Fprint(w, text)
			return true
		}
	}
	for name, c := range map[string]struct {
		change func(*server, *vault.Config)
		want   string
	}{
		"a wrong token": {func(_ *server, c *vault.Config) { c.TokenFile = file(t, "t", "nobody") }, "does the policy of this login allow"},
		"no token":      {func(_ *server, c *vault.Config) { c.TokenFile = file(t, "t", "\n") }, "one line is wanted"},
		"a wrong secret": {func(_ *server, c *vault.Config) {
			c.TokenFile, c.AppRole = "", &vault.AppRole{RoleID: "role", SecretIDFile: file(t, "s", "guess")}
		}, "logging in at auth/approle/login: 400 invalid role or secret ID"},
		"another mount":          {func(_ *server, c *vault.Config) { c.Mount = "corporate" }, "is the engine mounted there"},
		"a server we don't know": {func(s *server, c *vault.Config) { c.CAFile = file(t, "ca.pem", asPEM(p.Root.Raw)) }, "certificate"},
		"sealed":                 {func(s *server, _ *vault.Config) { s.answer = say(503, `{"errors":["Vault is sealed"]}`) }, "sealed"},
		"HTML with 200":          {func(s *server, _ *vault.Config) { s.answer = say(200, `<html>`) }, "reading the answer"},
		"nothing":                {func(s *server, _ *vault.Config) { s.answer = say(200, `{}`) }, "lacks what was asked for"},
		"no certificate":         {func(s *server, _ *vault.Config) { s.answer = say(200, `{"data":{"certificate":"x"}}`) }, "no PEM certificate"},
		"errors beside a certificate": {func(s *server, _ *vault.Config) {
			s.answer = say(200, `{"errors":["half done"],"data":{"certificate":"x"}}`)
		}, "half done"},
		"lines in an error": {func(s *server, _ *vault.Config) { s.answer = say(400, `{"errors":["a\nb\u001b[31m"]}`) }, "a b"},
		"too much":          {func(s *server, _ *vault.Config) { s.answer = say(200, `{"data":"`+strings.Repeat("x", 1<<20)+`"}`) }, "more than"},
		"a redirect": {func(s *server, _ *vault.Config) {
			s.answer = func(w http.ResponseWriter) bool {
				w.Header().Set("Location", "https://elsewhere.example/v1/pki/root/sign-intermediate")
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			}
		}, "redirects"},
		"a chain without a root": {func(s *server, _ *vault.Config) { s.chain = false }, "name a file of roots"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, p)
			cfg := s.config(t)
			c.change(s, &cfg)
			chain, _, err := open(t, cfg).Sign(t.Context(), upstreamtest.Request(t, upstreamtest.Key(t)), time.Hour)
			if err == nil || chain != nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%v; want one line with %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "root-token") {
				t.Errorf("the error holds the token: %v", err)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	good := func() vault.Config { return vault.Config{Address: "https://vault.example:8200", TokenFile: "f"} }
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*vault.Config){
		"no address":    func(c *vault.Config) { c.Address = "" },
		"plain http":    func(c *vault.Config) { c.Address = "http://vault.example:8200" },
		"a path":        func(c *vault.Config) { c.Address += "/v1" },
		"a query":       func(c *vault.Config) { c.Address += "?a=b" },
		"user info":     func(c *vault.Config) { c.Address = "https://a:b@vault.example" },
		"no login":      func(c *vault.Config) { c.TokenFile = "" },
		"two logins":    func(c *vault.Config) { c.Kubernetes = &vault.Kubernetes{Role: "r"} },
		"dots in mount": func(c *vault.Config) { c.Mount = "../sys" },
		"issuer":        func(c *vault.Config) { c.Issuer = "a b" },
		"half approle":  func(c *vault.Config) { c.TokenFile, c.AppRole = "", &vault.AppRole{RoleID: "r"} },
		"no role":       func(c *vault.Config) { c.TokenFile, c.Kubernetes = "", &vault.Kubernetes{} },
		"half cert":     func(c *vault.Config) { c.TokenFile, c.TLSCert = "", &vault.TLSCert{Cert: "c"} },
		"cert over http": func(c *vault.Config) {
			c.Address, c.TokenFile, c.TLSCert = "http://127.0.0.1:1", "", &vault.TLSCert{Cert: "c", Key: "k"}
		},
		"login's mount": func(c *vault.Config) {
			c.TokenFile, c.Kubernetes = "", &vault.Kubernetes{Role: "r", Mount: "a/../b"}
		},
	} {
		cfg := good()
		change(&cfg)
		if _, err := vault.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// An engine that is away is told at once where the caller can't wait.
func TestCancelled(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer s.Close()
	defer close(release)
	p := open(t, vault.Config{Address: s.URL, TokenFile: file(t, "t", "x")})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := p.Sign(ctx, upstreamtest.Request(t, upstreamtest.Key(t)), time.Hour); err == nil {
		t.Error("it was signed")
	}
}
