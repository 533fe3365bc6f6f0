package main_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/credence-id/credence/"

// mayImport is the package table of README's "How it is built": what each
// package of ours may import of ours. A pattern's last part may be *; of the
// patterns that match, the longest decides.
var mayImport = map[string][]string{
	"cmd/credence":       {"*"},
	"cmd/credence-agent": {"cmd/agentcmd", "cmd/cli", "cmd/stop"},
	"cmd/agentcmd": {
		"agent", "agent/api", "agent/caller", "agent/spool", "agent/workloadapi", "agent/sds", "agent/local", "agent/telemetry",
		"agent/evidence/awsec2", "agent/evidence/awsiam", "agent/evidence/azure", "agent/evidence/boundkeypair", "agent/evidence/gcp", "agent/evidence/kubernetes", "agent/evidence/oidc", "agent/evidence/spiffe", "agent/evidence/tpm", "agent/evidence/x509",
		"agent/attest/unix", "agent/attest/systemd", "agent/attest/docker", "agent/attest/containerd", "agent/attest/kubernetes",
		"agent/output", "agent/output/files", "agent/output/awscredentials", "agent/output/sdk", "agent/output/kubernetessecret",
		"exchangers", "federation", "cmd/cli", "cmd/flows", "cmd/tracing", "cmd/workloadcmd",
	},
	"cmd/tracing":                            {},
	"cmd/workloadcmd":                        {"agent", "agent/api", "agent/local", "agent/output", "cmd/cli", "cmd/tracing"},
	"cmd/logincmd":                           {"agent", "broker/api", "federation", "cmd/cli"},
	"cmd/stop":                               {},
	"cmd/flows":                              {"exchangers", "exchangers/aws", "exchangers/gcp", "exchangers/azure", "exchangers/oauth"},
	"cmd/cli":                                {"agent", "agent/caller", "broker/resource/strict"},
	"broker":                                 {"broker/identity", "broker/join", "broker/audit"},
	"broker/identity":                        {},
	"broker/resource":                        {"broker/identity", "broker/join", "broker/resource/strict", "federation", "exchangers"},
	"broker/resource/strict":                 {},
	"broker/login":                           {"broker/identity", "broker/join", "broker/join/bearer"},
	"broker/join":                            {"broker/identity"},
	"broker/join/*":                          {"broker/identity", "broker/join", "broker/join/bearer", "broker/join/pkcs7", "broker/join/possession"},
	"broker/join/kubernetes/clustertest":     {"exchangers/sandbox/issuertest"}, // a cluster for tests
	"broker/authority":                       {"broker/identity"},
	"broker/authority/upstream":              {},
	"broker/authority/upstream/disk":         {"broker/authority/upstream"},
	"broker/authority/upstream/vault":        {"broker/authority/upstream"},
	"broker/authority/upstream/upstreamtest": {},
	"broker/keys":                            {},
	"broker/keys/*":                          {"broker/keys", "broker/keys/kek"},
	"broker/keys/keystest":                   {},
	"broker/keys/*/*":                        {"broker/keys/keystest"}, // the services' fakes
	"broker/store":                           {"broker", "broker/identity", "broker/join", "broker/audit", "broker/authority", "federation"},
	"broker/store/postgrestest":              {},
	"broker/store/storetest":                 {"broker/store", "broker", "broker/identity", "broker/join", "broker/audit", "broker/authority", "federation"},
	"broker/audit":                           {},
	"broker/audit/export":                    {"broker/audit"},
	"broker/backup":                          {},
	"broker/oidc":                            {"broker/authority", "federation/endpoint"},
	"broker/api":                             {},
	"agent/api":                              {},
	"broker/server": {
		"broker", "broker/api", "broker/audit", "broker/authority", "broker/identity", "broker/join", "broker/join/token", "broker/oidc",
		"broker/resource", "broker/store", "federation", "federation/endpoint", "exchangers",
	},
	"broker/telemetry":              {"broker", "broker/audit", "broker/authority", "broker/server", "federation"},
	"federation":                    {},
	"federation/fetch":              {"federation"},
	"federation/endpoint":           {"federation", "federation/fetch"},
	"federation/endpoint/acmetest":  {}, // a CA for tests
	"federation/publish":            {"federation"},
	"federation/publish/*":          {"federation", "federation/publish"},
	"federation/federationtest":     {}, // authorities and vectors for tests
	"exchangers":                    {},
	"exchangers/*":                  {"exchangers"},
	"exchangers/sandbox":            {},
	"exchangers/sandbox/*":          {"exchangers/sandbox"},
	"exchangers/sandbox/issuertest": {},
	"exchangers/sandbox/setup":      {"exchangers/sandbox", "exchangers/sandbox/aws", "exchangers/sandbox/gcp", "exchangers/sandbox/azure"},
	"exchangers/sandbox/clouds":     {"exchangers/sandbox", "exchangers/sandbox/aws", "exchangers/sandbox/gcp", "exchangers/sandbox/azure", "exchangers/sandbox/oauth", "exchangers/sandbox/vault", "exchangers/sandbox/setup"},
	"agent":                         {"broker/api", "agent/api", "agent/caller", "agent/spool", "agent/tpm", "agent/tpmseal", "exchangers", "federation"},
	"agent/spool":                   {},
	"agent/tpm":                     {},
	"agent/tpmseal":                 {"agent/tpm"},
	"agent/tpmseal/tpmtest":         {},                                                    // a TPM in software for tests
	"agent/agenttest":               {"broker/api", "agent", "agent/caller", "exchangers"}, // fakes for tests
	"agent/caller":                  {},
	"agent/evidence/*":              {},
	"agent/evidence/boundkeypair":   {"agent/tpm"},
	"agent/evidence/tpm":            {"agent/tpm"},
	"agent/attest":                  {"agent/caller"},
	"agent/attest/*":                {"agent/attest", "agent/caller"},
	"agent/attest/kubernetes":       {"agent/attest", "agent/caller", "agent/kubeaccess"},
	"agent/kubeaccess":              {},
	"agent/output/kubernetessecret": {"agent", "agent/output", "exchangers", "agent/kubeaccess"},
	"agent/attest/attesttest":       {}, // processes and cgroups for tests
	"agent/attest/*/*":              {}, // the services' fakes
	"agent/workloadapi":             {"agent", "agent/api", "agent/caller", "federation"},
	"agent/output":                  {"agent"},
	"agent/output/*":                {"agent", "agent/output", "exchangers"},
	"agent/output/sdk":              {"agent", "agent/output", "agent/local"},
	"agent/sds":                     {"agent", "agent/caller"},
	"agent/telemetry":               {"agent", "agent/caller"},
	"agent/local": {
		"agent", "agent/api", "agent/caller", "exchangers", "exchangers/aws", "exchangers/gcp", "exchangers/azure", // their settings
	},
}

