package local_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
)

// authority is a file with what looks like a certificate.
func authority(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func holds(text, want string) bool {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if string(block.Bytes) == want {
			return true
		}
	}
	return false
}

func withCA(r *api.FetchResponse, file string) *api.FetchResponse {
	r.CaFile = file
	return r
}

// Whom a target's servers are signed by is trusted beside those whom the
// workload trusted already.
func TestAuthoritiesAreAdded(t *testing.T) {
	from := clouds()
	ca := authority(t, "ca.pem", "the target's")
	from.put("gcp", withCA(bearerAnswer("gcp", gcpSettings, ""), ca))
	roots, bundle, extra := authority(t, "a", "own roots"), authority(t, "b", "own bundle"), authority(t, "c", "own extra")
	s := opened(t, from, []string{"gcp", "azure"}, func(c *local.Config) {
		c.Environ = []string{"SSL_CERT_FILE=" + roots, "AWS_CA_BUNDLE=" + bundle, "NODE_EXTRA_CA_CERTS=" + extra}
	})
	all := strings.Join(s.Env(), "\n")
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"} {
		if !strings.Contains(all, name+"="+filepath.Join(s.dir, "roots.pem")) {
			t.Errorf("%s is not set", name)
		}
	}
	if !strings.Contains(all, "NODE_EXTRA_CA_CERTS="+filepath.Join(s.dir, "ca.pem")) {
		t.Error("NODE_EXTRA_CA_CERTS is not set")
	}
	for file, wants := range map[string][]string{"roots.pem": {"own roots", "own bundle", "the target's"}, "ca.pem": {"own extra", "the target's"}} {
		for _, want := range wants {
			if !holds(s.read(file), want) {
				t.Errorf("%s lacks %s", file, want)
			}
		}
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("the next")}), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Refresh(t.Context())
	if text := s.read("roots.pem"); !holds(text, "the next") || holds(text, "the target's") {
		t.Error("a CA file that was replaced is not followed")
	}
}

func TestTheSystemsRootsStay(t *testing.T) {
	from := clouds()
	from.put("gcp", withCA(bearerAnswer("gcp", gcpSettings, ""), authority(t, "ca.pem", "the target's")))
	s := opened(t, from, []string{"gcp"})
	pool := x509.NewCertPool()
	if _, err := os.Stat("/etc/ssl/certs/ca-certificates.crt"); err != nil {
		t.Skip("the system's roots are elsewhere")
	}
	if !pool.AppendCertsFromPEM([]byte(s.read("roots.pem"))) {
		t.Error("the system's roots are lost")
	}
}

func TestAuthoritiesThatAreNone(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("nothing\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, filepath.Join(t.TempDir(), "missing")} {
		from := clouds()
		from.put("gcp", withCA(bearerAnswer("gcp", gcpSettings, ""), file))
		if s, err := local.Open(t.Context(), local.Config{Dir: filepath.Join(t.TempDir(), "run"), UID: os.Getuid(), GID: os.Getgid(), Targets: []string{"gcp"}, Source: from}); err == nil {
			t.Errorf("%s is taken: %v", file, s.Close())
		}
	}
}
