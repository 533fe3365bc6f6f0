package bearer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Object reads one JSON object strictly: every name once (RFC 8725 §2.4), bounded
// in depth and in how much it holds, and nothing after it. Numbers stay as they
// are written.
func Object(text []byte) (map[string]any, error) {
	r := reader{d: json.NewDecoder(bytes.NewReader(text))}
	r.d.UseNumber()
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := r.d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something stands after the object")
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("it is not an object")
	}
	return m, nil
}

type reader struct {
	d    *json.Decoder
	seen int
}

func (r *reader) value(depth int) (any, error) {
	if r.seen++; depth > maxDepth || r.seen > maxClaims {
		return nil, fmt.Errorf("it is nested deeper than %d, or holds more than %d values", maxDepth, maxClaims)
	}
	token, err := r.d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		return r.members(depth)
	case json.Delim('['):
		list := []any{}
		for r.d.More() {
			v, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = r.d.Token()
		return list, err
	}
	return token, nil
}

func (r *reader) members(depth int) (map[string]any, error) {
	m := map[string]any{}
	for r.d.More() {
		token, err := r.d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := token.(string)
		if !ok {
			return nil, errors.New("a name is not a string")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("%.80q stands there twice", name)
		}
		if m[name], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	_, err := r.d.Token()
	return m, err
}
