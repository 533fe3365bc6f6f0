package aws

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxTags is how many tags a session may have.
const maxTags = 50

const (
	sanDNS       = 2 // GeneralName choices of RFC 5280 §4.2.1.6
	sanDirectory = 4
	sanURI       = 6
)

var (
	oidSAN        = asn1.ObjectIdentifier{2, 5, 29, 17}
	tagCharacters = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`) // a count in here would take every command 15 ms to start
	sourceForm    = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	errSource     = errors.New("common name makes no source identity")
	attributeName = map[string]string{
		"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "SERIALNUMBER", "2.5.4.6": "C", "2.5.4.7": "L",
		"2.5.4.8": "ST", "2.5.4.9": "STREET", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "T",
		"0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID",
	}
)

// unmapped lists, by certificate field, what does not fit a session tag.
type unmapped map[string][]string

func (u unmapped) Error() string {
	part := func(field string) string {
		return strings.Join(slices.Concat([]string{"["}, u[field], []string{"]"}), " ")
	}
	return "Some attributes failed to be mapped into session tags. Issuer: " + part("x509Issuer") +
		"; Subject: " + part("x509Subject") + "; SAN: " + part("x509SAN")
}

// mapAttributes makes session tags from a certificate. Of names that a field has
// several times, subject and issuer give all values joined by "/", the
// alternative names the first of each type.
func mapAttributes(leaf *x509.Certificate, mappings map[string][]string) (map[string]string, error) {
	m := mapper{mappings: mappings, tags: map[string]string{}, failed: unmapped{}}
	m.name("x509Subject", "", leaf.Subject)
	m.name("x509Issuer", "", leaf.Issuer)
	m.alternatives(leaf)
	if len(m.tags) > maxTags {
		m.failed["x509Subject"] = append(m.failed["x509Subject"], fmt.Sprintf("%d tags", len(m.tags)))
	}
	if len(m.failed) > 0 {
		return nil, m.failed
	}
	return m.tags, nil
}

type mapper struct {
	mappings map[string][]string
	tags     map[string]string
	failed   unmapped
}

// name maps a distinguished name; prefix stands before the specifiers.
func (m *mapper) name(field, prefix string, n pkix.Name) {
	var order []string
	values := map[string][]string{}
	for _, a := range n.Names {
		t := a.Type.String()
		if short, ok := attributeName[t]; ok {
			t = short
		}
		if _, ok := values[t]; !ok {
			order = append(order, t)
		}
		values[t] = append(values[t], attributeText(a.Value))
	}
	for _, t := range order {
		if m.wants(field, prefix+"*") || m.wants(field, prefix+t) {
			m.tag(field, prefix+t, strings.Join(values[t], "/"), prefix+t)
		}
	}
}

func (m *mapper) wants(field, specifier string) bool {
	return slices.Contains(m.mappings[field], specifier)
}

// isTag says whether a session tag may have a key and a value: 128 and 256
// characters at most.
func isTag(key, value string) bool {
	return key != "" && utf8.RuneCountInString(key) <= 128 && utf8.RuneCountInString(value) <= 256 &&
		tagCharacters.MatchString(key) && tagCharacters.MatchString(value)
}

// tag adds a tag, or notes the label of what fits none.
func (m *mapper) tag(field, name, value, label string) {
	key := field + "/" + name
	if !isTag(key, value) {
		m.failed[field] = append(m.failed[field], label)
		return
	}
	m.tags[key] = value
}

// attributeText returns the text of an attribute, or for one that is no text
// something that fits no tag.
func attributeText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return "\x00"
}

func (m *mapper) alternatives(leaf *x509.Certificate) {
	names, err := alternativeNames(leaf)
	if err != nil {
		m.failed["x509SAN"] = append(m.failed["x509SAN"], "*")
		return
	}
	seen := map[int]bool{}
	for _, n := range names {
		if seen[n.Tag] {
			continue
		}
		seen[n.Tag] = true
		switch n.Tag {
		case sanDNS, sanURI:
			if name := map[int]string{sanDNS: "DNS", sanURI: "URI"}[n.Tag]; m.wants("x509SAN", name) {
				m.tag("x509SAN", name, string(n.Bytes), fmt.Sprintf("%s/%d", name, n.Tag))
			}
		case sanDirectory:
			m.directory(n.Bytes)
		}
	}
}

func (m *mapper) directory(der []byte) {
	var rdn pkix.RDNSequence
	var name pkix.Name
	if rest, err := asn1.Unmarshal(der, &rdn); err != nil || len(rest) > 0 {
		m.failed["x509SAN"] = append(m.failed["x509SAN"], fmt.Sprintf("Name/%d", sanDirectory))
		return
	}
	name.FillFromRDNSequence(&rdn)
	m.name("x509SAN", "Name/", name)
}

// alternativeNames returns the names in their order, which x509.Certificate
// does not keep across types.
func alternativeNames(leaf *x509.Certificate) ([]asn1.RawValue, error) {
	var names []asn1.RawValue
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("parsing alternative names: %w", err)
		}
	}
	return names, nil
}

// sourceIdentity is CN=<cn>, the bare name where that would be too long, or the
// serial number if there is no common name.
func sourceIdentity(leaf *x509.Certificate) (string, error) {
	cn := ""
	for _, a := range leaf.Subject.Names {
		if cn == "" && attributeName[a.Type.String()] == "CN" {
			cn = attributeText(a.Value)
		}
	}
	s := "CN=" + cn
	switch {
	case cn == "":
		s = "ID=" + hexSerial(leaf)
	case len(cn) > 61:
		s = cn
	}
	if !sourceForm.MatchString(s) {
		return "", fmt.Errorf("%w: %q", errSource, s)
	}
	return s, nil
}

// hexSerial is the serial number in hex of even length.
func hexSerial(leaf *x509.Certificate) string {
	n := leaf.SerialNumber
	return fmt.Sprintf("%x", n.FillBytes(make([]byte, max(1, (n.BitLen()+7)/8))))
}

// subjectID is the ID under which Roles Anywhere lists a subject, stable for it.
func subjectID(leaf *x509.Certificate) string {
	b := sha256.Sum256(leaf.RawSubject)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
