package identity

import (
	"fmt"
	"slices"
	"strings"
)

// checkDNSName takes a host name in the form that certificates carry and
// everybody compares alike: lower-case letters, digits and inner hyphens
// (RFC 1123 §2.1), no wildcard, no dot at the end, nothing that may be read as
// an address.
func checkDNSName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("DNS name of %d bytes: want 1 to 253", len(name))
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("DNS name %q: each label has 1 to 63 bytes and no hyphen at its ends", name)
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
				return fmt.Errorf("DNS name %q: want a-z, 0-9, - and . only; wildcards are not issued", name)
			}
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("DNS name %q looks like an address", name)
	}
	return nil
}

// checkLabelPart takes what may be part of a label.
func checkLabelPart(s string) error {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(s) > 63 {
		return fmt.Errorf("%q: want a-z, 0-9 and - only", s)
	}
	return nil
}

// permitDNSTemplate checks what is fixed of a name: its end lies under one of the
// suffixes, whatever the facts are. That of one which ends in whole labels of a
// fact is left to permitDNSName, when it is rendered.
func (c *compiler) permitDNSTemplate(t *template) error {
	if err := checkDNSName(t.trial()); err != nil {
		return err
	}
	if c.set.config.AnyDNSName || t.slots[len(t.slots)-1].splits() {
		return nil
	}
	end := t.lits[len(t.lits)-1]
	if !slices.ContainsFunc(c.set.config.DNSSuffixes, func(s string) bool { return strings.HasSuffix(end, "."+s) }) {
		return fmt.Errorf("DNS names that end in %q: what follows the last fact has to lie under one of the broker's dns_suffixes (%s)", end, strings.Join(c.set.config.DNSSuffixes, ", "))
	}
	return nil
}

// permitDNSName checks that name lies under one of the suffixes, as RFC 5280
// §4.2.1.10 says under: zero or more labels added to its left.
func permitDNSName(name string, suffixes []string) error {
	if err := checkDNSName(name); err != nil {
		return err
	}
	for _, s := range suffixes {
		if name == s || strings.HasSuffix(name, "."+s) {
			return nil
		}
	}
	if len(suffixes) == 0 {
		return fmt.Errorf("DNS name %q: dns_suffixes of the broker permits none", name)
	}
	return fmt.Errorf("DNS name %q does not lie under one of the broker's dns_suffixes (%s)", name, strings.Join(suffixes, ", "))
}
