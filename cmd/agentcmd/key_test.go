package agentcmd_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

func keyCreate(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	p := &cli.Program{In: strings.NewReader(""), Out: &o, Err: &e}
	code = p.Execute(context.Background(), agentcmd.Root(p), append([]string{"key", "create", "--node", "build-7"}, args...))
	return code, o.String(), e.String()
}

// A key that the TPM keeps is made once, and what its making prints for agent.yaml
// signs by that TPM.
func TestKeyInTheTPM(t *testing.T) {
	t.Parallel()
	device, dir := tpmtest.Start(t), t.TempDir()
	file := filepath.Join(dir, "node.key")
	code, rule, errs := keyCreate("--tpm", "--device", device, file)
	if code != 0 || errs != "" {
		t.Fatalf("%d: %s", code, errs)
	}
	if text, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(text), "-----BEGIN TSS2 PRIVATE KEY-----") {
		t.Errorf("it holds %s, %v", text, err)
	}
	if code, again, errs := keyCreate("--tpm", "--device", device, file); code != 0 || again != rule || !strings.Contains(errs, "has a key already") {
		t.Errorf("again: %d: %s%s", code, again, errs)
	}
	if code, _, errs := keyCreate("--tpm", "--device", tpmtest.Start(t), file); code != cli.ExitInput || !strings.Contains(errs, "another TPM") {
		t.Errorf("of another TPM: %d: %s", code, errs)
	}
	join := regexp.MustCompile(`(?m)^#   (join: .*)$`).FindStringSubmatch(rule)
	if join == nil {
		t.Fatalf("it says nothing for agent.yaml: %s", rule)
	}
	for name, row := range map[string]struct{ join, want string }{
		"as printed": {join[1], ""}, "another device": {strings.Replace(join[1], device, device+".none", 1), "no TPM"},
	} {
		var f agentcmd.File
		text := "trust_domain: example.org\ndata: " + dir + "\nbroker: ['127.0.0.1:1']\ntrust: {ca_pin: ['sha256:" + strings.Repeat("0", 64) + "']}\n" + row.join + "\n"
		if err := yaml.UnmarshalWithOptions([]byte(text), &f, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		if err := f.Complete(); err != nil {
			t.Fatal(err)
		}
		j := agentcmd.JoinOf(&f)
		if _, err := j.Evidence(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := j.AnswerFor(t.Context(), make([]byte, 72), []byte("key")); (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func TestKeysThatAreNotMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain, none := filepath.Join(dir, "plain.key"), filepath.Join(dir, "none")
	if code, _, errs := keyCreate(plain); code != 0 {
		t.Fatal(errs)
	}
	for name, row := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a device without a TPM": {[]string{"--device", none, filepath.Join(dir, "a.key")}, cli.ExitInput, "--device"},
		"no TPM":                 {[]string{"--tpm", "--device", none, filepath.Join(dir, "b.key")}, cli.ExitNo, "no TPM"},
		"a key that is in none":  {[]string{"--tpm", plain}, cli.ExitInput, "name another file"},
		"likewise, of a device":  {[]string{"--tpm", "--device", none, plain}, cli.ExitInput, "in another file"},
	} {
		if code, out, errs := keyCreate(row.args...); code != row.code || out != "" || !strings.Contains(errs, row.want) {
			t.Errorf("%s: %d, want %d: %s%s", name, code, row.code, out, errs)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("it left %v, %v", left, err)
	}
}
