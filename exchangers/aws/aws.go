// Package aws exchanges SVIDs for session credentials of AWS, in two ways: an
// X509-SVID at IAM Roles Anywhere, which no SDK signs for, and a JWT-SVID at
// STS (AssumeRoleWithWebIdentity). From either session it may go on to a second
// role (AssumeRole).
//
// It trusts the endpoint as far as its TLS certificate goes, and the SVIDs to
// be the caller's. It asks once: caching, refreshing and retrying are left to
// exchangers.Source, and what must stand in the account to the operator.
package aws

import (
	"fmt"
	"net/http"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const provider = "aws"

// Config is the wiring of an Exchanger.
type Config struct {
	Settings exchangers.Settings // *RolesAnywhere or *WebIdentity
	Endpoint string              // https URL; empty: the region's
	CAFile   string              // PEM; empty: the system's roots
	Client   *http.Client        // instead of CAFile; nil: exchangers.HTTPClient
	Now      func() time.Time    // nil means time.Now
}

// New returns the Exchanger of the settings' flow, which must validate.
func New(cfg Config) (exchangers.Exchanger, error) {
	if cfg.Settings == nil {
		return nil, fmt.Errorf("aws: no settings")
	}
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if err := exchangers.CheckEndpoint("endpoint", cfg.Endpoint); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Client == nil {
		client, err := exchangers.HTTPClient(exchangers.HTTPConfig{CAFile: cfg.CAFile})
		if err != nil {
			return nil, err
		}
		cfg.Client = client
	}
	switch s := cfg.Settings.(type) {
	case *RolesAnywhere:
		first, err := newAnywhere(cfg, *s)
		if err != nil {
			return nil, err
		}
		return chain(cfg, first, s.AssumeRole, first.region), nil
	case *WebIdentity:
		if err := checkHost("endpoint", cfg.Endpoint, "sts", s.region()); err != nil {
			return nil, err
		}
		return chain(cfg, &webIdentity{cfg, *s}, s.AssumeRole, s.region()), nil
	}
	return nil, fmt.Errorf("aws: settings of type %T, not *RolesAnywhere or *WebIdentity", cfg.Settings)
}
