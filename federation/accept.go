package federation

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Accepts says whether an identity of the peer may be evidence here: it lies in
// the peer's trust domain, and its path equals or matches one of Accept. Without
// any, none may.
func (p *Peer) Accepts(id spiffeid.ID) bool {
	if id.IsZero() || id.TrustDomain() != p.TrustDomain || id.Path() == "" {
		return false
	}
	return slices.ContainsFunc(p.Accept, func(pattern string) bool { return matchPath(pattern, id.Path()) })
}

// matchPath: `*` is a run without `/`, `**` any run; anchored, bytes. It costs
// the product of the two lengths and no more, whatever the stars.
func matchPath(pattern, path string) bool {
	at := make([]bool, len(path)+1) // where in path what was read of pattern may end
	at[0] = true
	for pattern != "" {
		star, rest, deep := false, pattern, false
		if rest, star = strings.CutPrefix(pattern, "*"); star {
			rest, deep = strings.CutPrefix(rest, "*")
		}
		if !star {
			for i := len(path); i > 0; i-- {
				at[i] = at[i-1] && path[i-1] == pattern[0]
			}
			at[0], pattern = false, pattern[1:]
			continue
		}
		for i := 1; i <= len(path); i++ {
			at[i] = at[i] || at[i-1] && (deep || path[i-1] != '/')
		}
		pattern = rest
	}
	return at[len(path)]
}
