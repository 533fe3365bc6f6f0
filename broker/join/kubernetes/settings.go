package kubernetes

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"

	"github.com/credence-id/credence/broker/join/bearer"
)

// Settings are those of a JoinRule. Tokens are judged in exactly one way: by the
// keys that Issuer publishes, by JWKS, or by TokenReview.
type Settings struct {
	// Cluster is what the fact node.kubernetes.cluster says of nodes that join by
	// this rule: no token names its cluster. Required. Rules of one cluster give it one
	// name: who is banned is so in the cluster of that name.
	Cluster string `yaml:"cluster"`

	// Issuer is what tokens say in iss, byte for byte. It publishes its keys, unless
	// JWKS or TokenReview stands beside it; with these it may be left out. Where it is
	// the API server itself, that has to show them to strangers (the ClusterRole
	// system:service-account-issuer-discovery), and the broker's allow_networks has to
	// name its network.
	Issuer string `yaml:"issuer,omitempty"`
	// CA certificates (PEM) that the issuer's is of, where it isn't a public one's.
	CA string `yaml:"ca,omitempty"`
	// JWKS are the cluster's keys, a JWK Set: kubectl get --raw /openid/v1/jwks. After
	// a rotation they have to be given anew.
	JWKS string `yaml:"jwks,omitempty"`
	// TokenReview has the API server judge tokens, which then end with their pod.
	TokenReview *TokenReview `yaml:"token_review,omitempty"`

	// Audience of tokens; default credence://TRUST DOMAIN/join.
	Audience string `yaml:"audience,omitempty"`
	// MaxAge since a token was issued; default 1h. The kubelet replaces one after four
	// fifths of its life, at most a day.
	MaxAge bearer.Duration `yaml:"max_age,omitempty"`
	// Unbound takes tokens that are bound to no pod too, as kubectl create token makes
	// them: who has one is not known to be in the cluster.
	Unbound bool `yaml:"unbound,omitempty"`
}

// TokenReview is an API server that judges tokens.
type TokenReview struct {
	// URL of the API server, such as https://10.0.0.1:6443.
	URL string `yaml:"url"`
	// CA certificates (PEM) that the API server's is of; default: the system's.
	CA string `yaml:"ca,omitempty"`
	// TokenFile, on the broker's machine, holds what the broker shows the API server:
	// a token of an account that is bound to system:auth-delegator. It is read anew
	// each time.
	TokenFile string `yaml:"token_file"`
}

var clusterName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// Fixed are the facts that all nodes have which join by the rule.
func (s *Settings) Fixed() map[string]string {
	return map[string]string{prefix + ".cluster": s.Cluster}
}

// Validate says what is wrong with settings, the field's name first.
func (s *Settings) Validate() error {
	if !clusterName.MatchString(s.Cluster) {
		return fmt.Errorf("cluster: %.80q: a name of at most 63 letters, digits, '.', '-' and '_' is required", s.Cluster)
	}
	if err := s.judge(); err != nil {
		return err
	}
	if err := bearer.CheckAudience(s.Audience); err != nil {
		return err
	}
	return bearer.CheckMaxAge(s.MaxAge)
}

// judge holds the ways to judge tokens against each other.
func (s *Settings) judge() error {
	asked := s.JWKS == "" && s.TokenReview == nil
	switch {
	case asked && s.Issuer == "":
		return errors.New("issuer: one of issuer, jwks and token_review is required: by what tokens are judged")
	case s.JWKS != "" && s.TokenReview != nil:
		return errors.New("jwks: either this or token_review is wanted")
	case s.CA != "" && !asked:
		return errors.New("ca: is for an issuer that is asked, and this one isn't")
	}
	if s.Issuer != "" {
		if err := bearer.CheckIssuer(s.Issuer); err != nil {
			return fmt.Errorf("issuer: %w", err)
		}
	}
	if _, err := bearer.ParseRoots(s.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if s.JWKS != "" {
		if _, err := bearer.NewStatic([]byte(s.JWKS)); err != nil {
			return fmt.Errorf("jwks: %w", err)
		}
	}
	if s.TokenReview != nil {
		return s.TokenReview.check()
	}
	return nil
}

func (t *TokenReview) check() error {
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return fmt.Errorf("token_review.url: %.200q: an https URL such as https://10.0.0.1:6443 is wanted", t.URL)
	}
	if _, err := bearer.ParseRoots(t.CA); err != nil {
		return fmt.Errorf("token_review.ca: %w", err)
	}
	if !filepath.IsAbs(t.TokenFile) {
		return fmt.Errorf("token_review.token_file: %.200q: an absolute path is required", t.TokenFile)
	}
	return nil
}

// Roots are what the issuer's certificate is verified by; nil: the system's.
func (s *Settings) Roots() *x509.CertPool {
	roots, _ := bearer.ParseRoots(s.CA)
	return roots
}
