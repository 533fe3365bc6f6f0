package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// terraform writes a plan as a configuration that terraform fmt would leave as
// it is.
func terraform(plan exchangers.Plan) (string, error) {
	var h hcl
	h.line(0, "# What target %s needs, for Terraform: in a directory of its own, terraform init and", plan.Target)
	h.line(0, "# terraform apply. It was written by credence target setup.")
	for _, note := range plan.Notes {
		h.line(0, "#")
		for _, l := range wrap(note, 95) {
			h.line(0, "# %s", l)
		}
	}
	if len(plan.Resources) > 0 {
		h.provider(plan)
	}
	for _, m := range plan.Resources {
		kind, values := "resource", m.Values
		if m.Read {
			kind = "data"
		}
		if m.Account != "" {
			values = append(exchangers.Fields{{Name: "provider", Value: bare(plan.Provider.Name + ".second")}}, values...)
		}
		h.line(0, "")
		h.block(0, fmt.Sprintf("%s %s %s", kind, hclString(m.Type), hclString(m.Label)), values)
	}
	if len(plan.Apply) > 0 {
		h.line(0, "")
		h.line(0, "# terraform output -raw target | credence apply -f -")
		h.block(0, `output "target"`, exchangers.Fields{{Name: "value", Value: call{"yamlencode", plan.Apply}}})
	}
	return h.b.String(), h.err
}

// provider says which provider is meant, and that it makes nothing in another
// account.
func (h *hcl) provider(plan exchangers.Plan) {
	p := plan.Provider
	h.line(0, "")
	h.block(0, "terraform", exchangers.Fields{{Name: "required_providers", Value: exchangers.Blocks{{
		{Name: p.Name, Value: exchangers.Fields{{Name: "source", Value: p.Source}, {Name: "version", Value: p.Version}}},
	}}}})
	if len(p.Config) > 0 {
		h.line(0, "")
		h.block(0, "provider "+hclString(p.Name), p.Config)
	}
	for _, m := range plan.Resources {
		if m.Account == "" {
			continue
		}
		second := exchangers.Fields{{Name: "alias", Value: "second"}, {Name: "region", Value: plan.Cloud.Region}, {Name: "allowed_account_ids", Value: exchangers.List(m.Account)}}
		h.line(0, "")
		h.block(0, "provider "+hclString(p.Name), second)
	}
}

// wrap breaks a text into lines of about so many characters.
func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// hcl is Terraform's language. In it values that end on their line stand under
// each other where no longer one is between.
type hcl struct {
	b   strings.Builder
	err error
}

// A bare value is written as it is, a call as a function of a value.
type (
	bare string
	call struct {
		name  string
		value any
	}
)

var hclName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

func (h *hcl) line(indent int, format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != "" {
		h.b.WriteString(strings.Repeat("  ", indent) + text)
	}
	h.b.WriteByte('\n')
}

func (h *hcl) block(indent int, head string, fields exchangers.Fields) {
	if len(fields) == 0 {
		h.line(indent, "%s {}", head)
		return
	}
	h.line(indent, "%s {", head)
	h.fields(indent+1, fields, hclKey)
	h.line(indent, "}")
}

// hclKey is a name as it is where it can be, else a string.
func hclKey(name string) string {
	if hclName.MatchString(name) {
		return name
	}
	return hclString(name)
}

// fields writes one name and value a line, those of a run aligned.
func (h *hcl) fields(indent int, fields exchangers.Fields, key func(string) string) {
	for len(fields) > 0 {
		run := slices.IndexFunc(fields, func(f exchangers.Field) bool { return !flat(f.Value) })
		if run < 0 {
			run = len(fields)
		}
		width := 0
		for _, f := range fields[:run] {
			width = max(width, len([]rune(key(f.Name))))
		}
		for _, f := range fields[:run] {
			h.line(indent, "%-*s = %s", width, key(f.Name), h.value(indent, f.Value))
		}
		if fields = fields[run:]; len(fields) == 0 {
			return
		}
		h.field(indent, fields[0], key)
		fields = fields[1:]
	}
}

// field writes a value of several lines.
func (h *hcl) field(indent int, f exchangers.Field, key func(string) string) {
	if blocks, ok := f.Value.(exchangers.Blocks); ok {
		for _, b := range blocks {
			h.block(indent, f.Name, b)
		}
		return
	}
	h.line(indent, "%s = %s", key(f.Name), h.value(indent, f.Value))
}

// flat says whether a value is aligned with those around it: one on a line of
// its own or, as terraform fmt sees it, a text.
func flat(v any) bool {
	switch v := v.(type) {
	case exchangers.Fields:
		return len(v) == 0
	case exchangers.Blocks, exchangers.Document, call:
		return false
	case []any:
		return flatList(v)
	}
	return true
}

// flatList says whether a list stands on one line.
func flatList(v []any) bool {
	if len(v) > 1 {
		return false
	}
	return !slices.ContainsFunc(v, func(one any) bool {
		_, group := one.(exchangers.Fields)
		return group || !flat(one)
	})
}

// value writes what stands behind the equals sign of a line with that indent.
func (h *hcl) value(indent int, v any) string {
	switch v := v.(type) {
	case string:
		return hclString(v)
	case exchangers.Text:
		return hclText(indent, string(v))
	case bool, int, bare:
		return fmt.Sprint(v)
	case exchangers.Ref:
		if v.Read {
			return "data." + v.String()
		}
		return v.String()
	case exchangers.Document:
		return h.value(indent, call{"jsonencode", v.Value})
	case call:
		return v.name + "(" + h.value(indent, v.value) + ")"
	case exchangers.Fields:
		if len(v) == 0 {
			return "{}"
		}
		inner := hcl{}
		inner.fields(indent+1, v, hclKey)
		if inner.err != nil {
			h.err = inner.err
		}
		return "{\n" + inner.b.String() + strings.Repeat("  ", indent) + "}"
	case []any:
		return h.list(indent, v)
	}
	h.err = fmt.Errorf("a plan holds a %T", v)
	return ""
}

func (h *hcl) list(indent int, v []any) string {
	if flatList(v) {
		var all []string
		for _, one := range v {
			all = append(all, h.value(indent, one))
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	text := "[\n"
	for _, one := range v {
		text += strings.Repeat("  ", indent+1) + h.value(indent+1, one) + ",\n"
	}
	return text + strings.Repeat("  ", indent) + "]"
}

// hclString quotes, and leaves nothing that would be evaluated.
func hclString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		case (r == '$' || r == '%') && strings.HasPrefix(s[i+1:], "{"):
			fmt.Fprintf(&b, `\u%04x`, r) // doubled it is not safe behind another of its kind
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// hclText writes a heredoc where nothing in the text could end it or be
// evaluated, else a string.
func hclText(indent int, s string) string {
	body, ends := strings.CutSuffix(s, "\n")
	if !ends || strings.ContainsAny(s, "$%\\\r\t") || strings.Contains(s, "EOT") {
		return hclString(s)
	}
	pad := strings.Repeat("  ", indent)
	return "<<-EOT\n" + pad + "  " + strings.ReplaceAll(body, "\n", "\n"+pad+"  ") + "\n" + pad + "EOT"
}
