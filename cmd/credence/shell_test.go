package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The lines that dev prints to be pasted say what they say in a shell too,
// whatever the data directory is called.
//
// Regression: CVE-2022-36633
func TestLinesForAShellAreQuoted(t *testing.T) {
	top := tempDir(t)
	if err := os.Chmod(top, 0o755); err != nil { // or the sockets would be elsewhere
		t.Fatal(err)
	}
	data := filepath.Join(top, `a b;$(id>x)'"&`)
	d := startDev(t, data)
	text, _ := d.printed()
	lines := regexp.MustCompile(`(?m)^ +export .*$`).FindAllString(text, -1)
	if len(lines) != 4 {
		t.Fatalf("lines %q in:\n%s", lines, text)
	}
	cmd := exec.Command("sh", "-c", strings.Join(lines, "\n")+"\n"+`printf '%s\n%s' "$SPIFFE_ENDPOINT_SOCKET" "$CREDENCE_ADMIN"`)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if want := d.json.WorkloadSocket + "\n" + d.json.AdminSocket; err != nil || string(out) != want {
		t.Errorf("a shell reads %q, %v; want %q", out, err, want)
	}
	if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
		t.Errorf("a shell ran what the path is made of: %v, %v", left, err)
	}
	if !strings.Contains(d.json.AdminSocket, "$(id") {
		t.Errorf("the sockets are elsewhere, and nothing is shown: %s", d.json.AdminSocket)
	}
	if !json.Valid(d.file(t)) {
		t.Error("dev.json is not JSON")
	}
	d.finish(t)
}
