package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/broker/resource/strict"
	credence "github.com/credence-id/credence/cmd/credence"
)

// brokerPod is what of the manifest for Kubernetes this program reads: its file, and
// how the pod runs it. The test beside the manifest holds the rest.
type brokerPod struct {
	file string
	args []string
	env  map[string]string
}

func readBrokerPod(t *testing.T) (p brokerPod) {
	t.Helper()
	const file = "../../examples/kubernetes/credence-broker.yaml"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := strict.Documents(file, text)
	if err != nil {
		t.Fatal(err)
	}
	p.env = map[string]string{}
	for _, d := range docs {
		var o struct {
			Data map[string]string `yaml:"data"`
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Args []string `yaml:"args"`
							Env  []struct{ Name, Value string }
						} `yaml:"containers"`
					} `yaml:"spec"`
				} `yaml:"template"`
			} `yaml:"spec"`
		}
		if err := yaml.NodeToValue(d, &o); err != nil {
			t.Fatal(err)
		}
		p.file += o.Data["broker.yaml"]
		for _, c := range o.Spec.Template.Spec.Containers {
			p.args = append(p.args, c.Args...)
			for _, v := range c.Env {
				p.env[v.Name] = v.Value
			}
		}
	}
	return p
}

// What the pod's environment names of the database, the broker reads; without it,
// and with it, it takes the ConfigMap's broker.yaml.
func TestKubernetesBroker(t *testing.T) {
	p, dir := readBrokerPod(t), t.TempDir()
	file := filepath.Join(dir, "broker.yaml")
	if err := os.WriteFile(file, []byte(p.file), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (int, string) {
		var bad bytes.Buffer
		return credence.Run(t.Context(), args, strings.NewReader(""), &bad, &bad), bad.String()
	}
	for name, value := range p.env {
		if strings.HasPrefix(name, "PG") {
			t.Setenv(name, filepath.Join(dir, filepath.Base(value)))
		}
	}
	if code, said := run("validate", file); code != 2 || !strings.Contains(said, "store: ") {
		t.Errorf("without the database's CA: exit code %d: %s", code, said)
	}
	if err := os.WriteFile(os.Getenv("PGSSLROOTCERT"), databaseCA(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := run("validate", file); code != 0 || strings.Contains(said, "warning") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(p.file, "verify-full", "require", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := run("validate", file); code != 2 || !strings.Contains(said, "must prove who it is") {
		t.Errorf("a database that proves nothing: exit code %d: %s", code, said)
	}
	away := filepath.Join(dir, "none.yaml")
	if code, said := run(append(p.args[:len(p.args)-1:len(p.args)-1], away)...); code != 2 || !strings.Contains(said, away) {
		t.Errorf("%s: exit code %d: %s", p.args, code, said)
	}
}

var podCommand = regexp.MustCompile(`-- /credence ([a-z][^\x60\n#|<>]*)`)

// What README types into a broker's pod is a verb of this program: it looks for the
// broker, and finds none here.
func TestKubernetesBrokerCommands(t *testing.T) {
	text, err := os.ReadFile("../../examples/kubernetes/README.md")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile("../../examples/kubernetes/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENCE_ADMIN", "unix://"+filepath.Join(t.TempDir(), "none.sock"))
	all := podCommand.FindAllStringSubmatch(string(text), -1)
	if len(all) < 2 {
		t.Errorf("README types nothing: %q", all)
	}
	for _, m := range all {
		var bad bytes.Buffer
		if code := credence.Run(t.Context(), strings.Fields(m[1]), bytes.NewReader(policy), &bad, &bad); code != 3 {
			t.Errorf("%s: exit code %d: %s", m[1], code, &bad)
		}
	}
}

func databaseCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, &ca, &ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
