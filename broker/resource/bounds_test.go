package resource_test

import (
	"strings"
	"testing"
)

func TestWhatIsWithinTheBoundsIsTaken(t *testing.T) {
	const head = "kind: Deny\nname: a\nmatch: [{node.name: b}]\n"
	for name, text := range map[string]string{
		"64 blank lines":             head + strings.Repeat("\n", 64) + "reason: c\n",
		"brackets in text":           head + "reason: " + `"` + strings.Repeat("[", 1000) + `"` + "\n",
		"brackets in a comment":      "# " + strings.Repeat("{", 1000) + "\n" + head,
		"a merge key's sign as text": head + `reason: "<<"` + "\n",
		"a long comment of dashes":   "# " + strings.Repeat("- ", 1000) + "\n" + head,
		"a Mac's lines":              strings.ReplaceAll(head, "\n", "\r"),
		"lines of Windows":           strings.ReplaceAll(head, "\n", "\r\n"),
	} {
		if _, err := registry().Parse("f", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANameIsOneThatFitsEverywhere(t *testing.T) {
	for _, name := range []string{`"A"`, `"a b"`, `"a/b"`, `"-a"`, `"."`, `"a\nb"`, `"é"`, `"a\u0000"`, strings.Repeat("a", 64)} {
		for _, kind := range []string{"kind: Deny\n", "kind: JoinRule\ngithub: {}\nallow: [{node.name: a}]\n", "kind: Target\ncloud: {role: a}\n"} {
			_, err := registry().Parse("f", []byte(kind+"name: "+name+"\n"))
			if err == nil || !strings.Contains(err.Error(), "63 of a-z") {
				t.Errorf("%s of %s: %v", name, kind, err)
			}
		}
	}
}
