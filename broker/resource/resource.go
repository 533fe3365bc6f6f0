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

	"github.com/goccy/go-yaml/ast"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/resource/strict"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
)

// Bounds of a text.
const (
	MaxBytes     = strict.MaxBytes
	MaxDocuments = strict.MaxDocuments
)

// An Error is a mistake in a text.
type Error = strict.Error

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

// Parse reads all documents of a text; file names it in errors. It refuses
// unknown fields, duplicate names, anchors and aliases, and what passes the
// bounds. The error is an *Error, of the first mistake.
func (g Registry) Parse(file string, text []byte) ([]Resource, error) {
	docs, err := strict.Documents(file, text)
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
		return strict.At(r.file, r.Kind+" "+r.Name, n, msg)
	}
	return strict.At(r.file, r.Kind+" "+r.Name, r.node, msg)
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
