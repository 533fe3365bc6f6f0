package strict

import (
	"bytes"
	"fmt"
	"unicode/utf8"

	"github.com/goccy/go-yaml/token"
)

// checkText bounds what the YAML scanner would take too long over: its time
// grows with the square of a run of blank lines. A deep indentation is a deep
// nesting, and the parser recurses once for each level.
//
// What is not UTF-8 is no YAML, and could not be written as JSON.
func checkText(file string, text []byte) error {
	if !utf8.Valid(text) {
		return &Error{File: file, Msg: "it is not UTF-8"}
	}
	line, blank := 0, 0
	for len(text) > 0 {
		line++
		var rest []byte
		if end := bytes.IndexAny(text, "\r\n"); end < 0 {
			rest, text = text, nil
		} else {
			rest = text[:end]
			text = bytes.TrimPrefix(text[end:], []byte("\r"))
			if len(text) > 0 && text[0] == '\n' {
				text = text[1:]
			}
		}
		unindented := bytes.TrimLeft(rest, " ")
		if blank++; len(bytes.TrimLeft(unindented, "\t ")) > 0 {
			blank = 0
		}
		switch {
		case blank > maxBlank:
			return &Error{File: file, Line: line, Column: 1, Msg: fmt.Sprintf("more than %d blank lines in a row", maxBlank)}
		case blank == 0 && len(rest)-len(unindented) > maxIndent:
			return &Error{File: file, Line: line, Column: 1, Msg: "nested too deep"}
		}
	}
	return nil
}

// checkTokens bounds the nesting before the parser recurses into it, and
// refuses what no resource needs: anchors, aliases, merge keys and tags make a
// short text a long one and a reader look elsewhere, and two readers differ
// over keys that are not text and over directives.
func checkTokens(file string, tokens token.Tokens) error {
	documents, flow, line, entries := 1, 0, 0, 0
	for _, t := range tokens {
		msg := ""
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType:
			msg = "anchors, aliases, merge keys and tags are not taken: write it out"
		case token.MappingKeyType:
			msg = "a key marked by a question mark is not taken: keys are plain text"
		case token.DirectiveType:
			msg = "directives are not taken"
		case token.DocumentHeaderType:
			if documents++; documents > MaxDocuments+1 { // the first may have no header
				msg = fmt.Sprintf("more than %d documents are not taken: split it", MaxDocuments)
			}
		case token.SequenceStartType, token.MappingStartType:
			if flow++; flow > MaxDepth {
				msg = "nested too deep"
			}
		case token.SequenceEndType, token.MappingEndType:
			flow = max(flow-1, 0)
		case token.SequenceEntryType:
			if t.Position.Line != line {
				line, entries = t.Position.Line, 0
			}
			if entries++; entries > MaxDepth || flow > 0 {
				msg = "nested too deep"
			}
		}
		if msg != "" {
			return &Error{File: file, Line: t.Position.Line, Column: t.Position.Column, Msg: msg}
		}
	}
	return nil
}
