package broker_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker"
)

// TestKeptDenies: what was denied here, and copies, are there after a restart,
// beside what is revoked, and a Deny and the copy of one of its name are two.
func TestKeptDenies(t *testing.T) {
	e := newEnv(t)
	denies := func(names ...string) {
		t.Helper()
		var have []string
		for _, k := range e.KeptDenies() {
			have = append(have, fmt.Sprintf("%s %d %s %s %s", k.Name, k.Revision, k.Owner, k.Actor, k.Text))
		}
		e.equal(strings.Join(have, "\n"), strings.Join(names, "\n"))
	}
	made := func(name string, revision uint64) broker.KeptDeny {
		return broker.KeptDeny{Name: name, Owner: "default", Actor: "uid:0", At: e.now(), Revision: revision, Text: []byte("kind: <Deny> " + name + "\n")}
	}
	e.must(err2(e.Revoke(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "web"})))
	e.must(e.KeepDenies(made("a", 0), made("a", 7), made("b", 8)))
	e.must(e.KeepDenies(made("b", 9)))
	want := []string{"a 0 default uid:0 kind: <Deny> a\n", "a 7 default uid:0 kind: <Deny> a\n", "b 9 default uid:0 kind: <Deny> b\n"}
	e.start()
	if n := len(e.KeptDenies()); n != 3 {
		t.Fatalf("%d are kept", n)
	}
	e.must(e.ForgetDenies(func(k broker.KeptDeny) bool { return k.Name == "a" && k.Revision != 0 }))
	e.must(e.ForgetDenies(func(k broker.KeptDeny) bool { return k.Name == "none" }))
	denies(want[0], want[2])
	e.start()
	denies(want[0], want[2])
	e.equal(len(e.stands()), 1)

	path := filepath.Join(e.dir, "revoked.jsonl")
	text, err := os.ReadFile(path)
	e.must(err)
	e.equal(bytes.Count(text, []byte("\n")), 3)
	for what, bad := range map[string]broker.KeptDeny{
		"no name": made("", 0), "no text": {Name: "c", At: e.now()}, "no time": {Name: "c", Text: []byte("c")},
		"much":                    {Name: "c", At: e.now(), Text: bytes.Repeat([]byte("c"), 16<<10+1)},
		"more once it is escaped": {Name: "c", At: e.now(), Text: bytes.Repeat([]byte("<"), 8<<10)},
	} {
		e.refused(e.KeepDenies(made("d", 0), bad), broker.ErrRequest)
		if len(e.KeptDenies()) != 2 {
			t.Errorf("%s: it is kept", what)
		}
	}
	var many []broker.KeptDeny
	for n := range 2 * broker.MaxKeptDenies {
		many = append(many, made(fmt.Sprint("n", n), 0))
	}
	e.refused(e.KeepDenies(many...), broker.ErrRequest)

	other := filepath.Join(t.TempDir(), "revoked.jsonl")
	e.must(os.WriteFile(other, bytes.ReplaceAll(text, []byte(`"revision":9`), []byte(`"revision":10`)), 0o600))
	e.must(err2(broker.MergeDenyFile(other, td, text, nil)))
	merged, err := os.ReadFile(other)
	e.must(err)
	if bytes.Count(merged, []byte("\n")) != 3 || !bytes.Contains(merged, []byte(`"revision":10`)) {
		t.Errorf("merged: %s", merged)
	}
}

// TestChangedDeniesFitTheDenyFile: what was outdone makes room, by bytes too, or the
// next start would not read the file.
func TestChangedDeniesFitTheDenyFile(t *testing.T) {
	e := newEnv(t)
	made := 0
	change := func(lines int) {
		t.Helper()
		made++
		e.must(e.KeepDenies(broker.KeptDeny{Name: "n", Owner: "default", At: e.now(), Text: fmt.Append(nil, made)}))
		text, err := os.ReadFile(filepath.Join(e.dir, "revoked.jsonl"))
		e.must(err)
		e.equal(bytes.Count(text, []byte("\n")), lines)
		e.equal(*broker.DenyFileSize(e.Broker), len(text))
	}
	change(1)
	change(2)
	e.start()
	change(3)
	*broker.DenyFileSize(e.Broker) = broker.MaxDenyFile - 10
	change(1)
	change(2)
	e.start()
	e.equal(string(e.KeptDenies()[0].Text), "5")
}

// TestForgottenThoughNotKept: a Deny whose line was not known to be written, and that
// nobody wants any more, does not come back with the next start.
func TestForgottenThoughNotKept(t *testing.T) {
	e := newEnv(t)
	path := filepath.Join(e.dir, "revoked.jsonl")
	k := broker.KeptDeny{Name: "n", Owner: "default", At: e.now(), Text: []byte("n")}
	e.must(os.Mkdir(path, 0o700))
	if err := e.KeepDenies(k); err == nil {
		t.Fatal("it is kept")
	}
	e.must(os.Remove(path))
	e.must(os.WriteFile(path, []byte(`{"kind":"deny","value":"n","before":"2026-05-04T10:20:30Z","resource":"n"}`+"\n"), 0o600))
	e.must(e.ForgetDenies(func(k broker.KeptDeny) bool { return k.Name == "n" }))
	e.start()
	e.equal(len(e.KeptDenies()), 0)
}

func TestDeniesInDenyFile(t *testing.T) {
	const line = `{"kind":"deny","value":"incident","before":"2026-05-04T10:20:30Z","owner":"default","resource":"kind: Deny"}` + "\n"
	path := filepath.Join(t.TempDir(), "revoked.jsonl")
	if all, err := broker.ParseDenyFile(path, td, []byte(line)); err != nil || len(all) != 0 {
		t.Errorf("%v (%v)", all, err)
	}
	for what, bad := range map[string]string{
		"no text": strings.Replace(line, `"kind: Deny"`, `""`, 1), "no name": strings.Replace(line, `"incident"`, `""`, 1),
		"no time":                 strings.Replace(line, `2026-05-04T10:20:30Z`, `0001-01-01T00:00:00Z`, 1),
		"an eviction with a text": strings.Replace(line, `"kind":"deny","value":"incident"`, `"kind":"evict","durable_key":"token:n1","value":"`+nodeID+`"`, 1),
		"a cut-off with a text":   strings.Replace(line, `"deny","value":"incident"`, `"identity","value":"web"`, 1),
	} {
		if _, err := broker.ParseDenyFile(path, td, []byte(bad)); err == nil {
			t.Errorf("%s: it is taken", what)
		}
	}
}
