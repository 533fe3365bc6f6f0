package kubernetes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/kubernetes"
)

// put writes a token as the kubelet does: the file is a link into ..data, which is
// a link that changes.
func put(t *testing.T, dir, version, text string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, version, "credence"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

func TestEvidence(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "..1", "first\n")
	if err := os.Symlink("..data/credence", filepath.Join(dir, "credence")); err != nil {
		t.Fatal(err)
	}
	c := kubernetes.Config{File: filepath.Join(dir, "credence")}
	for n, row := range []struct{ text, want string }{
		{"", "first"}, {"second", "second"}, {" third \r\n", "third"}, {strings.Repeat("a", 16<<10), strings.Repeat("a", 16<<10)},
	} {
		if n > 0 { // read anew each time
			put(t, dir, "..next"+row.want[:1]+string(rune('0'+n)), row.text)
		}
		if got, err := c.Evidence(t.Context()); err != nil || string(got) != row.want {
			t.Errorf("%.20q, %v", got, err)
		}
	}
	for n, text := range []string{"", " \n", strings.Repeat("b", 16<<10+1)} {
		put(t, dir, "..bad"+string(rune('0'+n)), text)
		got, err := c.Evidence(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.File) || strings.Contains(err.Error(), "bbbb") {
			t.Errorf("%d bytes are taken for a token: %.20q, %v", len(text), got, err)
		}
	}
	if _, err := (kubernetes.Config{}).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), kubernetes.DefaultFile) {
		t.Errorf("outside a pod: %v", err)
	}
}
