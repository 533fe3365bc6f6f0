package main_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
	credence "github.com/credence-id/credence/cmd/credence"
)

func newKEK(t *testing.T) string {
	t.Helper()
	file, key := filepath.Join(t.TempDir(), "kek"), make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Brokers over one database share the root's and the JWT keys, each under the
// same file, and each has its issuing CA's key for itself. Beside a broker that
// runs the file is changed.
func TestSharedKeys(t *testing.T) {
	t.Parallel()
	url := postgrestest.Start(t).Database(t)
	first, second := newKEK(t), newKEK(t)
	text := func(name, keys string) (string, string) {
		data := filepath.Join(t.TempDir(), name)
		return data, "trust_domain: example.org\nissuer: https://id.example.org\nname: " + name + "\ndata: " + data + "\nstore: '" + url + "'\nkeys: " + keys + "\n"
	}
	var pins []string
	var data, config string
	for _, name := range []string{"b1", "b2"} {
		data, config = text(name, "{disk: {kek_file: '"+second+"', old_kek_files: ['"+first+"']}}")
		pin, places, err := credence.OpenBroker(t.Context(), strings.Replace(config, "'"+second+"', old_kek_files: ['"+first+"']", "'"+first+"'", 1), credence.KeyAccess{})
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
		if !strings.HasPrefix(places["root"], "database") || !strings.HasPrefix(places["jwt"], "database") {
			t.Errorf("keys are in %v", places)
		}
		if left, err := os.ReadDir(filepath.Join(data, "keys")); err != nil || len(left) != 1 {
			t.Errorf("%d keys are on the disk of %s (%v)", len(left), name, err)
		}
	}
	if pins[0] != pins[1] || pins[0] == "" {
		t.Errorf("roots %v", pins)
	}

	running, err := store.Open(t.Context(), store.Config{Dir: data, URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	record, err := audit.Open(audit.Config{Dir: filepath.Join(data, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	file := filepath.Join(t.TempDir(), "broker.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	if code := credence.Run(t.Context(), []string{"broker", "keys", "-c", file, "--rewrap"}, strings.NewReader(""), &out, &bad); code != 0 || !strings.HasPrefix(bad.String(), "4 keys") {
		t.Fatalf("%d: %s", code, bad.String()) // a root, two JWT keys and b2's own
	}
	if err := os.WriteFile(file, []byte(strings.Replace(config, ", old_kek_files: ['"+first+"']", "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := credence.Run(t.Context(), []string{"broker", "keys", "-c", file}, strings.NewReader(""), &out, &bad); code != 0 {
		t.Errorf("without the old file: %d: %s", code, bad.String())
	}

	for _, keys := range []string{"{disk: {}}", "{disk: {kek_file: '" + first + "'}}\nroot_keys: {disk: {}}"} {
		_, config := text("b3", keys)
		if _, _, err := credence.OpenBroker(t.Context(), config, credence.KeyAccess{}); err == nil || !strings.Contains(err.Error(), "the same file on every broker") {
			t.Errorf("%s: %v", keys, err)
		}
	}
}
