package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a template's functions.
const (
	maxFunctions = 8    // of one fact
	maxArgument  = 64   // bytes of a text that replace finds or puts
	maxValue     = 4096 // bytes of a value, of all its parts, but for hash, before and after each function
	leastHash    = 8    // digits
	safeHash     = 32   // digits; of fewer, whoever chooses values can find two that are alike
)

// A function is a step in a template: what follows a fact after a |.
type function struct {
	name     string
	old, new string // of replace
	digits   int    // of hash
}

// lossy says whether two values may come out as one.
func (f function) lossy() bool {
	switch f.name {
	case "lower", "upper", "replace":
		return true
	}
	return f.name == "hash" && f.digits < safeHash
}

func (f function) apply(s string) (string, error) {
	if f.name == "hash" {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])[:f.digits], nil
	}
	if len(s) > maxValue {
		return "", errLong(s)
	}
	switch f.name {
	case "lower":
		return mapASCII(s, 'A', 'Z', 'a'-'A'), nil
	case "upper":
		return mapASCII(s, 'a', 'z', -('a' - 'A')), nil
	case "replace":
		return strings.ReplaceAll(s, f.old, f.new), nil
	default:
		return escapeSegment(s), nil
	}
}

func errLong(s string) error {
	return fmt.Errorf("has %d bytes: at most %d are rendered, but for | hash", len(s), maxValue)
}

// mapASCII moves the letters from first to last: no others, so that no table of
// another Unicode version gives another identity.
func mapASCII(s string, first, last byte, by int) string {
	b := []byte(s)
	for i, c := range b {
		if c >= first && c <= last {
			b[i] = byte(int(c) + by)
		}
	}
	return string(b)
}

// escapeSegment writes a value in characters of one segment of a SPIFFE ID
// (SPIFFE-ID §2.2): letters, digits, hyphens and dots as they are, any other
// byte as _ and two hex digits. No two values come out as one: an _ is itself
// such a byte, and so are dots alone, which a segment can't be.
func escapeSegment(s string) string {
	dots := s == "." || s == ".."
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || c == '-' || c == '.' && !dots {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// A place is where a template stands: what a fact's value may be there, and what
// else its functions may do.
type place struct {
	what   string             // for people
	hint   string             // what makes a value fit that doesn't
	escape bool               // whether there is an escape
	split  string             // function after which a value is several parts
	by     string             // what is between them
	part   func(string) error // takes what each part may be
}

var (
	inID = &place{
		what: "one segment of a SPIFFE ID", hint: "| escape or | hash make it fit, | path takes several segments",
		escape: true, split: "path", by: "/", part: spiffeid.ValidatePathSegment,
	}
	inDNSName = &place{
		what: "one label of a DNS name", hint: "| lower, | replace or | hash 12 make it fit, | labels takes several labels",
		split: "labels", by: ".", part: checkLabelPart,
	}
	inText = &place{what: "a text", hint: "| hash makes it fit", part: checkText}
)

// parseFunction parses what follows a |.
func (p *place) parseFunction(name string, args []string) (function, error) {
	f := function{name: name}
	want := 0
	switch name {
	case "lower", "upper":
	case "escape":
		if !p.escape {
			return f, fmt.Errorf("| escape is for spiffe_id alone: what stands in %s needs none", p.what)
		}
	case "hash":
		f.digits = 2 * sha256.Size
		if want = len(args); want == 1 {
			var err error
			if f.digits, err = strconv.Atoi(args[0]); err != nil || f.digits < leastHash || f.digits > 2*sha256.Size {
				return f, fmt.Errorf("| hash %s: want how many hex digits, %d to %d", args[0], leastHash, 2*sha256.Size)
			}
		}
		want = min(want, 1)
	case "replace":
		if want = 2; len(args) == 2 {
			old, err := argument(args[0])
			new, errNew := argument(args[1])
			if err = errors.Join(err, errNew); err != nil || old == "" {
				return f, errors.New(`| replace wants two texts in quotes, the first not empty: | replace "." "-"`)
			}
			f.old, f.new = old, new
		}
	default:
		if name != p.split || name == "" {
			return f, fmt.Errorf("%q is no function here: there are %s", name, strings.Join(p.functions(), ", "))
		}
	}
	if len(args) != want {
		return f, fmt.Errorf("| %s has %d arguments: want %d", name, len(args), want)
	}
	return f, nil
}

func (p *place) functions() []string {
	all := []string{"lower", "upper", "replace", "hash"}
	if p.escape {
		all = append(all, "escape")
	}
	if p.split != "" {
		all = append(all, p.split)
	}
	return all
}

func argument(s string) (string, error) {
	if len(s) < 2 || s[0] != '"' || len(s) > maxArgument+2 { // cutBrace ends it with a quote
		return "", errors.New("no text in quotes")
	}
	return s[1 : len(s)-1], nil
}

// A slot is a fact in a template, and what is made of its value.
type slot struct {
	name  string
	funcs []function
	text  string // as it was written, without braces
}

// render makes of a fact's only value what stands in the template's place.
func (r *slot) render(e *evidence, p *place) (string, error) {
	values := e.get(r.name)
	if len(values) != 1 {
		if e.isUnknown(r.name) {
			return "", errors.New("is unknown, and a template takes one value")
		}
		return "", fmt.Errorf("has %d values, and a template takes exactly one", len(values))
	}
	return r.of(values[0], p)
}

func (r *slot) of(value string, p *place) (string, error) {
	if value == "" { // which a hash would make look like one
		return "", errors.New("is empty, and a template takes a value")
	}
	parts := []string{value}
	for _, f := range r.funcs {
		if f.name == p.split {
			if len(parts[0]) > maxValue {
				return "", errLong(parts[0])
			}
			parts = strings.Split(parts[0], p.by)
			continue
		}
		left := maxValue // of all parts together: each may grow with each function
		for i := range parts {
			var err error
			if parts[i], err = f.apply(parts[i]); err != nil {
				return "", err
			}
			if left -= len(parts[i]); left < 0 && len(parts) > 1 {
				return "", fmt.Errorf("has parts that | %s makes more than %d bytes long together", f.name, maxValue)
			}
		}
	}
	for _, part := range parts {
		// The value may come from whoever asks: it must not reach beyond its own
		// place, nor be mended, unasked, so that it doesn't.
		if part == "" || len(part) > maxValue || p.part(part) != nil {
			return "", fmt.Errorf("is %.100q, which can't stand in %s: %s", value, p.what, p.hint)
		}
	}
	return strings.Join(parts, p.by), nil
}

// splits says whether the value may be several parts.
func (r *slot) splits() bool {
	return slices.ContainsFunc(r.funcs, func(f function) bool { return f.name == "path" || f.name == "labels" })
}

// width is how long each rendered value is, where that is known: of a hash.
func (r *slot) width() (n int, known bool) {
	for _, f := range r.funcs {
		switch f.name {
		case "hash":
			n, known = f.digits, true
		case "replace", "path", "labels":
			known = false
		}
	}
	return n, known
}

// lossy names the function by which two values may come out as one.
func (r *slot) lossy() (f function, is bool) {
	i := slices.IndexFunc(r.funcs, function.lossy)
	if i < 0 {
		return function{}, false
	}
	return r.funcs[i], true
}

// brief is the slot in braces as programs of ours read it that know no functions.
func (r *slot) brief() string {
	if r.splits() {
		return "{" + r.name + "|path}"
	}
	return "{" + r.name + "}"
}
