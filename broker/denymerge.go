package broker

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MergeDenyFile has the deny file at path hold what it says, what the text of
// another says and more besides, the furthest of each. It returns all cut-offs.
// No broker may have the file open.
func MergeDenyFile(path string, td spiffeid.TrustDomain, other []byte, more []Cutoff) ([]Cutoff, error) {
	d, all, err := openDenyFile(path, td)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(other[:bytes.LastIndexByte(other, '\n')+1]) {
		one, err := parseDenied(td, line)
		if err != nil {
			return nil, fmt.Errorf("reading what was revoked before: %w", err)
		}
		_, known := d.out[one.out.ID]
		if have, ok := d.denies[one.deny.key()]; ok && have.Revision >= one.deny.Revision {
			known = true
		}
		if !known {
			all = append(all, d.take(one)...)
		}
	}
	standing := map[cutKey]Cutoff{}
	for _, c := range slices.Concat(all, more) {
		if err := CheckCutoff(td, c); err != nil {
			return nil, fmt.Errorf("keeping what is revoked: %w", err)
		}
		if have, ok := standing[c.key()]; !ok || have.Before.Before(c.Before) {
			standing[c.key()] = c
		}
	}
	lines := len(standing) + len(d.out) + len(d.denies)
	if lines > maxDenyLines {
		return nil, fmt.Errorf("keeping what is revoked: %d cut-offs, evictions and Denies, at most %d are taken", lines, maxDenyLines)
	}
	if lines > 0 {
		err = d.rewrite(standing)
	}
	var kept []Cutoff
	for _, c := range standing {
		kept = append(kept, c)
	}
	return kept, err
}
