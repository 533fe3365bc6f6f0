package main_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	credence "github.com/credence-id/credence/cmd/credence"
)

// identityText is the text of a small Identity.
func identityText(name string) string {
	return fmt.Sprintf("kind: Identity\nname: %s\nspiffe_id: /%s\nmatch: [{node.name: n1}]\n", name, name)
}

// TestFilesOfApply reads directories as apply does. Nobody is there to take what
// was read: 3 says that it would have been sent.
func TestFilesOfApply(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string // a text; or "-> PATH": a link, "|": a pipe, "/": a directory
		args  []string
		code  int
		says  string
	}{
		"all ends, by name":        {map[string]string{"a.yaml": identityText("a"), "b.yml": identityText("b"), "c.json": `{"kind": "Deny", "name": "c", "match": [{"node.name": "x"}]}`}, nil, 3, "none.sock"},
		"JSON with tabs":           {map[string]string{"c.json": "{\n\t\"kind\": \"Deny\",\n\t\"name\": \"c\",\n\t\"match\": [{\"node.name\": \"x\"}]\n}\n"}, nil, 3, "none.sock"},
		"nothing":                  {nil, []string{"--prune", "--yes"}, 2, "there is no *.yaml, *.yml or *.json in it"},
		"nothing of ours":          {map[string]string{"README.md": "a", ".a.yaml": "a", "a.yaml~": "a"}, []string{"--prune", "--yes"}, 2, "there is no *.yaml"},
		"only a comment":           {map[string]string{"a.yaml": "# nothing\n"}, []string{"--prune", "--yes"}, 2, "a.yaml"},
		"a directory below":        {map[string]string{"a.yaml": identityText("a"), "below/b.yaml": identityText("b")}, nil, 2, "below/b.yaml lies in a directory below: say -R"},
		"left out":                 {map[string]string{"a.yaml": identityText("a"), "below/b.yaml": "nonsense"}, []string{"-R=false"}, 3, "none.sock"},
		"read too":                 {map[string]string{"a.yaml": identityText("a"), "below/b.yaml": identityText("a")}, []string{"-R"}, 2, "below/b.yaml:2:7: Identity a: name: it stands in DIR/a.yaml too"},
		"no resources below":       {map[string]string{"a.yaml": identityText("a"), "below/b.md": ""}, nil, 3, "none.sock"},
		"hidden ones":              {map[string]string{"a.yaml": identityText("a"), ".git/b.yaml": "nonsense", ".c.yaml": "nonsense"}, []string{"-R"}, 3, "none.sock"},
		"a mistake among others":   {map[string]string{"a.yaml": identityText("a"), "b.yaml": "kind: Identity\nname: b\nnonsense: 1\n"}, nil, 2, "DIR/b.yaml:3:1: "},
		"as Kubernetes mounts it":  {map[string]string{"a.yaml": "-> ..data/a.yaml", "..data": "-> ..1", "..1/a.yaml": identityText("a")}, nil, 3, "none.sock"},
		"a link that leads out":    {map[string]string{"a.yaml": "-> /etc/passwd"}, nil, 2, "a.yaml: "},
		"a link up and out":        {map[string]string{"a.yaml": "-> ../other.yaml"}, nil, 2, "links are followed inside of DIR only"},
		"a link to nowhere":        {map[string]string{"a.yaml": "-> b.yaml"}, nil, 2, "a.yaml: "},
		"a link in a circle":       {map[string]string{"a.yaml": "-> b.yaml", "b.yaml": "-> a.yaml"}, nil, 2, "a.yaml: "},
		"a link to the same":       {map[string]string{"a.yaml": identityText("a"), "b.yaml": "-> a.yaml"}, nil, 2, "it stands in DIR/a.yaml too"},
		"a linked directory":       {map[string]string{"a.yaml": identityText("a"), "below": "-> /etc"}, []string{"-R"}, 2, "below is a link that leads to a directory"},
		"one that is not asked of": {map[string]string{"a.yaml": identityText("a"), "below": "-> /etc"}, nil, 2, "below is a link that leads to a directory"},
		"one that is left out":     {map[string]string{"a.yaml": identityText("a"), "below": "-> /etc"}, []string{"-R=false"}, 3, "none.sock"},
		"a pipe":                   {map[string]string{"a.yaml": "|"}, nil, 2, "a.yaml: it is no file"},
		"a directory named so":     {map[string]string{"a.yaml/b.md": "", "b.yaml": identityText("b")}, nil, 3, "none.sock"},
		"a file too big":           {map[string]string{"a.yaml": strings.Repeat("#", 4<<20+1)}, nil, 2, "DIR/a.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range c.files {
				put(t, filepath.Join(dir, file), text)
			}
			var out, errs bytes.Buffer
			args := append([]string{"plan", "-f", dir, "--admin", filepath.Join(dir, "none.sock")}, c.args...)
			if c.args != nil && c.args[len(c.args)-1] == "--yes" {
				args[0] = "apply"
			}
			code := credence.Run(t.Context(), args, strings.NewReader(""), &out, &errs)
			says := strings.ReplaceAll(errs.String(), dir, "DIR")
			if code != c.code || !strings.Contains(says, c.says) || strings.Count(says, "\n") != 1 {
				t.Errorf("exit code %d, %.300s; want %d, %s", code, says, c.code, c.says)
			}
		})
	}
}

