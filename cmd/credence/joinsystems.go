package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// A ciSystem is what is known of one: what its jobs are told apart by, and how one
// runs. Names and forms are those of the vendors' manuals under "OpenID Connect".
type ciSystem struct {
	wants, takes []string // flags
	subject      func(ciFlags) string
	settings     func(ciFlags) map[string]string
	allow        func(ciFlags) map[string]string // facts, without node.SYSTEM
	file         string                          // of the job
	job          func(ciFlags, meeting) any
}

// azureAudience is the one that Azure DevOps gives to every token.
const azureAudience = "api://AzureADTokenExchange"

// install is how a job gets the agent, and agentConfig what it runs by.
const (
	install     = "go install github.com/credence-id/credence/cmd/credence-agent@latest"
	agentConfig = "credence-agent.yaml"
)

var ciSystems = map[string]ciSystem{
	"github": {
		wants: []string{"repository"}, takes: []string{"environment", "ref", "host"}, subject: func(f ciFlags) string { return f.Repository },
		settings: func(f ciFlags) map[string]string { return map[string]string{"host": f.Host} },
		allow: func(f ciFlags) map[string]string {
			return map[string]string{"repository": f.Repository, "environment": f.Environment, "ref": f.Ref}
		},
		file: ".github/workflows/credence.yml",
		job: func(f ciFlags, m meeting) any {
			job := fields{
				{"runs-on", "ubuntu-latest"}, {"permissions", fields{{"id-token", "write"}, {"contents", "read"}}},
				{"steps", []any{
					fields{{"uses", "actions/checkout@v4"}},
					fields{{"uses", "actions/setup-go@v5"}, {"with", fields{{"go-version", "stable"}}}},
					fields{{"run", install}}, fields{{"run", f.command("")}},
				}},
			}
			if f.Environment != "" {
				job = append(fields{{"environment", f.Environment}}, job...)
			}
			return fields{{"name", "credence"}, {"on", []string{"push", "workflow_dispatch"}}, {"jobs", fields{{"credence", job}}}}
		},
	},
	"gitlab": {
		wants: []string{"project"}, takes: []string{"environment", "ref", "host"}, subject: func(f ciFlags) string { return f.Project },
		settings: func(f ciFlags) map[string]string { return map[string]string{"host": f.Host} },
		allow: func(f ciFlags) map[string]string {
			return map[string]string{"project_path": f.Project, "environment": f.Environment, "ref": f.Ref}
		},
		file: ".gitlab-ci.yml",
		job: func(f ciFlags, m meeting) any {
			job := fields{
				{"image", "golang:1.26"}, {"id_tokens", fields{{"CREDENCE_ID_TOKEN", fields{{"aud", m.audience()}}}}},
				{"script", []string{install, f.command("")}},
			}
			if f.Environment != "" {
				job = append(fields{{"environment", f.Environment}}, job...)
			}
			return fields{{"credence", job}}
		},
	},
	"circleci": {
		wants: []string{"organization", "project"}, subject: func(f ciFlags) string { return f.Project },
		settings: func(f ciFlags) map[string]string { return map[string]string{"organization": f.Organization} },
		allow:    func(f ciFlags) map[string]string { return map[string]string{"project_id": f.Project} },
		file:     ".circleci/config.yml",
		job: func(f ciFlags, m meeting) any {
			return fields{
				{"version", "2.1"},
				{"jobs", fields{{"credence", fields{
					{"docker", []any{fields{{"image", "cimg/go:1.26"}}}},
					{"steps", []any{"checkout", fields{{"run", install}}, fields{{"run", f.command("")}}}},
				}}}},
				{"workflows", fields{{"credence", fields{{"jobs", []string{"credence"}}}}}},
			}
		},
	},
	"azure_devops": {
		wants: []string{"organization", "project"}, subject: func(f ciFlags) string { return f.Project },
		settings: func(f ciFlags) map[string]string {
			return map[string]string{"organization": f.Organization, "audience": azureAudience}
		},
		allow: func(f ciFlags) map[string]string { return map[string]string{"sub": "p://" + f.Project} },
		file:  "azure-pipelines.yml",
		job: func(f ciFlags, m meeting) any {
			return fields{
				{"trigger", []string{"main"}}, {"pool", fields{{"vmImage", "ubuntu-latest"}}},
				{"steps", []any{
					fields{{"checkout", "self"}},
					fields{{"task", "GoTool@0"}, {"inputs", fields{{"version", "1.26"}}}},
					fields{{"script", install}},
					fields{{"script", f.command("$(go env GOPATH)/bin/")}, {"env", fields{{"SYSTEM_ACCESSTOKEN", "$(System.AccessToken)"}}}},
				}},
			}
		},
	},
	"terraform_cloud": {
		wants: []string{"organization", "project"}, takes: []string{"host"}, subject: func(f ciFlags) string { return f.Project },
		settings: func(f ciFlags) map[string]string { return map[string]string{"host": f.Host} },
		allow: func(f ciFlags) map[string]string {
			return map[string]string{"terraform_organization_name": f.Organization, "terraform_workspace_name": f.Project}
		},
		file: "compose.yaml",
		job:  terraformAgent,
	},
	"aws_oidc": {
		wants: []string{"issuer", "role"}, subject: func(f ciFlags) string { return path.Base(f.Role) },
		settings: func(f ciFlags) map[string]string { return map[string]string{"issuer": f.Issuer} },
		allow:    func(f ciFlags) map[string]string { return map[string]string{"sub": f.Role} },
		file:     "buildspec.yml",
		job: func(f ciFlags, m meeting) any {
			return fields{
				{"version", 0.2},
				{"phases", fields{
					{"install", fields{{"runtime-versions", fields{{"golang", "latest"}}}, {"commands", []string{install}}}},
					{"build", fields{{"commands", []string{f.command("$(go env GOPATH)/bin/")}}}},
				}},
			}
		},
	},
}

