package main_test

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	credence "github.com/credence-id/credence/cmd/credence"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/oauth"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// hostile are texts that a shell, Terraform or JSON would take for more.
var hostile = []string{
	`$(touch pwned)`, "`touch pwned`", `${jsonencode("x")}`, `%{ if true }x%{ endif }`, `$${a}`, `%%{a}`, `"; touch pwned; "`, `'; touch pwned; '`,
	`a\`, `\"`, `\\n`, "a\nEOF\ntouch pwned\n", "EOT\n", "\t\r\x01\x7f", `<script>&amp;`, `é☃`, "", `#x`, `$HOME`, `$dir`, "*",
}

const unset = "00000000-0000-0000-0000-000000000000"

func anywhereTarget() exchangers.Target {
	return exchangers.Target{Name: "aws-orders", Flow: "aws_roles_anywhere", CAFile: "/etc/a b/$(x)'${y}.pem", Settings: &aws.RolesAnywhere{
		Role: "arn:aws:iam::123456789012:role/team/orders", TrustAnchor: "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/" + unset,
		Profile:    "arn:aws:rolesanywhere:us-east-1:123456789012:profile/" + unset,
		AssumeRole: &aws.AssumeRole{Role: "arn:aws:iam::210987654321:role/second", ExternalID: "customer:42/x"},
	}}
}

func setupFacts(t *testing.T, target exchangers.Target) exchangers.Facts {
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	return exchangers.Facts{
		Now: time.Now(), TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Target: target, Issuer: "https://id.example.org/td",
		JWKS: []byte(`{"keys":[]}`), Anchors: []*x509.Certificate{ca.Certificate},
		Parties: []exchangers.Party{
			{Identity: "orders", SPIFFEID: "spiffe://example.org/orders", Subject: "CN=orders"},
			{Identity: "billing", SPIFFEID: "spiffe://example.org/billing"},
		},
	}
}

func setupTargets() map[string]exchangers.Target {
	const provider = "//iam.googleapis.com/projects/424242424242/locations/global/workloadIdentityPools/pool-a/providers/prov-a"
	return map[string]exchangers.Target{
		"anywhere": anywhereTarget(),
		"web":      {Name: "web", Flow: "aws_web_identity", Settings: &aws.WebIdentity{Role: "arn:aws:iam::123456789012:role/orders"}},
		"gcp":      {Name: "gcp.a", Flow: "gcp", Settings: &gcp.Settings{Provider: provider, ServiceAccount: "orders@proj-ect.iam.gserviceaccount.com", QuotaProject: "proj-ect"}},
		"gcp x509": {Name: "gcp", Flow: "gcp", Settings: &gcp.Settings{Provider: provider, SVID: "x509"}},
		"azure":    {Name: "azure", Flow: "azure", Settings: &azure.Settings{Tenant: unset, ClientID: unset, Scope: "https://a/.default", TokenAudience: "'${a}$(b)`c`"}},
		"vault":    {Name: "vault", Flow: "oauth", Settings: &oauth.Settings{VaultJWT: &oauth.VaultJWT{URL: "https://bao.example", TokenAudience: `"'$(touch` + "`x`" + `)%{a}`, Role: "orders"}}},
		"cert":     {Name: "cert", Flow: "oauth", Settings: &oauth.Settings{VaultCert: &oauth.VaultCert{URL: "https://bao.example", Role: "orders", Mount: "a/b", Namespace: "team"}}},
		"exchange": {Name: "as", Flow: "oauth", Settings: &oauth.Settings{TokenExchange: &oauth.TokenExchange{TokenURL: "https://as.example/token", TokenAudience: "https://as.example"}}},
	}
}

