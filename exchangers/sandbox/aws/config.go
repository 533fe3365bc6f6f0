package aws

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// Config is the wiring of a [Cloud] and what stands in its account at first.
type Config struct {
	// Now is the clock of every check; nil is time.Now.
	Now func() time.Time
	// Account is the account's 12 digits. Required.
	Account string
	// Region is where both endpoints stand. Required.
	Region string
	// Roots verify the web certificates of OIDC issuers. Nil trusts none.
	Roots *x509.CertPool
	// LenientLoopbackIssuer (lenient_loopback_issuer) lets the URL of a provider
	// on a loopback address have a port. IAM says that it should have none.
	LenientLoopbackIssuer bool
	// DialContext reaches issuers whose names do not resolve offline; nil dials.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// FetchTimeout is how long an issuer may take for one document; 0 is 5 s.
	FetchTimeout time.Duration
	// KeyAge is how long an issuer's keys are believed, 0 is 1 h; KeyRefetch how
	// long at least between two fetches because of an unknown kid, 0 is 60 s.
	KeyAge, KeyRefetch time.Duration
	// Skew is how far the date of a signed request may be off; 0 is 300 s.
	Skew time.Duration
	// JWTLeeway is how long STS takes a token after its exp or before its iat
	// and nbf, 0 to 300 s.
	JWTLeeway time.Duration
	// RatePerSecond is how many CreateSession calls a second are answered, and
	// how many at once; 0 is the default quota, 10.
	RatePerSecond int
	// Log is told of each request, redacted; nil discards.
	Log func(sandbox.Entry)

	TrustAnchors  []TrustAnchor
	Profiles      []Profile
	Roles         []Role
	OIDCProviders []OIDCProvider
}

// A TrustAnchor of Roles Anywhere: a CA that may certify callers.
type TrustAnchor struct {
	ARN          string              // arn:aws:rolesanywhere:REGION:ACCOUNT:trust-anchor/UUID
	Certificates []*x509.Certificate // one or two
	Enabled      bool
	CRLs         []CRL // at most two
}

// A CRL is an imported revocation list.
type CRL struct {
	Data    []byte // DER or PEM
	Enabled bool
}

// A Profile of Roles Anywhere says which roles may be assumed, and how.
type Profile struct {
	ARN                   string // arn:aws:rolesanywhere:REGION:ACCOUNT:profile/UUID
	RoleARNs              []string
	Duration              time.Duration // 15 min to 12 h; 0 is 1 h
	SessionPolicy         string        // JSON of at most 2048 characters; empty is none
	AcceptRoleSessionName bool
	Enabled               bool
	// AttributeMappings are the specifiers by certificate field: x509Subject and
	// x509Issuer take "*" or the name of an attribute, x509SAN takes DNS, URI,
	// Name/* and Name/ATTRIBUTE. Nil is the default mapping. A field that a
	// non-nil map lacks is not mapped.
	AttributeMappings map[string][]string
}

// A Role of IAM.
type Role struct {
	ARN                string
	MaxSessionDuration time.Duration // 1 h to 12 h; 0 is 1 h
	TrustPolicy        string        // JSON
	// MayAssume are the ARNs of the roles that its own permissions let it
	// assume. A trust policy that names it, and not just the account, needs none.
	MayAssume []string
}

// An OIDCProvider of IAM.
type OIDCProvider struct {
	URL       string   // the issuer, byte for byte
	ClientIDs []string // accepted audiences, at most 100; none accepts none
	// Thumbprints are the SHA-1 digests of CAs, at most 5, that the issuer's web
	// server may chain to if no root verifies it.
	Thumbprints []string
}

var defaultMappings = map[string][]string{
	"x509Subject": {"*"},
	"x509Issuer":  {"*"},
	"x509SAN":     {"DNS", "URI", "Name/*"},
}

var (
	errConfig         = errors.New("not acceptable")
	attributePattern  = regexp.MustCompile(`^(\*|[A-Za-z]{1,32}|[0-9]+(\.[0-9]+)+)$`)
	thumbprintPattern = regexp.MustCompile(`^[0-9a-f]{40}$`)
	sanPattern        = regexp.MustCompile(`^(DNS|URI|Name/(\*|[A-Za-z]{1,32}|[0-9]+(\.[0-9]+)+))$`)
)

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Skew == 0 {
		cfg.Skew = 5 * time.Minute
	}
	if cfg.RatePerSecond == 0 {
		cfg.RatePerSecond = 10
	}
	switch {
	case !accountPattern.MatchString(cfg.Account):
		return cfg, fmt.Errorf("account %q: %w: 12 digits are wanted", cfg.Account, errConfig)
	case !regionPattern.MatchString(cfg.Region):
		return cfg, fmt.Errorf("region %q: %w", cfg.Region, errConfig)
	case cfg.Skew < 0 || cfg.FetchTimeout < 0 || cfg.KeyAge < 0 || cfg.KeyRefetch < 0 || cfg.RatePerSecond < 0:
		return cfg, fmt.Errorf("skew, fetch timeout, key age or rate below zero: %w", errConfig)
	case cfg.JWTLeeway < 0 || cfg.JWTLeeway > 5*time.Minute:
		return cfg, fmt.Errorf("JWT leeway of %s: %w", cfg.JWTLeeway, errConfig)
	}
	return cfg, nil
}

