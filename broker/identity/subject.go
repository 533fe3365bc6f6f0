package identity

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a subject.
const (
	maxSubject = 1024
	maxRDNs    = 16
)

// attributes are those of RFC 4514 §3 that crypto/x509 encodes as X.520 wants
// them (so not DC), with X.520's upper bounds in characters.
var attributes = map[string]struct {
	oid asn1.ObjectIdentifier
	max int
}{
	"CN":     {asn1.ObjectIdentifier{2, 5, 4, 3}, 64},
	"L":      {asn1.ObjectIdentifier{2, 5, 4, 7}, 128},
	"ST":     {asn1.ObjectIdentifier{2, 5, 4, 8}, 128},
	"STREET": {asn1.ObjectIdentifier{2, 5, 4, 9}, 128},
	"O":      {asn1.ObjectIdentifier{2, 5, 4, 10}, 64},
	"OU":     {asn1.ObjectIdentifier{2, 5, 4, 11}, 64},
	"C":      {asn1.ObjectIdentifier{2, 5, 4, 6}, 2},
	"UID":    {asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, 256},
}

// An rdn is one attribute of a subject.
type rdn struct{ attribute, value string }

// ParseSubject parses a distinguished name as RFC 4514 writes it, so the last
// RDN first, and returns it as certificates hold it. It takes one attribute an
// RDN, one of CN, L, ST, STREET, O, OU, C and UID, and at most one CN; spaces
// before a type are taken too. The empty string is the empty name.
func ParseSubject(s string) (pkix.RDNSequence, error) {
	rdns, err := parseSubject(s)
	if err != nil {
		return nil, err
	}
	slices.Reverse(rdns) // RFC 4514 §2.1
	seq := make(pkix.RDNSequence, len(rdns))
	for i, r := range rdns {
		seq[i] = pkix.RelativeDistinguishedNameSET{{Type: attributes[r.attribute].oid, Value: r.value}}
	}
	return seq, nil
}

func parseSubject(s string) ([]rdn, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > maxSubject || !utf8.ValidString(s) {
		return nil, fmt.Errorf("subject of %d bytes: at most %d of UTF-8 are taken", len(s), maxSubject)
	}
	var rdns []rdn
	for more := true; more; {
		attribute, rest, ok := strings.Cut(strings.TrimLeft(s, " "), "=")
		attribute = strings.ToUpper(attribute)
		if _, known := attributes[attribute]; !ok || !known {
			return nil, fmt.Errorf("subject at %.40q: want CN, L, ST, STREET, O, OU, C or UID, then =", s)
		}
		value, after, comma, err := parseAttributeValue(rest)
		if err == nil {
			err = checkAttribute(attribute, value)
		}
		if err != nil {
			return nil, fmt.Errorf("subject's %s: %w", attribute, err)
		}
		if attribute == "CN" && slices.ContainsFunc(rdns, func(r rdn) bool { return r.attribute == "CN" }) {
			return nil, errors.New("subject has two CN")
		}
		if rdns = append(rdns, rdn{attribute, value}); len(rdns) > maxRDNs {
			return nil, fmt.Errorf("subject of more than %d RDNs", maxRDNs)
		}
		s, more = after, comma
	}
	return rdns, nil
}

// parseAttributeValue reads a value up to its comma or the end (RFC 4514 §3).
func parseAttributeValue(s string) (value, rest string, comma bool, err error) {
	if strings.HasPrefix(s, "#") || strings.HasPrefix(s, " ") {
		return "", "", false, errors.New(`starts with # or a space: escape it as \# or "\ "`)
	}
	var b strings.Builder
	space := false // the last byte is a space that nothing escapes
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == ',' {
			rest, comma = s[i+1:], true
			break
		}
		space = c == ' '
		switch c {
		case '\\':
			raw, n := unescape(s[i+1:])
			if n == 0 {
				return "", "", false, errors.New(`has a \ that escapes nothing`)
			}
			b.WriteByte(raw)
			i += n
		case '+':
			return "", "", false, errors.New(`has an unescaped +: an RDN of two attributes is not taken`)
		case '"', ';', '<', '>', 0:
			return "", "", false, fmt.Errorf("has an unescaped %q", c)
		default:
			b.WriteByte(c)
		}
	}
	if space {
		return "", "", false, errors.New(`ends in a space: escape it as "\ "`)
	}
	return b.String(), rest, comma, nil
}

// unescape reads what follows a backslash and returns the byte and how much it
// read.
func unescape(s string) (byte, int) {
	if s == "" {
		return 0, 0
	}
	if strings.IndexByte(`"+,;<>\ #=`, s[0]) >= 0 {
		return s[0], 1
	}
	if len(s) >= 2 {
		if b, err := hex.DecodeString(s[:2]); err == nil {
			return b[0], 2
		}
	}
	return 0, 0
}

