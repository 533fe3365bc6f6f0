package audit

import (
	"bytes"
	"time"
)

// isPlain says of a line whose link has been checked that decode takes it,
// without making anything of it: many times as fast, which reading ten million
// takes. False means that it doesn't know: text beyond ASCII, an escape, an empty
// list. It knows the members of Record and Event in their order; a test holds it
// to what decode says.
func isPlain(line []byte) bool {
	l := unread(line)
	return l.lit(lineStart) && l.number() && l.lit(`,"time":`) && l.time() && l.lit(`,"kind":`) && l.text() &&
		l.lit(`,"ok":`) && (l.lit(`true`) || l.lit(`false`)) &&
		l.texts(`,"node":`, `,"spiffe_id":`, `,"identity":`) &&
		l.option(`,"revision":`, (*unread).number) &&
		l.texts(`,"serial":`, `,"authority":`) &&
		l.option(`,"issued":`, (*unread).time) && l.option(`,"not_after":`, (*unread).time) &&
		l.texts(`,"digest":`) &&
		l.option(`,"audiences":`, (*unread).list) &&
		l.texts(`,"target":`, `,"actor":`, `,"code":`, `,"reason":`) &&
		l.option(`,"facts":`, func(l *unread) bool { return l.object((*unread).list) }) &&
		l.option(`,"count":`, (*unread).number) &&
		l.option(`,"detail":`, func(l *unread) bool { return l.object((*unread).value) }) &&
		len(l) == prevLen+hashLen && l.lit(prevMember) // linkOf has looked at what follows
}

// unread is what is left of a line. Its methods take something off its front,
// or say that it isn't there.
type unread []byte

func (l *unread) lit(s string) bool {
	if len(*l) < len(s) || string((*l)[:len(s)]) != s {
		return false
	}
	*l = (*l)[len(s):]
	return true
}

// option takes a member, if it is there.
func (l *unread) option(name string, value func(*unread) bool) bool {
	return !l.lit(name) || value(l)
}

// texts takes those of the members that are there; none is empty.
func (l *unread) texts(names ...string) bool {
	for _, name := range names {
		if l.lit(name) && !l.text() {
			return false
		}
	}
	return true
}

// number takes one above zero that surely fits 64 bits.
func (l *unread) number() bool {
	n := 0
	for n < len(*l) && (*l)[n] >= '0' && (*l)[n] <= '9' {
		n++
	}
	if n == 0 || n > 19 || (*l)[0] == '0' {
		return false
	}
	*l = (*l)[n:]
	return true
}

// value takes a string of plain ASCII.
func (l *unread) value() bool {
	if len(*l) < 2 || (*l)[0] != '"' {
		return false
	}
	for i, c := range (*l)[1:] {
		switch {
		case c == '"':
			*l = (*l)[i+2:]
			return true
		case c < ' ' || c > '~' || c == '\\':
			return false
		}
	}
	return false
}

// text takes a string that is not empty.
func (l *unread) text() bool {
	return !bytes.HasPrefix(*l, []byte(`""`)) && l.value()
}

// time takes one in UTC, in the one form that it has, but for the zero time.
func (l *unread) time() bool {
	before := *l
	if !l.text() {
		return false
	}
	text := before[1 : len(before)-len(*l)-1]
	if len(text) < len("2006-01-02T15:04:05Z") || text[len(text)-1] != 'Z' {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil || t.IsZero() {
		return false
	}
	var again [len(time.RFC3339Nano) + 8]byte
	return bytes.Equal(t.AppendFormat(again[:0], time.RFC3339Nano), text)
}

// list takes strings; there is at least one.
func (l *unread) list() bool {
	if !l.lit(`[`) {
		return false
	}
	for l.value() {
		switch {
		case l.lit(`]`):
			return true
		case !l.lit(`,`):
			return false
		}
	}
	return false
}

// object takes members by name, sorted; there is at least one.
func (l *unread) object(value func(*unread) bool) bool {
	if !l.lit(`{`) {
		return false
	}
	for last := []byte(nil); ; {
		name := *l
		if !l.value() {
			return false
		}
		name = name[1 : len(name)-len(*l)-1]
		if last != nil && bytes.Compare(last, name) >= 0 || !l.lit(`:`) || !value(l) {
			return false
		}
		last = name
		switch {
		case l.lit(`}`):
			return true
		case !l.lit(`,`):
			return false
		}
	}
}
