package exchangers

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// X509Rules are what a cloud asks of X509-SVIDs and their CAs besides what all
// ask.
type X509Rules struct {
	Cloud        string // its name in prose
	Anchors      int    // how many certificates it holds for us
	AnchorField  string // where, such as "cloud.trust_anchor"
	MaxSubject   int    // bytes of the SPIFFE ID
	SubjectField string
	MaxLife      time.Duration // of an X509-SVID; 0: any
	MaxRSA       int           // bits; 0: any
}

// maxDepth is how long a chain may be, leaf and anchor counted.
const maxDepth = 5

// X509 runs the steps of a Target that takes X509-SVIDs. own are the cloud's.
func (w *Walk) X509(r X509Rules, own ...func() bool) []Finding {
	steps := append([]func() bool{w.Listed, w.Settled}, own...)
	return w.Steps(append(steps, func() bool { return w.x509Subjects(r) }, func() bool { return w.x509Lives(r) }, func() bool { return w.anchors(r) }, func() bool { return w.chain(r) })...)
}

func (w *Walk) x509Subjects(r X509Rules) bool {
	for _, p := range w.parties() {
		if !w.Subject("spiffe_id", r.Cloud, p, 0, r.MaxSubject) {
			return false
		}
	}
	return w.RegisteredSubject(r.SubjectField)
}

func (w *Walk) x509Lives(r X509Rules) bool {
	for _, p := range w.parties() {
		switch {
		case p.X509TTL <= 0:
			return w.Fail("life", "life_none", "identity.x509.ttl", p.Identity+" gets no X509-SVID", "set x509.ttl of Identity "+p.Identity)
		case r.MaxLife > 0 && p.X509TTL > r.MaxLife:
			return w.Fail("life", "life_long", "identity.x509.ttl", fmt.Sprintf("an X509-SVID of %s lives for %s, and %s takes %s", p.Identity, p.X509TTL, r.Cloud, r.MaxLife), "shorten x509.ttl of Identity "+p.Identity)
		}
		w.Done("life", "an X509-SVID of %s lives for %s", p.Identity, p.X509TTL)
	}
	return true
}

func (w *Walk) anchors(r X509Rules) bool {
	const step = "anchor"
	if len(w.Anchors) == 0 {
		return w.Fail(step, "anchor_none", "broker.upstream", "our bundle holds no CA yet", "install one: credence ca show says what is waited for")
	}
	for _, c := range w.Anchors {
		if !w.authority(step, "anchor", r, c) {
			return false
		}
	}
	if len(w.Anchors) > r.Anchors {
		w.Warn(step, "anchor_many", r.AnchorField, fmt.Sprintf("our bundle holds %d CAs, and %s takes %d at once", len(w.Anchors), r.Cloud, r.Anchors), "register those that sign now and next, and retire old ones: credence ca show")
	}
	if c := w.Anchors[0]; !bytes.Equal(c.RawSubject, c.RawIssuer) {
		w.Warn(step, "anchor_no_root", "broker.anchor", name(c)+" is not self-signed, and a cloud may want a root", "set anchor: root in broker.yaml")
	}
	if w.SharedRoot {
		w.Warn(step, "anchor_shared", r.SubjectField, "the root signs others than us too, who could name our SPIFFE IDs", "pin the issuer besides the SPIFFE ID in the cloud: credence target setup "+w.Target.Name+" says how")
	}
	return w.Done(step, "%s until %s", name(w.Anchors[0]), day(w.Anchors[0].NotAfter))
}

