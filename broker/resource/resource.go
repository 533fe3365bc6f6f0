// Package resource is the five kinds of resource as YAML, in and out: strict,
// bounded, and with the place of every mistake.
//
// It trusts nothing of the text. What a resource means, and whether resources
// fit each other, is left to broker/identity, federation and exchangers, whose
// types it fills; join methods and flows are handed in, so that this package
// knows no driver.
package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
)

// Bounds of a text.
const (
	MaxBytes     = 4 << 20
	MaxDocuments = 10_000
	maxDepth     = 24
	maxIndent    = 16 * maxDepth
	maxBlank     = 64 // blank lines in a row
)

// Kinds are the kinds of resource.
var Kinds = []string{"Identity", "Deny", "JoinRule", "Peer", "Target"}

// A Registry knows the join methods and flows that this program has: for each
// name, a function that returns a pointer to its empty settings.
type Registry struct {
	Methods map[string]func() join.Settings
	Flows   map[string]func() exchangers.Settings
}

// A Resource is one resource; exactly one of the pointers is set.
type Resource struct {
	Kind, Name string
	Identity   *identity.Identity
	Deny       *identity.Deny
	JoinRule   *join.Rule
	Peer       *federation.Peer
	Target     *exchangers.Target

	file string
	node ast.Node
}

// An Error is a mistake in a text.
type Error struct {
	File         string
	Line, Column int    // from 1; 0: of the whole file
	Resource     string // kind and name, where they are known
	Msg          string
}

// Error is "file:line:column: kind name: what is wrong".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Resource != "" {
		b.WriteString(e.Resource + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Parse reads all documents of a text; file names it in errors. It refuses
// unknown fields, duplicate names, anchors and aliases, and what passes the
// bounds. The error is an *Error, of the first mistake.
func (g Registry) Parse(file string, text []byte) ([]Resource, error) {
	docs, err := documents(file, text)
	if err != nil {
		return nil, err
	}
	var all []Resource
	seen := make(map[string]bool)
	for _, doc := range docs {
		r, err := g.parse(file, doc)
		if err != nil {
			return nil, err
		}
		key := r.Kind + " " + r.Name
		if seen[key] {
			return nil, r.At("name", "there is another "+key+" above: a name is used once per kind")
		}
		seen[key] = true
		all = append(all, r)
	}
	if len(all) == 0 {
		return nil, &Error{File: file, Msg: "it holds no resource"}
	}
	return all, nil
}

// documents parses the YAML itself, within bounds.
func documents(file string, text []byte) ([]*ast.MappingNode, error) {
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
			return nil, yamlError(file, "", err)
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
	if depthOf(body) > maxDepth {
		return nil, at(file, "", body, fmt.Sprintf("nested deeper than %d", maxDepth))
	}
	if key := notText(body); key != nil {
		return nil, at(file, "", key, fmt.Sprintf("the key %s is not text: quote it", clip(key.GetToken().Value)))
	}
	switch m := body.(type) {
	case *ast.MappingNode:
		return m, nil
	case *ast.MappingValueNode:
		return ast.Mapping(m.Start, false, m), nil
	}
	return nil, at(file, "", body, "a resource is a mapping that begins with kind: and name:")
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

func at(file, resource string, node ast.Node, msg string) *Error {
	e := &Error{File: file, Resource: resource, Msg: msg}
	if m, ok := node.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		node = m.Values[0].Key // its own token is the first colon
	}
	if t := node.GetToken(); t != nil && t.Position != nil {
		e.Line, e.Column = t.Position.Line, t.Position.Column
	}
	return e
}

// yamlError turns an error of the YAML library, or of an UnmarshalYAML of
// ours, into an Error with its place.
func yamlError(file, resource string, err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		own.File, own.Resource = file, resource
		return own
	}
	e := &Error{File: file, Resource: resource}
	var y yaml.Error
	if errors.As(err, &y) {
		// Not its Error: that prints the text around, which takes time that
		// grows with the square of the text.
		e.Msg = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Column = t.Position.Line, t.Position.Column
		}
	} else {
		e.Msg = err.Error()
	}
	e.Msg = strings.Join(strings.Fields(e.Msg), " ")
	return e
}

// At is an Error at the place of a field, such as "x509.ttl" or
// "match[0].node.name"; at the resource itself where there is no such field.
func (r Resource) At(field, msg string) *Error {
	if field != "" {
		msg = field + ": " + msg
	}
	if r.node == nil {
		return &Error{File: r.file, Resource: r.Kind + " " + r.Name, Msg: msg}
	}
	if n := find(r.node, field); n != nil {
		return at(r.file, r.Kind+" "+r.Name, n, msg)
	}
	return at(r.file, r.Kind+" "+r.Name, r.node, msg)
}

// find follows a field's path as far as the text goes.
func find(node ast.Node, path string) ast.Node {
	if path == "" {
		return node
	}
	switch n := node.(type) {
	case *ast.MappingNode:
		var best *ast.MappingValueNode
		var rest string
		for _, v := range n.Values {
			name := v.Key.GetToken().Value
			tail, ok := strings.CutPrefix(path, name)
			if ok && (tail == "" || tail[0] == '.' || tail[0] == '[') && (best == nil || len(tail) < len(rest)) {
				best, rest = v, tail
			}
		}
		if best == nil {
			return nil
		}
		if n := find(best.Value, strings.TrimPrefix(rest, ".")); n != nil {
			return n
		}
		return best.Key
	case *ast.MappingValueNode:
		return find(ast.Mapping(n.Start, false, n), path)
	case *ast.SequenceNode:
		var i int
		if _, err := fmt.Sscanf(path, "[%d]", &i); err != nil || i < 0 || i >= len(n.Values) {
			return nil
		}
		_, rest, _ := strings.Cut(path, "]")
		if found := find(n.Values[i], strings.TrimPrefix(rest, ".")); found != nil {
			return found
		}
		return n.Values[i]
	}
	return nil
}

// WithoutText is the resource without the text that it was read from, which
// takes many times the memory: for keeping. At then tells no line.
func (r Resource) WithoutText() Resource {
	r.node = nil
	return r
}

// Locate turns an error that names one of the resources and a field into one
// with its place in the text; other errors are returned as they are.
func Locate(err error, all []Resource) error {
	var e *identity.Error
	if !errors.As(err, &e) {
		return err
	}
	i := slices.IndexFunc(all, func(r Resource) bool { return r.Kind == e.Kind && r.Name == e.Name })
	if i < 0 {
		return err
	}
	return all[i].At(e.Field, e.Msg)
}

// CheckText holds any YAML text to the bounds of a resource's: size, depth, no
// anchors or aliases. Its error is an *Error.
func CheckText(file string, text []byte) error {
	_, err := documents(file, text)
	return err
}

// YAMLError is an error of the YAML library as an *Error with its place; nil
// stays nil.
func YAMLError(file string, err error) error {
	if err == nil {
		return nil
	}
	return yamlError(file, "", err)
}
