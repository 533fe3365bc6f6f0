package spool

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const (
	idFile      = "id"
	lossFile    = "lost"
	shippedFile = "shipped"
)

// load takes up what is there, and leaves the last segment's torn end to be
// cut off.
func (s *Spool) load(t *tape) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := s.loadID(); err != nil {
		return err
	}
	text, err := readSmall(filepath.Join(s.cfg.Dir, lossFile), sector)
	if err != nil {
		return err
	}
	if s.lost, err = decodeLosses(text); err != nil {
		s.cfg.Log.Warn("the count of lost reports is damaged, and begun anew", "dir", s.cfg.Dir)
		s.lost.add(1, LostDamaged, s.cfg.Now()) // at least one: it was written for that
	} else if len(text) == 0 {
		s.lost.dirty = true // its room is taken now, not when the disk is full
	}
	firsts, err := list(s.cfg.Dir)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		if err := t.begin(1); err != nil {
			return err
		}
		firsts = []uint64{1}
	}
	s.next = firsts[len(firsts)-1]
	for i, first := range firsts {
		end := uint64(0) // none
		if i+1 < len(firsts) {
			end = firsts[i+1]
		}
		if err := s.loadSegment(first, end); err != nil {
			return err
		}
	}
	if err := s.loadShipped(); err != nil {
		return err
	}
	s.read = place{segment: firsts[0]}
	for _, g := range s.segments[1:] {
		if g.first <= s.shipped+1 {
			s.read.segment = g.first
		}
	}
	t.drop()
	return t.cut(s.segments[len(s.segments)-1])
}

func (s *Spool) loadID() error {
	path := filepath.Join(s.cfg.Dir, idFile)
	text, err := readSmall(path, 64)
	if err != nil {
		return err
	}
	s.id = string(bytes.TrimSpace(text))
	if raw, err := hex.DecodeString(s.id); err == nil && len(raw) == 8 {
		return nil
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand.Read)
	s.id = hex.EncodeToString(id[:])
	if err := s.cfg.disk.place(path, []byte(s.id+"\n"), true); err != nil {
		return err
	}
	return s.cfg.disk.syncDir(s.cfg.Dir)
}

// loadSegment measures a segment up to its last whole line below end, and
// takes the gaps in it for told.
func (s *Spool) loadSegment(first, end uint64) error {
	path := filepath.Join(s.cfg.Dir, segmentName(first))
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxSegment {
		return fmt.Errorf("%s has %d bytes: not ours; move it away", path, info.Size())
	}
	g := segment{first: first}
	lines := reader{lines: bufio.NewReaderSize(f, MaxRecord+128)}
	for {
		r, whole, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, errLine) {
			return err
		}
		// What a failed write left behind is below no other segment's first.
		if err != nil || !whole || r.Sequence < first || end != 0 && r.Sequence >= end {
			continue
		}
		g.size = lines.offset
		s.next = max(s.next, r.Sequence+1)
		if r.Gap != nil {
			s.lost.told(r.Gap)
		}
	}
	if torn := info.Size() - g.size; torn > 0 {
		s.cfg.Log.Warn("an incomplete write of the spool is cut off: it was never confirmed", "file", path, "bytes", torn)
	}
	s.segments = append(s.segments, g)
	s.bytes += g.size
	return nil
}

func (s *Spool) loadShipped() error {
	text, err := readSmall(filepath.Join(s.cfg.Dir, shippedFile), 64)
	number, err2 := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 63)
	// Numbers below the first segment's are gone: they have arrived.
	s.shipped = s.segments[0].first - 1
	if err == nil && err2 == nil {
		s.shipped = max(s.shipped, number)
	}
	// A disk that forgot what it had synced: their numbers are taken.
	s.next = max(s.next, s.shipped+1)
	if s.next > maxSequence/2 {
		return fmt.Errorf("it has reached number %d: not ours; move it away", s.next)
	}
	return nil
}

// A reader reads lines and counts bytes.
type reader struct {
	lines  *bufio.Reader
	offset int64
}