// terraformAgent is an agent of HCP Terraform's whose runs have a node beside them:
// a run is no command that could be started, so a hook starts the node before it, and
// one after it ends it.
func terraformAgent(f ciFlags, m meeting) any {
	const hooks = "/home/tfc-agent/.tfc-agent/hooks/"
	start := "#!/bin/sh\n# A provider's credential_process: credence-agent credentials --socket unix:///run/credence/workload.sock NAME\nset -eu\numask 077\n" +
		"setsid credence-agent run -c /etc/credence/" + agentConfig + " >/run/credence/agent.log 2>&1 </dev/null &\necho $! >/run/credence/agent.pid\n" +
		"credence-agent svid x509 --socket unix:///run/credence/workload.sock --out /run/credence/svid --wait 50s\n"
	stop := "#!/bin/sh\nkill \"$(cat /run/credence/agent.pid)\"\n"
	var configs, mounts []any
	contents := fields{}
	for _, h := range []struct{ name, text string }{
		{"terraform-pre-plan", start}, {"terraform-post-plan", stop}, {"terraform-pre-apply", start}, {"terraform-post-apply", stop},
	} {
		contents = append(contents, field{h.name, fields{{"content", strings.ReplaceAll(h.text, "$", "$$")}}})
		configs = append(configs, fields{{"source", h.name}, {"target", hooks + h.name}, {"mode", 0o755}})
	}
	mounts = append(mounts, "./credence-agent:/usr/local/bin/credence-agent:ro", "./"+agentConfig+":/etc/credence/"+agentConfig+":ro")
	return fields{
		{"services", fields{{"tfc-agent", fields{
			{"image", "hashicorp/tfc-agent:latest"}, {"environment", fields{{"TFC_AGENT_TOKEN", "${TFC_AGENT_TOKEN}"}}},
			{"volumes", mounts}, {"configs", configs}, {"tmpfs", []string{"/run/credence:mode=1777"}}, // its user has no number that is promised
		}}}},
		{"configs", contents},
	}
}

func ciNames() (names []string) { return sortedKeys(ciSystems) }

// command is what a job runs: an agent, and in it what uses it. bin is before the
// program's name.
func (f ciFlags) command(bin string) string {
	run := bin + "credence-agent run -c " + agentConfig + " -- " + bin + "credence-agent "
	if len(f.Targets) == 0 {
		return run + "svid x509 --out svid"
	}
	return run + "exec --target " + strings.Join(f.Targets, ",") + " -- ./deploy.sh"
}

var (
	ciPlain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._/:@+-]{0,255}$`)
	ciHost  = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,255}$`) // an IP address too
	ciName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
)

