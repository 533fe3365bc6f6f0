package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unique"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource/strict"
)

// Text writes the resource in the form that Read reads fast: an Identity, a
// Deny or a Peer as one line of JSON, which is YAML too, the others, which are
// few and whose settings only YAML tells apart, as YAML. The same resource is
// always the same text.
func (r Resource) Text() ([]byte, error) {
	if r.JoinRule != nil || r.Target != nil {
		return r.YAML()
	}
	doc, err := r.document()
	if err != nil {
		return nil, err
	}
	text, err := writeJSON(doc)
	if err != nil {
		return nil, fmt.Errorf("writing %s %s: %w", r.Kind, r.Name, err)
	}
	return text, nil
}

// Read is Parse for documents of which some were written by Text. What it
// takes, and gives, is what Parse does; but At tells no line then.
func (g Registry) Read(file string, text []byte) ([]Resource, error) {
	if len(text) > MaxBytes {
		return g.Parse(file, text) // which says so, as it does with all that follows
	}
	var all []Resource
	seen := make(map[[2]string]bool)
	written := false
	for _, doc := range cut(text) {
		r, ok := g.readJSON(doc)
		if written = written || ok; !ok {
			parsed, err := g.Parse(file, doc)
			if err != nil || len(parsed) != 1 {
				return g.Parse(file, text)
			}
			r = parsed[0]
		}
		name := [2]string{r.Kind, r.Name}
		if seen[name] || len(all) == MaxDocuments {
			return g.Parse(file, text)
		}
		seen[name] = true
		r.file, r.node = file, nil
		all = append(all, r)
	}
	if !written {
		return g.Parse(file, text)
	}
	return all, nil
}

// cut gives each document, at the lines that only Text is sure to have between
// them.
func cut(text []byte) (docs [][]byte) {
	const between = "---\n"
	text = bytes.TrimPrefix(text, []byte(between))
	for more := true; more; {
		var doc []byte
		doc, text, more = bytes.Cut(text, []byte("\n"+between))
		if more {
			doc = doc[:len(doc)+1] // its newline
		}
		docs = append(docs, doc)
	}
	return docs
}

// readJSON takes exactly what Text writes as JSON: what it reads is written
// again, so that no field can be unknown, misspelt or there twice.
func (g Registry) readJSON(text []byte) (Resource, bool) {
	var r Resource
	var doc document
	switch rest, ok := bytes.CutPrefix(text, []byte(`{"kind":"`)); {
	case !ok:
		return r, false
	case bytes.HasPrefix(rest, []byte("Identity\"")):
		doc = new(identityDoc)
	case bytes.HasPrefix(rest, []byte("Deny\"")):
		doc = new(denyDoc)
	case bytes.HasPrefix(rest, []byte("Peer\"")):
		doc = new(peerDoc)
	default:
		return r, false
	}
	if err := json.Unmarshal(text, doc); err != nil {
		return r, false
	}
	if again, err := writeJSON(doc); err != nil || !bytes.Equal(again, text) {
		return r, false
	}
	doc.head(&r)
	if r.Name == "" || r.checkName() != nil || doc.fill(&r) != nil {
		return r, false
	}
	return r, true
}

// writeJSON writes a line, and <, > and & as they are.
func writeJSON(doc any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(doc)
	return b.Bytes(), err
}

// appendText appends a JSON string.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := writeJSON(s) // a string can always be written
			return append(b, bytes.TrimSuffix(quoted, []byte("\n"))...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// MarshalJSON writes the terms in their order.
func (i item) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for _, t := range i.Terms {
		b = append(appendText(b, t.Name), ':')
		b = append(appendText(b, t.Pattern), ',')
	}
	if i.When != "" {
		b = append(appendText(append(b, `"when":`...), i.When), ',')
	}
	if i.AnyNode {
		b = append(b, `"any_node":true,`...)
	}
	return append(bytes.TrimSuffix(b, []byte(",")), '}'), nil
}

var errItem = errors.New("an item of match is not as it is written")

