package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// KindTruncate is the kind of the record that says which records before it were
// removed for their age. It is durable before the first of them goes, so that a
// beginning that is missing without one was taken by somebody else.
const KindTruncate = "audit.truncate"

// A Truncation is what a record of KindTruncate says: that the records from
// First to Last, which were whole files, were removed.
type Truncation struct {
	First  uint64
	Last   Ref
	Before time.Time           // what was older
	Files  map[string][32]byte // SHA-256 of each file that was removed, by its name
	Record Ref                 // the record that says so
	Time   time.Time           // when
}

// detail is what the record has in its Detail.
func (t Truncation) detail() map[string]string {
	d := map[string]string{
		"first": strconv.FormatUint(t.First, 10), "last": strconv.FormatUint(t.Last.Sequence, 10), "hash": hex.EncodeToString(t.Last.Hash[:]),
		"records": strconv.FormatUint(t.Last.Sequence-t.First+1, 10), "before": t.Before.UTC().Format(time.RFC3339Nano),
	}
	for name, digest := range t.Files {
		d[name] = hex.EncodeToString(digest[:])
	}
	return d
}

// truncationOf reads such a record. One that says anything else than Truncate
// writes says nothing.
func truncationOf(r Record) (Truncation, bool) {
	t := Truncation{Record: r.Ref(), Time: r.Time, Files: make(map[string][32]byte)}
	if r.Kind != KindTruncate || !r.OK {
		return t, false
	}
	var err error
	number := func(name string) (n uint64) {
		if err == nil {
			n, err = strconv.ParseUint(r.Detail[name], 10, 64)
		}
		return n
	}
	t.First, t.Last.Sequence = number("first"), number("last")
	if err != nil || t.First == 0 || t.Last.Sequence < t.First || t.Last.Sequence >= r.Sequence {
		return t, false
	}
	if t.Before, err = time.Parse(time.RFC3339Nano, r.Detail["before"]); err != nil || !unhex(t.Last.Hash[:], r.Detail["hash"]) {
		return t, false
	}
	for name, value := range r.Detail {
		var digest [32]byte
		if strings.HasSuffix(name, suffix) {
			first, ok := firstOf(name)
			if !ok || first < t.First || first > t.Last.Sequence || !unhex(digest[:], value) {
				return t, false
			}
			t.Files[name] = digest
		}
	}
	return t, len(t.Files) > 0 && maps.Equal(t.detail(), r.Detail)
}

// truncationIn reads such a record in a line whose link has been checked.
func truncationIn(line []byte) (Truncation, bool) {
	if !bytes.Contains(line[:min(len(line), lineOverhead)], []byte(`"kind":"`+KindTruncate+`"`)) {
		return Truncation{}, false
	}
	r, err := decode(line)
	if err != nil {
		return Truncation{}, false
	}
	return truncationOf(r)
}

func unhex(dst []byte, text string) bool {
	if len(text) != 2*len(dst) {
		return false
	}
	_, err := hex.Decode(dst, []byte(text))
	return err == nil
}

// names returns the removed files in order.
func (t Truncation) names() []string { return slices.Sorted(maps.Keys(t.Files)) }

// A beginning is what a reader of a record finds before the first file that is
// there: nothing, or what a Truncation removed.
type beginning struct {
	last Ref // of what is missing; its hash is what the first record there says
	by   *Truncation
}

// at takes what the first file there is says of the record before it, and looks
// whether that is the one that was known.
func (b *beginning) at(f *verified, known []Known) (Ref, error) {
	if f.first == 1 || f.lines == 0 {
		return b.last, nil
	}
	b.last.Hash = f.prev
	for _, k := range known {
		if k.Sequence == b.last.Sequence && k.Ref != b.last {
			return b.last, &BrokenError{File: f.path, Line: 1, Err: &RewrittenError{Kept: k}}
		}
	}
	return b.last, nil
}

// take looks whether a record accounts for what is missing. The last removal may
// have been interrupted; the chain then leads from what it left to it.
func (b *beginning) take(all ...Truncation) {
	for _, t := range all {
		if t.First <= b.last.Sequence && (b.last.Sequence < t.Last.Sequence || b.last == t.Last) {
			b.by = &t
		}
	}
}

// clockBack is how far a clock may have been set back without a removal being
// taken for a lie.
const clockBack = time.Hour

// contradicts looks whether what was removed for its age was younger: it came after
// one that was signed later than all of it is said to have been written. Whoever
// writes the record anew could else have the heads that are kept be of what was
// removed. gone is how many are.
func (b *beginning) contradicts(dir string, known []Known) (gone int, err error) {
	if b.by == nil {
		return 0, nil
	}
	var signed, before time.Time // at the latest: of heads up to this one, and of those of earlier records
	for i, k := range known {
		if k.Sequence > b.last.Sequence {
			break
		}
		if i > 0 && known[i-1].Sequence < k.Sequence {
			before = signed
		}
		if before.After(b.by.Before.Add(clockBack)) {
			return i, &BrokenError{File: fileName(dir, b.last.Sequence+1), Err: fmt.Errorf(
				"%s says that all before record %d was removed as older than %s, and %s, was written after %s: the record was written anew",
				b.by.Record.ID(), b.last.Sequence+1, b.by.Before.UTC().Format(time.RFC3339), k, before.UTC().Format(time.RFC3339))}
		}
		if gone++; k.Time.After(signed) {
			signed = k.Time
		}
	}
	return gone, nil
}

// check is called after the last record.
func (b *beginning) check(dir string) error {
	if b.last.Sequence == 0 || b.by != nil {
		return nil
	}
	return &BrokenError{File: fileName(dir, b.last.Sequence+1), Err: fmt.Errorf("the files with the records before %d are missing, and no record says that they were removed and that the chain goes on from what stands here", b.last.Sequence+1)}
}