// check holds flags against what a system takes. What is written ends up in YAML and
// in scripts: nothing that either could misread is taken, nor a pattern.
func (ci ciSystem) check(f ciFlags) error {
	for _, flag := range []struct{ name, value string }{
		{"repository", f.Repository}, {"project", f.Project}, {"organization", f.Organization}, {"environment", f.Environment},
		{"ref", f.Ref}, {"host", f.Host}, {"issuer", f.Issuer}, {"role", f.Role},
	} {
		wanted := slices.Contains(ci.wants, flag.name)
		switch {
		case flag.value == "" && wanted:
			return fmt.Errorf("--%s is required: without it jobs of others could join", flag.name)
		case flag.value != "" && !wanted && !slices.Contains(ci.takes, flag.name):
			return fmt.Errorf("--%s is nothing that tells its jobs apart", flag.name)
		case flag.value != "" && !ciPlain.MatchString(flag.value):
			return fmt.Errorf("--%s: %.80q: letters, digits and ._/:@+- are taken, no pattern", flag.name, flag.value)
		}
	}
	for _, t := range f.Targets {
		if !ciName.MatchString(t) {
			return fmt.Errorf("--target: %.80q is no target's name", t)
		}
	}
	if f.Name != "" && !ciName.MatchString(f.Name) {
		return fmt.Errorf("--name: %.80q: letters, digits and ._- are taken", f.Name)
	}
	return nil
}

type written struct{ path, text string }

// files are what setup writes.
func (ci ciSystem) files(system string, f ciFlags, m meeting) ([]written, error) {
	name := f.Name
	if name == "" {
		name = system + "-" + path.Base(ci.subject(f))
		name = strings.ToLower(strings.NewReplacer("_", "-", " ", "-", ":", "-", "@", "-", "+", "-").Replace(name))
	}
	terms := fields{}
	allow := ci.allow(f)
	for _, fact := range sortedKeys(allow) {
		if allow[fact] != "" {
			terms = append(terms, field{"node." + system + "." + fact, allow[fact]})
		}
	}
	settings := fields{}
	given := ci.settings(f)
	for _, key := range sortedKeys(given) {
		if given[key] != "" {
			settings = append(settings, field{key, given[key]})
		}
	}
	identity := fields{{"kind", "Identity"}, {"name", name}, {"spiffe_id", "/ci/" + name}, {"match", []any{terms}}, {"x509", fields{{"subject", "CN=" + name}}}}
	if len(f.Targets) > 0 {
		identity = append(identity, field{"targets", f.Targets})
	}
	rule, err := yamlText(fields{{"kind", "JoinRule"}, {"name", name}, {system, settings}, {"allow", []any{terms}}})
	if err != nil {
		return nil, err
	}
	who, err := yamlText(identity)
	if err != nil {
		return nil, err
	}
	agent := fields{
		{"trust_domain", m.TrustDomain}, {"ephemeral", true}, {"broker", []string{m.Broker}}, {"trust", fields{{"ca_pin", m.Pins}}},
		{"join", fields{{"method", system}, {"rule", name}}},
	}
	if system == "terraform_cloud" {
		agent = append(agent, field{"socket", "/run/credence/workload.sock"})
	}
	agentText, err := yamlText(agent)
	if err != nil {
		return nil, err
	}
	job, err := yamlText(ci.job(f, m))
	if err != nil {
		return nil, err
	}
	if system == "terraform_cloud" {
		job = "# Variable of the workspace, category env: TFC_WORKLOAD_IDENTITY_AUDIENCE_CREDENCE=" + m.audience() + "\n" + job
	}
	return []written{{"policy.yaml", rule + "---\n" + who}, {agentConfig, m.note + agentText}, {ci.file, job}}, nil
}

// fields are a mapping in its order.
type fields []field

type field struct {
	name  string
	value any
}

func yamlText(v any) (string, error) {
	text, err := yaml.MarshalWithOptions(ordered(v), yaml.IndentSequence(true), yaml.UseLiteralStyleIfMultiline(true))
	return string(text), err
}

// ordered is v as the encoder keeps its order.
func ordered(v any) any {
	switch v := v.(type) {
	case fields:
		out := make(yaml.MapSlice, 0, len(v))
		for _, f := range v {
			out = append(out, yaml.MapItem{Key: f.name, Value: ordered(f.value)})
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, one := range v {
			out = append(out, ordered(one))
		}
		return out
	}
	return v
}
