package oauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/credence-id/credence/exchangers"
)

// maxToken is the longest token that is handed on.
const maxToken = 64 << 10

// An object is one level of a JSON object.
type object map[string]json.RawMessage

// members reads one JSON object. A name that stands there twice, in whatever
// case, is refused: two readers would see two answers.
func members(body []byte) (object, error) {
	bad := errors.New("it is not one JSON object")
	if !utf8.Valid(body) {
		return nil, bad
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, bad
	}
	m, seen := object{}, map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, bad
		}
		name, ok := t.(string)
		var value json.RawMessage
		if !ok || d.Decode(&value) != nil {
			return nil, bad
		}
		if seen[strings.ToLower(name)] {
			return nil, fmt.Errorf("it has %s twice", exchangers.Clean(name))
		}
		seen[strings.ToLower(name)] = true
		m[name] = value
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') {
		return nil, bad
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, bad
	}
	return m, nil
}

// tells says whether a member is there, in whatever case, and not empty.
func (m object) tells(name string) bool {
	for other, value := range m {
		if strings.EqualFold(other, name) {
			switch string(value) {
			case "null", `""`, "[]":
			default:
				return true
			}
		}
	}
	return false
}

// text is a string; one that is left out, or null, is empty.
func (m object) text(name string) (string, error) {
	raw, ok := m[name]
	if !ok || string(raw) == "null" {
		return "", nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", fmt.Errorf("its %s is not text", name)
	}
	return s, nil
}

// token is one that fits into a header, a line and a variable (RFC 6749
// Appendix A.12, without the space).
func (m object) token(name string) (exchangers.Secret, error) {
	s, err := m.text(name)
	if err != nil {
		return exchangers.Secret{}, err
	}
	if s == "" {
		return exchangers.Secret{}, fmt.Errorf("it has no %s", name)
	}
	if len(s) > maxToken || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return exchangers.Secret{}, fmt.Errorf("its %s is longer than %d bytes, or not printable ASCII", name, maxToken)
	}
	return exchangers.NewSecret(s), nil
}

// seconds is a life. A token whose end nobody knows is not kept.
func (m object) seconds(name string) (time.Duration, error) {
	n, err := strconv.ParseUint(string(m[name]), 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("its %s is missing, or not a number of seconds", name)
	}
	return time.Duration(n) * time.Second, nil
}

func (a answer) isJSON() error {
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return errors.New("it is not application/json")
	}
	return nil
}
