package exchangers

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ownCALeft is how long a CA must last to be worth registering.
const ownCALeft = 30 * 24 * time.Hour

// A Trust is what a provider of X.509 must believe for our SVIDs.
type Trust struct {
	Anchors []*x509.Certificate
	// Issuer is the CA whose names must be asked for besides, since others than
	// us have certificates under the anchors; nil: nobody has.
	Issuer *x509.Certificate
	Notes  []string
}

// Trusted says what a provider that takes at most so many anchors must believe.
// Under a root that signs for others too it is our own CA below that root or,
// where there is none that lasts, the root and the name of the issuer.
func (f Facts) Trusted(most int) (Trust, error) {
	switch {
	case len(f.Anchors) == 0:
		return Trust{}, errors.New("the bundle has no X.509 authority yet: credence ca show says what it waits for")
	case !f.SharedRoot:
		if len(f.Anchors) > most {
			return Trust{}, fmt.Errorf("the bundle has %d X.509 authorities, and the provider takes %d: end the rotation of the root first (credence ca show)", len(f.Anchors), most)
		}
		return Trust{Anchors: f.Anchors}, nil
	case len(f.Chain) == 0:
		return Trust{}, errors.New("the root signs for others too, and no CA of ours under it signs yet: what tells us from them can't be said")
	}
	if own := f.ownCA(); own != nil {
		return Trust{Anchors: []*x509.Certificate{own}, Notes: []string{fmt.Sprintf(
			"the corporate root signs for others too, so not it is registered but our own CA %q, until %s: set up again when it is replaced",
			own.Subject.String(), own.NotAfter.UTC().Format(time.RFC3339))}}, nil
	}
	if len(f.Anchors) > most {
		return Trust{}, fmt.Errorf("the bundle has %d X.509 authorities, and the provider takes %d: end the rotation of the root first (credence ca show)", len(f.Anchors), most)
	}
	return Trust{Anchors: f.Anchors, Issuer: f.Chain[0], Notes: []string{fmt.Sprintf(
		"the corporate root signs for others too: an SVID counts only from an issuer named %q. Who can get a CA of that name certified under the root can speak for us: have the PKI team see to it, or take anchor: ours in broker.yaml",
		f.Chain[0].Subject.String())}}, nil
}

// ownCA is our highest CA under a root, if it lasts. It is ours if it names our
// trust domain: a CA between it and the root may sign for others too.
func (f Facts) ownCA() (own *x509.Certificate) {
	for _, c := range f.Chain {
		if len(c.URIs) == 1 && c.URIs[0].String() == f.TrustDomain.IDString() && c.NotAfter.After(f.Now.Add(ownCALeft)) {
			own = c
		}
	}
	return own
}

// PEM writes certificates.
func PEM(certs ...*x509.Certificate) Text {
	var b strings.Builder
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Builder takes all
	}
	return Text(b.String())
}

// Exact says whether the SPIFFE ID is one, and no template.
func (p Party) Exact() bool { return !strings.Contains(p.SPIFFEID, "{") }

// literals are what stands around the facts of a template.
func (p Party) literals() []string {
	var all []string
	rest := p.SPIFFEID
	for {
		lit, after, found := strings.Cut(rest, "{")
		all = append(all, lit)
		if !found {
			return all
		}
		_, rest, _ = strings.Cut(after, "}")
	}
}

// paths says whether a fact of the template may be several segments.
func (p Party) paths() bool { return strings.Contains(p.SPIFFEID, pathMark) }

// pathMark ends a fact that may be several segments.
const pathMark = "|path}"

// Globs are a pattern with stars for the SPIFFE IDs of a template, and one for
// what it matches besides where a star goes beyond a segment; none where it may.
func (p Party) Globs() (like, unlike string) {
	like = strings.Join(p.literals(), "*")
	if p.paths() {
		return like, ""
	}
	return like, strings.Repeat("*/", strings.Count(like, "/")+1) + "*"
}

// Regexp matches the SPIFFE IDs of a template, and nothing else (RE2). Of the
// characters of a SPIFFE ID the dot alone means something there.
func (p Party) Regexp() string {
	return "^" + pattern(p.SPIFFEID, func(lit string) string { return strings.ReplaceAll(lit, ".", "[.]") }) + "$"
}

// pattern is a regular expression for what a template gives: each fact is one
// segment or a part of one or, where the template says so, several.
func pattern(spiffeID string, quote func(string) string) string {
	var b strings.Builder
	last := 0
	for _, at := range template.FindAllStringIndex(spiffeID, -1) {
		b.WriteString(quote(spiffeID[last:at[0]]) + "[^/]+")
		if last = at[1]; strings.HasSuffix(spiffeID[:last], pathMark) {
			b.WriteString("(/[^/]+)*")
		}
	}
	return b.String() + quote(spiffeID[last:])
}

// Listed are the parties: at least one. A SPIFFE ID stands once.
func (f Facts) Listed() ([]Party, error) {
	if len(f.Parties) == 0 {
		return nil, fmt.Errorf("no Identity lists target %s: add it to the targets of one, so that it is known whom the provider is to trust", f.Target.Name)
	}
	var all []Party
	for _, p := range f.Parties {
		if !slices.ContainsFunc(all, func(o Party) bool { return o.SPIFFEID == p.SPIFFEID }) {
			all = append(all, p)
		}
	}
	return all, nil
}

// TemplateNote says what a pattern lets in.
func (p Party) TemplateNote() string {
	like, _ := p.Globs()
	return fmt.Sprintf("Identity %s has a SPIFFE ID made of facts: whoever gets one that is like %s is let in. Fix the facts by exact terms of its match to be narrower", p.Identity, like)
}

// Issues says whether JWT-SVIDs can be verified at all.
func (f Facts) Issues() error {
	if f.Issuer == "" {
		return errors.New("the broker has no issuer, so there is no JWT-SVID: set issuer in broker.yaml")
	}
	return nil
}

// ReachNote says what a provider fetches.
func (f Facts) ReachNote(who string) string {
	return fmt.Sprintf("%s fetches %s/.well-known/openid-configuration and the keys from there: it must reach them, with a certificate of a public CA (credence bundle publish puts them where it can)", who, f.Issuer)
}
