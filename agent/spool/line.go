package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errLine = errors.New("not a line of the spool")

// appendLine writes a record as its line.
func appendLine(b []byte, sequence uint64, kind byte, payload []byte) []byte {
	b = strconv.AppendUint(b, sequence, 10)
	b = append(b, ' ', kind, ' ')
	b = fmt.Appendf(b, "%08x ", checksum(sequence, kind, payload))
	b = append(b, payload...)
	return append(b, '\n')
}

func checksum(sequence uint64, kind byte, payload []byte) uint32 {
	head := fmt.Appendf(nil, "%d %c ", sequence, kind)
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, payload)
}

// parseLine reads what appendLine wrote, without its newline.
func parseLine(line []byte) (Record, error) {
	number, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(rest) < len("r 01234567 x") || rest[1] != ' ' || rest[10] != ' ' || len(line) > MaxRecord+64 {
		return Record{}, errLine
	}
	sequence, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil || sequence == 0 || sequence > maxSequence {
		return Record{}, errLine
	}
	kind, sum, payload := rest[0], string(rest[2:10]), rest[11:]
	if fmt.Sprintf("%08x", checksum(sequence, kind, payload)) != sum {
		return Record{}, errLine
	}
	switch kind {
	case 'r':
		return Record{Sequence: sequence, Data: payload}, nil
	case 'g':
		var g Gap
		if json.Unmarshal(payload, &g) != nil || g.Lost == 0 {
			return Record{}, errLine
		}
		return Record{Sequence: sequence, Gap: &g}, nil
	}
	return Record{}, errLine
}

// losses are counted for as long as the spool lives, in a file of one sector
// that is written over.
type losses struct {
	Total uint64    `json:"total"`
	Told  uint64    `json:"told"` // by gaps
	Why   string    `json:"why,omitempty"`
	Since time.Time `json:"since,omitzero"` // of the first untold one

	dirty bool // not on disk
}

func (l *losses) untold() uint64 { return l.Total - l.Told }

func (l *losses) add(n uint64, why string, now time.Time) {
	if n == 0 {
		return
	}
	if l.untold() == 0 {
		l.Why, l.Since = why, now.UTC()
	}
	l.Total += n
	l.dirty = true
}

// gap is what is to be told.
func (l *losses) gap() *Gap {
	return &Gap{Lost: l.untold(), Why: l.Why, Since: l.Since, Total: l.Total}
}

// told notes a gap that is durable.
func (l *losses) told(g *Gap) {
	if g.Total > l.Told {
		l.Told = g.Total
		l.Total = max(l.Total, l.Told)
		l.dirty = true
	}
	if l.untold() == 0 {
		l.Why, l.Since = "", time.Time{}
	}
}

const sector = 512

// encode pads to one sector, with a checksum.
func (l *losses) encode() []byte {
	text, err := json.Marshal(l)
	if err != nil {
		return nil // it holds numbers, a word of ours and a time: it cannot fail
	}
	line := appendLine(nil, 1, 'l', text)
	return append(line, bytes.Repeat([]byte{' '}, max(0, sector-len(line)))...)
}

func decodeLosses(text []byte) (l losses, err error) {
	if len(text) == 0 {
		return losses{}, nil
	}
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	payload, err := ofKind(line, 'l')
	if err == nil {
		err = json.Unmarshal(payload, &l)
	}
	if err == nil && l.Told > l.Total {
		err = errLine
	}
	if err != nil {
		return losses{}, err
	}
	return l, nil
}

// ofKind reads a line of the spool's own files.
func ofKind(line []byte, kind byte) ([]byte, error) {
	number, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || string(number) != "1" || len(rest) < 11 || rest[0] != kind || rest[1] != ' ' || rest[10] != ' ' {
		return nil, errLine
	}
	if fmt.Sprintf("%08x", checksum(1, kind, rest[11:])) != string(rest[2:10]) {
		return nil, errLine
	}
	return rest[11:], nil
}