// UnmarshalJSON reads what MarshalJSON writes. It need not be strict: what it
// read is written again.
func (i *item) UnmarshalJSON(text []byte) error {
	*i = item{}
	for rest := bytes.TrimPrefix(text, []byte("{")); len(rest) > 1; rest = bytes.TrimPrefix(rest, []byte(",")) {
		name, value, err := cutText(rest)
		if err != nil {
			return err
		}
		if name == "any_node" {
			i.AnyNode = true
			rest = bytes.TrimPrefix(value, []byte(":true"))
			continue
		}
		pattern, after, err := cutText(bytes.TrimPrefix(value, []byte(":")))
		if err != nil {
			return err
		}
		rest = after
		if name == "when" {
			i.When = pattern
			continue
		}
		for _, t := range i.Terms {
			if t.Name == name {
				return errItem // which is all that writing it again would not show
			}
		}
		// Facts are few and Identities many: they share the names.
		i.Terms = append(i.Terms, identity.Term{Name: unique.Make(name).Value(), Pattern: pattern})
	}
	return nil
}

// cutText cuts a JSON string off.
func cutText(text []byte) (s string, rest []byte, err error) {
	if len(text) == 0 || text[0] != '"' {
		return "", nil, errItem
	}
	for end := 1; end < len(text); end++ {
		switch text[end] {
		case '\\':
			end++
		case '"':
			if inner := text[1:end]; bytes.IndexByte(inner, '\\') < 0 {
				return string(inner), text[end+1:], nil
			}
			err := json.Unmarshal(text[:end+1], &s)
			return s, text[end+1:], err
		}
	}
	return "", nil, errItem
}

// MarshalJSON writes what UnmarshalJSON reads.
func (d duration) MarshalJSON() ([]byte, error) {
	return appendText(nil, time.Duration(d).String()), nil
}

// UnmarshalJSON takes a life as time.Duration writes it.
func (d *duration) UnmarshalJSON(text []byte) error {
	parsed, err := time.ParseDuration(strings.Trim(string(text), `"`))
	if err != nil || parsed < 0 {
		return errors.New("it is not a life")
	}
	*d = duration(parsed)
	return nil
}

// claims are of JSON's types, but that integers are whole, as YAML reads them.
type claims map[string]any

// MarshalJSON writes a number with a fraction so that it is read as one.
func (c claims) MarshalJSON() ([]byte, error) {
	v, err := withNumbers(map[string]any(c))
	if err != nil {
		return nil, err
	}
	return writeJSON(v)
}

// withNumbers copies a claim, its fractions as they shall be written.
func withNumbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("claim of %v, which JSON can't say", v)
		}
		text := strconv.FormatFloat(v, 'g', -1, 64)
		if whole, exponent, ok := strings.Cut(text, "e"); !strings.Contains(text, ".") {
			if text = whole + ".0"; ok {
				text += "e" + exponent
			}
		}
		return json.Number(text), nil
	case []any:
		list := make([]any, len(v))
		for i := range v {
			if list[i], err = withNumbers(v[i]); err != nil {
				return nil, err
			}
		}
		return list, nil
	case map[string]any:
		m := make(map[string]any, len(v))
		for name := range v {
			if m[name], err = withNumbers(v[name]); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
	return v, nil
}

// UnmarshalJSON reads numbers as YAML does.
func (c *claims) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return err
	}
	if _, err := numbered(m, claimsDepth); err != nil {
		return err
	}
	*c = m
	return nil
}

// claimsDepth is where claims stand: in jwt in the resource.
const claimsDepth = 3

// numbered puts numbers in the place of their texts.
func numbered(v any, depth int) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		switch text := v.String(); {
		case strings.ContainsAny(text, ".eE"):
			return v.Float64()
		case text[0] == '-':
			return v.Int64()
		default:
			return strconv.ParseUint(text, 10, 64)
		}
	case []any:
		for i := range v {
			if v[i], err = numbered(v[i], depth+1); err != nil {
				return nil, err
			}
		}
		return v, bounded(depth)
	case map[string]any:
		for name := range v {
			if v[name], err = numbered(v[name], depth+1); err != nil {
				return nil, err
			}
		}
		return v, bounded(depth)
	}
	return v, nil
}

func bounded(depth int) error {
	if depth > strict.MaxDepth {
		return errors.New("nested too deep")
	}
	return nil
}
