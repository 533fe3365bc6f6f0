package strict

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

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

// At is an Error at a node's place.
func At(file, resource string, node ast.Node, msg string) *Error {
	e := &Error{File: file, Resource: resource, Msg: msg}
	if m, ok := node.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		node = m.Values[0].Key // its own token is the first colon
	}
	if t := node.GetToken(); t != nil && t.Position != nil {
		e.Line, e.Column = t.Position.Line, t.Position.Column
	}
	return e
}

// ErrorOf turns an error of the YAML library, or of an UnmarshalYAML of
// ours, into an Error with its place.
func ErrorOf(file, resource string, err error) *Error {
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

// Clip is text for an error: of a long one the beginning.
func Clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}
