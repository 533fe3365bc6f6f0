package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	lineStart  = `{"sequence":`
	timeMember = `,"time":"`
	prevMember = `,"previous":"`
	hashMember = `,"hash":"`
	lineEnd    = `"}`

	hexLen  = 2 * sha256.Size
	prevLen = len(prevMember) + hexLen + len(`"`)
	hashLen = len(hashMember) + hexLen + len(lineEnd)

	// lineOverhead is more than a line has besides its event.
	lineOverhead = len(lineStart) + 20 + len(timeMember) + len(time.RFC3339Nano) + len(`",`) + prevLen + hashLen + len("\n")
)

// encodeEvent returns e in canonical form, braces included.
func encodeEvent(e Event) ([]byte, error) {
	if e.Kind == "" {
		return nil, fmt.Errorf("%w: it has no kind", ErrRefused)
	}
	e, err := clean(e)
	if err != nil {
		return nil, err
	}
	b, err := marshal(e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if n := len(b) + lineOverhead; n > MaxLine {
		return nil, fmt.Errorf("%w: %s of %s takes %d bytes, a record holds %d", ErrRefused, strconv.Quote(e.Kind), strconv.Quote(e.SPIFFEID), n, MaxLine)
	}
	return b, nil
}

// clean returns e with valid UTF-8 only. encoding/json would write an invalid
// byte as an escape and the character it becomes as itself, so that a line
// would not be what its own reader writes.
func clean(e Event) (Event, error) {
	for _, s := range []*string{&e.Kind, &e.Node, &e.SPIFFEID, &e.Identity, &e.Serial, &e.Authority, &e.Digest, &e.Target, &e.Actor, &e.Code, &e.Reason} {
		*s = valid(*s)
	}
	e.Issued, e.NotAfter = e.Issued.UTC(), e.NotAfter.UTC()
	e.Audiences = validAll(e.Audiences)
	if !allValid(e.Facts) {
		facts := make(map[string][]string, len(e.Facts))
		for name, values := range e.Facts {
			if !utf8.ValidString(name) {
				return Event{}, fmt.Errorf("%w: the name of fact %q is not UTF-8", ErrRefused, name)
			}
			facts[name] = validAll(values)
		}
		e.Facts = facts
	}
	if len(e.Detail) > 0 {
		detail := make(map[string]string, len(e.Detail))
		for name, value := range e.Detail {
			if !utf8.ValidString(name) {
				return Event{}, fmt.Errorf("%w: the name of detail %q is not UTF-8", ErrRefused, name)
			}
			detail[name] = valid(value)
		}
		e.Detail = detail
	}
	return e, nil
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func invalid(s string) bool { return !utf8.ValidString(s) }

// allValid says whether facts, as nearly always, can be written as they are.
func allValid(facts map[string][]string) bool {
	for name, values := range facts {
		if invalid(name) || slices.ContainsFunc(values, invalid) {
			return false
		}
	}
	return true
}

func validAll(ss []string) []string {
	if !slices.ContainsFunc(ss, invalid) {
		return ss
	}
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = valid(s)
	}
	return out
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// appendLine appends to dst the line, newline included, of an encoded event
// that comes after prev, and returns its place. It writes by hand what
// Record.Line would, so that the events of many callers can be encoded by
// them, at the same time, before their order is known.
func appendLine(dst []byte, prev Ref, now time.Time, event []byte) ([]byte, Ref) {
	start, ref := len(dst), Ref{Sequence: prev.Sequence + 1}
	dst = append(dst, lineStart...)
	dst = strconv.AppendUint(dst, ref.Sequence, 10)
	dst = append(dst, timeMember...)
	dst = now.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `",`...)
	dst = append(dst, event[1:len(event)-1]...)
	dst = append(dst, prevMember...)
	dst = hex.AppendEncode(dst, prev.Hash[:])
	dst = append(dst, lineEnd...)

	ref.Hash = hashOf(prev.Hash, dst[start:])
	dst = append(dst[:len(dst)-1], hashMember...)
	dst = hex.AppendEncode(dst, ref.Hash[:])
	dst = append(dst, lineEnd...)
	return append(dst, '\n'), ref
}

// hashOf returns the hash of a record after prev whose line, without hash and
// newline, is body.
func hashOf(prev [32]byte, body []byte) (sum [32]byte) {
	h := sha256.New()
	h.Write(prev[:])
	h.Write(body)
	h.Sum(sum[:0])
	return sum
}

// Line returns the record as it stands in its file, without the newline.
func (r Record) Line() ([]byte, error) { return marshal(r) }

// ParseLine reads one line, without its newline. It refuses what is not in
// the canonical form or doesn't have the hash that it says. Whether its
// previous is the record before, only a reader of both can say.
func ParseLine(line []byte) (Record, error) {
	if _, err := linkOf(line); err != nil {
		return Record{}, err
	}
	return decode(line)
}

// decode reads a line whose link has been checked.
func decode(line []byte) (Record, error) {
	var r Record
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("it is not a record: %w", err)
	}
	if r.Kind == "" {
		return Record{}, errors.New("it is not a record: it has no kind")
	}
	// One form only: else two readers could see two things in one line, as
	// with a member that stands there twice.
	if again, err := r.Line(); err != nil || !bytes.Equal(again, line) {
		return Record{}, errors.New("it is not in the canonical form")
	}
	return r, nil
}

// A link is what chains a line to the one before.
type link struct {
	ref  Ref
	prev [32]byte
}

var errEdited = errors.New("its hash is not that of its content: it was changed")

// linkOf finds a line's link and checks its hash; it reads nothing else.
func linkOf(line []byte) (link, error) {
	var l link
	malformed := errors.New("it is not a record: its start or end has not the form of one")
	if len(line) > MaxLine-1 || len(line) < len(lineStart)+prevLen+hashLen {
		return l, malformed
	}
	rest, ok := bytes.CutPrefix(line, []byte(lineStart))
	if !ok {
		return l, malformed
	}
	digits, _, ok := bytes.Cut(rest[:min(len(rest), 24)], []byte(","))
	if !ok {
		return l, malformed
	}
	var err error
	if l.ref.Sequence, err = strconv.ParseUint(string(digits), 10, 64); err != nil || l.ref.Sequence == 0 {
		return l, malformed
	}
	head, hash := line[:len(line)-hashLen], line[len(line)-hashLen:]
	prev := head[len(head)-prevLen:]
	if !hexMember(l.ref.Hash[:], hash, hashMember, lineEnd) || !hexMember(l.prev[:], prev, prevMember, `"`) {
		return l, malformed
	}
	h := sha256.New()
	h.Write(l.prev[:])
	h.Write(head)
	h.Write([]byte("}"))
	if [32]byte(h.Sum(nil)) != l.ref.Hash {
		return l, errEdited
	}
	return l, nil
}

// hexMember decodes member, which is the hex of dst between start and end.
func hexMember(dst, member []byte, start, end string) bool {
	h, ok := bytes.CutPrefix(member, []byte(start))
	if !ok {
		return false
	}
	h, ok = bytes.CutSuffix(h, []byte(end))
	if !ok || len(h) != 2*len(dst) || bytes.ContainsAny(h, "ABCDEF") {
		return false
	}
	_, err := hex.Decode(dst, h)
	return err == nil
}
