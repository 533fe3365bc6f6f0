package kubeaccess_test

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/kubeaccess"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestToken(t *testing.T) {
	if got, err := kubeaccess.Token(write(t, " a.b-c\n")); err != nil || got != "a.b-c" {
		t.Errorf("%q, %v", got, err)
	}
	for name, text := range map[string]string{
		"empty": "", "space": " \n", "two lines": "s3cret\ns3cret", "a space within": "s3cret s3cret", "a control": "s3cret\x00", "beyond ASCII": "s3cret\u00e9",
		"too long": strings.Repeat("a", 16<<10+1),
	} {
		if got, err := kubeaccess.Token(write(t, text)); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := kubeaccess.Token(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file has a token")
	}
}

func TestCA(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	text, roots, err := kubeaccess.CA(write(t, good))
	if err != nil || string(text) != good || roots == nil {
		t.Fatalf("%q, %v, %v", text, roots, err)
	}
	for name, text := range map[string]string{"empty": "", "waste": "x", "too long": good + strings.Repeat("\n", 1<<20)} {
		if _, _, err := kubeaccess.CA(write(t, text)); err == nil {
			t.Errorf("%s is a CA", name)
		}
	}
	if _, _, err := kubeaccess.CA(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file has a CA")
	}
}
