package main_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A person is somebody at a machine without an agent.
type person struct {
	*side
	provider *issuertest.Provider
	login    string // file
}

func (p *person) command(args ...string) *exec.Cmd {
	cmd := exec.Command("credence", args...)
	cmd.Env = append(os.Environ(), "CREDENCE_LOGIN="+p.login, "SPIFFE_ENDPOINT_SOCKET=", "DISPLAY=", "WAYLAND_DISPLAY=")
	return cmd
}

// signsIn runs a verb that has the person sign in.
func (p *person) signsIn(args ...string) (code int, printed string) {
	p.t.Helper()
	running := startCmd(p.t, p.command(args...))
	if at, err := running.await(`sign in here: (\S+)`, 0); err == nil {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.provider.Roots()}, DisableKeepAlives: true}}
		page, err := client.Get(at[1])
		if err != nil {
			p.t.Fatal(err)
		}
		page.Body.Close()
	}
	code, err := running.wait()
	if err != nil {
		p.t.Fatal(err)
	}
	printed, _ = running.printed()
	return code, printed
}

func (p *person) does(args ...string) (code int, printed string) {
	cmd := p.command(args...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

// A person whom the provider knows has an SVID without an agent, for as long as
// they asked for, and nobody else has.
func TestLogin(t *testing.T) {
	t.Parallel()
	provider := issuertest.NewProvider(t)
	s := newSide(t, "example.org", func(s *side) {
		s.more = fmt.Sprintf("allow_networks: [127.0.0.0/8]\nlogin: {issuer: %q, client_id: credence, ca_file: %s}\nroles: [{id: spiffe://example.org/people/sre, role: operator, paths: [/shop/**]}]\n", provider.URL, s.write("provider.pem", provider.CA()))
	})
	s.credence(`kind: Identity
name: sre
spiffe_id: /people/sre
match: [{user.groups: sre}]
x509: {ttl: 30m}
`, "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{s, provider, s.path("state", "login.json")}
	first := []string{"login", "--broker", "127.0.0.1:" + s.ports[0], "--trust-domain", "example.org", "--ca-pin", pin[1]}
	if code, said := p.signsIn(first...); code != 4 || !strings.Contains(said, "no identity for you") {
		t.Fatalf("a stranger: %d, %s", code, said)
	}
	provider.SetPerson(map[string]any{"sub": "ana", "groups": []string{"dev", "sre"}})
	if code, said := p.signsIn(first...); code != 0 || !strings.Contains(said, "spiffe://example.org/people/sre") {
		t.Fatalf("%d, %s", code, said)
	}
	remote := []string{"--broker", "127.0.0.1:" + s.ports[0]}
	if code, said := p.does(append([]string{"get", "identity", "sre", "-o", "yaml"}, remote...)...); code != 0 || !strings.Contains(said, "/people/sre") {
		t.Errorf("reading: %d, %s", code, said)
	}
	mine := s.write("mine.yaml", "kind: Identity\nname: web\nspiffe_id: /shop/web\nmatch: [{node.name: n1, workload.unix.uid: 33}]\n")
	if code, said := p.does(append([]string{"apply", "-f", mine}, remote...)...); code != 0 {
		t.Errorf("changing what is theirs: %d, %s", code, said)
	}
	if code, said := p.does(append([]string{"delete", "identity", "sre"}, remote...)...); code != 4 || !strings.Contains(said, "paths") {
		t.Errorf("changing what is not: %d, %s", code, said)
	}
	if code, said := p.does(append([]string{"node", "list"}, remote...)...); code != 0 {
		t.Errorf("%d, %s", code, said)
	}
	if code, said := p.does(append([]string{"token", "create", "--node", "n1"}, remote...)...); code != 4 || !strings.Contains(said, "operator") {
		t.Errorf("what an admin alone may: %d, %s", code, said)
	}
	out := s.path("tls")
	if code, said := p.does("svid", "x509", "--out", out); code != 0 || !strings.Contains(said, "wrote svid_key.pem") {
		t.Errorf("%d, %s", code, said)
	}
	if code, said := p.does("status", remote[0], remote[1], "--svid", out); code != 0 {
		t.Errorf("by files: %d, %s", code, said)
	}
	if text, err := exec.Command("openssl", "verify", "-CAfile", out+"/svid_bundle.pem", "-untrusted", out+"/svid.pem", out+"/svid.pem").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, text)
	}
	if code, said := p.signsIn("svid", "x509", "--ttl", "5m", "-o", "json"); code != 0 || !strings.Contains(said, "people/sre") {
		t.Errorf("%d, %s", code, said)
	}
	if code, said := p.does("svid", "x509", "--watch", "--out", out); code != 2 {
		t.Errorf("%d, %s", code, said)
	}
	s.credence("", "ca", "revoke", "--spiffe-id", "spiffe://example.org/people/sre")
	if code, said := p.does(append([]string{"status"}, remote...)...); code != 4 || !strings.Contains(said, "revoked") {
		t.Errorf("revoked: %d, %s", code, said)
	}
	if record := s.credence("", "audit", "tail", "-n", "50", "-o", "json"); !strings.Contains(record, `"login"`) {
		t.Errorf("no login is recorded: %s", record)
	}
}
