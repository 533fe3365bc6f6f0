package identity

import (
	"cmp"
	"time"
)

// config fills in the defaults and checks the inequalities between lives.
func (c *compiler) config(in Config) {
	k := &c.set.config
	*k = in
	if err := checkTrustDomain(k.TrustDomain); err != nil {
		c.fail("trust_domain", "%v", err)
	}
	c.lives(k)
	for _, s := range k.DNSSuffixes {
		if err := checkDNSName(s); err != nil {
			c.fail("dns_suffixes", "%v", err)
		}
	}
	c.set.subjects = nil // of the set before
	for _, s := range k.Subjects {
		p, err := parseSubjectPattern(s)
		if err != nil {
			c.fail("subjects", "%v", err)
		}
		c.set.subjects = append(c.set.subjects, p)
	}
}

func (c *compiler) lives(k *Config) {
	k.MinTTL = cmp.Or(k.MinTTL, time.Minute)
	k.MaxX509TTL = cmp.Or(k.MaxX509TTL, 24*time.Hour)
	k.MaxJWTTTL = cmp.Or(k.MaxJWTTTL, time.Hour)
	if k.MaxJWTTTL > time.Hour {
		c.fail("max_jwt_ttl", "%s: at most 1h is taken", k.MaxJWTTTL)
	}
	for _, l := range []struct {
		name       string
		life       *time.Duration
		max, usual time.Duration
	}{
		{"x509_ttl", &k.X509TTL, k.MaxX509TTL, time.Hour},
		{"jwt_ttl", &k.JWTTTL, k.MaxJWTTTL, 5 * time.Minute},
		{"target_ttl", &k.TargetTTL, k.MaxJWTTTL, 15 * time.Minute},
		{"file_ttl", &k.FileTTL, k.MaxJWTTTL, time.Hour},
	} {
		if *l.life == 0 {
			*l.life = min(l.usual, l.max)
		}
		c.life(l.name, *l.life, l.max)
	}
}

// life checks a life against the bounds.
func (c *compiler) life(field string, life, most time.Duration) {
	switch least := c.set.config.MinTTL; {
	case least <= 0:
		c.fail("min_ttl", "%s: want a life", least)
	case life < least:
		c.fail(field, "%s: at least %s is wanted", life, least)
	case life > most:
		c.fail(field, "%s: at most %s is taken", life, most)
	}
}

// X509 is what X509-SVIDs of the named Identity say; the zero one where it says
// nothing of them. It is not to be changed.
func (s *Set) X509(name string) X509 {
	if i, ok := s.named(name); ok && i.X509 != nil {
		return *i.X509
	}
	return X509{}
}

// Lives are how long an X509-SVID of the named Identity lives, and a JWT-SVID
// of it for a Target's exchange.
func (s *Set) Lives(name string) (x509, target time.Duration, ok bool) {
	i, ok := s.named(name)
	if !ok {
		return 0, 0, false
	}
	return i.x509TTL, s.config.TargetTTL, true
}
