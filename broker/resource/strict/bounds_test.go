package strict_test

import (
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/resource/strict"
)

// Each of these took the YAML library minutes, or all of the stack.
func TestWhatTakesTooLongIsRefusedFirst(t *testing.T) {
	const head = "kind: Deny\nname: a\n"
	many := func(s string) string { return strings.Repeat(s, (1<<17)/len(s)) }
	for name, c := range map[string]struct{ text, want string }{
		"blank lines in a literal":       {head + "m: |\n  " + many("\n"), "f:68:1: more than 64 blank lines"},
		"blank lines of a Mac":           {head + "m: |\n  " + many("\r"), "f:68:1: more than 64 blank lines"},
		"blank lines of Windows":         {head + "m: >\n  " + many("\r\n"), "f:68:1: more than 64 blank lines"},
		"lines of spaces and tabs":       {head + "m: >\n  " + many("  \t\n"), "more than 64 blank lines"},
		"lists in lists, one line":       {head + "m:\n  " + many("- "), "f:4:51: nested too deep"},
		"lists in a flow list":           {head + "m: [" + many("- "), "f:3:5: nested too deep"},
		"lists in a flow list, in lines": {head + "m: [" + many("-\n"), "f:3:5: nested too deep"},
		"flow lists":                     {head + "m: " + many("["), "f:3:28: nested too deep"},
		"flow mappings":                  {head + "m: " + many("{a: "), "nested too deep"},
		"keys marked by question marks":  {head + many("? "), "f:3:1: a key marked by a question mark"},
		"indentation":                    {head + "m:\n" + strings.Repeat(" ", 400) + "a: b\n", "f:4:1: nested too deep"},
		"deep, by indentation":           {head + ladder(30), "nested deeper than 24"},
		"an error far into a long line":  {head + "m: [" + many("]"), "f:3:"},
		"an error before long lines":     {head + "m: [" + many("[a]\n"), "f:4:1"},
		"more documents than are taken":  {strings.Repeat("---\n"+head, strict.MaxDocuments+1), "more than 10000 documents"},
		"a directive":                    {"%TAG ! x\n---\n" + head, "directives are not taken"},
		"a tag":                          {"kind: !!str Deny\n", "f:1:7: anchors, aliases, merge keys and tags"},
		"an alias":                       {head + "a: *b\n", "f:3:4: anchors, aliases"},
		"a merge key":                    {head + "<<: {a: b}\n", "f:3:1: anchors, aliases"},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan error, 1)
			go func() {
				_, err := strict.Documents("f", []byte(c.text))
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %.200v, wanted %s", err, c.want)
				}
			case <-time.After(30 * time.Second):
				t.Error("it has not been judged in 30 s")
			}
		})
	}
}

func ladder(levels int) string {
	var b strings.Builder
	for i := range levels {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
