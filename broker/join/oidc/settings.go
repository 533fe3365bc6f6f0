package oidc

import (
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/credence-id/credence/broker/join/bearer"
)

// Settings are those of a JoinRule, as NewSettings makes them. Which of Issuer,
// Host, Enterprise and Organization are wanted is the method's: oidc and aws_oidc
// have Issuer alone.
type Settings struct {
	method string

	// Issuer is what tokens say in iss, byte for byte; for oidc and aws_oidc.
	Issuer string `yaml:"issuer,omitempty"`
	// Host is a server of your own: GitHub Enterprise Server, GitLab, Terraform
	// Enterprise.
	Host string `yaml:"host,omitempty"`
	// Enterprise is the slug of a GitHub enterprise that has an issuer of its own.
	Enterprise string `yaml:"enterprise,omitempty"`
	// Organization is the ID of CircleCI's and Azure DevOps'.
	Organization string `yaml:"organization,omitempty"`

	// Audience of tokens; default credence://TRUST DOMAIN/join.
	Audience string `yaml:"audience,omitempty"`
	// Algorithms that tokens may be signed by; default: all that are asymmetric.
	Algorithms []string `yaml:"algorithms,omitempty"`
	// MaxAge since a token was issued; default 1h.
	MaxAge bearer.Duration `yaml:"max_age,omitempty"`
	// JWKS are the issuer's keys, where it can't be asked: a JWK Set.
	JWKS string `yaml:"jwks,omitempty"`
	// CA certificates (PEM) that the issuer's is of, where it isn't a public one's.
	CA string `yaml:"ca,omitempty"`
	// BanBy are the facts that a node is banned by, without node.METHOD; default:
	// the method's.
	BanBy []string `yaml:"ban_by,omitempty"`
}

// NewSettings returns the empty settings of a method.
func NewSettings(method string) *Settings { return &Settings{method: method} }

// Validate holds settings against what their method takes.
func (s *Settings) Validate() error {
	p, ok := presets[s.method]
	if !ok {
		return fmt.Errorf("join method %q is none of an OpenID issuer", s.method)
	}
	for _, f := range []struct {
		name, value string
		takes       bool
	}{
		{"issuer", s.Issuer, p.named}, {"host", s.Host, p.host != ""}, {"enterprise", s.Enterprise, p.enterprises}, {"organization", s.Organization, p.organizations},
	} {
		if f.value != "" && !f.takes {
			return fmt.Errorf("%s: is not of join method %s", f.name, s.method)
		}
	}
	if _, err := p.issuer(s); err != nil {
		return err
	}
	if p.audience && s.Audience == "" {
		return fmt.Errorf("audience: is required: %s chooses it, not its user", s.method)
	}
	if err := bearer.CheckAudience(s.Audience); err != nil {
		return err
	}
	for _, alg := range s.Algorithms {
		if !slices.Contains(bearer.Algorithms, alg) {
			return fmt.Errorf("algorithms: %q: some of %s are taken", alg, strings.Join(bearer.Algorithms, ", "))
		}
	}
	if err := bearer.CheckMaxAge(s.MaxAge); err != nil {
		return err
	}
	if _, err := bearer.ParseRoots(s.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if s.JWKS != "" {
		if _, err := bearer.NewStatic([]byte(s.JWKS)); err != nil {
			return fmt.Errorf("jwks: %w", err)
		}
	}
	return nil
}

// Roots are what the issuer's certificate is verified by; nil: the system's.
func (s *Settings) Roots() *x509.CertPool {
	roots, _ := bearer.ParseRoots(s.CA)
	return roots
}

var (
	hostPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)
	segmentPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)
)
