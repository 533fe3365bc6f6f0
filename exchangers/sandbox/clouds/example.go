package clouds

import (
	_ "embed"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/template"
)

//go:embed example.yaml
var example string

var exampleTemplate = template.Must(template.New("sandbox.yaml").Parse(example))

// An Example is what a sandbox.yaml is to be about.
type Example struct {
	Issuer   string // https URL
	ID       string // SPIFFE ID of the workload that has access
	Anchor   string // PEM file of the CA
	IssuerCA string // PEM file of the issuer's web server; empty: this machine's roots
	At       string // host:port where the issuer is to be found; empty: where its URL says
}

// Write writes a complete sandbox.yaml, in which every key stands with its
// default or its form. It refuses what would not stand in YAML as it is.
func (e Example) Write(w io.Writer) error {
	u, err := url.Parse(e.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("issuer %q: an https URL is wanted", e.Issuer)
	}
	for _, text := range []string{e.Issuer, e.ID, e.Anchor, e.IssuerCA, e.At} {
		if strings.ContainsAny(text, "\"'{}[]#&*!|>%@`\\ \t\r\n") || strings.HasPrefix(text, "-") {
			return fmt.Errorf("%q: it has a character that YAML would take for its own", text)
		}
	}
	return exampleTemplate.Execute(w, struct {
		Example
		Host, Hostname, Port string
	}{e, strings.TrimPrefix(e.Issuer, "https://"), u.Hostname(), u.Port()})
}