func row(pkg string) (allowed []string, ok bool) {
	best := ""
	for pattern := range mayImport {
		if m, _ := path.Match(pattern, pkg); m && len(pattern) > len(best) {
			best = pattern
		}
	}
	return mayImport[best], best != ""
}

// TestPackageTable holds every package's imports against the table.
func TestPackageTable(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		if strings.HasPrefix(pkg, "examples/") {
			continue
		}
		allowed, ok := row(pkg)
		if !ok {
			t.Errorf("package %s stands in no row of the table", pkg)
			continue
		}
		for _, imported := range fields[1:] {
			imported, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			found := false
			for _, a := range allowed {
				found = found || a == "*" || a == imported
			}
			if !found {
				t.Errorf("%s imports %s, which its row does not name", pkg, imported)
			}
		}
	}
}

// TestSandboxIsAJudge shows that nothing of ours reaches the sandbox: it must
// not share our mistakes.
func TestSandboxIsAJudge(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"exchangers/sandbox/...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if strings.HasPrefix(dep, module) && !strings.HasPrefix(dep, module+"exchangers/sandbox") {
			t.Errorf("the sandbox depends on %s", dep)
		}
	}
}

// TestAgentSignsNothing shows that an agent links no authority, no policy, no
// private keys' store, no database and no sandbox: of the broker nothing but how it
// is spoken to, and how files are read strictly.
func TestAgentSignsNothing(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"cmd/credence-agent", module+"agent/...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	found := false
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		ours, is := strings.CutPrefix(dep, module)
		found = found || ours == "cmd/agentcmd"
		switch {
		case is && strings.HasPrefix(ours+"/", "broker/") && ours != "broker/api" && ours != "broker/resource/strict",
			is && strings.HasPrefix(ours+"/", "exchangers/sandbox/"), is && ours == "cmd/credence",
			strings.HasPrefix(dep, "modernc.org/"), strings.HasPrefix(dep, "github.com/google/cel-go/"), strings.HasPrefix(dep, "github.com/jackc/pgx/"):
			t.Errorf("an agent depends on %s", dep)
		}
	}
	if !found {
		t.Error("the agent's program is not what was looked at")
	}
}

// TestNoSleeping shows that a test which sleeps does so in a synctest bubble's
// fake time.
func TestNoSleeping(t *testing.T) {
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("time."+"Sleep(")) && !bytes.Contains(text, []byte(`"testing/synctest"`)) {
			t.Errorf("%s sleeps, and knows no bubble", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
