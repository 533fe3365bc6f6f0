package exchangers

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// A Planner is Settings that know what their provider must hold for a Target to
// work. It asks nobody, reads no clock, and refuses what no provider would take.
type Planner interface {
	Setup(Facts, Choices) (Plan, error)
}

// Choices are what an operator decides about a plan and the Target does not
// say. One that a provider has no use for is refused.
type Choices struct {
	ManagedIdentity string // resource ID of the user-assigned identity that an azure Target's client_id is of
	UploadKeys      bool   // the provider is given the issuer's keys: it can't reach it
}

// A Plan is what a provider must hold, in the terms of Terraform.
type Plan struct {
	Target    string   `json:"target"`
	Flow      string   `json:"flow"`
	Cloud     Cloud    `json:"cloud"`
	Resources []Made   `json:"resources"`
	Notes     []string `json:"notes"` // what only a person can decide, in sentences
	Apply     Fields   `json:"apply"` // the Target, where it must say what the provider chose; none: it stands as it is

	Provider Provider `json:"-"`
	Guard    []string `json:"-"` // lines of a POSIX shell, before anything is made
}

// A Provider is Terraform's.
type Provider struct {
	Name, Source, Version string
	Config                Fields
}

// Cloud says where the resources are.
type Cloud struct {
	Name      string `json:"name"` // "aws", "gcp", "azure" or "vault"
	Partition string `json:"partition,omitempty"`
	Account   string `json:"account,omitempty"` // or project, tenant
	Region    string `json:"region,omitempty"`
}

// Made is one resource that is to be made or, with Read, is there already.
type Made struct {
	Type    string   `json:"type"`
	Label   string   `json:"label"`
	ID      string   `json:"id,omitempty"`      // by which the Target knows it
	Account string   `json:"account,omitempty"` // where it is not the plan's
	Read    bool     `json:"read,omitempty"`
	Values  Fields   `json:"values"`
	Script  []string `json:"-"` // the same as lines of a POSIX shell
}

// Fields are names and values in order. A value is a string, a bool, an int, a
// list ([]any), Fields, or one of the types below.
type Fields []Field

// A Field is one of Fields.
type Field struct {
	Name  string
	Value any
}

// A Ref is what another resource of the plan says of itself.
type Ref struct {
	Type, Label, Attr string
	Read              bool   // of one that is there already
	Known             string // what it will be; empty: the provider chooses it
	Var               string // the shell variable that holds it, where it is not known
}

// Blocks are Fields that Terraform writes as blocks of their name.
type Blocks []Fields

// A Text has lines.
type Text string

// A Document is JSON inside a string.
type Document struct{ Value any }

// String is TYPE.LABEL.ATTR.
func (r Ref) String() string { return r.Type + "." + r.Label + "." + r.Attr }

// MarshalJSON writes an object in order. A Ref is {"ref": "TYPE.LABEL.ATTR"}.
func (f Fields) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	err := encode(&b, f, "", func(r Ref) string { return `{"ref": ` + quote(r.String()) + `}` })
	return []byte(b.String()), err
}

// JSON writes a value in lines. What stands for a Ref is the caller's.
func JSON(v any, ref func(Ref) string) (string, error) {
	var b strings.Builder
	err := encode(&b, v, "\n", ref)
	return b.String(), err
}

// quote writes a JSON string without escapes for HTML.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // strings can be written
	return strings.TrimSuffix(b.String(), "\n")
}

// encode writes v; indent is a line break and what stands before a line, or
// empty for one line.
func encode(b *strings.Builder, v any, indent string, ref func(Ref) string) error {
	switch v := v.(type) {
	case string:
		b.WriteString(quote(v))
	case Text:
		b.WriteString(quote(string(v)))
	case bool, int:
		fmt.Fprint(b, v)
	case Ref:
		b.WriteString(ref(v))
	case Document:
		return encode(b, v.Value, indent, ref)
	case Fields:
		return group(b, "{", "}", indent, len(v), func(i int, indent string) error {
			b.WriteString(quote(v[i].Name) + ": ")
			return encode(b, v[i].Value, indent, ref)
		})
	case Blocks:
		return group(b, "[", "]", indent, len(v), func(i int, indent string) error { return encode(b, v[i], indent, ref) })
	case []any:
		return group(b, "[", "]", indent, len(v), func(i int, indent string) error { return encode(b, v[i], indent, ref) })
	default:
		return fmt.Errorf("a plan holds a %T", v)
	}
	return nil
}

func group(b *strings.Builder, open, end, indent string, n int, one func(i int, indent string) error) error {
	b.WriteString(open)
	inner := indent
	if indent != "" {
		inner += "  "
	}
	for i := range n {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(inner)
		if err := one(i, inner); err != nil {
			return err
		}
	}
	if n > 0 {
		b.WriteString(indent)
	}
	b.WriteString(end)
	return nil
}

// List makes a list of a plan.
func List[T any](all ...T) []any {
	out := make([]any, len(all))
	for i, v := range all {
		out[i] = v
	}
	return out
}

// Label is the name that a Target's resources have in a plan: a Terraform
// identifier, and another one for each Target.
func (t Target) Label() string {
	return "credence_" + strings.ReplaceAll(t.Name, ".", "_")
}

// Document is the Target as apply takes it, with other values for some of its
// settings.
func (t Target) Document(changed map[string]any) (Fields, error) {
	text, err := json.Marshal(t.Settings)
	if err != nil {
		return nil, fmt.Errorf("writing the settings of target %s: %w", t.Name, err)
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	settings, err := decode(d)
	if err != nil {
		return nil, fmt.Errorf("reading the settings of target %s: %w", t.Name, err)
	}
	fields, ok := settings.(Fields)
	if !ok {
		return nil, fmt.Errorf("reading the settings of target %s: they are no object", t.Name)
	}
	for i, f := range fields {
		if v, ok := changed[f.Name]; ok {
			fields[i].Value = v
		}
	}
	doc := Fields{{"kind", "Target"}, {"name", t.Name}, {t.Flow, fields}}
	if t.Endpoint != "" {
		doc = append(doc, Field{"endpoint", t.Endpoint})
	}
	if t.CAFile != "" {
		doc = append(doc, Field{"ca_file", t.CAFile})
	}
	return doc, nil
}

// decode reads JSON without numbers and null, of our own making.
func decode(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case string, bool:
		return t, nil
	case json.Delim:
		var fields Fields
		list := []any{}
		for d.More() {
			var name any
			if t == '{' {
				if name, err = d.Token(); err != nil {
					return nil, err
				}
			}
			v, err := decode(d)
			if err != nil {
				return nil, err
			}
			if t == '{' {
				fields = append(fields, Field{name.(string), v}) // JSON has no other names
			} else {
				list = append(list, v)
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, err
		}
		if t == '{' {
			return fields, nil
		}
		return list, nil
	}
	return nil, errors.New("a number or null is in it")
}
