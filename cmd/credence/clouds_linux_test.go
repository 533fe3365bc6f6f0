package main_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
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

// A machine of Azure's joins by its identity's token and a document for our challenge;
// one of another subscription does not.
func TestAzureMachineJoins(t *testing.T) {
	t.Parallel()
	const tenant, group = "11111111-2222-4333-8444-555555555555", "/resourceGroups/shop/providers/Microsoft.Compute/virtualMachines/web-1"
	const ours, others = "5f130ffc-0a3e-4795-b691-4f56a12a5547", "99999999-0a3e-4795-b691-4f56a12a5547"
	root := issuertest.NewCA(t, "Root", time.Now(), nil)
	issuing := issuertest.NewCA(t, "Issuing", time.Now(), root, func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(0, 0, 89) })
	signer := issuing.Issue(t, "spiffe://unused.example", time.Now(), issuertest.RSA().Public(), func(c *x509.Certificate) {
		c.URIs, c.DNSNames = nil, []string{"metadata.azure.com"}
	})
	metadata := func(subscription string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			switch r.URL.Path + " " + r.Header.Get("Metadata") {
			case "/metadata/identity/oauth2/token true":
				fmt.Fprintf(w, `{"access_token":%q}`, issuertest.Sign(t, issuertest.RSA(), "RS256", nil, map[string]any{
					"iss": "https://sts.windows.net/" + tenant + "/", "aud": q.Get("resource"), "tid": tenant, "ver": "1.0", "idtyp": "app", "appid": tenant, "oid": subscription, "sub": subscription,
					"iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix(), "xms_mirid": "/subscriptions/" + subscription + group,
				}))
			case "/metadata/attested/document true":
				fmt.Fprintf(w, `{"encoding":"pkcs7","signature":%q}`, identityDocument(t, issuertest.RSA(), signer.Raw, fmt.Sprintf(
					`{"nonce":%q,"subscriptionId":%q,"vmId":%q,"timeStamp":{"createdOn":%q,"expiresOn":%q}}`, q.Get("nonce"), subscription, subscription,
					time.Now().UTC().Format("01/02/06 15:04:05 -0700"), time.Now().Add(6*time.Hour).UTC().Format("01/02/06 15:04:05 -0700")), signer.Raw...))
			default:
				w.WriteHeader(http.StatusBadRequest)
			}
		}))
		t.Cleanup(server.Close)
		return "{method: azure, audience: api://credence, endpoint: '" + server.URL + "'}"
	}
	certificate := func(ca *issuertest.CA) string {
		return strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw})), "\n", "\n    ")
	}
	s := newSide(t, "example.org")
	s.credence("kind: JoinRule\nname: azure\nazure:\n  tenants: ["+tenant+"]\n  audience: api://credence\n  jwks: "+jwks(t)+"\n  roots: |\n    "+certificate(root)+
		"\n  intermediates: |\n    "+certificate(issuing)+"\nallow: [{node.azure.subscription: "+ours+", node.azure.resource_group: shop}]\n", "apply", "-f", "-")
	if _, err := startCmd(t, s.machine("one", metadata(ours))).await("msg=joined", 0); err != nil {
		t.Fatal(err)
	}
	if out, err := s.machine("stranger", metadata(others)).CombinedOutput(); err == nil || strings.Contains(string(out), "shop") { // it ends
		t.Errorf("another subscription's: %v: %s", err, out)
	}
	if out := s.credence("", "node", "list", "-o", "json"); !strings.Contains(out, `"web-1"`) || !strings.Contains(out, `"node.azure.vm_id"`) || strings.Contains(out, others) {
		t.Errorf("nodes %s", out)
	}
	_, out, _ := credenceCmd(t, "", "broker", "check", "-c", s.path("broker.yaml"))
	if n := strings.Count(out, "give the rule the next one"); n != 1 || !regexp.MustCompile(`(?m)^ok +join rule azure +the certificate CN=Issuing ends on `).MatchString(out) {
		t.Errorf("%d certificates that end:\n%s", n, out)
	}
}
