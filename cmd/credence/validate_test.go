package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	credence "github.com/credence-id/credence/cmd/credence"
)

// Each cloud's own bounds reach the lints.
func TestValidateWarns(t *testing.T) {
	t.Parallel()
	text := `kind: Identity
name: long
spiffe_id: /` + strings.Repeat("a", 128-len("spiffe://example.org/")) + `
match: [{node.name: n1}]
targets: [gcp, roles, azure, bao]
---
kind: Identity
name: fact
spiffe_id: /{workload.unix.user | lower}
match: [{node.name: n1, workload.unix.uid: "*"}]
x509: {dns_names: ["{workload.unix.user | lower}.svc.example"], subject: "CN={workload.unix.user}"}
jwt: {audiences: [orders], claims: {user: "{workload.unix.user}"}}
targets: [azure]
---
{kind: Target, name: gcp, gcp: {audience: //iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/orders/providers/credence}}
---
kind: Target
name: roles
aws_roles_anywhere:
  role: arn:aws:iam::123456789012:role/orders
  trust_anchor: arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21
  profile: arn:aws:rolesanywhere:eu-west-1:123456789012:profile/9b7d2f60-1a5c-4c0e-8f3e-2d4b6a8c0e13
---
{kind: Target, name: azure, azure: {tenant: 4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21, client_id: 9b7d2f60-1a5c-4c0e-8f3e-2d4b6a8c0e13, scope: https://management.azure.com/.default}}
---
{kind: Target, name: bao, oauth: {vault_cert: {url: "https://bao.example:8200", role: r}}}
`
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	if code := credence.Run(t.Context(), []string{"validate", file, "-o", "json"}, strings.NewReader(""), &out, &bad); code != 0 {
		t.Fatal(bad.String())
	}
	var v struct{ Warnings []string }
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	wants := []string{
		"policy.yaml:9:12: Identity fact", "[template_lossy]", "[credentials_template]", "Google Cloud, where gcp leads, takes at most 127", "Roles Anywhere, where roles leads, wants", "OpenBao or Vault, where bao leads, wants",
	}
	all := strings.Join(v.Warnings, "\n")
	for _, want := range wants {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if len(v.Warnings) != 5 || strings.Count(bad.String(), "warning: ") != 5 {
		t.Errorf("%s\n%s", all, bad.String())
	}
}
