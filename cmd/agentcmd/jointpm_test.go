package agentcmd_test

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/cmd/agentcmd"
)

// Of a TPM the file says which key of which device, and nothing that nobody would
// read.
func TestJoinOfTPMs(t *testing.T) {
	for _, row := range []struct{ join, want string }{
		{"{method: tpm}", ""},
		{"{method: tpm, rule: racks, device: /d, ek: ecc, cert: /c}", ""},
		{"{method: tpm, ek: RSA}", "join.ek:"},
		{"{method: tpm, key: /k}", "join.key: is not of join method tpm"},
		{"{method: tpm, token_file: /t}", "join.token_file: is not of join method tpm"},
		{"{method: bound_keypair, rule: a, key: /k, device: /d}", ""},
		{"{method: bound_keypair, device: /d}", "join.key: is required"},
		{"{method: bound_keypair, key: /k, ek: ecc}", "join.ek: is not of join method bound_keypair"},
		{"{method: x509, cert: /c, key: /k, device: /d}", "join.device: is not of join method x509"},
		{"{method: github, ek: rsa}", "join.ek: is not of join method github"},
	} {
		var f agentcmd.File
		text := "trust_domain: example.org\ndata: /d\nbroker: ['127.0.0.1:1']\ntrust: {ca_pin: ['sha256:" + strings.Repeat("0", 64) + "']}\njoin: " + row.join + "\n"
		if err := yaml.UnmarshalWithOptions([]byte(text), &f, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		if err := f.Complete(); (err == nil) != (row.want == "") || err != nil && !strings.HasPrefix(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.join, err, row.want)
		}
	}
}