func TestTooMuchForOneApply(t *testing.T) {
	t.Parallel()
	deny := func(name string) resource.Resource {
		return resource.Resource{Kind: "Deny", Name: name, Deny: &identity.Deny{Name: name, Reason: strings.Repeat("x", 3<<20)}}
	}
	if _, err := credence.DocumentsOf([]resource.Resource{deny("a")}); err != nil {
		t.Error(err)
	}
	if _, err := credence.DocumentsOf([]resource.Resource{deny("a"), deny("b")}); err == nil || !strings.Contains(err.Error(), "2 resources of ") {
		t.Errorf("two: %v", err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		to, link := strings.CutPrefix(text, "-> ")
		switch {
		case link:
			err = os.Symlink(to, path)
		case text == "|":
			err = syscall.Mkfifo(path, 0o600)
		default:
			err = os.WriteFile(path, []byte(text), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnified(t *testing.T) {
	t.Parallel()
	lines := func(text string) string { return strings.ReplaceAll(text, " ", "\n") + "\n" }
	for name, c := range map[string]struct{ before, after, want string }{
		"the same":       {"a b c", "a b c", ""},
		"a line":         {"a b c d e f g h i", "a b c d X f g h i", "@@ -2,7 +2,7 @@| b| c| d|-e|+X| f| g| h"},
		"first and last": {"a b c d e f g h i", "X b c d e f g h Y", "@@ -1,4 +1,4 @@|-a|+X| b| c| d@@ -6,4 +6,4 @@| f| g| h|-i|+Y"},
		"near each other": {"a b c d e f g h i", "a X c d e f g Y i",
			"@@ -1,9 +1,9 @@| a|-b|+X| c| d| e| f| g|-h|+Y| i"},
		"all":         {"a", "b", "@@ -1 +1 @@|-a|+b"},
		"moved":       {"a b c", "c a b", "@@ -1,3 +1,3 @@|+c| a| b|-c"},
		"more of one": {"a a b", "a b b", "@@ -1,3 +1,3 @@| a|-a|+b| b"},
	} {
		t.Run(name, func(t *testing.T) {
			got := credence.Unified(lines(c.before), lines(c.after))
			if got = strings.ReplaceAll(strings.ReplaceAll(strings.TrimSuffix(got, "\n"), "\n", "|"), "|@@", "@@"); got != c.want {
				t.Errorf("it is\n%s\nwant\n%s", got, c.want)
			}
		})
	}
	if got := credence.Unified("", "a\nb\n"); got != "@@ -0,0 +1,2 @@\n+a\n+b\n" {
		t.Errorf("of nothing: %s", got)
	}
	long := func(n int) string { return strings.Repeat(fmt.Sprintln(n), 10_000) }
	if got := credence.Unified(long(1), long(2)); strings.Count(got, "\n") != 20_001 {
		t.Errorf("of long texts: %d lines", strings.Count(got, "\n"))
	}
}
