package api

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// WorkloadDigest names what was attested of a workload: broker and agent
// compute the same for the same facts and unknowns, in whatever order. Of proofs
// their attestors' names count and no more: a token is replaced every hour by one
// that proves the same.
func WorkloadDigest(w *Workload) [sha256.Size]byte {
	b := make([]byte, 0, 1<<10)
	for _, name := range slices.Sorted(maps.Keys(w.GetFacts())) {
		b = appendText(b, name)
		b = appendNumber(b, len(w.GetFacts()[name].GetValues()))
		for _, v := range w.GetFacts()[name].GetValues() {
			b = appendText(b, v)
		}
	}
	b = appendText(b, "")
	for _, name := range slices.Sorted(slices.Values(w.GetUnknown())) {
		b = appendText(b, name)
	}
	if len(w.GetProofs()) > 0 {
		b = appendText(b, "") // no unknown is called so
		for _, name := range slices.Sorted(maps.Keys(w.GetProofs())) {
			b = appendText(b, name)
		}
	}
	return sha256.Sum256(b)
}

func appendText(b []byte, s string) []byte { return append(appendNumber(b, len(s)), s...) }

func appendNumber(b []byte, n int) []byte { return binary.BigEndian.AppendUint64(b, uint64(n)) }
