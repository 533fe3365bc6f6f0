package identity

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of one pattern.
const (
	maxPattern = 2048
	maxStars   = 4
)

// A pattern is a parsed Term.Pattern. Most are equalities, and there are many:
// those are no more than their text.
type pattern struct {
	text string
	*glob
}

// A glob is what a pattern with stars is, cut at them. The text before the
// first star is apart, since the index files by it.
type glob struct {
	head string
	rest []piece
}

// A piece is a star and the literal text after it.
type piece struct {
	any bool // `**`
	lit string
}

// parsePattern parses equality or a glob: `*` is a run without '/', `**` any
// run. Nothing escapes a star: a value that holds one is matched by a star.
func parsePattern(s string) (pattern, error) {
	switch {
	case s == "":
		return pattern{}, errors.New("empty: it would never hold")
	case len(s) > maxPattern:
		return pattern{}, fmt.Errorf("%d bytes: at most %d are taken", len(s), maxPattern)
	case strings.Contains(s, "***"):
		return pattern{}, fmt.Errorf("%q has three stars in a row: write * or **", s)
	}
	head, rest, _ := strings.Cut(s, "*")
	p := pattern{text: s}
	if len(head) == len(s) {
		return p, nil
	}
	p.glob = &glob{head: head}
	for more := true; more; {
		var next piece
		if rest, next.any = strings.CutPrefix(rest, "*"); len(p.rest) == maxStars {
			return pattern{}, fmt.Errorf("%q has more than %d stars", s, maxStars)
		}
		next.lit, rest, more = strings.Cut(rest, "*")
		p.rest = append(p.rest, next)
	}
	return p, nil
}

// exact says whether the pattern is an equality.
func (p pattern) exact() bool { return p.glob == nil }

// bare says whether the pattern is nothing but stars and so says nothing.
func (p pattern) bare() bool {
	if p.exact() {
		return p.text == ""
	}
	for _, q := range p.rest {
		if q.lit != "" {
			return false
		}
	}
	return p.head == ""
}

// match says whether the whole of s, byte for byte, is what p describes.
func (p pattern) match(s string) bool {
	if p.exact() {
		return s == p.text
	}
	tail, ok := strings.CutPrefix(s, p.head)
	if !ok {
		return false
	}
	if len(p.rest) == 1 {
		run, ok := strings.CutSuffix(tail, p.rest[0].lit)
		return ok && (p.rest[0].any || !strings.Contains(run, "/"))
	}
	return matchPieces(p.rest, tail)
}

// matchPieces keeps the set of places that the pieces so far can end at, so
// that its time is linear in s for each star, whatever s holds.
func matchPieces(pieces []piece, s string) bool {
	ends := make([]bool, len(s)+1)
	next := make([]bool, len(s)+1)
	ends[0] = true
	for _, p := range pieces {
		clear(next)
		running := false
		for i := 0; i+len(p.lit) <= len(s); i++ {
			if i > 0 && s[i-1] == '/' && !p.any {
				running = false
			}
			running = running || ends[i]
			if running && s[i:i+len(p.lit)] == p.lit {
				next[i+len(p.lit)] = true
			}
		}
		ends, next = next, ends
	}
	return ends[len(s)]
}

// matchAny says whether one of the patterns matches s.
func matchAny(patterns []pattern, s string) bool {
	for _, p := range patterns {
		if p.match(s) {
			return true
		}
	}
	return false
}
