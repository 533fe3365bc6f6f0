package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/audit"
)

func TestSecretFacts(t *testing.T) {
	dir := newDir(t)
	c := audit.Config{Dir: dir, HMACFacts: audit.DefaultHMACFacts()}
	l := open(t, c)
	facts := map[string][]string{
		"user.email": {"ana@example.org"}, "workload.docker.env.TOKEN": {"s3cret", "s4cret"}, "workload.docker.env": {"plain"}, "user.sub": {"ana@example.org"},
	}
	add(t, l, audit.Event{Kind: "login", OK: true, Facts: facts}, audit.Event{Kind: "login", Facts: facts})
	if facts["user.email"][0] != "ana@example.org" {
		t.Error("what the caller has was changed")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text := string(read(t, filepath.Join(dir, one)))
	for _, secret := range []string{`["ana@example.org"],"user.email"`, `"user.email":["ana`, "s3cret", "s4cret"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s stands in %s", secret, text)
		}
	}
	if !strings.Contains(text, `"workload.docker.env":["plain"]`) || !strings.Contains(text, `"user.sub":["ana@example.org"]`) {
		t.Errorf("what is no secret is not told: %s", text)
	}
	// After a restart it is the same value, and who knows it finds it.
	l = open(t, c)
	add(t, l, audit.Event{Kind: "login", OK: true, Facts: facts})
	found, err := audit.HashFact(dir, "user.email", "ana@example.org")
	if err != nil || !regexp.MustCompile(`^hmac:[0-9a-f]{32}$`).MatchString(found) || l.RecordedFact("user.email", "ana@example.org") != found {
		t.Fatalf("%s, %v", found, err)
	}
	if text = string(read(t, filepath.Join(dir, one))); strings.Count(text, `"user.email":["`+found+`"]`) != 3 {
		t.Errorf("no %s in %s", found, text)
	}
	if l.RecordedFact("user.sub", "ana") != "ana" || l.RecordedFact("workload.docker.env.A", "x") == l.RecordedFact("workload.docker.env.B", "x") {
		t.Error("a fact is hashed as another")
	}
	if info, err := os.Stat(filepath.Join(dir, "facts.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	verified(t, dir)
	// Another record has another key.
	other := open(t, audit.Config{Dir: newDir(t), HMACFacts: []string{"user.email"}})
	if other.RecordedFact("user.email", "ana@example.org") == found {
		t.Error("two records have one key")
	}
}

// A record that is begun anew under the key of one that is lost finds what that had.
func TestRestoreFactsKey(t *testing.T) {
	secret := audit.Config{Dir: newDir(t), HMACFacts: []string{"user.email"}}
	if _, err := audit.FactsKey(secret.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no record: %v", err)
	}
	before := open(t, secret).RecordedFact("user.email", "ana@example.org")
	key, err := audit.FactsKey(secret.Dir)
	if err != nil {
		t.Fatal(err)
	}
	again := audit.Config{Dir: newDir(t), HMACFacts: secret.HMACFacts}
	if done, err := audit.RestoreFactsKey(again.Dir, key[:31]); err == nil || done {
		t.Error("part of a key is taken")
	}
	if done, err := audit.RestoreFactsKey(again.Dir, key); err != nil || !done {
		t.Fatalf("not restored: %v", err)
	}
	if after := open(t, again).RecordedFact("user.email", "ana@example.org"); after != before {
		t.Errorf("%s, before %s", after, before)
	}
	if done, err := audit.RestoreFactsKey(again.Dir, make([]byte, 32)); err != nil || done {
		t.Errorf("in place of one that stands: %v, %v", done, err)
	}
	if now, err := audit.FactsKey(again.Dir); err != nil || !bytes.Equal(now, key) {
		t.Errorf("the key is another (%v)", err)
	}
}

func TestTheKeyOfSecretFactsIsNotGuessed(t *testing.T) {
	dir := place(t, map[string][]byte{"facts.key": []byte("00ff\n")})
	if _, err := audit.Open(audit.Config{Dir: dir, HMACFacts: []string{"user.email"}}); err == nil || !strings.Contains(err.Error(), "not whole") {
		t.Errorf("a damaged key: %v", err)
	}
	open(t, audit.Config{Dir: dir}) // which needs none
	for _, p := range []string{"", "*", ".*", "a*", "a.*.b", "a b", "**"} {
		if err := audit.CheckFactPattern(p); err == nil {
			t.Errorf("%q names facts", p)
		}
	}
}
