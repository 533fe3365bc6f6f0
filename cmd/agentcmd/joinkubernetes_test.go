package agentcmd_test

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/cmd/agentcmd"
)

// Of a pod's agent the file says where the token is, and nothing that nobody would
// read.
func TestJoinOfPods(t *testing.T) {
	for _, row := range []struct{ join, want, file string }{
		{"{method: kubernetes}", "", "/var/run/secrets/tokens/credence"},
		{"{method: kubernetes, rule: prod, token_file: /t}", "", "/t"},
		{"{method: kubernetes, token_env: T}", "join.token_env: is not of join method kubernetes", ""},
		{"{method: kubernetes, token_command: [a]}", "join.token_command: is not of join method kubernetes", ""},
		{"{method: kubernetes, audience: a}", "join.audience: is not of join method kubernetes", ""},
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
