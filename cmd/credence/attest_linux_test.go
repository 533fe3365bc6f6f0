package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
)

// An agent watches its cluster from its start on, broker or not, by what its
// file and its environment say.
func TestAgentWatchesItsCluster(t *testing.T) {
	c := kubernetestest.New(t, "node-7")
	dir := tempDir(t)
	file := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf(`trust_domain: example.org
data: %[1]s/d
broker: ["127.0.0.1:1"]
trust: {ca_pin: ["sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]}
join: {method: token, token_file: %[1]s/token}
attest: {kubernetes: {api: %[2]q, token_file: %[3]s, ca_file: %[4]s}}
`, dir, c.API, c.TokenFile, c.CAFile)
	for name, text := range map[string]string{file: text, filepath.Join(dir, "token"): "none"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("NODE_NAME", "node-7")
	start(t, "credence", "agent", "run", "-c", file)
	c.Await("watch", 1)
}
