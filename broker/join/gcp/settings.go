package gcp

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker/join/bearer"
)

const (
	googleIssuer  = "https://accounts.google.com"
	defaultMaxAge = 10 * time.Minute // the metadata server makes one for each question
)

// algorithms that the issuer signs by.
var algorithms = []string{"RS256"}

// Settings are those of a JoinRule. Which projects may join is said by allow.
type Settings struct {
	// Audience of tokens; default credence://TRUST DOMAIN/join.
	Audience string `yaml:"audience,omitempty"`
	// MaxAge since a token was issued; default 10m.
	MaxAge bearer.Duration `yaml:"max_age,omitempty"`
	// Unbound takes tokens that name no instance too, as those of Cloud Run, of GKE's
	// pods and of whoever may make ID tokens for a service account, from anywhere. A
	// rule that allows by service_account alone then lets all of these in, and a banned
	// instance back, which asks for one that doesn't name it.
	Unbound bool `yaml:"unbound,omitempty"`

	// Issuer is what tokens say in iss, byte for byte; default
	// https://accounts.google.com, which is that of all but separate universes.
	Issuer string `yaml:"issuer,omitempty"`
	// JWKS are the issuer's keys, where it can't be asked: a JWK Set. Google's change
	// within weeks.
	JWKS string `yaml:"jwks,omitempty"`
	// CA certificates (PEM) that the issuer's is of, where it isn't a public one's.
	CA string `yaml:"ca,omitempty"`
}

// Validate says what is wrong with settings, the field's name first.
func (s *Settings) Validate() error {
	if err := bearer.CheckAudience(s.Audience); err != nil {
		return err
	}
	if err := bearer.CheckMaxAge(s.MaxAge); err != nil {
		return err
	}
	if s.Issuer != "" {
		if err := bearer.CheckIssuer(s.Issuer); err != nil {
			return fmt.Errorf("issuer: %w", err)
		}
	}
	if _, err := bearer.ParseRoots(s.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if s.JWKS == "" {
		return nil
	}
	if s.CA != "" {
		return errors.New("ca: is for an issuer that is asked, and jwks stands beside it")
	}
	if _, err := bearer.NewStatic([]byte(s.JWKS)); err != nil {
		return fmt.Errorf("jwks: %w", err)
	}
	return nil
}

func (s *Settings) issuer() string {
	if s.Issuer != "" {
		return s.Issuer
	}
	return googleIssuer
}

func (s *Settings) maxAge() time.Duration {
	if s.MaxAge != 0 {
		return time.Duration(s.MaxAge)
	}
	return defaultMaxAge
}

// Roots are what the issuer's certificate is verified by; nil: the system's.
func (s *Settings) Roots() *x509.CertPool {
	roots, _ := bearer.ParseRoots(s.CA)
	return roots
}
