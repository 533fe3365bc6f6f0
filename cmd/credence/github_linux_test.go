package main_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A gitHub is a server of GitHub's kind: issuer, and the endpoint at which a job
// asks for its tokens.
type gitHub struct {
	*httptest.Server
	jobs  atomic.Uint64
	asked atomic.Int64
}

func newGitHub(t *testing.T) *gitHub {
	g := &gitHub{}
	answer := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	mux := http.NewServeMux()
	issuer := func() string { return g.URL + "/_services/token" }
	mux.HandleFunc("GET /_services/token/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		g.asked.Add(1)
		answer(w, map[string]any{"issuer": issuer(), "jwks_uri": issuer() + "/.well-known/jwks"})
	})
	mux.HandleFunc("GET /_services/token/.well-known/jwks", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	})
	mux.HandleFunc("GET /job", func(w http.ResponseWriter, r *http.Request) {
		repository, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer job of ")
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		now := time.Now()
		owner, _, _ := strings.Cut(repository, "/")
		answer(w, map[string]any{"value": issuertest.Sign(t, issuertest.RSA(), "RS256", nil, map[string]any{
			"iss": issuer(), "aud": r.URL.Query().Get("audience"), "sub": "repo:" + repository + ":environment:production",
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint(g.jobs.Add(1)),
			"repository": repository, "repository_id": fmt.Sprint(len(repository)), "repository_owner": owner, "environment": "production", "ref": "refs/tags/v1",
		})})
	})
	g.Server = httptest.NewTLSServer(mux)
	t.Cleanup(g.Close)
	return g
}

// A job of GitHub's becomes a node by what GitHub says of it, gets what its
// repository may have, and is out when its repository is.
func TestGitHubJob(t *testing.T) {
	g := newGitHub(t)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw}))
	s := newSide(t, "example.org", func(s *side) { s.more = "allow_networks: [127.0.0.0/8]\n" })
	s.credence(fmt.Sprintf(`kind: JoinRule
name: github-acme
github:
  host: %q
  ca: |
    %s
allow: [{node.github.repository_owner: acme}]
---
kind: Identity
name: release
spiffe_id: /ci/checkout
match: [{node.github.repository: acme/checkout, node.github.environment: production, when: 'node.github.ref.startsWith("refs/tags/v")'}]
`, g.Listener.Addr(), strings.ReplaceAll(ca, "\n", "\n    ")), "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	certificate := s.write("github.pem", ca)
	job := func(name, repository string) *exec.Cmd {
		config := s.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: github}\n",
			s.path(name), s.ports[0], pin[1]))
		cmd := exec.Command("credence", "agent", "run", "-c", config)
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+certificate, "ACTIONS_ID_TOKEN_REQUEST_URL="+g.URL+"/job", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job of "+repository)
		return cmd
	}
	for _, name := range []string{"one", "two"} {
		if _, err := startCmd(t, job(name, "acme/checkout")).await("joined", 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("credence", "svid", "x509", "-o", "json")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+s.path(name, "run", "workload.sock"))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "spiffe://example.org/ci/checkout") {
			t.Errorf("job %s has %v, %s", name, err, out)
		}
	}
	var nodes []struct {
		ID    string              `json:"id"`
		Name  string              `json:"name"`
		Facts map[string][]string `json:"facts"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 2 || nodes[0].ID == nodes[1].ID || nodes[0].Name != "repo-acme-checkout-environment-production" || nodes[0].Facts["node.github.repository"][0] != "acme/checkout" {
		t.Fatalf("nodes %+v", nodes)
	}
	if n := g.asked.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times for two jobs", n)
	}
	stranger := job("stranger", "evil/checkout")
	out, err := stranger.CombinedOutput() // it ends
	if err == nil || strings.Contains(string(out), "acme") {
		t.Errorf("another owner's job: %v: %s", err, out)
	}
	// One job is evicted: the other is out with it, and the next stays out.
	s.credence("", "node", "evict", nodes[0].ID)
	out, err = job("three", "acme/checkout").CombinedOutput()
	if err == nil {
		t.Errorf("a job of the same repository: %s", out)
	}
}
