package identity

import (
	"fmt"
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
