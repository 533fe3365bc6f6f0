package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// AddOutput gives a verb -o: table, json and yaml, and forms of its own, the
// first of which is the default.
func AddOutput(cmd *cobra.Command, own ...string) *cobra.Command {
	forms := slices.Clone(own)
	for _, form := range []string{"table", "json", "yaml"} {
		if !slices.Contains(forms, form) {
			forms = append(forms, form)
		}
	}
	cmd.Flags().StringP("output", "o", forms[0], "one of "+strings.Join(forms, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if got := OutputOf(cmd); !slices.Contains(forms, got) {
			return BadInput(fmt.Errorf("-o %s: %s writes %s", got, cmd.CommandPath(), strings.Join(forms, ", ")))
		}
		return nil
	}
	return cmd
}

func OutputOf(cmd *cobra.Command) string {
	form, _ := cmd.Flags().GetString("output")
	return form
}

// Show prints what a verb found: v for programs, as JSON or as YAML with the
// same names, or what table writes, for people.
func (p *Program) Show(cmd *cobra.Command, v any, table func() error) error {
	switch OutputOf(cmd) {
	case "json":
		return WriteJSON(p.Out, v)
	case "yaml":
		return WriteYAML(p.Out, v)
	}
	return table()
}

// Say prints what a verb did: v for programs, a sentence for people.
func (p *Program) Say(cmd *cobra.Command, v any, sentence string) error {
	return p.Show(cmd, v, func() error {
		_, err := fmt.Fprintln(p.Out, sentence)
		return err
	})
}

func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// WriteYAML writes what JSON would hold, in its order. A string that YAML could
// read as anything else is written as JSON writes it, which is YAML too.
func WriteYAML(w io.Writer, v any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	d := json.NewDecoder(&text)
	d.UseNumber()
	y := yamlWriter{tokens: d}
	y.value("\n", "")
	if y.err != nil {
		return y.err
	}
	_, err := io.WriteString(w, strings.TrimPrefix(strings.TrimPrefix(y.out.String(), "\n"), " ")+"\n")
	return err
}

// yamlWriter turns JSON's tokens into block YAML.
type yamlWriter struct {
	tokens *json.Decoder
	out    strings.Builder
	err    error
}

func (y *yamlWriter) next() json.Token {
	t, err := y.tokens.Token()
	if err != nil && y.err == nil {
		y.err = err
	}
	return t
}

// value writes one value. first is what stands before the first line of a
// block, indent before every other.
func (y *yamlWriter) value(first, indent string) {
	switch t := y.next().(type) {
	case json.Delim:
		y.block(t, first, indent)
	case string:
		y.out.WriteString(" " + yamlString(t))
	case nil:
		y.out.WriteString(" null")
	default:
		fmt.Fprint(&y.out, " ", t)
	}
}

func (y *yamlWriter) block(open json.Delim, first, indent string) {
	empty := true
	for ; y.err == nil && y.tokens.More(); empty = false {
		if empty {
			y.out.WriteString(first)
		} else {
			y.out.WriteString("\n" + indent)
		}
		if open == '[' {
			y.out.WriteString("-")
			y.value(" ", indent+"  ")
			continue
		}
		key, _ := y.next().(string)
		y.out.WriteString(yamlString(key) + ":")
		y.value("\n"+indent+"  ", indent+"  ")
	}
	y.next()
	if empty {
		y.out.WriteString(map[json.Delim]string{'[': " []", '{': " {}"}[open])
	}
}

// yamlString is a string as it stands, where no reader of YAML takes it for
// anything but a string, else in double quotes.
func yamlString(s string) string {
	if plainString(s) {
		return s
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always has JSON
	return strings.TrimSpace(text.String())
}

func plainString(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	if s == "" || !strings.Contains(letters+"/", s[:1]) || strings.Trim(s, letters+"0123456789_./-") != "" {
		return false
	}
	return !slices.Contains([]string{"true", "false", "yes", "no", "on", "off", "y", "n", "null"}, strings.ToLower(s))
}

// Table writes rows under a head, aligned.
func (p *Program) Table(head string, rows [][]string) error {
	heads := strings.Split(head, "|")
	widths := make([]int, len(heads))
	for _, row := range append([][]string{heads}, rows...) {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	colours := p.Colours(p.Out)
	for n, row := range append([][]string{heads}, rows...) {
		var line strings.Builder
		for i, text := range row {
			gap := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2)
			if n > 0 && colours {
				text = Paint(heads[i], text)
			}
			line.WriteString(text + gap)
		}
		if _, err := fmt.Fprintln(p.Out, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// Fields writes names and values, a line each.
func (p *Program) Fields(rows [][2]string) error {
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	colours := p.Colours(p.Out)
	for _, r := range rows {
		value := r[1]
		if colours {
			value = Paint(r[0], value)
		}
		if _, err := fmt.Fprintf(p.Out, "%-*s  %s\n", width, r[0], value); err != nil {
			return err
		}
	}
	return nil
}

// Moment is a time as programs read it: RFC 3339 in UTC, or null.
type Moment int64

// MarshalJSON writes Unix seconds.
func (m Moment) MarshalJSON() ([]byte, error) {
	if m == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(time.Unix(int64(m), 0).UTC())
}

func When(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05Z")
}

// SerialText is a serial number as the broker's record has it.
func SerialText(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }
