package exchangers

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Difference is where and how what a cloud holds is not what we say. Clouds
// compare bytes.
type Difference struct {
	// Kind is whitespace, slash (at the end), case, scheme, homograph, port,
	// path, host, or other. Of several it is the first in this order.
	Kind  string
	Byte  int    // the first that differs, from 1
	Shown string // both texts, and a caret under it
}

// Differ compares what we say with what the cloud holds. ok is false where they
// are the same bytes.
func Differ(ours, theirs string) (d Difference, ok bool) {
	if ours == theirs {
		return d, false
	}
	at := 0
	for at < len(ours) && at < len(theirs) && ours[at] == theirs[at] {
		at++
	}
	for at > 0 && (at < len(ours) && !utf8.RuneStart(ours[at]) || at < len(theirs) && !utf8.RuneStart(theirs[at])) {
		at--
	}
	return Difference{kind(ours, theirs), at + 1, caret(ours, theirs, at)}, true
}

// ways are the small differences, and what makes each go away.
var ways = []struct {
	kind    string
	without func(string) string
}{
	{"whitespace", func(s string) string { return strings.Join(strings.FieldsFunc(s, blank), "") }},
	{"slash", func(s string) string { return strings.TrimRight(s, "/") }},
	{"case", strings.ToLower},
	{"scheme", withoutScheme},
	{"homograph", skeleton},
}

func kind(ours, theirs string) string {
	for _, way := range ways {
		if way.without(ours) == way.without(theirs) {
			return way.kind
		}
	}
	for i, way := range ways { // several at once
		a, b := ours, theirs
		for j, other := range ways {
			if j != i && other.kind != "homograph" {
				a, b = other.without(a), other.without(b)
			}
		}
		if a != b && way.without(a) == way.without(b) {
			return way.kind
		}
	}
	x, err1 := url.Parse(ours)
	y, err2 := url.Parse(theirs)
	switch {
	case strings.ContainsFunc(theirs, func(r rune) bool { return r > unicode.MaxASCII && r != utf8.RuneError }):
		return "homograph"
	case err1 != nil || err2 != nil || x.Host == "" || y.Host == "":
		return "other"
	case x.Hostname() != y.Hostname():
		return "host"
	case x.Port() != y.Port():
		return "port"
	}
	return "path"
}

// blank says of a rune that nobody sees it.
func blank(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}

func withoutScheme(s string) string {
	text := strings.TrimLeftFunc(s, blank)
	lead := s[:len(s)-len(text)]
	if scheme, rest, ok := strings.Cut(text, "://"); ok && !strings.ContainsAny(scheme, "/.:@") {
		return lead + rest
	}
	return lead + strings.TrimPrefix(text, "//")
}

// alike are characters that are read for one another: the most common of
// Cyrillic, Greek and full width, and ASCII's own.
var alike = strings.NewReplacer("а", "a", "с", "c", "е", "e", "о", "o", "р", "p", "х", "x", "у", "y", "і", "i", "ѕ", "s", "ј", "j", "ԁ", "d", "һ", "h",
	"ο", "o", "α", "a", "ν", "v", "ι", "i", "．", ".", "／", "/", "：", ":", "‐", "-", "‑", "-", "–", "-", "—", "-", "−", "-",
	"0", "o", "O", "o", "1", "l", "I", "l", "i", "l")

func skeleton(s string) string { return alike.Replace(s) }

// caret shows both texts, as many of their bytes as fit a line, and the place.
func caret(ours, theirs string, at int) string {
	const before, after = 80, 40
	from := max(0, at-before)
	for from > 0 && !utf8.RuneStart(ours[from]) {
		from--
	}
	lead := ""
	if from > 0 {
		lead = "..."
	}
	window := func(s string) string {
		end := min(len(s), at+after)
		for end < len(s) && !utf8.RuneStart(s[end]) {
			end++
		}
		text := lead + visible(s[from:end])
		if end < len(s) {
			text += "..."
		}
		return text
	}
	indent := strings.Repeat(" ", utf8.RuneCountInString(lead+visible(ours[from:at])))
	return fmt.Sprintf("ours       %s\nthe cloud  %s\n           %s^ byte %d", window(ours), window(theirs), indent, at+1)
}

// visible writes what cannot be seen as it stands otherwise.
func visible(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case blank(r) || !unicode.IsPrint(r):
			fmt.Fprintf(&b, "<U+%04X>", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Compare fails where the cloud holds other bytes than we say. what is said of
// them in prose, prefix begins the code, and field is where it is to be changed.
func (w *Walk) Compare(step, prefix, what, field, ours, theirs string) bool {
	d, differs := Differ(ours, theirs)
	if !differs {
		return true
	}
	found := map[string]string{
		"whitespace": "has whitespace there that it has not here",
		"slash":      "differs in a slash at its end",
		"case":       "differs only in case",
		"scheme":     "differs in what stands before its host or name",
		"homograph":  "has another character there that looks alike",
		"port":       "differs in its port",
		"path":       "differs in its path",
		"host":       "has another host",
		"other":      "is another",
	}[d.Kind]
	w.Fail(step, prefix+"_"+d.Kind, field, fmt.Sprintf("%s in the cloud %s, at byte %d", what, found, d.Byte),
		fmt.Sprintf("set it in the cloud to %s", ours))
	last := &w.Findings[len(w.Findings)-1]
	last.Byte, last.Shown = d.Byte, d.Shown
	return false
}