// TestSetupIsFormatted: terraform fmt would change nothing, and sh reads it.
func TestSetupIsFormatted(t *testing.T) {
	dir := t.TempDir()
	for name, target := range setupTargets() {
		facts := setupFacts(t, target)
		for _, party := range []string{"", "spiffe://example.org/ns/{node.name}/a"} {
			if target.Flow == "azure" && party != "" {
				continue // it takes none
			}
			if party != "" {
				facts.Parties = append(facts.Parties, exchangers.Party{Identity: "any", SPIFFEID: party})
			}
			for _, form := range []string{"terraform", "cli", "json"} {
				text, err := credence.SetupText(facts, exchangers.Choices{}, form)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				switch form {
				case "json":
					if !json.Valid([]byte(text)) {
						t.Errorf("%s: not JSON: %s", name, text)
					}
				case "cli":
					cmd := exec.Command("sh", "-n")
					cmd.Stdin = strings.NewReader(text)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%s: %v %s\n%s", name, err, out, text)
					}
				default:
					file := filepath.Join(dir, strings.ReplaceAll(name, " ", "_")+strings.Repeat("t", min(1, len(party)))+".tf")
					if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if _, err := exec.LookPath("terraform"); err != nil {
		t.Skip("there is no terraform here to judge the form")
	}
	if out, err := exec.Command("terraform", "fmt", "-check", "-diff", dir).CombinedOutput(); err != nil {
		t.Errorf("terraform fmt: %v\n%s", err, out)
	}
}

// hostilePlan makes nothing, and has a Target that says hostile things.
func hostilePlan() exchangers.Plan {
	var fields exchangers.Fields
	list := []any{}
	for _, text := range hostile {
		fields = append(fields, exchangers.Field{Name: "x" + text, Value: text})
		list = append(list, text)
	}
	return exchangers.Plan{Target: "t", Notes: []string{strings.Join(hostile, " ")}, Apply: exchangers.Fields{
		{Name: "kind", Value: "Target"}, {Name: "fields", Value: fields}, {Name: "list", Value: list},
		{Name: "document", Value: exchangers.Document{Value: fields}}, {Name: "text", Value: exchangers.Text("a\n${b}\n%{c}\nEOT\n")},
	}}
}

// wantHostile compares what came out with what went in.
func wantHostile(t *testing.T, got map[string]any) {
	t.Helper()
	for i, text := range hostile {
		list, _ := got["list"].([]any)
		fields, _ := got["fields"].(map[string]any)
		if len(list) != len(hostile) || list[i] != text || fields["x"+text] != text {
			t.Errorf("%q came out as %q and %q", text, list[i], fields["x"+text])
		}
	}
	if got["text"] != "a\n${b}\n%{c}\nEOT\n" {
		t.Errorf("a text came out as %q", got["text"])
	}
}

func TestSetupEscapesForTerraform(t *testing.T) {
	if _, err := exec.LookPath("terraform"); err != nil {
		t.Skip("there is no terraform here")
	}
	text, err := credence.Terraform(hostilePlan())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(strings.Replace(text, "yamlencode(", "jsonencode(", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, args := range [][]string{{"fmt", "-check", "-diff"}, {"init", "-backend=false"}, {"apply", "-auto-approve", "-no-color"}, {"output", "-raw", "target"}} {
		cmd := exec.Command("terraform", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CHECKPOINT_DISABLE=1")
		if out, err = cmd.Output(); err != nil {
			t.Fatalf("terraform %v: %v\n%s\n%s", args, err, out, text)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantHostile(t, got)
	if document, _ := got["document"].(string); !json.Valid([]byte(document)) {
		t.Errorf("a document came out as %q", document)
	}
}

func TestSetupEscapesForAShell(t *testing.T) {
	dir := stub(t, "credence", `cat > "$0.in"`)
	plan := hostilePlan()
	plan.Apply = append(plan.Apply[:3:3], plan.Apply[4], exchangers.Field{Name: "arn", Value: exchangers.Ref{Type: "a", Label: "b", Attr: "c", Var: "arn"}})
	plan.Guard = []string{"arn='chosen by the cloud'"}
	words := []any{"printf", `%s\000`}
	for _, text := range hostile {
		words = append(words, text)
	}
	plan.Resources = []exchangers.Made{{Type: "a", Label: "b", Script: []string{
		exchangers.Shell(words...) + ` > "$OUT"`, exchangers.ShellFile("a", exchangers.Text("x\nEOF\n$(touch pwned)\n")), `cp "$dir/a" "$OUT.text"`,
	}}}
	out := filepath.Join(dir, "out")
	runScript(t, dir, credence.Script(plan), "OUT="+out)
	if text := read(t, out); text != strings.Join(hostile, "\x00")+"\x00" {
		t.Errorf("words came out as %q", text)
	}
	if text := read(t, out+".text"); text != "x\nEOF\n$(touch pwned)\n" {
		t.Errorf("a file came out as %q", text)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "credence.in"))), &got); err != nil {
		t.Fatal(err)
	}
	wantHostile(t, got)
	if got["arn"] != "chosen by the cloud" {
		t.Errorf("what the cloud chose came out as %q", got["arn"])
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "pwned")); left != nil {
		t.Error("what was quoted ran")
	}
}

// stub puts a program for a script into a directory.
func stub(t *testing.T, name, body string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func runScript(t *testing.T, dir, text string, env ...string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", text)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH")), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
}

// awsStub is aws as far as the script goes: it keeps a line for each call, the
// documents, and whether something was made.
const awsStub = `
dir=$(dirname "$0")
case "$1" in --profile) who=$2-; shift 2;; esac
echo "$who$1 $2" >> "$dir/calls"
for a; do case "$a" in file://*) cp "${a#file://}" "$dir/$who$2.$(echo "$a" | sed 's/.*\///')";; esac; done
case "$1 $2" in
"sts get-caller-identity") if [ "$who" ]; then echo 210987654321; else echo 123456789012; fi;;
"rolesanywhere list-"*) if [ -e "$dir/$2" ]; then cat "$dir/$2"; else echo null; fi;;
"rolesanywhere create-trust-anchor") echo '"arn:anchor/1"' > "$dir/list-trust-anchors"; echo arn:anchor/1;;
"rolesanywhere create-profile") echo '"arn:profile/2"' > "$dir/list-profiles"; echo arn:profile/2;;
"iam get-role") [ -e "$dir/${who}role" ];;
"iam create-role") touch "$dir/${who}role";;
esac`

// The script makes what is not there in the right order, names the new anchor
// in the trust policy, finishes the Target, and can be run again.
func TestSetupScriptForRolesAnywhere(t *testing.T) {
	text, err := credence.SetupText(setupFacts(t, anywhereTarget()), exchangers.Choices{}, "cli")
	if err != nil {
		t.Fatal(err)
	}
	dir := stub(t, "aws", awsStub)
	if err := os.WriteFile(filepath.Join(dir, "credence"), []byte("#!/bin/sh\ncat > \"$0.in\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	runScript(t, dir, text, "SECOND_PROFILE=two")
	want := `sts get-caller-identity
two-sts get-caller-identity
rolesanywhere list-trust-anchors
rolesanywhere create-trust-anchor
iam get-role
iam create-role
iam wait
rolesanywhere list-profiles
rolesanywhere create-profile
two-iam get-role
two-iam create-role
two-iam wait
iam put-role-policy
`
	if d := cmp.Diff(want, read(t, filepath.Join(dir, "calls"))); d != "" {
		t.Error(d)
	}
	for name, says := range map[string]string{
		"create-role.trust-credence_aws-orders.json":            `"aws:SourceArn": "arn:anchor/1"`,
		"two-create-role.trust-credence_aws-orders_second.json": `"AWS": "arn:aws:iam::123456789012:role/team/orders"`,
		"create-trust-anchor.anchor.json":                       `-----BEGIN CERTIFICATE-----\n`,
	} {
		if got := read(t, filepath.Join(dir, name)); !json.Valid([]byte(got)) || !strings.Contains(got, says) {
			t.Errorf("%s is\n%s", name, got)
		}
	}
	applied := read(t, filepath.Join(dir, "credence.in"))
	var doc struct {
		CAFile   string `json:"ca_file"`
		Anywhere struct {
			TrustAnchor string `json:"trust_anchor"`
			Profile     string `json:"profile"`
		} `json:"aws_roles_anywhere"`
	}
	if err := json.Unmarshal([]byte(applied), &doc); err != nil || doc.Anywhere.TrustAnchor != "arn:anchor/1" || doc.Anywhere.Profile != "arn:profile/2" || doc.CAFile != anywhereTarget().CAFile {
		t.Errorf("%v: %s", err, applied)
	}
	if err := os.Remove(filepath.Join(dir, "calls")); err != nil {
		t.Fatal(err)
	}
	runScript(t, dir, text, "SECOND_PROFILE=two")
	if calls := read(t, filepath.Join(dir, "calls")); strings.Contains(calls, "create-") || !strings.Contains(calls, "update-trust-anchor") || !strings.Contains(calls, "two-iam update-assume-role-policy") {
		t.Errorf("a second time:\n%s", calls)
	}
}

// What no cloud would take is refused here, with what to change.
func TestSetupRefuses(t *testing.T) {
	targets := setupTargets()
	many := make([]exchangers.Party, 21)
	for i := range many {
		many[i] = exchangers.Party{Identity: "a", SPIFFEID: "spiffe://example.org/" + strings.Repeat("a", i+1)}
	}
	for name, c := range map[string]struct {
		target  string
		change  func(*exchangers.Facts)
		choices exchangers.Choices
		says    string
	}{
		"nobody":              {"gcp", func(f *exchangers.Facts) { f.Parties = nil }, exchangers.Choices{}, "no Identity lists target gcp.a"},
		"no issuer":           {"web", func(f *exchangers.Facts) { f.Issuer = "" }, exchangers.Choices{}, "set issuer in broker.yaml"},
		"no anchor":           {"anywhere", func(f *exchangers.Facts) { f.Anchors = nil }, exchangers.Choices{}, "no X.509 authority"},
		"three anchors":       {"anywhere", func(f *exchangers.Facts) { f.Anchors = []*x509.Certificate{f.Anchors[0], f.Anchors[0], f.Anchors[0]} }, exchangers.Choices{}, "the provider takes 2"},
		"a long ID":           {"anywhere", func(f *exchangers.Facts) { f.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 256) }, exchangers.Choices{}, "277 bytes"},
		"shared, no chain":    {"anywhere", func(f *exchangers.Facts) { f.SharedRoot = true }, exchangers.Choices{}, "signs for others too"},
		"shared, no name":     {"anywhere", func(f *exchangers.Facts) { f.SharedRoot, f.Chain = true, []*x509.Certificate{{}} }, exchangers.Choices{}, "no common name"},
		"shared, cert login":  {"cert", func(f *exchangers.Facts) { f.SharedRoot, f.Chain = true, f.Anchors }, exchangers.Choices{}, "can't ask for an issuer"},
		"azure, a template":   {"azure", func(f *exchangers.Facts) { f.Parties[0].SPIFFEID += "/{node.name}" }, exchangers.Choices{}, "made of facts"},
		"azure, 21":           {"azure", func(f *exchangers.Facts) { f.Parties = many }, exchangers.Choices{}, "at most 20"},
		"azure, uploaded":     {"azure", func(*exchangers.Facts) {}, exchangers.Choices{UploadKeys: true}, "are not taken"},
		"azure, a bad ID":     {"azure", func(*exchangers.Facts) {}, exchangers.Choices{ManagedIdentity: "$(x)"}, "/subscriptions/ID/"},
		"aws, an identity":    {"web", func(*exchangers.Facts) {}, exchangers.Choices{ManagedIdentity: "x"}, "for other providers"},
		"gcp X.509, uploaded": {"gcp x509", func(*exchangers.Facts) {}, exchangers.Choices{UploadKeys: true}, "no keys to upload"},
		"gcp X.509, long":     {"gcp x509", func(f *exchangers.Facts) { f.Parties[0].SPIFFEID = "spiffe://example.org/" + strings.Repeat("a", 127) }, exchangers.Choices{}, "148 bytes"},
		"vault, uploaded":     {"vault", func(*exchangers.Facts) {}, exchangers.Choices{UploadKeys: true}, "for other providers"},
	} {
		t.Run(name, func(t *testing.T) {
			facts := setupFacts(t, targets[c.target])
			c.change(&facts)
			for _, form := range []string{"terraform", "cli", "json"} {
				if text, err := credence.SetupText(facts, c.choices, form); err == nil || text != "" || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v; %q", err, text)
				}
			}
		})
	}
}
