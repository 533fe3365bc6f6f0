package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// machine runs an agent of a cloud's machine, of a name that tells it from others.
func (s *side) machine(name, join string, env ...string) *exec.Cmd {
	s.t.Helper()
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	config := s.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: %s\n",
		s.path(name), s.ports[0], pin[1], join))
	cmd := exec.Command("credence", "agent", "run", "-c", config)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// jwks are the keys of whoever signs a cloud's tokens, as one line of YAML.
func jwks(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	if err != nil {
		t.Fatal(err)
	}
	return "'" + string(text) + "'"
}

// A machine of Google's joins by the token that its metadata server makes for us; one
// of another project does not.
func TestGoogleMachineJoins(t *testing.T) {
	t.Parallel()
	metadata := func(project string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || r.URL.Query().Get("format") != "full" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			fmt.Fprint(w, issuertest.Sign(t, issuertest.RSA(), "RS256", nil, map[string]any{
				"iss": "https://accounts.google.com", "aud": r.URL.Query().Get("audience"), "azp": "1075", "sub": "1075", "email": "web@" + project + ".iam.gserviceaccount.com", "email_verified": true,
				"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "google": map[string]any{"compute_engine": map[string]any{
					"project_id": project, "project_number": 7394, "zone": "europe-west1-b", "instance_id": "15298", "instance_name": "web-1", "instance_creation_timestamp": 1700000000}},
			}))
		}))
		t.Cleanup(server.Close)
		return "GCE_METADATA_HOST=" + strings.TrimPrefix(server.URL, "http://")
	}
	s := newSide(t, "example.org")
	s.credence("kind: JoinRule\nname: google\ngcp: {jwks: "+jwks(t)+"}\nallow: [{node.gcp.project: acme-prod}]\n", "apply", "-f", "-")
	if _, err := startCmd(t, s.machine("one", "{method: gcp}", metadata("acme-prod"))).await("msg=joined", 0); err != nil {
		t.Fatal(err)
	}
	if out, err := s.machine("stranger", "{method: gcp}", metadata("evil-prod")).CombinedOutput(); err == nil || strings.Contains(string(out), "acme") { // it ends
		t.Errorf("another project's: %v: %s", err, out)
	}
	if out := s.credence("", "node", "list", "-o", "json"); !strings.Contains(out, `"web-1"`) || !strings.Contains(out, `"europe-west1"`) || strings.Contains(out, "evil") {
		t.Errorf("nodes %s", out)
	}
}