// next reads one line; whole says that it had its newline. A line that is not
// one is errLine, and passed over.
func (r *reader) next() (rec Record, whole bool, err error) {
	line, err := r.lines.ReadSlice('\n')
	r.offset += int64(len(line))
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = r.lines.ReadSlice('\n')
			r.offset += int64(len(line))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return Record{}, false, err
		}
		return Record{}, false, errLine
	}
	if err != nil && (len(line) == 0 || !errors.Is(err, io.EOF)) {
		return Record{}, false, err
	}
	if err != nil {
		return Record{}, false, errLine // torn
	}
	rec, err = parseLine(line[:len(line)-1])
	rec.Data = slices.Clone(rec.Data)
	return rec, true, err
}

// Next returns up to n records that have not arrived, in order, of about so
// many bytes. The same ones come again until Arrived.
func (s *Spool) Next(n, bytes int) ([]Record, error) {
	s.mu.Lock()
	segments, at, after := slices.Clone(s.segments), s.read, s.shipped
	s.mu.Unlock()
	var all []Record
	for _, g := range segments {
		if g.first < at.segment {
			continue
		}
		from := int64(0)
		if g.first == at.segment {
			from = at.offset
		}
		err := s.readSegment(g, from, func(r Record) bool {
			if r.Sequence <= after {
				return true
			}
			r.missing, after = r.Sequence-after-1, r.Sequence
			all = append(all, r)
			bytes -= len(r.Data)
			return len(all) < n && bytes > 0
		})
		if err != nil {
			return nil, fmt.Errorf("reading the spool: %w", err)
		}
		if len(all) >= n || bytes <= 0 {
			break
		}
	}
	return all, nil
}

// readSegment reads what is confirmed, until yield wants no more. What is
// damaged is passed over.
func (s *Spool) readSegment(g segment, from int64, yield func(Record) bool) error {
	f, err := os.Open(filepath.Join(s.cfg.Dir, segmentName(g.first)))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := reader{lines: bufio.NewReaderSize(io.NewSectionReader(f, from, g.size-from), MaxRecord+128)}
	for {
		r, _, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errLine):
			continue
		case err != nil:
			return err
		}
		r.segment, r.end = g.first, from+lines.offset
		if !yield(r) {
			return nil
		}
	}
}

// Arrived lets go of the first records of Next.
func (s *Spool) Arrived(records []Record) {
	if len(records) == 0 {
		return
	}
	last, damaged := records[len(records)-1], uint64(0)
	for _, r := range records {
		damaged += r.missing
	}
	s.Lose(damaged, LostDamaged)
	s.mu.Lock()
	s.shipped = max(s.shipped, last.Sequence)
	s.read = place{last.segment, last.end}
	text := fmt.Appendf(nil, "%020d\n", s.shipped)
	s.mu.Unlock()
	// Not synced: who gets a record twice knows it by its number.
	if err := s.cfg.disk.place(filepath.Join(s.cfg.Dir, shippedFile), text, false); err != nil {
		s.cfg.Log.Debug("what has arrived is not noted", "error", err)
	}
	s.shed()
}

// shed removes segments of which everything has arrived, but never the last.
func (s *Spool) shed() {
	s.mu.Lock()
	var gone []segment
	for len(s.segments) > 1 && s.segments[1].first <= s.shipped+1 {
		gone = append(gone, s.segments[0])
		s.bytes -= s.segments[0].size
		s.segments = s.segments[1:]
	}
	if s.read.segment < s.segments[0].first {
		s.read = place{segment: s.segments[0].first}
	}
	if len(gone) > 0 && s.lost.untold() > 0 {
		s.lost.dirty = true // there may be room for the gap now
		s.stir()
	}
	s.mu.Unlock()
	for _, g := range gone {
		if err := os.Remove(filepath.Join(s.cfg.Dir, segmentName(g.first))); err != nil {
			s.cfg.Log.Warn("a segment of the spool that has arrived cannot be removed", "error", err)
		}
	}
}
