package identity

import (
	"fmt"
	"slices"
)

// nameTemplates are the names in X509-SVIDs, where facts stand in them.
type nameTemplates struct {
	subject  template
	dnsNames []template
}

// reads adds the names of facts that the names have.
func (t *nameTemplates) reads(all []string) []string {
	if t == nil {
		return all
	}
	all = t.subject.names(all)
	for i := range t.dnsNames {
		all = t.dnsNames[i].names(all)
	}
	return all
}

// names checks and compiles the names in an Identity's X509-SVIDs. Where no fact
// stands in them, what x has is what they are.
func (c *compiler) names(name string, x *X509) *nameTemplates {
	var t nameTemplates
	plain := true
	if subject, err := parseTemplate(x.Subject, inText); err != nil {
		c.fail("x509.subject", "%v", err)
	} else {
		t.subject, plain = subject, subject.constant()
		check := checkSubjectTemplate
		if plain {
			x.Subject = subject.lits[0]
			check = func(_ *template, name string, permitted []subjectPattern) error {
				return checkSubject(x.Subject, name, permitted)
			}
		}
		if err := check(&t.subject, name, c.set.subjects); err != nil {
			c.fail("x509.subject", "%v", err)
		}
	}
	if len(x.DNSNames) > maxDNSNames {
		c.fail("x509.dns_names", "%d names: at most %d are taken", len(x.DNSNames), maxDNSNames)
		return nil
	}
	for n, text := range x.DNSNames {
		field := fmt.Sprintf("x509.dns_names[%d]", n)
		d, err := parseTemplate(text, inDNSName)
		if err == nil && d.constant() {
			x.DNSNames[n] = d.lits[0]
			err = c.set.permitDNSName(d.lits[0])
		} else if err == nil {
			plain = false
			err = c.permitDNSTemplate(&d)
		}
		if err != nil {
			c.fail(field, "%v", err)
		}
		if slices.Contains(x.DNSNames[:n], text) {
			c.fail(field, "%q stands there twice", text)
		}
		t.dnsNames = append(t.dnsNames, d)
	}
	if plain {
		return nil
	}
	return &t
}

// grantNames fills in the names that an X509-SVID has besides its ID.
func (s *Set) grantNames(g *Grant, i *identity, e *evidence) *refusal {
	if i.X509 == nil {
		return nil
	}
	g.subject, g.dnsNames = i.X509.Subject, i.X509.DNSNames
	if i.names == nil {
		return nil
	}
	var fact string
	var err error
	if !i.names.subject.constant() {
		if g.subject, fact, err = renderSubject(&i.names.subject, e, i.Name, s.subjects); err != nil {
			return unrendered("x509.subject", fact, err)
		}
	}
	g.dnsNames = make([]string, 0, len(i.names.dnsNames))
	for n := range i.names.dnsNames {
		name, fact, err := i.names.dnsNames[n].render(e, inDNSName)
		if err == nil {
			err = s.permitDNSName(name)
		}
		if err != nil {
			return unrendered(fmt.Sprintf("x509.dns_names[%d]", n), fact, err)
		}
		if !slices.Contains(g.dnsNames, name) { // two templates may come out as one
			g.dnsNames = append(g.dnsNames, name)
		}
	}
	return nil
}

// permitDNSName checks a name whole, as it will stand in a certificate.
func (s *Set) permitDNSName(name string) error {
	if s.config.AnyDNSName {
		return checkDNSName(name)
	}
	return permitDNSName(name, s.config.DNSSuffixes)
}
