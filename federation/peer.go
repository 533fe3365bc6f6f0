package federation

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxURL     = 2048
	maxAccept  = 100
	maxPattern = 2048
	maxStars   = 4
)

// ValidateFor is Validate, and refuses a Peer that names own, our own trust
// domain: its bundle is made here and never fetched.
func (p *Peer) ValidateFor(own spiffeid.TrustDomain) error {
	if p.TrustDomain == own {
		return fmt.Errorf("peer %s: that is our own trust domain: remove this Peer", own)
	}
	return p.Validate()
}

// Validate says what keeps p from being polled. Trust domain, URL and profile
// are each explicit, none is guessed from another (SPIFFE Federation §5.1,
// §7.2); https_spiffe needs an endpoint ID, and a bootstrap where the endpoint
// lies in the peer's own trust domain (§5.2.2.2).
func (p *Peer) Validate() error {
	if p.TrustDomain.IsZero() {
		return errors.New("peer without a trust domain: give its name")
	}
	for _, check := range []func() error{p.checkURL, p.checkProfile, p.checkAccept} {
		if err := check(); err != nil {
			return fmt.Errorf("peer %s: %w", p.TrustDomain, err)
		}
	}
	if p.MaxStaleness < 0 {
		return fmt.Errorf("peer %s: max_staleness is negative: leave it out for 24h", p.TrustDomain)
	}
	return nil
}

func (p *Peer) checkURL() error {
	if len(p.URL) > maxURL {
		return fmt.Errorf("url is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		// The text of a url.Error holds the URL, and with it any password.
		return errors.New("url does not parse: give https://HOST[:PORT]/PATH")
	}
	return CheckURL(u)
}

// CheckURL says whether u is a valid bundle endpoint URL: scheme https, a host,
// no user information, the rest free (SPIFFE Federation §5.2.1.1, §5.2.2.1).
// It holds for redirect targets too.
func CheckURL(u *url.URL) error {
	switch {
	case u.Scheme != "https":
		return fmt.Errorf("url has scheme %q: a bundle endpoint is https", u.Scheme)
	case u.User != nil:
		return errors.New("url holds user information: a bundle endpoint asks for none")
	case u.Hostname() == "":
		return errors.New("url names no host")
	}
	return nil
}

// RedactURL is raw without what may be secret, for logs and errors: user
// information, query and fragment are left out.
func RedactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(url that does not parse)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func (p *Peer) checkProfile() error {
	switch {
	case p.HTTPSSPIFFE != nil && p.HTTPSWeb != nil:
		return errors.New("both https_spiffe and https_web are set: keep one")
	case p.HTTPSWeb != nil:
		return nil
	case p.HTTPSSPIFFE == nil:
		return errors.New("neither https_spiffe nor https_web is set: the profile is never guessed")
	}
	return p.HTTPSSPIFFE.check(p.TrustDomain)
}

func (h *HTTPSSPIFFE) check(td spiffeid.TrustDomain) error {
	id := h.EndpointID
	if id.IsZero() {
		return errors.New("https_spiffe without endpoint_id: give the SPIFFE ID of the endpoint's server")
	}
	if id.Path() == "" {
		return fmt.Errorf("endpoint_id %s has no path: an endpoint's SVID has one", id)
	}
	if id.TrustDomain() != td {
		return h.checkForeign()
	}
	return h.checkBootstrap(td)
}

// checkForeign: a bootstrap for another trust domain's endpoint would be
// ignored, since that domain's own Peer says what it trusts (SPIFFE Federation
// §5.2.2.2), and no setting is ignored silently.
func (h *HTTPSSPIFFE) checkForeign() error {
	if len(h.Bundle) > 0 || h.BundleFile != "" || h.Fingerprint != "" {
		return fmt.Errorf("bundle or fingerprint is set, but the endpoint lies in %s: "+
			"put it into the Peer of that trust domain", h.EndpointID.TrustDomain())
	}
	return nil
}

func (h *HTTPSSPIFFE) checkBootstrap(td spiffeid.TrustDomain) error {
	switch hasBundle := len(h.Bundle) > 0; {
	case hasBundle && h.Fingerprint != "":
		return errors.New("both a bundle and a fingerprint are set: keep one")
	case h.Fingerprint != "":
		return checkFingerprint(h.Fingerprint)
	case !hasBundle && h.BundleFile != "":
		return fmt.Errorf("bundle_file %s is empty", h.BundleFile)
	case !hasBundle:
		return errors.New("https_spiffe without bundle_file or fingerprint: " +
			"the first connection to a peer's own endpoint needs one")
	}
	b, err := ParseAny(td, h.Bundle)
	if err != nil {
		return fmt.Errorf("bootstrap bundle: %w", err)
	}
	if len(b.X509Authorities()) == 0 {
		return errors.New("bootstrap bundle holds no X.509 authority to verify the endpoint by")
	}
	return nil
}

func (p *Peer) checkAccept() error {
	if len(p.Accept) > maxAccept {
		return fmt.Errorf("accept has more than %d patterns", maxAccept)
	}
	for _, pattern := range p.Accept {
		if len(pattern) > maxPattern || !strings.HasPrefix(pattern, "/") {
			return fmt.Errorf("accept pattern %q is not a path that begins with /", clip(pattern))
		}
		if strings.Count(strings.ReplaceAll(pattern, "**", "*"), "*") > maxStars {
			return fmt.Errorf("accept pattern %q has more than %d stars", clip(pattern), maxStars)
		}
	}
	return nil
}

// clip bounds what an error quotes of a stranger's text.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