func name(c *x509.Certificate) string { return "CA " + Clean(c.Subject.String()) }

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// authority checks what every CA must be, by itself.
func (w *Walk) authority(step, prefix string, r X509Rules, c *x509.Certificate) bool {
	fail := func(code, found, change string) bool {
		return w.Fail(step, prefix+"_"+code, "broker.upstream", name(c)+" "+found, change)
	}
	const upstream = "have the CA above certify ours so: credence ca csr, credence ca install"
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fail("no_ca", "does not say that it is a CA (basic constraints)", upstream)
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fail("key_usage", "lacks the key usage keyCertSign", upstream)
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return fail("extended_key_usage", "has extended key usages without clientAuth", upstream)
	case !slices.Contains(sha2, c.SignatureAlgorithm):
		return fail("hash", "is signed with "+c.SignatureAlgorithm.String()+", and SHA-256 or better is wanted", upstream)
	case !fits(c.PublicKey, r.MaxRSA):
		return fail("key", "has a key that is neither RSA of 2048 to 4096 bits nor P-256 nor P-384", upstream)
	case w.Now.Before(c.NotBefore):
		return fail("not_yet_valid", "is valid from "+day(c.NotBefore)+", and the clock here says "+day(w.Now), "set the clock of this machine by NTP, or the CA's: one is wrong")
	case w.Now.After(c.NotAfter):
		return fail("expired", "ended at "+day(c.NotAfter), "replace it: credence ca replace")
	}
	return true
}

var sha2 = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
}

func fits(key any, maxRSA int) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && (maxRSA == 0 || k.N.BitLen() <= maxRSA)
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	}
	return false
}

// chain builds the way from the CA that signs to an anchor, and names the
// missing link.
func (w *Walk) chain(r X509Rules) bool {
	const step = "chain"
	if len(w.Chain) == 0 {
		return w.Fail(step, "chain_none", "broker.upstream", "no CA signs yet", "install one: credence ca show says what is waited for")
	}
	if depth := len(w.Chain) + 2; depth > maxDepth {
		return w.Fail(step, "chain_deep", "broker.upstream", fmt.Sprintf("from X509-SVID to anchor there are %d certificates, and %s takes %d", depth, r.Cloud, maxDepth), "have a CA nearer to the anchor certify ours")
	}
	for i, c := range w.Chain {
		if !w.authority(step, "chain", r, c) || !w.link(step, i) {
			return false
		}
	}
	found := name(w.Chain[0])
	for _, c := range w.Chain[1:] {
		found += ", under " + name(c)
	}
	return w.Done(step, "%s, under the anchor", found)
}

// link checks what binds a CA of the chain to the next, or to an anchor.
func (w *Walk) link(step string, i int) bool {
	c := w.Chain[i]
	above := w.Anchors
	if i+1 < len(w.Chain) {
		above = w.Chain[i+1 : i+2]
	}
	at := slices.IndexFunc(above, func(a *x509.Certificate) bool { return c.CheckSignatureFrom(a) == nil })
	switch {
	case at < 0 && i+1 < len(w.Chain):
		return w.Fail(step, "chain_gap", "broker.upstream", name(c)+" is not signed by the next in the chain, "+name(above[0]), "install the chain in order, the CA that signs first: credence ca install")
	case at < 0:
		return w.Fail(step, "chain_no_anchor", "broker.upstream", name(c)+" leads to no CA of our bundle: it wants "+Clean(c.Issuer.String()), "install the certificate between them, or replace the CA: credence ca show")
	}
	for _, a := range []struct {
		*x509.Certificate
		below int // CAs between it and the X509-SVID
	}{{c, i}, {above[at], i + 1}} {
		if (a.MaxPathLen > 0 || a.MaxPathLenZero) && a.MaxPathLen < a.below {
			return w.Fail(step, "chain_path_length", "broker.upstream", fmt.Sprintf("%s permits %d CAs below it, and there are %d", name(a.Certificate), a.MaxPathLen, a.below), "have it certified with a path length of "+fmt.Sprint(a.below))
		}
		if host := w.TrustDomain.Name(); !permits(a.Certificate, host) {
			return w.Fail(step, "chain_name_constraints", "broker.name_constraints", name(a.Certificate)+" does not permit URIs of "+host, "have it certified without name constraints, or with ones that permit the trust domain")
		}
	}
	return true
}

// permits applies name constraints on URIs (RFC 5280 §4.2.1.10) to a SPIFFE ID
// of a trust domain. An X509-SVID for a cloud has no other names that count.
func permits(c *x509.Certificate, host string) bool {
	covers := func(domain string) bool {
		if strings.HasPrefix(domain, ".") {
			return strings.HasSuffix(host, domain)
		}
		return host == domain
	}
	if slices.ContainsFunc(c.ExcludedURIDomains, covers) {
		return false
	}
	return len(c.PermittedURIDomains) == 0 || slices.ContainsFunc(c.PermittedURIDomains, covers)
}
