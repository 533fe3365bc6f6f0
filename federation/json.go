package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// checkJSON bounds data before anything is built from it.
func checkJSON(data []byte) error {
	switch {
	case len(data) > MaxDocument:
		return fmt.Errorf("document is larger than %d bytes", MaxDocument)
	case !utf8.Valid(data):
		return errors.New("document is not UTF-8")
	case tooDeep(data):
		return fmt.Errorf("document is nested deeper than %d", MaxDepth)
	case !json.Valid(data):
		return errors.New("document is not JSON")
	}
	return nil
}

func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// members is the object in raw, which is valid JSON. Names are compared byte
// by byte once unescaped, and none may come twice: which one counts would be
// every reader's own guess (RFC 8259 §4).
func members(raw []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	m := make(map[string]json.RawMessage)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := tok.(string)
		if !ok {
			return nil, errors.New("member name is not a string")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("member %q comes twice", clip(name))
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		m[name] = value
	}
	return m, nil
}

// elements is the array in raw, of at most most elements.
func elements(raw []byte, most int) ([]json.RawMessage, error) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, errors.New("not an array")
	}
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	if len(all) > most {
		return nil, fmt.Errorf("more than %d elements", most)
	}
	return all, nil
}

// text is the string member name, "" and false if it is absent or no string.
func text(m map[string]json.RawMessage, name string) (string, bool) {
	raw := m[name]
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}
