package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The container endpoint of exec is on loopback alone, whoever looks; and of a
// session nothing secret is in what dev prints, keeps, records or explains.
//
// Regression: CVE-2025-9039
// Regression: CVE-2025-62513
func TestExecListensOnLoopbackAlone(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	socket := "--socket=" + d.json.WorkloadSocket
	run := func(args ...string) string {
		t.Helper()
		code, out, errs := credenceCmd(t, "", args...)
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", args, code, errs)
		}
		return out
	}
	seen := run("exec", socket, "--target", "aws-web-identity", "--", "sh", "-c",
		`echo "$AWS_CONTAINER_CREDENTIALS_FULL_URI"; cat "$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"; echo; cat /proc/net/tcp /proc/net/tcp6`)
	lines := strings.Split(seen, "\n")
	at, err := url.Parse(lines[0])
	if err != nil || at.Scheme != "http" || at.Hostname() != "127.0.0.1" {
		t.Fatalf("it is at %s", lines[0])
	}
	port := at.Port()
	var listening []string
	for _, line := range lines[2:] {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], hexPort(t, port)) { // state LISTEN
			listening = append(listening, f[1])
		}
	}
	if len(listening) != 1 || !strings.HasPrefix(listening[0], "0100007F:") {
		t.Errorf("it listens on %v", listening)
	}

	secrets := map[string]string{"exec's secret": lines[1], "a JWT-SVID": strings.TrimSpace(run("svid", "jwt", "--audience", "orders", socket))}
	var keys struct{ SecretAccessKey, SessionToken string }
	if err := json.Unmarshal([]byte(run("credentials", "aws-roles-anywhere", socket)), &keys); err != nil {
		t.Fatal(err)
	}
	secrets["a secret key"], secrets["a session token"] = keys.SecretAccessKey, keys.SessionToken
	secrets["a GCP token"] = strings.TrimSpace(run("credentials", "gcp", socket))
	secrets["an Azure token"] = strings.TrimSpace(run("credentials", "azure", socket))
	m := printedToken.FindStringSubmatch(d.admin(t, "token", "create", "--node", "other"))
	secrets["a join token"] = m[1]
	dir := t.TempDir()
	run("svid", "x509", "--out", dir, socket)
	key, err := os.ReadFile(filepath.Join(dir, "svid_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	secrets["a workload's key"] = strings.Split(string(key), "\n")[1]

	facts := filepath.Join(dir, "facts.json")
	if err := os.WriteFile(facts, fmt.Appendf(nil, `{"workload.unix.uid": ["%d"]}`, os.Getuid()), 0o600); err != nil {
		t.Fatal(err)
	}
	texts := map[string][]byte{
		"the record": []byte(d.admin(t, "audit", "tail", "-n", "1000", "-o", "json")), "nodes": []byte(d.admin(t, "node", "list", "-o", "json")),
		"resources": []byte(d.admin(t, "get", "-o", "yaml")), "dev.json": d.file(t),
		"an explanation": []byte(d.admin(t, "explain", "--node", "dev", "--facts", facts)),
	}
	d.finish(t)
	printed, _ := d.printed()
	texts["what dev printed"] = []byte(printed)
	err = filepath.WalkDir(d.data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		texts[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range secrets {
		if len(secret) < 16 {
			t.Errorf("%s is %q", name, secret)
			continue
		}
		for where, text := range texts {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s stands in %s", name, where)
			}
		}
	}
}

func hexPort(t *testing.T, port string) string {
	t.Helper()
	var n uint16
	if err := json.Unmarshal([]byte(port), &n); err != nil {
		t.Fatal(err)
	}
	const digits = "0123456789ABCDEF"
	return ":" + string([]byte{digits[n>>12], digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}