// anchor is a checked TrustAnchor.
type anchor struct {
	arn          arn
	enabled      bool
	certificates []*x509.Certificate
	crls         []crl
}

func newAnchor(t TrustAnchor) (anchor, error) {
	a := anchor{enabled: t.Enabled, certificates: slices.Clone(t.Certificates)}
	var err error
	if a.arn, err = parseAnywhereARN(t.ARN, "trust-anchor"); err != nil {
		return a, err
	}
	if n := len(t.Certificates); n < 1 || n > 2 {
		return a, fmt.Errorf("trust anchor %s: %w: %d certificates, not 1 or 2", t.ARN, errConfig, n)
	}
	for _, c := range t.Certificates {
		if err := checkAuthority(c); err != nil {
			return a, fmt.Errorf("trust anchor %s: %w", t.ARN, err)
		}
	}
	for _, list := range t.CRLs {
		if a, err = a.with(list); err != nil {
			return a, fmt.Errorf("trust anchor %s: %w", t.ARN, err)
		}
	}
	return a, nil
}

// profile is a checked Profile.
type profile struct {
	Profile
	arn arn
}

func newProfile(p Profile) (profile, error) {
	a, err := parseAnywhereARN(p.ARN, "profile")
	if err != nil {
		return profile{}, err
	}
	if p.Duration == 0 {
		p.Duration = time.Hour
	}
	if !inRange(p.Duration, 15*time.Minute, 12*time.Hour) {
		return profile{}, fmt.Errorf("profile %s: %w: duration of %s", p.ARN, errConfig, p.Duration)
	}
	if n := len(p.RoleARNs); n < 1 || n > 250 {
		return profile{}, fmt.Errorf("profile %s: %w: %d roles", p.ARN, errConfig, n)
	}
	for _, r := range p.RoleARNs {
		if _, err := parseRoleARN(r); err != nil {
			return profile{}, fmt.Errorf("profile %s: %w", p.ARN, err)
		}
	}
	if p.SessionPolicy != "" && !sessionPolicyFits(p.SessionPolicy) {
		return profile{}, fmt.Errorf("profile %s: %w: session policy is not a JSON object of at most 2048 characters", p.ARN, errConfig)
	}
	p.RoleARNs = slices.Clone(p.RoleARNs)
	if p.AttributeMappings, err = checkMappings(p.AttributeMappings); err != nil {
		return profile{}, fmt.Errorf("profile %s: %w", p.ARN, err)
	}
	return profile{p, a}, nil
}

func checkMappings(m map[string][]string) (map[string][]string, error) {
	if m == nil {
		return defaultMappings, nil
	}
	out := map[string][]string{}
	for field, specifiers := range m {
		pattern := attributePattern
		switch field {
		case "x509SAN":
			pattern = sanPattern
		case "x509Subject", "x509Issuer":
		default:
			return nil, fmt.Errorf("attribute mapping of %q: %w", field, errConfig)
		}
		for _, s := range specifiers {
			if !pattern.MatchString(s) {
				return nil, fmt.Errorf("attribute mapping %s %q: %w", field, s, errConfig)
			}
		}
		out[field] = slices.Clone(specifiers)
	}
	return out, nil
}

// role is a checked Role.
type role struct {
	arn    arn
	text   string
	id     string
	max    time.Duration
	policy policy

	mayAssume []string
}

func newRole(r Role) (role, error) {
	a, err := parseRoleARN(r.ARN)
	if err != nil {
		return role{}, err
	}
	if r.MaxSessionDuration == 0 {
		r.MaxSessionDuration = time.Hour
	}
	if !inRange(r.MaxSessionDuration, time.Hour, 12*time.Hour) {
		return role{}, fmt.Errorf("role %s: %w: maximum session duration of %s", r.ARN, errConfig, r.MaxSessionDuration)
	}
	p, err := parsePolicy(r.TrustPolicy)
	if err != nil {
		return role{}, fmt.Errorf("role %s: %w", r.ARN, err)
	}
	for _, other := range r.MayAssume {
		if _, err := parseRoleARN(other); err != nil {
			return role{}, fmt.Errorf("role %s may assume: %w", r.ARN, err)
		}
	}
	return role{arn: a, text: r.ARN, id: roleID(r.ARN), max: r.MaxSessionDuration, policy: p, mayAssume: slices.Clone(r.MayAssume)}, nil
}

// inRange also wants whole seconds: there are no others in AWS.
func inRange(d, low, high time.Duration) bool {
	return d >= low && d <= high && d%time.Second == 0
}

// sessionPolicyFits checks what AssumeRole checks before it packs a policy.
func sessionPolicyFits(text string) bool {
	if len([]rune(text)) > 2048 {
		return false
	}
	_, err := sandbox.ParseObject([]byte(text))
	return err == nil
}
