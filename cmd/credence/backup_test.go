package main_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
	credence "github.com/credence-id/credence/cmd/credence"
)

// A saved is a broker whose backup was made, and what befell it then.
type saved struct {
	*testing.T
	dir, data, file, key string
	pin                  string
}

func (s *saved) config(name, td, data, more string) string {
	s.Helper()
	path := filepath.Join(s.dir, name)
	s.must(os.WriteFile(path, fmt.Appendf(nil, "trust_domain: %s\ndata: %s\nname: broker\nlisten: {spiffe: none, web: none}\n%s", td, data, more), 0o600))
	return path
}

func (s *saved) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// run runs a verb, and returns its exit code and what it wrote.
func (s *saved) run(args ...string) (code int, out string) {
	s.Helper()
	var stdout, stderr bytes.Buffer
	code = credence.Run(s.Context(), args, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

// open opens and closes the broker of a configuration, which must be the same.
func (s *saved) open(config string) error {
	s.Helper()
	text, err := os.ReadFile(config)
	s.must(err)
	pin, _, err := credence.OpenBroker(s.Context(), string(text), credence.KeyAccess{})
	if err == nil && s.pin != "" && pin != s.pin {
		s.Errorf("its pin is %s, was %s", pin, s.pin)
	}
	if s.pin == "" {
		s.pin = pin
	}
	return err
}

func (s *saved) node(name string) string { return "spiffe://example.org/credence/node/" + name }

// newSaved makes a broker with two nodes, and its backup. Then one renews and one
// is evicted, a third joins, and policy changes.
func newSaved(t *testing.T) *saved {
	dir := tempDir(t)
	s := &saved{T: t, dir: dir, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "b.age"), key: filepath.Join(dir, "key")}
	config := s.config("broker.yaml", "example.org", s.data, "")
	s.must(s.open(config))
	db, err := store.Open(t.Context(), store.Config{Dir: s.data})
	s.must(err)
	for _, name := range []string{"n1", "n2"} {
		facts, err := identity.NewFacts("node", map[string][]string{"node.name": {name}})
		s.must(err)
		_, err = db.SaveNode(t.Context(), broker.Node{ID: s.node(name), Name: name, Method: "token", DurableKey: "token:" + name, Facts: facts, Serial: []byte{1}, ExpiresAt: time.Now().Add(time.Hour)})
		s.must(err)
	}
	s.must(db.Close())
	code, recipient := s.run("broker", "backup", "--new-identity", s.key)
	if code != 0 {
		t.Fatal(recipient)
	}
	code, out := s.run("broker", "backup", "-c", config, "--to", s.file, "--recipient", strings.TrimSpace(recipient))
	if code != 0 || !strings.Contains(out, "2 private keys in files (which are not encrypted besides") {
		t.Fatal(code, out)
	}
	now := time.Now()
	s.record(s.data,
		audit.Event{Kind: "renew", OK: true, Node: s.node("n1"), Serial: "07", Issued: now, NotAfter: now.Add(time.Hour), Authority: "ca"},
		audit.Event{Kind: "evict", OK: true, Node: s.node("n2"), Actor: "uid:0"},
		audit.Event{Kind: "revoke", OK: true, Actor: "uid:0", Detail: map[string]string{"kind": "identity", "value": "web", "before": now.Format(time.RFC3339Nano)}},
		audit.Event{Kind: "join", OK: true, Node: s.node("n3"), Serial: "08", Issued: now},
		audit.Event{Kind: "apply", OK: true, Actor: "uid:0", Detail: map[string]string{"kind": "Identity", "name": "late"}},
		audit.Event{Kind: "authority", OK: true, Actor: "uid:0", Code: "replace.issuing", Detail: map[string]string{"broker": "b7"}},
	)
	return s
}

func (s *saved) record(data string, events ...audit.Event) {
	s.Helper()
	log, err := audit.Open(audit.Config{Dir: filepath.Join(data, "audit")})
	s.must(err)
	_, err = log.Append(s.Context(), events...)
	s.must(err)
	s.must(log.Close())
}

func (s *saved) lose() {
	s.Helper()
	all, err := filepath.Glob(filepath.Join(s.data, "credence.db*"))
	s.must(err)
	for _, path := range all {
		s.must(os.Remove(path))
	}
}

func (s *saved) says(out string, all ...string) {
	s.Helper()
	for _, text := range all {
		if !strings.Contains(out, text) {
			s.Errorf("it doesn't say %q:\n%s", text, out)
		}
	}
}

// TestRestoreOfALostDatabase finds on the disk what happened after the backup.
func TestRestoreOfALostDatabase(t *testing.T) {
	t.Parallel()
	s := newSaved(t)
	config := filepath.Join(s.dir, "broker.yaml")
	restore := []string{"broker", "restore", "-c", config, "--from", s.file, "--identity", s.key}
	if code, out := s.run(restore...); code != 2 || !strings.Contains(out, "credence.db") {
		t.Errorf("over a database: %d, %s", code, out)
	}
	s.lose()

	// It is cut short: what is half there is no broker's.
	deny := filepath.Join(s.data, "revoked.jsonl")
	s.must(os.WriteFile(deny, []byte("{\n"), 0o600))
	if code, out := s.run(restore...); code != 2 {
		t.Fatal(code, out)
	}
	if err := s.open(config); err == nil || !strings.Contains(err.Error(), "run credence broker restore again") {
		t.Errorf("half a restore: %v", err)
	}
	if code, _ := s.run("broker", "backup", "-c", config, "--to", filepath.Join(s.dir, "half.age"), "--recipient", s.file); code != 2 {
		t.Error("half a restore is backed up")
	}
	// Another broker, whose clock is behind, evicted n1 after the backup: of that there
	// is no record here.
	s.must(os.WriteFile(deny, fmt.Appendf(nil, "{\"kind\":\"node\",\"value\":%q,\"before\":%[2]q,\"made_at\":%[2]q}\n", s.node("n1"), time.Now().Add(-50*time.Second).Format(time.RFC3339Nano)), 0o600))

	facts, other := filepath.Join(s.data, "audit", "facts.key"), []byte(strings.Repeat("0f", 32)+"\n")
	s.must(os.WriteFile(facts, other, 0o600)) // a key that stands stays
	code, out := s.run(restore...)
	if code != 0 {
		t.Fatal(code, out)
	}
	if now, err := os.ReadFile(facts); err != nil || !bytes.Equal(now, other) || strings.Contains(out, "secret facts") {
		t.Errorf("the key of secret facts is written over (%v):\n%s", err, out)
	}
	s.says(out, "2 nodes, 0 private keys written", "again now: "+s.node("n2"), "1 nodes joined after", s.node("n3"), "1 changes are in the record", "apply Identity late", "uid:0 replace.issuing b7\n", s.node("n1")+" was revoked after the backup")
	if strings.Contains(out, s.node("n2")+" was revoked") {
		t.Errorf("the record says that n2 was evicted:\n%s", out)
	}
	revoked, err := os.ReadFile(deny)
	s.must(err)
	s.says(string(revoked), `"kind":"identity","value":"web"`)

	// Killed after the database was there: the next goes on.
	s.must(os.Rename(filepath.Join(s.data, "restored.json"), filepath.Join(s.data, "restoring.json")))
	if err := s.open(config); err == nil {
		t.Error("it starts before its end")
	}
	if code, out := s.run(restore...); code != 0 || !strings.Contains(out, "loaded before") || !strings.Contains(out, "2 nodes,") || !strings.Contains(out, "1 nodes joined after") {
		t.Error(code, out)
	}
	s.must(s.open(config))
	restored := 0
	for r, err := range audit.Read(t.Context(), filepath.Join(s.data, "audit"), 0) {
		s.must(err)
		if r.Kind == "restore" {
			restored++
		}
	}
	if restored != 1 {
		t.Errorf("%d records of one restore", restored)
	}
	s.must(s.open(config)) // and no second record
	db, err := store.Open(t.Context(), store.Config{Dir: s.data})
	s.must(err)
	defer db.Close()
	nodes, err := db.Nodes(t.Context())
	s.must(err)
	for _, n := range nodes {
		if n.Name == "n2" && n.EvictedAt.IsZero() || n.Name == "n1" && (!bytes.Equal(n.Serial, []byte{7}) || n.EvictedAt.IsZero()) {
			t.Errorf("%+v", n)
		}
	}
}

// TestRestoreAfterRetention finds what is left of a record whose beginning, and the
// place of the backup in it, was removed for its age.
func TestRestoreAfterRetention(t *testing.T) {
	t.Parallel()
	s := newSaved(t)
	s.lose()
	log, err := audit.Open(audit.Config{Dir: filepath.Join(s.data, "audit"), MaxBytes: 1})
	s.must(err)
	for range 2 { // the second is in the file that stays
		_, err = log.Append(t.Context(), audit.Event{Kind: "evict", OK: true, Node: s.node("n1"), Actor: "uid:0"})
		s.must(err)
	}
	s.must(log.Close())
	files, err := filepath.Glob(filepath.Join(s.data, "audit", "*.jsonl"))
	s.must(err)
	for _, file := range files[:len(files)-1] {
		s.must(os.Remove(file))
	}
	code, out := s.run("broker", "restore", "-c", filepath.Join(s.dir, "broker.yaml"), "--from", s.file, "--identity", s.key)
	if code != 0 {
		t.Fatal(code, out)
	}
	s.says(out, "of that time there is no record in")
}

// TestRestoreElsewhere goes from SQLite to PostgreSQL, with nothing but the
// backup.
func TestRestoreElsewhere(t *testing.T) {
	t.Parallel()
	s := newSaved(t)
	url := postgrestest.Start(t).Database(t)
	kek := filepath.Join(s.dir, "kek")
	secret := make([]byte, 32)
	rand.Read(secret)
	s.must(os.WriteFile(kek, secret, 0o600))
	config := s.config("new.yaml", "example.org", filepath.Join(s.dir, "new"), "store: \""+url+"\"\nkeys: {disk: {kek_file: "+kek+"}}\n")
	restore := []string{"broker", "restore", "-c", config, "--from", s.file, "--identity", s.key}
	code, out := s.run(restore...)
	if code != 0 {
		t.Fatal(code, out)
	}
	s.says(out, "2 nodes, 2 private keys written", "no audit record of that time", "they join again", "secret facts is found")
	for _, value := range []string{"ana@example.org", "plain"} {
		before, err := audit.HashFact(filepath.Join(s.data, "audit"), "user.email", value)
		s.must(err)
		if after, err := audit.HashFact(filepath.Join(s.dir, "new", "audit"), "user.email", value); err != nil || after != before {
			t.Errorf("%s is not found in the old record (%v)", value, err)
		}
	}
	if code, out := s.run("broker", "keys", "-c", config, "--rewrap"); code != 0 { // they were in plain files
		t.Fatal(code, out)
	}
	s.must(s.open(config))
	if code, out := s.run(restore...); code != 2 || !strings.Contains(out, "empty database") {
		t.Errorf("a second time: %d, %s", code, out)
	}
}

// TestRestoreRefuses leaves nothing where a backup is not the one.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	s := newSaved(t)
	file, err := os.ReadFile(s.file)
	s.must(err)
	write := func(name string, text []byte) string {
		path := filepath.Join(s.dir, name)
		s.must(os.WriteFile(path, text, 0o600))
		return path
	}
	flipped := bytes.Clone(file)
	flipped[len(file)/2] ^= 1
	other := filepath.Join(s.dir, "other")
	if code, out := s.run("broker", "backup", "--new-identity", other); code != 0 {
		t.Fatal(out)
	}
	for _, row := range []struct{ name, td, file, key, says string }{
		{"another's key", "example.org", s.file, other, "does not open"},
		{"a key that is none", "example.org", s.file, s.file, "no age identity"},
		{"a flipped byte", "example.org", write("flipped", flipped), s.key, "damaged"},
		{"half of it", "example.org", write("half", file[:len(file)/2]), s.key, "damaged"},
		{"another trust domain", "other.example", s.file, s.key, "trust domain"},
	} {
		data := filepath.Join(s.dir, strings.ReplaceAll(row.name, " ", "-"))
		code, out := s.run("broker", "restore", "-c", s.config("r.yaml", row.td, data, ""), "--from", row.file, "--identity", row.key)
		if code != 2 || !strings.Contains(out, row.says) {
			t.Errorf("%s: %d, %s", row.name, code, out)
		}
		if _, err := os.Lstat(data); !os.IsNotExist(err) {
			t.Errorf("%s: it left something: %v", row.name, err)
		}
	}
}
