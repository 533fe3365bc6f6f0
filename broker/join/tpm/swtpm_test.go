package tpm_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
	"github.com/credence-id/credence/broker/join/tpm"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A TPM that swtpm's tools manufacture, with a certificate of their making, which shares
// no code with us, joins: by the CA that issued it, and by the root above.
func TestManufactured(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: nobody to manufacture a TPM", program)
		}
	}
	dir := tpmtest.Dir(t)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal(err)
	}
	root := tpmtest.NewMaker(t, "root", nil, time.Now())
	key := issuertest.RSA() // the tools take no key of an elliptic curve
	issuer := root.Sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "swtpm"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}, key.Public())
	issued := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw}))
	write("issuer.pem", issued)
	write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	ca := write("ca.conf", fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", dir))
	options := write("ca.options", "--platform-manufacturer Acme\n--platform-version 1\n--platform-model Rack\n")
	setup := write("setup.conf", fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n", localca, ca, options))
	if out, err := exec.CommandContext(t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", dir, "--create-ek-cert", "--config", setup).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := evidence.Config{TrustDomain: domain, Device: tpmtest.StartIn(t, dir)}
	n := evidence.New(c)
	now := func(c *tpm.Config) { c.Now = time.Now }
	proof, err := joinAs(t, method(t, &tpm.Settings{Roots: issued}, now), n)
	if err != nil {
		t.Fatal(err)
	}
	got := proof.Facts.Map()
	for _, random := range []string{"ek_hash", "certificate_serial", "root_key"} {
		if len(got["node.tpm."+random]) != 1 {
			t.Errorf("%s: %q", random, got["node.tpm."+random])
		}
		delete(got, "node.tpm."+random)
	}
	if len(got["node.tpm.version"]) != 1 || !strings.HasPrefix(got["node.tpm.version"][0], "id:") {
		t.Errorf("version: %q", got["node.tpm.version"]) // of the library
	}
	delete(got, "node.tpm.version")
	if d := cmp.Diff(map[string][]string{"node.tpm.manufacturer": {"id:00001014"}, "node.tpm.model": {"swtpm"}, "node.tpm.issuer_cn": {"swtpm"}}, got); d != "" {
		t.Error(d)
	}
	// Under the root, with what stands between in a file.
	found, _ := find(t, n)
	c.Cert = write("chain.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: found.Chain[0].Raw}))+issued)
	under := method(t, &tpm.Settings{Roots: root.PEM()}, now)
	if _, err := joinAs(t, under, evidence.New(c)); err != nil {
		t.Error(err)
	}
	_, err = joinAs(t, under, n)
	refused(t, "without what stands between", err, "unknown authority")
}
