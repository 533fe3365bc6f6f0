package gcp

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// Skew is how far Google lets clocks differ: a token is taken until 60 s after
// its exp, and with an iat up to 60 s ahead.
const Skew = 60 * time.Second

// The roles that a binding may give.
const (
	WorkloadIdentityUser = "roles/iam.workloadIdentityUser"       // to federated principals
	TokenCreator         = "roles/iam.serviceAccountTokenCreator" // to these and to service accounts
)

// Config is the wiring of a [Cloud]. All of it is optional; an empty cloud
// refuses everything.
type Config struct {
	// Issuers says how issuers are reached. Its Now is replaced by the cloud's.
	Issuers         sandbox.IssuersConfig
	Pools           []Pool
	ServiceAccounts []ServiceAccount
	// QuotaProjects are the projects that a call may name to be charged.
	QuotaProjects []QuotaProject
	// AllowLifetimeExtension lifts the longest life of an access token from 1 h
	// to 12 h, like constraints/iam.allowServiceAccountCredentialLifetimeExtension.
	AllowLifetimeExtension bool
	// LenientTokenLife (lenient_token_life) takes subject tokens that live more
	// than 24 h. The documents forbid them; the real cloud was seen to take them.
	LenientTokenLife bool
	// Skew replaces the constant of that name unless it is zero.
	Skew time.Duration
	// Key signs ID tokens; nil makes one at first use.
	Key *rsa.PrivateKey
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log is told of each request; nil discards.
	Log func(sandbox.Entry)
}

// A Pool is a workload identity pool.
type Pool struct {
	Project   string // its number
	ID        string
	Disabled  bool
	Providers []Provider
}

// Name returns projects/NUMBER/locations/global/workloadIdentityPools/ID.
func (p Pool) Name() string {
	return "projects/" + p.Project + "/locations/global/workloadIdentityPools/" + p.ID
}

// A Provider is an OIDC provider in a pool, or an X.509 provider: exactly one
// of Issuer and TrustStore is set.
type Provider struct {
	ID       string
	Disabled bool
	// Issuer is what iss must equal, byte by byte.
	Issuer string
	// TrustStore makes it an X.509 provider, which is reached by mutual TLS.
	TrustStore *TrustStore
	// AllowedAudiences are what aud may be. If there are none, aud must be the
	// provider's full resource name, with or without https:.
	AllowedAudiences []string
	// AttributeMapping maps google.subject (required), google.groups and
	// attribute.NAME to CEL expressions over assertion. Nil maps the common name
	// of the subject for an X.509 provider, and is refused for another.
	AttributeMapping map[string]string
	// AttributeCondition is CEL over assertion, google and attribute. Empty
	// admits all.
	AttributeCondition string
	// KeySet is an uploaded JWK Set; nil reads the issuer's discovery document.
	KeySet []byte
}

// A ServiceAccount can be impersonated by those that its bindings name.
type ServiceAccount struct {
	Email    string
	UniqueID string // decimal
	Disabled bool
	Bindings []Binding
}

// A Binding gives a role on a service account to members: principal://...,
// principalSet://... and serviceAccount:EMAIL.
type Binding struct {
	Role    string
	Members []string
}

var (
	projectNumber = regexp.MustCompile(`^[0-9]{1,19}$`)
	resourceID    = regexp.MustCompile(`^[a-z0-9-]{4,32}$`)
	attributeName = regexp.MustCompile(`^attribute\.[a-z0-9_]{1,100}$`)
	emailAddress  = regexp.MustCompile(`^[a-z0-9-]{1,63}@[a-z0-9.-]+\.gserviceaccount\.com$`)
	member        = regexp.MustCompile(`^principal://iam\.googleapis\.com/projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]+/subject/.+$` +
		`|^principalSet://iam\.googleapis\.com/projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]+/(group/.+|attribute\.[a-z0-9_]+/.+|\*)$` +
		`|^serviceAccount:[^@]+@.+$`)
)

func checkID(what, id string) error {
	if !resourceID.MatchString(id) || strings.HasPrefix(id, "gcp-") {
		return fmt.Errorf("%s %q: an ID has 4 to 32 of a-z, 0-9 and -, and does not start with gcp-", what, id)
	}
	return nil
}

func (p Pool) check() error {
	if !projectNumber.MatchString(p.Project) {
		return fmt.Errorf("pool %q: project %q is not a project number", p.ID, p.Project)
	}
	return checkID("pool", p.ID)
}

// check holds the provider to the limits of the documents; what needs parsing
// is checked where it is parsed.
func (p Provider) check(issuers *sandbox.Issuers) error {
	if err := checkID("provider", p.ID); err != nil {
		return err
	}
	if p.TrustStore != nil {
		return p.checkX509()
	}
	if err := issuers.CheckURL(p.Issuer); err != nil {
		return fmt.Errorf("provider %q: %w", p.ID, err)
	}
	if len(p.AllowedAudiences) > 10 {
		return fmt.Errorf("provider %q: %d audiences, at most 10", p.ID, len(p.AllowedAudiences))
	}
	for _, a := range p.AllowedAudiences {
		if a == "" || len(a) > 256 {
			return fmt.Errorf("provider %q: audience %q is empty or longer than 256", p.ID, a)
		}
	}
	return nil
}

func (s ServiceAccount) check() error {
	if !emailAddress.MatchString(s.Email) {
		return fmt.Errorf("service account %q: not an address under gserviceaccount.com", s.Email)
	}
	if len(s.UniqueID) > 30 || strings.Trim(s.UniqueID, "0123456789") != "" || s.UniqueID == "" {
		return fmt.Errorf("service account %q: unique ID %q is not a decimal number", s.Email, s.UniqueID)
	}
	for _, b := range s.Bindings {
		if b.Role != WorkloadIdentityUser && b.Role != TokenCreator {
			return fmt.Errorf("service account %q: role %q is not known here", s.Email, b.Role)
		}
		for _, m := range b.Members {
			if !member.MatchString(m) {
				return fmt.Errorf("service account %q: member %q is not a principal, principalSet or serviceAccount", s.Email, m)
			}
		}
	}
	return nil
}

var errNotFound = errors.New("there is no such pool")
