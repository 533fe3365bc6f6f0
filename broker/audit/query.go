package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Query says which records are wanted: those for which all that is set holds.
type Query struct {
	Sequence uint64 // this one
	Below    uint64 // older than this one: the next page
	SPIFFEID string
	Identity string
	Node     string // its SPIFFE ID, or the end of it after the last "/"
	Serial   string // or jti
	Kind     string // or all that begin alike, such as "issue.*"
	Target   string
	Actor    string
	OK       *bool     // what was done, or what was refused
	Since    time.Time // written then or later
	Until    time.Time // written before
	Limit    int       // how many; 0 is all

	// NoIndex reads every record. Whoever can write the directory could
	// leave an index that leads past some.
	NoIndex bool
}

// Matches says whether r is wanted.
func (q Query) Matches(r Record) bool {
	is := func(want, have string) bool { return want == "" || valid(want) == have }
	return (q.Sequence == 0 || r.Sequence == q.Sequence) && (q.Below == 0 || r.Sequence < q.Below) &&
		is(q.SPIFFEID, r.SPIFFEID) && is(q.Identity, r.Identity) && is(q.Serial, r.Serial) && is(q.Target, r.Target) && is(q.Actor, r.Actor) &&
		(is(q.Node, r.Node) || is(q.Node, lastPart(r.Node))) && (is(q.Kind, r.Kind) || q.isFamily() && is(q.Kind, family(r.Kind))) &&
		(q.OK == nil || *q.OK == r.OK) && q.inTime(r.Time)
}

func (q Query) inTime(at time.Time) bool {
	return !at.Before(q.Since) && (q.Until.IsZero() || at.Before(q.Until))
}

func (q Query) isFamily() bool { return strings.HasSuffix(q.Kind, ".*") }

// family is what a kind has in common with its like: "issue.*".
func family(kind string) string {
	before, _, _ := strings.Cut(kind, ".")
	return before + ".*"
}

func lastPart(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// needles returns texts that the line of each record that is wanted has, the
// rarest first. They may stand in other lines too.
func (q Query) needles() (all [][]byte) {
	text := func(s string) []byte {
		b, _ := marshal(valid(s)) // a string can be encoded
		return b
	}
	member := func(name, value string) {
		if value != "" {
			all = append(all, append([]byte(`"`+name+`":`), text(value)...))
		}
	}
	if q.Sequence > 0 {
		all = append(all, []byte(lineStart+strconv.FormatUint(q.Sequence, 10)+","))
	}
	member("serial", q.Serial)
	member("spiffe_id", q.SPIFFEID)
	member("identity", q.Identity)
	member("target", q.Target)
	member("actor", q.Actor)
	if q.Node != "" {
		all = append(all, text(q.Node)[1:]) // with its closing quote
	}
	if q.isFamily() {
		all = append(all, []byte(`"kind":"`+strings.Trim(string(text(strings.TrimSuffix(q.Kind, ".*"))), `"`)))
	} else {
		member("kind", q.Kind)
	}
	if q.OK != nil {
		all = append(all, fmt.Appendf(nil, `,"ok":%t,`, *q.OK))
	}
	return all
}

// Search returns the records of dir that q wants, the newest first. Each is
// checked by itself, as ParseLine does; Verify checks what is between. Search
// needs no Log and may run beside one; it may then see records a moment before
// they are confirmed.
func Search(ctx context.Context, dir string, q Query) iter.Seq2[Record, error] {
	return searchIn(ctx, dir, q, nil)
}

// Search is as the function, up to what is durable.
func (l *Log) Search(ctx context.Context, q Query) iter.Seq2[Record, error] {
	at, _ := l.state()
	return searchIn(ctx, l.lock.Name(), q, &at)
}

func searchIn(ctx context.Context, dir string, q Query, at *state) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		found := 0
		err := search(ctx, dir, q, at, func(r Record) bool {
			found++
			return yield(r, nil) && (q.Limit == 0 || found < q.Limit)
		})
		if err != nil && err != errEnough {
			yield(Record{}, fmt.Errorf("searching the audit record: %w", err))
		}
	}
}

func search(ctx context.Context, dir string, q Query, at *state, yield func(Record) bool) error {
	firsts, err := list(dir)
	if err != nil {
		return err
	}
	s := &searcher{ctx: ctx, query: q, needles: q.needles(), yield: yield}
	for i, first := range slices.Backward(firsts) {
		if q.Sequence > 0 && first > q.Sequence || q.Below > 0 && first >= q.Below || at != nil && first > at.first {
			continue
		}
		last := i == len(firsts)-1
		size, err := sizeOf(fileName(dir, first))
		if errors.Is(err, os.ErrNotExist) {
			return nil // it and all before were removed for their age meanwhile
		}
		if err != nil {
			return err
		}
		if at != nil && first == at.first {
			size, last = at.size, false
		}
		if err := s.file(fileName(dir, first), first, size, last); err != nil {
			return err
		}
		if q.Sequence >= first {
			return nil // it stands in this file or in none
		}
	}
	return nil
}

