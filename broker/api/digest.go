package api

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
)

// WorkloadDigest names what was attested of a workload: broker and agent
// compute the same for the same facts and unknowns, in whatever order.
func WorkloadDigest(w *Workload) [sha256.Size]byte {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(w.GetFacts())) {
		text(h, name)
		number(h, len(w.GetFacts()[name].GetValues()))
		for _, v := range w.GetFacts()[name].GetValues() {
			text(h, v)
		}
	}
	text(h, "")
	for _, name := range slices.Sorted(slices.Values(w.GetUnknown())) {
		text(h, name)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func text(h hash.Hash, s string) {
	number(h, len(s))
	h.Write([]byte(s))
}

func number(h hash.Hash, n int) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}
