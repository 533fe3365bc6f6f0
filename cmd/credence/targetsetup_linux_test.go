package main_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// setupLive are Targets as somebody writes them before anything is there.
const setupLive = `kind: Target
name: new-anywhere
aws_roles_anywhere:
  role: arn:aws:iam::123456789012:role/team/new
  trust_anchor: arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/00000000-0000-0000-0000-000000000000
  profile: arn:aws:rolesanywhere:us-east-1:123456789012:profile/00000000-0000-0000-0000-000000000000
---
kind: Target
name: new-web
aws_web_identity: {role: "arn:aws:iam::123456789012:role/web", region: us-east-1}
---
kind: Target
name: new-gcp
gcp: {audience: "//iam.googleapis.com/projects/424242/locations/global/workloadIdentityPools/new-pool/providers/new-jwt"}
---
kind: Target
name: new-gcp-x509
gcp: {audience: "//iam.googleapis.com/projects/424242/locations/global/workloadIdentityPools/new-pool/providers/new-x509", svid: x509}
---
kind: Target
name: new-azure
azure: {tenant: 11111111-2222-3333-4444-555555555555, client_id: 00000000-0000-0000-0000-000000000000, scope: "https://management.azure.com/.default"}
---
kind: Identity
name: new
spiffe_id: /new/{workload.unix.uid}
match: [{node.name: dev, workload.unix.uid: "%[1]d"}]
x509: {subject: "CN=new"}
targets: [new-anywhere, new-web, new-gcp, new-gcp-x509, new-azure]
`

// From Targets with zeros to credentials, with nothing copied: real SVIDs of a
// broker at a sandbox that holds what setup wrote; then another Identity of the
// same domain, which it refuses.
func TestSetupFromNothing(t *testing.T) {
	d := startDev(t, tempDir(t))
	d.apply(t, fmt.Sprintf(setupLive, os.Getuid()))
	services := map[string]string{"new-anywhere": "rolesanywhere", "new-web": "sts", "new-gcp": "gcp_sts", "new-gcp-x509": "gcp_sts_mtls", "new-azure": "entra"}
	s := &sandboxRun{dir: tempDir(t)}
	var files []string
	for name := range services {
		file := filepath.Join(s.dir, name+".json")
		if err := os.WriteFile(file, []byte(d.admin(t, "target", "setup", name, "-o", "json")), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	list, _ := json.Marshal(files)
	text := fmt.Sprintf("issuers: {ca_file: %q, lenient_loopback_issuer: true}\naddresses: sandbox.json\nsetup: %s\n", d.json.CAFile, list)
	if err := os.WriteFile(filepath.Join(s.dir, "sandbox.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(t, "credence validate sandbox.yaml")
	cmd := exec.Command("credence", "sandbox", "run")
	cmd.Dir = s.dir
	s.process = startCmd(t, cmd)
	if _, err := s.await("^ready: ", 0); err != nil {
		t.Fatal(err)
	}
	var where struct {
		CAFile   string `json:"ca_file"`
		Services map[string]string
		Targets  map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(s.dir, "sandbox.json"))), &where); err != nil {
		t.Fatal(err)
	}
	if len(where.Targets) != 2 {
		t.Errorf("finished Targets: %v", maps.Keys(where.Targets))
	}
	for name, doc := range where.Targets {
		finished, _ := json.Marshal(doc)
		d.apply(t, string(finished))
		if strings.Contains(string(finished), unset) {
			t.Errorf("%s is not finished: %s", name, finished)
		}
	}
	for name, service := range services {
		d.pointAt(t, name, where.Services[service], where.CAFile)
		if code, out, errs := d.credentials(t, name); code != 0 || out == "" {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	other := strings.NewReplacer("name: new\n", "name: other\n", "/new/", "/other/", "CN=new", "CN=other").Replace(fmt.Sprintf(setupLive, os.Getuid()))
	d.admin(t, "delete", "identity", "new")
	d.apply(t, other[strings.LastIndex(other, "kind: Identity"):])
	for name := range services {
		if code, out, errs := d.credentials(t, name); code != 1 || !strings.Contains(out, "refused") {
			t.Errorf("%s lets another in: exit code %d, %q, %s", name, code, out, errs)
		}
	}
	d.finish(t)
}

// pointAt gives a Target that stands an endpoint.
func (d *devRun) pointAt(t *testing.T, name, url, ca string) {
	t.Helper()
	text := d.admin(t, "get", "target", name, "-o", "yaml")
	d.apply(t, fmt.Sprintf("%s\nendpoint: %s\nca_file: %q\n", strings.TrimRight(text, "\n"), url, ca))
}

func (d *devRun) credentials(t *testing.T, name string) (code int, out, errs string) {
	t.Helper()
	return credenceCmd(t, "", "target", "check", name, "--call", "--socket", d.json.WorkloadSocket)
}
