package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/federation/endpoint/acmetest"
)

// webBroker starts a broker whose web listener is at address.
func webBroker(t *testing.T, dir, address, web string) *process {
	t.Helper()
	agents, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "broker.yaml")
	text := fmt.Sprintf(`trust_domain: example.org
data: %s/b
issuer: https://id.example.org/td
listen: {agents: "127.0.0.1:%s", spiffe: none, web: %q}
web_tls: %s
`, dir, agents, address, web)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "credence", "broker", "run", "-c", file)
	if _, err := p.await("agents on", 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func webAddress(t *testing.T) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + port
}

// fetchAt gets a URL whose host is at address.
func fetchAt(t *testing.T, address, url string, roots *x509.CertPool) string {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}
	r, err := (&http.Client{Transport: transport, Timeout: patience}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, r.Status, err)
	}
	return string(body)
}

// A relying party believes discovery and keys that a CA's certificate vouches
// for, and the CA is asked by the web listener itself.
func TestBrokerWithACME(t *testing.T) {
	t.Parallel()
	ca, dir, address := acmetest.New(t), tempDir(t), webAddress(t)
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca.RootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	ca.Host("id.example.org", address)
	web := fmt.Sprintf("{acme: {email: ops@example.org, directory: %q, ca_file: %s/ca.pem}}", ca.Directory, dir)
	p := webBroker(t, dir, address, web)
	if _, err := p.await("web certificate from the CA", 0); err != nil {
		t.Fatalf("%v\nthe CA refused %q", err, ca.Refused())
	}
	if _, err := p.await("JWT key changed.*state=active.*alg=RS256", 0); err != nil {
		t.Fatal(err)
	}
	discovery := fetchAt(t, address, "https://id.example.org/td/.well-known/openid-configuration", ca.Roots)
	if !strings.Contains(discovery, `"jwks_uri":"https://id.example.org/td/keys"`) {
		t.Errorf("discovery: %s", discovery)
	}
	if bundle := fetchAt(t, address, "https://id.example.org/bundle", ca.Roots); !strings.Contains(bundle, "spiffe_sequence") {
		t.Errorf("bundle: %s", bundle)
	}
	if code, err := p.stop(); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "b", "acme")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("what ACME keeps: %v, %v", info, err)
	}
}

func TestBrokerBehindAProxy(t *testing.T) {
	t.Parallel()
	dir, address := tempDir(t), webAddress(t)
	webBroker(t, dir, address, "{proxy: true}")
	if bundle := fetchAt(t, address, "http://id.example.org/bundle", nil); !strings.Contains(bundle, "spiffe_sequence") {
		t.Errorf("bundle: %s", bundle)
	}
}
