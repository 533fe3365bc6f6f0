package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	headStart = `{"head":`

	maxExportedHeads = 1024
	maxBreaks        = 1024
)

// ExportedHead returns the line of a head among records, without a newline: one
// member, "head", whose value is its canonical form.
func ExportedHead(h Head) ([]byte, error) {
	line, err := h.Line()
	if err != nil {
		return nil, err
	}
	return append(append([]byte(headStart), line...), '}'), nil
}

// Kept is what was kept elsewhere of how far records had got.
type Kept struct {
	// Heads are those of the file, and the last exported record as one, without
	// a signature, where exported heads say whose record it is.
	Heads []Head
	// Records are the last exported ones where nothing says whose they are.
	Records []Record
}

// ReadKept reads heads, one a line, as ReadHeads does, or the record of one broker
// as it was exported, as it is: its last record stands for those before, since
// they are followed as a chain. Where that breaks, the last record before is
// kept too, unless it comes again: the receiver has what was there before. Of many
// exported heads those are kept that are newest and ever fewer of the older, which
// say nothing that the newer do not but where it began. A last line without a
// newline may be incomplete.
func ReadKept(r io.Reader) (Kept, error) {
	lines := bufio.NewReaderSize(r, MaxLine)
	var k keeping
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			if errors.Is(err, bufio.ErrBufferFull) {
				err = fmt.Errorf("it has more than %d bytes", MaxLine)
			}
			return Kept{}, fmt.Errorf("line %d: %w", n, err)
		}
		if err := k.take(bytes.TrimSuffix(line, []byte("\n"))); err != nil && !(end && isExported(line)) {
			return Kept{}, fmt.Errorf("line %d: %w", n, err)
		}
		if end {
			return k.end()
		}
	}
}

func isExported(line []byte) bool {
	return bytes.HasPrefix(line, []byte(lineStart)) || bytes.HasPrefix(line, []byte(headStart))
}

// keeping is a Kept while it is read.
type keeping struct {
	heads    []Head // that stand there by themselves
	exported []Head
	last     []byte // the last record
	at       Ref    // its place
	breaks   []Record
}

func (k *keeping) take(line []byte) error {
	switch {
	case len(bytes.TrimSpace(line)) == 0:
		return nil
	case bytes.HasPrefix(line, []byte(lineStart)):
		return k.takeRecord(line)
	case bytes.HasPrefix(line, []byte(headStart)) && bytes.HasSuffix(line, []byte("}")):
		h, err := ParseHead(line[len(headStart) : len(line)-1])
		if err != nil {
			return err
		}
		if k.exported = append(k.exported, h); len(k.exported) == maxExportedHeads {
			k.exported = thinned(k.exported)
		}
		return nil
	}
	h, err := ParseHead(line)
	if err == nil && len(k.heads) == MaxHeads {
		err = fmt.Errorf("more than %d heads", MaxHeads)
	}
	k.heads = append(k.heads, h)
	return err
}

// thinned leaves out every other of the older half; the first stays.
func thinned(all []Head) []Head {
	some := make([]Head, 0, cap(all))
	for i, h := range all {
		if i%2 == 0 || i >= len(all)/2 {
			some = append(some, h)
		}
	}
	return some
}

func (k *keeping) takeRecord(line []byte) error {
	l, err := linkOf(line)
	if err != nil {
		return err
	}
	if follows := l.ref.Sequence == k.at.Sequence+1 && l.prev == k.at.Hash; !follows && k.last != nil && l.ref != k.at {
		if len(k.breaks) == maxBreaks {
			return fmt.Errorf("its chain breaks more than %d times: it is not one broker's record", maxBreaks)
		}
		r, err := decode(k.last)
		if err != nil {
			return err
		}
		k.breaks = append(k.breaks, r)
	}
	if n := len(k.breaks); n > 0 && k.breaks[n-1].Ref() == l.ref {
		k.breaks = k.breaks[:n-1] // it was sent again
	}
	k.last, k.at = append(k.last[:0], line...), l.ref
	return nil
}

func (k *keeping) end() (Kept, error) {
	all := Kept{Heads: append(k.heads, k.exported...), Records: k.breaks}
	if k.last != nil {
		r, err := decode(k.last)
		if err != nil {
			return Kept{}, err
		}
		all.Records = append(all.Records, r)
	}
	whose := make(map[[2]string]bool)
	for _, h := range k.exported {
		whose[[2]string{h.TrustDomain, h.Origin}] = true
	}
	switch {
	case len(whose) > 1:
		return Kept{}, errors.New("the exported heads are of several brokers: one broker's export is wanted")
	case len(whose) == 1:
		of := k.exported[0]
		for _, r := range all.Records {
			all.Heads = append(all.Heads, HeadOf(of.TrustDomain, of.Origin, r.Ref(), r.Time))
		}
		all.Records = nil
	}
	return all, nil
}
