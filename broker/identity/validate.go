package identity

import (
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// Bounds of an Identity's fields.
const (
	maxHint      = 1024 // SPIFFE Workload API §8
	maxAudiences = 16
	maxAudience  = 1024
	maxDNSNames  = 32
	maxLinks     = 256 // targets, peers
	maxPatterns  = 64
)

// identity checks and compiles i.
func (c *compiler) identity(i *identity) {
	var err error
	if i.id, err = parseID(c.set.config.TrustDomain, i.SPIFFEID); err != nil {
		c.fail("spiffe_id", "%v", err)
	}
	i.alternatives = c.compileItems(alternative{owner: i.Name, identity: i}, i.Match)
	i.Match = nil // the caller's
	c.x509(i)
	c.jwt(i)
	r := &reads{names: i.id.names(nil)}
	r.names = i.claims.reads(i.names.reads(r.names))
	for _, a := range i.alternatives {
		a.reads(r)
	}
	r.tidy()
	i.reads = c.share(r)
	c.count(i, 1)
	c.links(i)
	if len(i.Hint) > maxHint || !utf8.ValidString(i.Hint) {
		c.fail("hint", "%d bytes: at most %d of UTF-8 are taken", len(i.Hint), maxHint)
	}
}

func (c *compiler) x509(i *identity) {
	i.x509TTL = c.set.config.X509TTL
	if i.X509 == nil {
		return
	}
	x := *i.X509
	x.DNSNames = slices.Clone(x.DNSNames)
	i.X509 = &x
	c.ownLife("x509.ttl", x.TTL, c.set.config.MaxX509TTL, &i.x509TTL)
	i.names = c.names(i.Name, &x)
}

func (c *compiler) jwt(i *identity) {
	i.jwtTTL = c.set.config.JWTTTL
	if i.JWT == nil {
		return
	}
	j := *i.JWT
	j.Audiences = slices.Clone(j.Audiences)
	i.JWT = &j
	c.ownLife("jwt.ttl", j.TTL, c.set.config.MaxJWTTTL, &i.jwtTTL)
	if j.Alg != "" && j.Alg != algRS256 && j.Alg != algES256 {
		c.fail("jwt.alg", "%q: want RS256 or ES256", j.Alg)
	}
	if len(j.Audiences) > maxPatterns {
		c.fail("jwt.audiences", "%d patterns: at most %d are taken", len(j.Audiences), maxPatterns)
		return
	}
	for n, a := range j.Audiences {
		p, err := parsePattern(a.Pattern)
		if err != nil {
			c.fail(fmt.Sprintf("jwt.audiences[%d]", n), "%v", err)
		}
		if a.Use.rank() < 0 {
			c.fail(fmt.Sprintf("jwt.audiences[%d].use", n), "%q: want %s or %s", a.Use, UseAudited, UseSingle)
		}
		i.audiences = append(i.audiences, p)
	}
	for n, p := range i.audiences {
		a := j.Audiences[n]
		if p.exact() {
			a.Use = i.use([]string{a.Pattern})
		}
		i.listed = append(i.listed, a)
	}
	var err error
	if j.Claims, i.claims, err = compileClaims(j.Claims); err != nil {
		c.fail("jwt.claims", "%v", err)
	}
}

// ownLife puts an identity's own life, if it has one, in place of the set's.
func (c *compiler) ownLife(field string, own, most time.Duration, life *time.Duration) {
	if own == 0 {
		return
	}
	c.life(field, own, most)
	*life = own
}

// links checks that what the identity names stands.
func (c *compiler) links(i *identity) {
	i.Targets, i.FederatesWith = slices.Clone(i.Targets), slices.Clone(i.FederatesWith)
	if len(i.Targets) > maxLinks || len(i.FederatesWith) > maxLinks {
		c.fail("targets", "more than %d targets or peers", maxLinks)
		return
	}
	for n, name := range i.Targets {
		if _, ok := c.set.targets[name]; !ok || slices.Contains(i.Targets[:n], name) {
			c.fail(fmt.Sprintf("targets[%d]", n), "%s", unlinked("Target", name, ok))
		}
	}
	for n, name := range i.FederatesWith {
		if ok := c.set.peers[name]; !ok || slices.Contains(i.FederatesWith[:n], name) {
			c.fail(fmt.Sprintf("federates_with[%d]", n), "%s", unlinked("Peer", name, ok))
		}
	}
}

func unlinked(kind, name string, stands bool) string {
	if stands {
		return fmt.Sprintf("%q stands there twice", name)
	}
	return fmt.Sprintf("there is no %s %q", kind, name)
}
