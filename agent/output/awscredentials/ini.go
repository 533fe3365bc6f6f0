package awscredentials

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// maxFile bounds a credentials file.
const maxFile = 1 << 20

// ours are the keys of a profile that are written, in lower case.
var ours = []string{"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}

// A keyValue is one line of a profile.
type keyValue struct{ key, value string }

var profileName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@/+-]{0,63}$`)

// put returns a credentials file with these keys in a profile, under a comment
// that marks it as ours. Every other byte is kept. It refuses a profile that
// holds keys and has no such mark: they are the user's.
func put(text []byte, profile, mark string, values []keyValue) ([]byte, error) {
	lines, begin, end, err := find(text, profile)
	if err != nil {
		return nil, err
	}
	var add bytes.Buffer
	if begin < 0 {
		if len(text) > 0 && text[len(text)-1] != '\n' {
			add.WriteByte('\n')
		}
		fmt.Fprintf(&add, "[%s]\n", profile)
	}
	fmt.Fprintf(&add, "%s\n", mark)
	for _, v := range values {
		if v.value == "" || strings.ContainsFunc(v.value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("the provider's %s cannot be written into a credentials file", v.key)
		}
		fmt.Fprintf(&add, "%s = %s\n", v.key, v.value)
	}
	if begin < 0 {
		return append(slices.Clone(text), add.Bytes()...), nil
	}
	kept, marked, keys := strip(lines[begin+1:end], mark)
	if keys && !marked {
		return nil, fmt.Errorf("profile %s has keys that are not ours: name another profile, or take them out", profile)
	}
	if i := slices.IndexFunc(kept, func(l []byte) bool { return len(bytes.TrimSpace(l)) > 0 }); i >= 0 && indented(kept[i]) {
		return nil, fmt.Errorf("profile %s begins with an indented line, which would go on from a value of ours", profile)
	}
	head := bytes.Join(lines[:begin+1], nil)
	if !bytes.HasSuffix(head, []byte("\n")) {
		head = append(head, '\n')
	}
	return slices.Concat(head, add.Bytes(), bytes.Join(kept, nil), bytes.Join(lines[end:], nil)), nil
}

// remove returns a credentials file without what put wrote, and without the
// profile if nothing else is in it. Without our mark, nothing is taken out.
func remove(text []byte, profile, mark string) ([]byte, error) {
	lines, begin, end, err := find(text, profile)
	if err != nil || begin < 0 {
		return text, err
	}
	kept, marked, _ := strip(lines[begin+1:end], mark)
	if !marked {
		return text, nil
	}
	from := begin + 1
	if len(bytes.TrimSpace(bytes.Join(kept, nil))) == 0 {
		from, kept = begin, nil
	}
	return slices.Concat(bytes.Join(lines[:from], nil), bytes.Join(kept, nil), bytes.Join(lines[end:], nil)), nil
}

// find returns the lines of a file, each with its end, and where a profile's
// begin and end; begin is -1 where there is none.
func find(text []byte, profile string) (lines [][]byte, begin, end int, err error) {
	if len(text) > maxFile || bytes.IndexByte(text, 0) >= 0 {
		return nil, 0, 0, errors.New("that is no credentials file")
	}
	lines, begin = slices.Collect(bytes.Lines(text)), -1
	end = len(lines)
	open := false
	for n, line := range lines {
		name, header, err := section(line)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("line %d: %w", n+1, err)
		}
		switch {
		case header && open:
			end, open = n, false
		case !header:
			continue
		}
		if name != profile {
			continue
		}
		if begin >= 0 {
			return nil, 0, 0, fmt.Errorf("line %d: there is a profile %s before: programs disagree which counts", n+1, profile)
		}
		begin, open = n, true
	}
	return lines, begin, end, nil
}

// section reads a line that begins a profile. Some programs take an indented
// one for that, others for a value that goes on: it is refused.
func section(line []byte) (name string, ok bool, err error) {
	text := strings.TrimSpace(string(line))
	if !strings.HasPrefix(text, "[") {
		return "", false, nil
	}
	if line[0] != '[' {
		return "", false, errors.New("an indented [ is read differently by different programs")
	}
	name, rest, closed := strings.Cut(text[1:], "]")
	rest = strings.TrimSpace(rest)
	if !closed || rest != "" && rest[0] != '#' && rest[0] != ';' {
		return "", false, errors.New("it is no name of a profile")
	}
	return strings.TrimSpace(name), true, nil
}

// strip takes our keys and mark out of a profile's lines, with the lines by
// which a value goes on.
func strip(lines [][]byte, mark string) (kept [][]byte, marked, keys bool) {
	within := false // a value of ours
	for _, line := range lines {
		text := strings.TrimSpace(string(line))
		key, _, assigned := strings.Cut(text, "=")
		switch {
		case within && text != "" && indented(line):
		case text == mark:
			marked, within = true, false
		case assigned && slices.Contains(ours, strings.ToLower(strings.TrimSpace(key))):
			keys, within = true, true
		default:
			within = false
			kept = append(kept, line)
		}
	}
	return kept, marked, keys
}

// indented says whether a line goes on from the one before.
func indented(line []byte) bool { return strings.ContainsRune(" \t\v\f\r", rune(line[0])) }
