package agentcmd_test

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/cmd/agentcmd"
)

// Of each method the file says where its evidence is, and nothing that nobody would
// read.
func TestJoinFields(t *testing.T) {
	for _, row := range []struct{ join, want, file string }{
		{"{method: kubernetes}", "", "/var/run/secrets/tokens/credence"},
		{"{method: kubernetes, rule: prod, token_file: /t}", "", "/t"},
		{"{method: kubernetes, token_env: T}", "join.token_env: is not of join method kubernetes", ""},
		{"{method: kubernetes, token_command: [a]}", "join.token_command: is not of join method kubernetes", ""},
		{"{method: kubernetes, audience: a}", "join.audience: is not of join method kubernetes", ""},
		{"{method: spiffe, rule: a, cert: /c, key: /k}", "", ""},
		{"{method: spiffe, rule: a, socket: unix:///run/spire/agent.sock}", "", ""},
		{"{method: spiffe}", "join.socket: it, or cert and key, are required", ""},
		{"{method: spiffe, cert: /c}", "join.socket: it, or cert and key, are required", ""},
		{"{method: spiffe, cert: /c, socket: /s}", "join.socket: it, or cert and key, are required", ""},
		{"{method: spiffe, cert: /c, key: /k, socket: /s}", "join.socket: it, or cert and key, are required", ""},
		{"{method: spiffe, socket: 'tcp://127.0.0.1:1'}", "join.socket: ", ""},
		{"{method: spiffe, socket: unix:///d/run/workload.sock}", "join.socket: is this agent's own", ""},
		{"{method: spiffe, socket: /s, token_file: t}", "join.token_file: is not of join method spiffe", ""},
		{"{method: x509, cert: /c, key: /k, socket: /s}", "join.socket: is not of join method x509", ""},
		{"{method: azure, rule: a, audience: 'api://credence', client_id: c, endpoint: 'http://127.0.0.1:1'}", "", ""},
		{"{method: azure}", "", ""}, // where the rule wants no token
		{"{method: azure, endpoint: 'https://a.example'}", "join.endpoint: ", ""},
		{"{method: azure, endpoint: 169.254.169.254}", "join.endpoint: ", ""},
		{"{method: azure, token_file: t}", "join.token_file: is not of join method azure", ""},
		{"{method: gcp, rule: a, audience: b}", "", ""},
		{"{method: gcp, endpoint: 'http://a'}", "join.endpoint: is not of join method gcp", ""},
		{"{method: github, client_id: c}", "join.client_id: is not of join method github", ""},
		{"{method: token, token_file: /t, rule: prod}", "join.rule: is not of join method token", ""},
		{"{method: Kubernetes}", "join.method:", ""},
	} {
		var f agentcmd.File
		text := "trust_domain: example.org\ndata: /d\nbroker: ['127.0.0.1:1']\ntrust: {ca_pin: ['sha256:" + strings.Repeat("0", 64) + "']}\njoin: " + row.join + "\n"
		if err := yaml.UnmarshalWithOptions([]byte(text), &f, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		err := f.Complete()
		if row.want == "" && (err != nil || f.Join.TokenFile != row.file) {
			t.Errorf("%s: %v, token_file %q", row.join, err, f.Join.TokenFile)
		}
		if row.want != "" && (err == nil || !strings.HasPrefix(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %s", row.join, err, row.want)
		}
	}
}
