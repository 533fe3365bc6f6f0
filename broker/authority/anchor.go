package authority

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// What Config.Anchor, SharedRoot and UpstreamName may say.
const (
	anchorRoot      = "root"
	anchorOurs      = "ours"
	rootIsDedicated = "dedicated"
	rootIsShared    = "shared"
	byHand          = "csr"
)

// completeAnchor refuses what Config says of a corporate root and of our CAs
// where it contradicts itself.
func completeAnchor(cfg *Config) error {
	if cfg.Anchor == "" {
		cfg.Anchor = anchorRoot
	}
	name := cfg.TrustDomain.Name()
	switch {
	case cfg.Anchor != anchorRoot && cfg.Anchor != anchorOurs:
		return fmt.Errorf("anchor is %q: want root or ours", cfg.Anchor)
	case cfg.SharedRoot != "" && cfg.SharedRoot != rootIsDedicated && cfg.SharedRoot != rootIsShared:
		return fmt.Errorf("what else the root signs is %q: want dedicated or shared", cfg.SharedRoot)
	case cfg.Upstream != nil && (cfg.UpstreamName == "" || cfg.UpstreamName == byHand):
		return fmt.Errorf("the upstream's name is %q: want its kind", cfg.UpstreamName)
	case cfg.Upstream == nil && cfg.UpstreamName != "" && cfg.UpstreamName != byHand:
		return fmt.Errorf("upstream %s is named, but there is none", cfg.UpstreamName)
	case cfg.Upstream != nil && cfg.Anchor == anchorOurs:
		return fmt.Errorf("anchor ours with upstream %s would put a new anchor into every bundle at each renewal: have our CA certified by hand (csr, install), or take anchor root", cfg.UpstreamName)
	case cfg.Upstream != nil && cfg.SharedRoot == "":
		return errSharedRoot
	case cfg.NameConstraints && (net.ParseIP(name) != nil || !isDomain(name)): // RFC 5280 §4.2.1.10: of a host's name only
		return fmt.Errorf("name constraints for trust domain %s: no validator takes one that looks like an address or is no domain name", name)
	}
	for _, u := range cfg.CRLURLs {
		if err := CheckCRLURL(u); err != nil {
			return err
		}
	}
	return nil
}

var errSharedRoot = errors.New("anchor root puts the corporate root into our bundle, and every CA under it could speak for us: say that it signs nothing else (root_is_dedicated), accept that it does (accept_shared_root), or take anchor ours")

// isDomain says whether a trust domain's name may stand in a URI constraint.
func isDomain(name string) bool {
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Contains(label, "_") {
			return false
		}
	}
	return true
}

// CheckCRLURL refuses what is no CRL distribution point: an http or https URL
// with %s in it.
func CheckCRLURL(text string) error {
	u, err := url.Parse(strings.ReplaceAll(text, "%s", "0"))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("CRL distribution point %q: want an http or https URL", text)
	}
	if !strings.Contains(text, "%s") {
		return fmt.Errorf("CRL distribution point %q: want %%s in it, for the issuer's ID: each issuer has its own list", text)
	}
	return nil
}

// crlURLs are where the CRL of the CA id is found: nowhere if its certificate
// does not let it sign one.
func (a *Authority) crlURLs(id string, ca *x509.Certificate) []string {
	var urls []string
	for _, u := range a.cfg.CRLURLs {
		if signsCRLs(ca) {
			urls = append(urls, strings.ReplaceAll(u, "%s", id))
		}
	}
	return urls
}

// signsCRLs says whether a CA was granted cRLSign.
func signsCRLs(c *x509.Certificate) bool { return c.KeyUsage&x509.KeyUsageCRLSign != 0 }

// leavesOnly says whether a CA may certify no other CA: its path length is 0.
func leavesOnly(c *x509.Certificate) bool { return c.MaxPathLen == 0 && c.MaxPathLenZero }

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}
