package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource/strict"
)

// audience is written as its text or, with a use, as {name: TEXT, use: USE}.
type audience identity.Audience

// audienceDoc is the longer form.
type audienceDoc struct {
	Name string `json:"name"`
	Use  string `json:"use"`
}

// UnmarshalYAML takes either form. A decimal integer is taken as its text, as
// in a match: some audiences are numbers.
func (a *audience) UnmarshalYAML(node ast.Node) error {
	var values []*ast.MappingValueNode
	switch m := node.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		text, err := textOf(node)
		a.Pattern = text
		return err
	}
	seen := make(map[string]bool)
	for _, v := range values {
		name := v.Key.GetToken().Value
		if seen[name] {
			return strict.At("", "", v.Key, fmt.Sprintf("%q stands twice in one audience", strict.Clip(name)))
		}
		seen[name] = true
		text, err := textOf(v.Value)
		if err != nil {
			return err
		}
		switch name {
		case "name":
			a.Pattern = text
		case "use":
			if a.Use = identity.Use(text); a.Use != identity.UseAudited && a.Use != identity.UseSingle {
				return strict.At("", "", v.Value, fmt.Sprintf("use: %q is neither %s nor %s", strict.Clip(text), identity.UseAudited, identity.UseSingle))
			}
		default:
			return strict.At("", "", v.Key, fmt.Sprintf("%q is no field of an audience: name and use are", strict.Clip(name)))
		}
	}
	if !seen["name"] || !seen["use"] {
		return strict.At("", "", node, "an audience is its text, or has both name: and use:")
	}
	return nil
}

// Text is a string of YAML, or a decimal integer as its text: what else could be
// meant is told to be quoted.
func Text(node ast.Node) (string, error) { return textOf(node) }

// textOf reads a scalar that stands for its text.
func textOf(node ast.Node) (string, error) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.IntegerNode:
		if text := n.GetToken().Value; strings.Trim(text, "0123456789") == "" {
			return text, nil
		}
	}
	return "", strict.At("", "", node, "an audience is text: quote it")
}

// MarshalYAML writes what UnmarshalYAML reads.
func (a audience) MarshalYAML() (any, error) {
	if a.Use == identity.UseDefault {
		return a.Pattern, nil
	}
	return yaml.MapSlice{{Key: "name", Value: a.Pattern}, {Key: "use", Value: string(a.Use)}}, nil
}

// MarshalJSON writes the same in JSON.
func (a audience) MarshalJSON() ([]byte, error) {
	if a.Use == identity.UseDefault {
		return appendText(nil, a.Pattern), nil
	}
	text, err := writeJSON(audienceDoc{a.Pattern, string(a.Use)})
	return bytes.TrimSuffix(text, []byte("\n")), err
}

// UnmarshalJSON reads what MarshalJSON writes. It need not be strict: what it
// read is written again; but a use that is none would be written like any.
func (a *audience) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		*a = audience{}
		return json.Unmarshal(text, &a.Pattern)
	}
	var d audienceDoc
	if err := json.Unmarshal(text, &d); err != nil {
		return err
	}
	*a = audience{d.Name, identity.Use(d.Use)}
	if a.Use != identity.UseAudited && a.Use != identity.UseSingle {
		return fmt.Errorf("a use of %q", strict.Clip(d.Use))
	}
	return nil
}

func audiencesOf(in []audience) []identity.Audience {
	var out []identity.Audience
	for _, a := range in {
		out = append(out, identity.Audience(a))
	}
	return out
}

func audienceDocs(in []identity.Audience) []audience {
	var out []audience
	for _, a := range in {
		out = append(out, audience(a))
	}
	return out
}
