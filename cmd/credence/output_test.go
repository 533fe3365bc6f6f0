package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

var snake = regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)

// TestForms asks every verb that prints data for JSON and YAML: the same names
// and values, in snake case, each key in its place and lists that are arrays.
func TestForms(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	dir := tempDir(t)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", d.json.WorkloadSocket)
	t.Setenv("CREDENCE_ADMIN", d.json.AdminSocket)
	var more struct {
		AgentAdmin string `json:"agent_admin_socket"`
	}
	if err := json.Unmarshal(d.file(t), &more); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENCE_AGENT_ADMIN", more.AgentAdmin)
	const deny = "kind: Deny\nname: d\nmatch: [{node.name: nowhere}]\n"
	credenceFile(t, dir, "broker.yaml", "broker", "init", "--trust-domain", "example.org", "--data", dir+"/b")
	d.apply(t, deny) // twice below, and each time it is there
	for _, c := range []struct {
		args string
		in   string
		keys string // of the object, or of each in the list, in order
		list bool
		code int
	}{
		{args: "get", keys: "kind name revision owner written_by written_at resource", list: true},
		{args: "get identity nobody", code: 1},
		{args: "get deny", list: true},
		{args: "plan -f -", in: deny, keys: "dry_run revision applied warnings"},
		{args: "apply -f -", in: deny, keys: "dry_run revision applied warnings"},
		{args: "node list", keys: "id name method join_rule state connected joined_at expires_at evicted_at acknowledged facts", list: true},
		{args: "node show dev", keys: "id name method join_rule state connected joined_at expires_at evicted_at acknowledged facts"},
		{args: "node show nobody", code: 1},
		{args: "status", keys: "trust_domain issuer version started_at revision nodes identities listen problem name ready problems policy_revision svid_ends store replicas record node_states cutoffs authorities peers"},
		{args: "explain --pid " + strconv.Itoa(d.cmd.Process.Pid), keys: "granted"},
		{args: "authority show", keys: "id use alg state published_at activated_at last_expiry not_after next next_at broker", list: true},
		{args: "ca rotate issuing", keys: "authorities lines"},
		{args: "ca replace jwt --alg ES256", keys: "authorities lines"},
		{args: "peer list", keys: "name url profile", list: true},
		{args: "audit tail -n 1", keys: "kind"},
		{args: "audit verify", keys: "holds records files sequence head problem confirmed agents notes"},
		{args: "audit verify --from-agents", keys: "holds confirmed agents"},
		{args: "audit verify --data " + d.data + "/broker", keys: "holds records files sequence head problem confirmed agents notes"},
		{args: "audit verify --data " + dir, keys: "holds records files sequence head problem confirmed agents notes", code: 1},
		{args: "token create --node n", keys: "token expires node trust_domain broker ca_pin"},
		{args: "svid x509", keys: "spiffe_id hint serial not_after", list: true},
		{args: "svid x509 --out " + dir + "/tls", keys: "files not_after spiffe_id"},
		{args: "svid jwt --audience a", keys: "spiffe_id hint audience expires token", list: true},
		{args: "bundle show", keys: "trust_domain sequence refresh_hint x509_authorities jwt_authorities fetched_at confirmed_at last_error"},
		{args: "bundle show partner.example", keys: "trust_domain sequence refresh_hint x509_authorities jwt_authorities fetched_at confirmed_at last_error"},
		{args: "broker check -c " + dir + "/broker.yaml", keys: "check ok problem", list: true, code: -1}, // another broker may run here
		{args: "validate " + dir + "/broker.yaml", keys: "files valid warnings"},
		{args: "version", keys: "arch go os version"},
	} {
		t.Run(c.args, func(t *testing.T) {
			var read [2]any
			for i, form := range []string{"json", "yaml"} {
				code, out, errs := credenceCmd(t, c.in, append(strings.Fields(c.args), "-o", form)...)
				if code != c.code && c.code >= 0 {
					t.Fatalf("exit code %d, want %d: %s", code, c.code, errs)
				}
				if out == "" && c.keys == "" {
					continue
				}
				if err := yaml.Unmarshal([]byte(out), &read[i]); err != nil {
					t.Fatalf("%s: %v:\n%s", form, err, out)
				}
				if i == 0 {
					checkForm(t, out, c.keys, c.list)
				}
			}
			if diff := cmp.Diff(keysOf(read[0]), keysOf(read[1])); diff != "" && !strings.HasPrefix(c.args, "get") {
				t.Errorf("keys (-json +yaml):\n%s", diff)
			}
			if code, out, _ := credenceCmd(t, c.in, append(strings.Fields(c.args), "-o", "table")...); code == 0 && (out == "" || strings.ContainsAny(out, "{\x1b\t")) {
				t.Errorf("the table:\n%s", out)
			}
		})
	}
}

// credenceFile keeps what a verb prints.
func credenceFile(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	code, out, errs := credenceCmd(t, "", args...)
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s", args, code, errs)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkForm looks at one JSON text: its keys are there, in order.
func checkForm(t *testing.T, text, keys string, list bool) {
	t.Helper()
	if list != strings.HasPrefix(text, "[") {
		t.Errorf("a list: %v\n%s", list, text)
	}
	at := 0
	for _, k := range strings.Fields(keys) {
		if !snake.MatchString(k) {
			t.Errorf("key %s is not in snake case", k)
		}
		next := strings.Index(text[at:], `"`+k+`":`)
		if next < 0 {
			t.Errorf("key %s is not there, or not after the one before it:\n%s", k, text)
			return
		}
		at += next
	}
}