// A searcher goes through files and hands over what the query wants.
type searcher struct {
	ctx     context.Context
	query   Query
	needles [][]byte
	yield   func(Record) bool
	buf     []byte
}

// file searches a file from its end.
func (s *searcher) file(path string, first uint64, size int64, last bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // as above
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if x := sidecarOf(f, path, first, size, last || s.query.NoIndex); x != nil {
		want := s.query.hashes()
		for i, b := range slices.Backward(x.blocks) {
			if !b.mayHold(s.query, want) {
				continue
			}
			if !b.begins(f) { // a forgery: the rest is searched without it
				return s.backward(f, path, x.end(i), false)
			}
			if err := s.block(f, path, b.offset, x.end(i), false); err != nil {
				return err
			}
		}
		return nil
	}
	return s.backward(f, path, size, last)
}

// chunk is how much of a file without index is searched at once.
const chunk = 1 << 20

func (s *searcher) backward(f *os.File, path string, size int64, last bool) error {
	for end, newest := size, last; end > 0; newest = false {
		start := max(end-chunk, 0)
		if start > 0 {
			// It begins after the first newline that is there.
			head := make([]byte, min(MaxLine, end-start))
			if _, err := f.ReadAt(head, start); err != nil {
				return err
			}
			skip := int64(bytes.IndexByte(head, '\n')) + 1
			if (skip == 0 || start+skip == end) && !newest {
				return &BrokenError{File: path, Err: fmt.Errorf("at offset %d a line is longer than a record can be", start)}
			}
			start += skip
		}
		if err := s.block(f, path, start, end, newest); err != nil {
			return err
		}
		end = start
	}
	return nil
}

// block searches the lines between two offsets, the last first. In the newest
// block of a record the end may be an incomplete write.
func (s *searcher) block(f *os.File, path string, start, end int64, newest bool) error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	s.buf = slices.Grow(s.buf[:0], int(end-start))[:end-start]
	if _, err := f.ReadAt(s.buf, start); err != nil && err != io.EOF {
		return err
	}
	buf := s.buf
	if newest {
		buf = whole(buf)
	}
	for _, at := range slices.Backward(s.candidates(buf)) {
		r, err := ParseLine(lineAt(buf, at))
		if err != nil {
			return &BrokenError{File: path, Err: fmt.Errorf("the line at offset %d: %w", start+int64(at), err)}
		}
		if s.query.Matches(r) && !s.yield(r) {
			return errEnough
		}
	}
	return nil
}

// whole cuts off an incomplete write: see isTorn.
func whole(buf []byte) []byte {
	if zero := bytes.IndexByte(buf, 0); zero >= 0 {
		buf = buf[:zero]
	}
	return buf[:bytes.LastIndexByte(buf, '\n')+1]
}

// lineAt returns the line that begins there, without its newline.
func lineAt(buf []byte, at int) []byte {
	if n := bytes.IndexByte(buf[at:], '\n'); n >= 0 {
		return buf[at : at+n]
	}
	return buf[at:]
}

// candidates returns where the lines begin that may be wanted.
func (s *searcher) candidates(buf []byte) (starts []int) {
	timed := !s.query.Since.IsZero() || !s.query.Until.IsZero()
	for at := 0; at < len(buf); {
		if len(s.needles) > 0 {
			hit := bytes.Index(buf[at:], s.needles[0])
			if hit < 0 {
				break
			}
			at += bytes.LastIndexByte(buf[at:at+hit], '\n') + 1
		}
		line := lineAt(buf, at)
		if (!timed || s.query.mayBeInTime(line)) && containsAll(line, s.needles) {
			starts = append(starts, at)
		}
		at += len(line) + 1
	}
	return starts
}

func containsAll(line []byte, needles [][]byte) bool {
	for _, n := range needles[min(1, len(needles)):] {
		if !bytes.Contains(line, n) {
			return false
		}
	}
	return true
}

// mayBeInTime reads the time at the beginning of a line. A line in which there
// is none is for ParseLine to refuse.
func (q Query) mayBeInTime(line []byte) bool {
	_, rest, ok := bytes.Cut(line[:min(len(line), lineOverhead)], []byte(timeMember))
	text, _, ok2 := bytes.Cut(rest, []byte(`"`))
	at, err := time.Parse(time.RFC3339Nano, string(text))
	return !ok || !ok2 || err != nil || q.inTime(at)
}
