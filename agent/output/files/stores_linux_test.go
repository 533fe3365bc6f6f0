package files_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/output/files"
)

// What Java and OpenSSL bring reads the stores: key, leaf and chain in one, the
// roots, as trusted, in the other.
func TestStoresAreReadByOthers(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) {
		password := filepath.Join(filepath.Dir(c.Dir), "password")
		if err := os.WriteFile(password, []byte("changeit\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.PKCS12 = &files.PKCS12{Trust: "ca.p12", PasswordFile: password}
	})
	v := s.svid("/web", "")
	s.write(s.update(v))
	key, trust := filepath.Join(s.cfg.Dir, files.DefaultP12), filepath.Join(s.cfg.Dir, "ca.p12")
	leaf := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificates[0].Raw})))
	root := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Root.Raw})))
	for name, row := range map[string]struct {
		argv []string
		want []string
	}{
		"keytool, the key":   {[]string{"keytool", "-J-Duser.language=en", "-list", "-rfc", "-keystore", key, "-storepass", "changeit"}, []string{"PrivateKeyEntry", leaf}},
		"keytool, the roots": {[]string{"keytool", "-J-Duser.language=en", "-list", "-rfc", "-keystore", trust, "-storepass", "changeit"}, []string{"trustedCertEntry", root}},
		"openssl, the key":   {[]string{"openssl", "pkcs12", "-in", key, "-passin", "pass:changeit", "-nodes"}, []string{"BEGIN PRIVATE KEY", leaf}},
		"openssl, the roots": {[]string{"openssl", "pkcs12", "-in", trust, "-passin", "pass:changeit", "-nokeys"}, []string{root}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := read(t, row.argv...)
			for _, want := range row.want {
				if err != nil || !strings.Contains(out, want) {
					t.Fatalf("%v: no %q in\n%s", err, want, out)
				}
			}
			for n, arg := range row.argv {
				row.argv[n] = strings.ReplaceAll(arg, "changeit", "another1")
			}
			if out, err := read(t, row.argv...); err == nil {
				t.Errorf("by another password:\n%s", out)
			}
		})
	}
}

// read runs a program that may not be here.
func read(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath(argv[0])
	if err != nil {
		t.Skipf("this machine has no %s", argv[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+t.TempDir())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return strings.ReplaceAll(out.String(), "\r", ""), err
}
