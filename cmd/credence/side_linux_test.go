package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A side is a trust domain: a broker's process, and agents' of it.
type side struct {
	t      *testing.T
	domain string
	dir    string
	ports  [3]string // agents, spiffe, web
	issuer string
	web    *x509.CertPool
	env    []string
	more   string // lines of broker.yaml
	broker *process
}

func newSide(t *testing.T, domain string, changes ...func(*side)) *side {
	s := &side{t: t, domain: domain, dir: tempDir(t)}
	for _, change := range changes {
		change(s)
	}
	for i := range s.ports {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		s.ports[i] = port
	}
	s.issuer = "https://localhost:" + s.ports[2]
	cert, key := s.webPair()
	s.write("broker.yaml", fmt.Sprintf(`trust_domain: %s
data: %s
issuer: %s
listen: {agents: "127.0.0.1:%s", spiffe: "127.0.0.1:%s", web: "127.0.0.1:%s"}
web_tls: {cert: %s, key: %s}
refresh_hint: 30s
jwt_key_lead: 90s
%s`, domain, s.path("broker"), s.issuer, s.ports[0], s.ports[1], s.ports[2], cert, key, s.more))
	s.startBroker()
	return s
}

func (s *side) startBroker() {
	cmd := exec.Command("credence", "broker", "run", "-c", s.path("broker.yaml"))
	cmd.Env = append(os.Environ(), s.env...)
	s.broker = startCmd(s.t, cmd)
	if _, err := s.broker.await("agents on", 0); err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

func (s *side) write(name, text string) string {
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// webPair makes the web listener's certificate.
func (s *side) webPair() (cert, key string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		s.t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.web = x509.NewCertPool()
	s.web.AddCert(parsed)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.write("web.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		s.write("web.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// credence runs a verb to its end, and returns what it printed.
func (s *side) credence(in string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command("credence", args...)
	cmd.Env = append(os.Environ(), "CREDENCE_ADMIN="+s.path("broker", "run", "admin.sock"))
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%s: %v: %s", args, err, errs.Bytes())
	}
	if errs.Len() > 0 {
		s.t.Logf("%s: %s", args, errs.Bytes())
	}
	return out.String()
}

// node starts an agent that joins under a name, and returns its socket's URL.
func (s *side) node(name string) string {
	s.runAgent(s.agentFile(name, ""))
	return s.socket(name)
}

func (s *side) socket(name string) string {
	return "unix://" + s.path(name, "run", "workload.sock")
}

// agentFile writes a node's configuration, with a token to join by.
func (s *side) agentFile(name, more string) string {
	var made struct {
		Token string `json:"token"`
		CAPin string `json:"ca_pin"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "token", "create", "--node", name, "--label", "site=drill", "-o", "json")), &made); err != nil {
		s.t.Fatal(err)
	}
	return s.write(name+".yaml", fmt.Sprintf("trust_domain: %s\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: token, token_file: %s}\n%s",
		s.domain, s.path(name), s.ports[0], made.CAPin, s.write(name+".token", made.Token), more))
}

func (s *side) runAgent(config string) *process {
	p := start(s.t, "credence", "agent", "run", "-c", config)
	if _, err := p.await("joined", 0); err != nil {
		s.t.Fatal(err)
	}
	return p
}
