package exchangers

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxText = 512

// What looks like a token: a JWT (RFC 7519, any number of its parts), an
// opaque Google token, and any run too long to be a name.
var tokens = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*)*|ya29\.[A-Za-z0-9_./-]+|[A-Za-z0-9+=_-]{80,}`)

// Clean makes text from outside fit for errors, logs and records: one line of
// printable UTF-8, at most 512 bytes, with secrets and whatever looks like a
// token replaced. Secrets shorter than four bytes are not looked for.
func Clean(text string, secrets ...Secret) string {
	for _, s := range secrets {
		if t := s.Reveal(); len(t) >= 4 {
			text = strings.ReplaceAll(text, t, redacted)
		}
	}
	// Cut only now, so that no secret is cut in two and half of it kept; a
	// longer text than this is not searched for tokens.
	if len(text) > 16*maxText {
		text = text[:16*maxText]
	}
	text = tokens.ReplaceAllString(text, redacted)
	text = strings.Join(strings.FieldsFunc(text, unprintable), " ")
	return cut(text, maxText)
}

func unprintable(r rune) bool {
	return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == utf8.RuneError
}

// cut keeps whole runes of at most n bytes.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
