// Package strict reads YAML that people write: bounded before it is parsed,
// without what makes two readers differ (anchors, merge keys, tags, directives,
// keys that are no text), and with the place of every mistake.
//
// It trusts nothing of the text. What the keys mean is left to whom the mappings
// are handed: the resources' reader, and the configuration files'.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a text.
const (
	MaxBytes     = 4 << 20
	MaxDocuments = 10_000
	MaxDepth     = 24
	maxIndent    = 16 * MaxDepth
	maxBlank     = 64 // blank lines in a row
)

// Documents parses the YAML itself, within bounds: each document is a mapping
// whose keys are text; empty ones are left out. Its error is an *Error.
func Documents(file string, text []byte) ([]*ast.MappingNode, error) {
	if len(text) > MaxBytes {
		return nil, &Error{File: file, Msg: fmt.Sprintf("%d bytes of YAML, at most %d are taken: split it", len(text), MaxBytes)}
	}
	if err := checkText(file, text); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(string(text))
	if err := checkTokens(file, tokens); err != nil {
		return nil, err
	}
	var docs []*ast.MappingNode
	for _, one := range split(tokens) {
		parsed, err := parser.Parse(one, 0)
		if err != nil {
			return nil, ErrorOf(file, "", err)
		}
		for _, d := range parsed.Docs {
			m, err := mapping(file, d.Body)
			if err != nil {
				return nil, err
			}
			if m != nil {
				docs = append(docs, m)
			}
		}
	}
	return docs, nil
}

// split gives each document's tokens: the parser's time grows faster than
// their number.
func split(tokens token.Tokens) []token.Tokens {
	var all []token.Tokens
	from := 0
	for i, t := range tokens {
		if t.Type == token.DocumentHeaderType && i > from {
			all = append(all, tokens[from:i])
			from = i
		}
	}
	return append(all, tokens[from:])
}

// mapping is a document's body as a mapping, nil for one that says nothing.
func mapping(file string, body ast.Node) (*ast.MappingNode, error) {
	if body == nil || body.Type() == ast.NullType || body.Type() == ast.CommentType {
		return nil, nil
	}
	if depthOf(body) > MaxDepth {
		return nil, At(file, "", body, fmt.Sprintf("nested deeper than %d", MaxDepth))
	}
	if key := notText(body); key != nil {
		return nil, At(file, "", key, fmt.Sprintf("the key %s is not text: quote it", Clip(key.GetToken().Value)))
	}
	switch m := body.(type) {
	case *ast.MappingNode:
		return m, nil
	case *ast.MappingValueNode:
		return ast.Mapping(m.Start, false, m), nil
	}
	return nil, At(file, "", body, "a resource is a mapping that begins with kind: and name:")
}

func depthOf(n ast.Node) int {
	deepest := 0
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			deepest = max(deepest, depthOf(v.Value))
		}
	case *ast.MappingValueNode:
		deepest = depthOf(n.Value)
	case *ast.SequenceNode:
		for _, v := range n.Values {
			deepest = max(deepest, depthOf(v))
		}
	default:
		return 0
	}
	return deepest + 1
}

// notText finds a key that is no text, such as a number: for one such the
// library leaves out all of the mapping that it stands in, and says nothing.
func notText(n ast.Node) ast.Node {
	var inside []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		inside = n.Values
	case *ast.MappingValueNode:
		inside = []*ast.MappingValueNode{n}
	case *ast.SequenceNode:
		for _, v := range n.Values {
			if key := notText(v); key != nil {
				return key
			}
		}
	}
	for _, v := range inside {
		if _, ok := v.Key.(*ast.StringNode); !ok {
			return v.Key
		}
		if key := notText(v.Value); key != nil {
			return key
		}
	}
	return nil
}

// Decode reads the first document of a text into a pointer. An unknown field and
// an empty text are refused. Its error is an *Error.
func Decode(file string, text []byte, into any) error {
	if _, err := Documents(file, text); err != nil {
		return err
	}
	err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(into)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return &Error{File: file, Msg: "it is empty"}
	}
	return ErrorOf(file, "", err)
}
