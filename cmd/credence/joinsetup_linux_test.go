package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/cmd/agentcmd"
)

const (
	circleOrg     = "0d0b1a5c-2222-4444-8888-aaaaaaaaaaaa"
	circleProject = "1d0b1a5c-2222-4444-8888-bbbbbbbbbbbb"
)

// What setup writes for a CI system is taken by the broker, by the agent, and is the
// form that the system reads.
func TestJoinSetup(t *testing.T) {
	t.Parallel()
	s := newSide(t, "example.org")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	const audience = "credence://example.org/join"
	var policies strings.Builder
	check := []string{"validate"}
	for system, row := range map[string]struct {
		args []string
		job  string
		says []string // in policy, and in the job
	}{
		"github": {
			[]string{"--repository", "acme/checkout", "--environment", "production", "--ref", "refs/heads/main"}, ".github/workflows/credence.yml",
			[]string{"node.github.repository: acme/checkout", "node.github.environment: production", "node.github.ref: refs/heads/main", "id-token: write", "environment: production", "-- credence-agent svid x509"},
		},
		"gitlab": {
			[]string{"--project", "acme/pay/ledger", "--host", "gitlab.acme.example"}, ".gitlab-ci.yml",
			[]string{"node.gitlab.project_path: acme/pay/ledger", "host: gitlab.acme.example", "CREDENCE_ID_TOKEN:", "aud: " + audience},
		},
		"circleci": {
			[]string{"--organization", circleOrg, "--project", circleProject, "--name", "circle"}, ".circleci/config.yml",
			[]string{"organization: " + circleOrg, "node.circleci.project_id: " + circleProject, "spiffe_id: /ci/circle"},
		},
		"azure_devops": {
			[]string{"--organization", circleOrg, "--project", "acme/Web Shop/deploy"}, "azure-pipelines.yml",
			[]string{"audience: api://AzureADTokenExchange", "node.azure_devops.sub: p://acme/Web Shop/deploy", "SYSTEM_ACCESSTOKEN: $(System.AccessToken)"},
		},
		"terraform_cloud": {
			[]string{"--organization", "acme", "--project", "network"}, "compose.yaml",
			[]string{"node.terraform_cloud.terraform_organization_name: acme", "node.terraform_cloud.terraform_workspace_name: network", "TFC_WORKLOAD_IDENTITY_AUDIENCE_CREDENCE=" + audience},
		},
		"aws_oidc": {
			[]string{"--issuer", "https://1a2b.tokens.sts.global.api.aws", "--role", "arn:aws:iam::123456789012:role/deploy"}, "buildspec.yml",
			[]string{"issuer: https://1a2b.tokens.sts.global.api.aws", "node.aws_oidc.sub: arn:aws:iam::123456789012:role/deploy"},
		},
	} {
		dir := s.path(system)
		s.credence("", append([]string{"join", "setup", system, "--out", dir}, row.args...)...)
		read := func(name string) string {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		policy, job := read("policy.yaml"), read(row.job)
		for _, want := range row.says {
			if !strings.Contains(policy+job, want) {
				t.Errorf("%s: nothing says %q:\n%s%s", system, want, policy, job)
			}
		}
		policies.WriteString(policy + "---\n")
		check = append(check, filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "credence-agent.yaml"))
		var f agentcmd.File
		if err := yaml.UnmarshalWithOptions([]byte(read("credence-agent.yaml")), &f, yaml.Strict()); err != nil {
			t.Fatalf("%s: %v", system, err)
		}
		if err := f.Complete(); err != nil || f.Trust.CAPin[0] != pin[1] || f.Broker[0] != "127.0.0.1:"+s.ports[0] || !f.Ephemeral {
			t.Errorf("%s: %v: %+v", system, err, f)
		}
		var parsed map[string]any
		if err := yaml.Unmarshal([]byte(job), &parsed); err != nil || len(parsed) == 0 {
			t.Errorf("%s: %v:\n%s", system, err, job)
		}
		if !strings.Contains(job, "credence-agent run -c ") {
			t.Errorf("%s: the job starts no agent:\n%s", system, job)
		}
	}
	s.credence("", check...)
	s.credence(strings.TrimSuffix(policies.String(), "---\n"), "apply", "-f", "-")
	for name, address := range map[string]string{"no port": "id.example.org", "a port's name": "id.example.org:https", "another line": "127.0.0.1:8443\ndata: /x", "a host of two lines": "id.example.org\ndata:8443"} {
		if code, out, errs := credenceCmd(t, "", "join", "setup", "github", "--repository", "acme/x", "--admin", s.path("broker", "run", "admin.sock"), "--address", address); code != 2 || out != "" || !strings.Contains(errs, "--address") {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, errs)
		}
	}
	theirs := filepath.Join(s.path("repository"), ".gitlab-ci.yml")
	if err := os.Mkdir(filepath.Dir(theirs), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(theirs, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := credenceCmd(t, "", "join", "setup", "gitlab", "--project", "acme/x", "--admin", s.path("broker", "run", "admin.sock"), "--out", filepath.Dir(theirs)); code != 2 || !strings.Contains(errs, "there already") {
		t.Errorf("over a job of the repository's own: exit code %d: %s", code, errs)
	}
	if left, err := os.ReadDir(filepath.Dir(theirs)); err != nil || len(left) != 1 {
		t.Errorf("half of it is written: %v, %v", left, err)
	}
	out := s.credence("", "join", "setup", "github", "--repository", "acme/checkout", "--target", "aws,gcp", "--address", "id.example.org:8443")
	for _, want := range []string{"# policy.yaml\n", "---\n# credence-agent.yaml\n", "targets:", "id.example.org:8443", "-- credence-agent exec --target aws,gcp -- ./deploy.sh"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing says %q:\n%s", want, out)
		}
	}
}

// Nothing is let in that was not named, and nothing is written that YAML or a shell
// could take for more than a name.
func TestJoinSetupRefuses(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"a system that is not known": {"jenkins"},
		"nobody in particular":       {"github"},
		"half a name":                {"terraform_cloud", "--organization", "acme"},
		"a pattern":                  {"github", "--repository", "acme/*"},
		"a command":                  {"github", "--repository", "acme/$(id)"},
		"another line":               {"gitlab", "--project", "acme/x\n- evil"},
		"another's flag":             {"github", "--repository", "acme/x", "--role", "arn:aws:iam::1:role/x"},
		"a target that is a command": {"github", "--repository", "acme/x", "--target", "aws;id"},
	} {
		code, out, errs := credenceCmd(t, "", append([]string{"join", "setup"}, args...)...)
		if code != 2 || out != "" {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, errs)
		}
	}
}
