package cli_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/cmd/cli"
)

// TestYAML: what -o yaml writes is read back as what -o json holds.
func TestYAML(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"", "no", "Null", "~", "1", "1e3", "0x1", "2026-11-21", "a: b", "- a", "a #b", "#", "{", "'", "\"", "\\", "a\nb", "\t", " a", "é", "<&>", "y", "-", ".5", "/a/b", "spiffe://a/b",
	}))
	value := rapid.Custom(func(t *rapid.T) any { return anyValue(t, text, 3) })
	rapid.Check(t, func(t *rapid.T) {
		v := value.Draw(t, "value")
		var out bytes.Buffer
		if err := cli.WriteYAML(&out, v); err != nil {
			t.Fatal(err)
		}
		var got any
		if err := yaml.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%v:\n%s", err, out.String())
		}
		want, _ := json.Marshal(v)
		have, _ := json.Marshal(got)
		if !bytes.Equal(want, have) {
			t.Fatalf("it reads as %s; want %s:\n%s", have, want, out.String())
		}
	})
}

func anyValue(t *rapid.T, text *rapid.Generator[string], deep int) any {
	switch n := rapid.IntRange(0, 6).Draw(t, "kind"); {
	case n == 0:
		return nil
	case n == 1:
		return rapid.Bool().Draw(t, "bool")
	case n == 2:
		return rapid.Uint32().Draw(t, "number")
	case n <= 4 || deep == 0:
		return text.Draw(t, "text")
	case n == 5:
		list := []any{}
		for range rapid.IntRange(0, 3).Draw(t, "length") {
			list = append(list, anyValue(t, text, deep-1))
		}
		return list
	}
	m := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "size") {
		m[text.Draw(t, "key")] = anyValue(t, text, deep-1)
	}
	return m
}
