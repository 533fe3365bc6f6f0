package endpoint_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/federation/endpoint"
	"github.com/credence-id/credence/federation/endpoint/acmetest"
)

// lost is a host whose port 443 does not lead to the listener.
const lost = "lost.example.org"

// acmeEnv is a web listener whose certificates come from a CA.
type acmeEnv struct {
	ca   *acmetest.CA
	log  lines
	at   string // URL
	addr string
	stop func()
}

func newACMEEnv(t *testing.T, ca *acmetest.CA, dir string, hosts ...string) *acmeEnv {
	t.Helper()
	e := &acmeEnv{ca: ca}
	a, err := endpoint.NewACME(endpoint.ACMEConfig{Hosts: hosts, Dir: dir, Email: "ops@example.org", Directory: ca.Directory, Roots: ca.TLSRoots, Log: e.log.log()})
	if err != nil {
		t.Fatal(err)
	}
	root := newCA(t)
	var p published
	p.publish(t, bundleOf(1, root))
	e.at = p.serve(t, a.TLS())
	u, err := url.Parse(e.at)
	if err != nil {
		t.Fatal(err)
	}
	e.addr = u.Host
	for _, host := range hosts {
		if host != lost {
			ca.Host(host, e.addr)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	e.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return e
}

// await waits for a line in the log.
func (e *acmeEnv) await(t *testing.T, part string, n int) {
	t.Helper()
	tick, end := time.NewTicker(5*time.Millisecond), time.After(15*time.Second)
	defer tick.Stop()
	for e.log.count(part) < n {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("no %d lines with %q: %s; the CA refused %q", n, part, e.log.b.String(), e.ca.Refused())
		}
	}
}

// get fetches by host name, as a relying party that believes the CA does.
func (e *acmeEnv) get(host string) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{ServerName: host, RootCAs: e.ca.Roots}}}
	return client.Get(e.at)
}

func TestACME(t *testing.T) {
	ca, dir := acmetest.New(t), filepath.Join(t.TempDir(), "acme")
	e := newACMEEnv(t, ca, dir, "id.example.org", "bundle.example.org")
	e.await(t, "web certificate from the CA", 2)
	for _, host := range []string{"id.example.org", "bundle.example.org"} {
		r, err := e.get(host)
		if err != nil {
			t.Fatalf("%v; the CA refused %q", err, ca.Refused())
		}
		r.Body.Close()
		if r.StatusCode != 200 || r.ProtoMajor != 2 {
			t.Errorf("%s: %s by %s", host, r.Status, r.Proto)
		}
	}
	if got := ca.Refused(); len(got) > 0 {
		t.Errorf("the CA refused %q", got)
	}
	if got := ca.Contacts(); !slices.Equal(got, []string{"mailto:ops@example.org"}) {
		t.Errorf("contacts %q", got)
	}
	// The same rules as with files, and nothing for who asks for another host.
	for _, host := range []string{"other.example.org", ""} {
		if _, err := dial(t, e.at, &tls.Config{ServerName: host}); err == nil {
			t.Errorf("shook hands as %q", host)
		}
	}
	for name, bad := range map[string]*tls.Config{
		"TLS 1.1":   {ServerName: "id.example.org", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC only":  {ServerName: "id.example.org", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"challenge": {ServerName: "id.example.org", NextProtos: []string{"acme-tls/1"}}, // none is under way
	} {
		if _, err := dial(t, e.at, bad); err == nil {
			t.Errorf("%s: shook hands", name)
		}
	}
	e.stop()

	// Another start asks the CA for nothing: keys and certificates were kept, for the broker's eyes.
	issued := ca.Issued()
	ca.Down(true)
	again := newACMEEnv(t, ca, dir, "id.example.org", "bundle.example.org")
	again.await(t, "web certificate from the CA", 2)
	if r, err := again.get("bundle.example.org"); err != nil || r.StatusCode != 200 {
		t.Errorf("after a restart: %v, %v", r, err)
	}
	if ca.Issued() != issued {
		t.Error("it was certified again")
	}
	again.stop()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

// What the CA refuses is told at once, other hosts are served, and no handshake
// waits for it.
func TestACMERefusals(t *testing.T) {
	ca := acmetest.New(t)
	var p published
	p.show(newCA(t).Web(t, lost))
	ca.Host(lost, strings.TrimPrefix(p.serve(t, endpoint.WebServerTLS(p.getCert)), "https://"))
	e := newACMEEnv(t, ca, t.TempDir(), lost, "id.example.org")
	e.await(t, "no web certificate from the CA", 1)
	e.await(t, "host=id.example.org ends=", 1)
	if r, err := e.get("id.example.org"); err != nil || r.StatusCode != 200 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := e.get(lost); err == nil {
		t.Error("a certificate that nobody gave")
	}
	if !slices.ContainsFunc(ca.Refused(), func(s string) bool { return strings.HasPrefix(s, "validating "+lost) }) {
		t.Errorf("the CA refused %q", ca.Refused())
	}
	e.stop()
}

func TestNewACMERefuses(t *testing.T) {
	good := endpoint.ACMEConfig{Hosts: []string{"id.example.org"}, Dir: "x"}
	if _, err := endpoint.NewACME(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*endpoint.ACMEConfig){
		"no host":        func(c *endpoint.ACMEConfig) { c.Hosts = nil },
		"no directory":   func(c *endpoint.ACMEConfig) { c.Dir = "" },
		"plain HTTP":     func(c *endpoint.ACMEConfig) { c.Directory = "http://ca.example/directory" },
		"a wildcard":     func(c *endpoint.ACMEConfig) { c.Hosts = []string{"*.example.org"} },
		"an address":     func(c *endpoint.ACMEConfig) { c.Hosts = []string{"192.0.2.1"} },
		"capitals":       func(c *endpoint.ACMEConfig) { c.Hosts = []string{"ID.example.org"} },
		"no dot":         func(c *endpoint.ACMEConfig) { c.Hosts = []string{"localhost"} },
		"a dot at last":  func(c *endpoint.ACMEConfig) { c.Hosts = []string{"id.example.org."} },
		"a path":         func(c *endpoint.ACMEConfig) { c.Hosts = []string{"id.example.org/td"} },
		"a port":         func(c *endpoint.ACMEConfig) { c.Hosts = []string{"id.example.org:443"} },
		"a dash at last": func(c *endpoint.ACMEConfig) { c.Hosts = []string{"id-.example.org"} },
	} {
		c := good
		edit(&c)
		if _, err := endpoint.NewACME(c); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}
