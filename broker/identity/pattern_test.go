package identity_test

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/credence-id/credence/broker/identity"
	"pgregory.net/rapid"
)

// holds says whether one item with one term, on a fact of one value, grants.
func holds(t testing.TB, pattern, value string) bool {
	t.Helper()
	ok, err := identity.Matches(items("node.x", pattern), facts(t, "node", "node.x", value))
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// Regression: CVE-2026-22772
// Regression: GHSA-9gcg-w975-3rjh
func TestPatterns(t *testing.T) {
	for _, row := range []struct {
		pattern, value string
		want           bool
	}{
		{"a", "a", true},
		{"a", "A", false},
		{"a", "ab", false},
		{"a", "ba", false},
		{"a.c", "abc", false},
		{"*", "", true},
		{"*", "abc", true},
		{"*", "a/b", false},
		{"**", "a/b", true},
		{"**", "", true},
		{"a*", "a", true},
		{"a*", "ab", true},
		{"a*", "a/b", false},
		{"a*", "ba", false},
		{"*a", "ba", true},
		{"*a", "ab", false},
		{"refs/heads/*", "refs/heads/main", true},
		{"refs/heads/*", "refs/heads/a/b", false},
		{"refs/heads/**", "refs/heads/a/b", true},
		{"refs/heads/**", "refs/tags/v1", false},
		{"a*b*c", "abbc", true},
		{"a*b*c", "ab/bc", false},
		{"a*b**c", "ab/bc", true},
		{"a**b*c", "a/b/c", false},
		{"a**b*c", "a/b/bc", true},
		{"**/x/*", "a/x/x/b", true},
		{"**/x/*", "x/b", false},
		{"*a*a*a*", "aa", false},
		{"*a*a*a*", "aaa", true},
		{"*a", "aa", true},
		{"ab*ab", "ab", false},
		{"ab*ab", "abab", true},
		{"*", "\xff\n", true},
		{"?", "a", false},
		{"[a]", "a", false},
	} {
		if got := holds(t, row.pattern, row.value); got != row.want {
			t.Errorf("%q on %q: %v", row.pattern, row.value, got)
		}
	}
}

func TestPatternsRefused(t *testing.T) {
	for name, p := range map[string]string{
		"empty": "", "five stars": "*a*b*c*d*", "three in a row": "a***", "long": strings.Repeat("a", 2049),
	} {
		if err := identity.CheckItems(items("node.x", p)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := identity.CheckItems(items("node.x", "**a**b**c**")); err != nil {
		t.Errorf("four stars: %v", err)
	}
}

// A value is hostile: no choice of it may make matching slow.
func TestPatternsAreLinear(t *testing.T) {
	value := strings.Repeat("a", 60_000)
	start := time.Now()
	if holds(t, "**a**a**a**b", value) || holds(t, "*a*aaaaaaaaaaaa*a*b", value) {
		t.Error("it holds")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

// asRegexp says the same as a pattern in another language.
func asRegexp(pattern string) *regexp.Regexp {
	q := regexp.QuoteMeta(pattern)
	q = strings.ReplaceAll(q, `\*\*`, `(?s:.*)`)
	q = strings.ReplaceAll(q, `\*`, `[^/]*`)
	return regexp.MustCompile(`\A(?:` + q + `)\z`)
}

func TestPatternsAreRegexps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pattern := rapid.StringMatching(`[ab/]{0,3}((\*|\*\*)[ab/]{1,2}){0,3}(\*|\*\*)?`).Draw(rt, "pattern")
		value := rapid.StringMatching(`[ab/]{0,10}`).Draw(rt, "value")
		if pattern == "" {
			return
		}
		if got, want := holds(t, pattern, value), asRegexp(pattern).MatchString(value); got != want {
			rt.Errorf("%q on %q: %v, want %v", pattern, value, got, want)
		}
	})
}

func FuzzPattern(f *testing.F) {
	f.Add("a*b**c", "ab/c")
	f.Add("**", "")
	f.Add("*a*a*a*", "aaaa")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(value) > 1000 || identity.CheckItems(items("node.x", pattern)) != nil {
			return
		}
		if !utf8.ValidString(pattern) || !utf8.ValidString(value) {
			holds(t, pattern, value) // regexp reads runes, we bytes
			return
		}
		if got, want := holds(t, pattern, value), asRegexp(pattern).MatchString(value); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, value, got, want)
		}
	})
}