func checkAttribute(attribute, value string) error {
	most := attributes[attribute].max
	if n := utf8.RuneCountInString(value); n == 0 || n > most {
		return fmt.Errorf("has %d characters: want 1 to %d", n, most)
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return errors.New("is not UTF-8, or has control characters")
	}
	if attribute == "C" && !(len(value) == 2 && isUpper(value[0]) && isUpper(value[1])) {
		return fmt.Errorf("is %q: want two capital letters", value)
	}
	return nil
}

func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }

// A subjectPattern permits RDNs of one attribute.
type subjectPattern struct {
	attribute string
	value     pattern
}

func parseSubjectPattern(s string) (subjectPattern, error) {
	attribute, value, _ := strings.Cut(s, "=")
	attribute = strings.ToUpper(attribute)
	if _, known := attributes[attribute]; !known {
		return subjectPattern{}, fmt.Errorf("%q: want a pattern such as O=Acme, of CN, L, ST, STREET, O, OU, C or UID", s)
	}
	p, err := parsePattern(value)
	if err != nil {
		return subjectPattern{}, fmt.Errorf("%q: %w", s, err)
	}
	return subjectPattern{attribute, p}, nil
}

// checkSubject permits CN=<the identity's name>, and else what the broker's
// owner permits.
func checkSubject(subject, name string, permitted []subjectPattern) error {
	rdns, err := parseSubject(subject)
	if err != nil {
		return err
	}
	for _, r := range rdns {
		if err := permitRDN(r, name, permitted); err != nil {
			return err
		}
	}
	return nil
}

func permitRDN(r rdn, name string, permitted []subjectPattern) error {
	if r.attribute == "CN" && r.value == name || slices.ContainsFunc(permitted, func(p subjectPattern) bool {
		return p.attribute == r.attribute && p.value.match(r.value)
	}) {
		return nil
	}
	return fmt.Errorf("%s=%s is neither CN=%s nor in the broker's subjects", r.attribute, r.value, name)
}

// escapeRDN writes a value so that it stands for itself, wherever in an
// attribute's value it stands (RFC 4514 §2.4).
func escapeRDN(value string) string {
	var b strings.Builder
	for i, c := range []byte(value) {
		if strings.IndexByte(`"+,;<>\`, c) >= 0 || c == '#' && i == 0 || c == ' ' && (i == 0 || i == len(value)-1) {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// checkSubjectTemplate refuses a template of which the facts don't stand within
// attributes' values, or in one that the broker's owner permits nothing of.
func checkSubjectTemplate(t *template, name string, permitted []subjectPattern) error {
	if i := slices.IndexFunc(t.lits, func(lit string) bool { return !wholeEscapes(lit) }); i >= 0 {
		return fmt.Errorf("%q has a \\ that escapes nothing", t.lits[i])
	}
	rdns, err := parseSubject(strings.Join(t.lits, "XX"))
	if err != nil {
		return err
	}
	others, err := parseSubject(strings.Join(t.lits, "YY"))
	if err != nil || len(others) != len(rdns) {
		return errors.New("facts belong within the values of attributes")
	}
	for i, r := range rdns {
		if r == others[i] {
			if err := permitRDN(r, name, permitted); err != nil {
				return err
			}
			continue
		}
		if r.attribute != others[i].attribute || !slices.ContainsFunc(permitted, func(p subjectPattern) bool { return p.attribute == r.attribute }) {
			return fmt.Errorf("%s is made of facts, and the broker's subjects have no pattern for it, such as %s=*", r.attribute, r.attribute)
		}
	}
	return nil
}

// wholeEscapes says whether no escape goes on beyond the end of s.
func wholeEscapes(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			_, n := unescape(s[i+1:])
			if n == 0 {
				return false
			}
			i += n
		}
	}
	return true
}

// renderSubject renders a subject, and checks that the facts added no attribute.
func renderSubject(t *template, e *evidence, name string, permitted []subjectPattern) (subject, fact string, err error) {
	subject, fact, err = t.fill(func(r *slot) (string, error) {
		value, err := r.render(e, inText)
		return escapeRDN(value), err
	})
	if err != nil {
		return "", fact, err
	}
	rdns, err := parseSubject(subject)
	if err != nil {
		return "", "", err
	}
	trial, err := parseSubject(strings.Join(t.lits, "XX"))
	if err != nil || !slices.EqualFunc(rdns, trial, func(a, b rdn) bool { return a.attribute == b.attribute }) {
		return "", "", fmt.Errorf("%q has other attributes than the template", subject)
	}
	for _, r := range rdns {
		if err := permitRDN(r, name, permitted); err != nil {
			return "", "", err
		}
	}
	return subject, "", nil
}
