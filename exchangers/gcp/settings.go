package gcp

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const maxScopes = 32

// Settings are the settings of gcp.
type Settings struct {
	// The provider's full resource name, projects/NUMBER/locations/global/
	// workloadIdentityPools/POOL/providers/PROVIDER, alone or with
	// //iam.googleapis.com/ or https://iam.googleapis.com/ before it. NUMBER is
	// the project's number, not its ID. The provider must have no allowed
	// audiences of its own, or this one, with https:.
	Provider string `yaml:"audience" json:"audience"`
	// Email or unique ID of the service account to impersonate; the default is
	// none: the federated principal's own token.
	ServiceAccount string `yaml:"service_account,omitempty" json:"service_account,omitempty"`
	// The default is https://www.googleapis.com/auth/cloud-platform.
	Scopes []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`
	// URL of the IAM Service Account Credentials API; the default is the
	// Target's endpoint, or Google's where it has none.
	ImpersonationEndpoint string `yaml:"impersonation_endpoint,omitempty" json:"impersonation_endpoint,omitempty"`
	// Of the service account's token, 1m to 12h; the default is 1h. More than
	// 1h needs an organization policy.
	Lifetime exchangers.Duration `yaml:"lifetime,omitempty" json:"lifetime,omitzero"`
}

var (
	resourceName = regexp.MustCompile(`^projects/[0-9]{1,19}/locations/global/workloadIdentityPools/[a-z0-9-]{4,32}/providers/[a-z0-9-]{4,32}$`)
	account      = regexp.MustCompile(`^([a-z0-9-]{1,63}@[a-z0-9.-]{1,190}\.gserviceaccount\.com|[0-9]{6,30})$`)
	scope        = regexp.MustCompile(`^https://[!-~]{1,240}$`)
)

// name is the resource name without a prefix.
func (s Settings) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(s.Provider, "https:"), "//iam.googleapis.com/")
}

// resource is what STS is asked for; it has no scheme there.
func (s Settings) resource() string { return "//iam.googleapis.com/" + s.name() }

// Audience of the JWT-SVID is the resource with its scheme.
func (s Settings) Audience() string { return "https:" + s.resource() }

func (s Settings) scopes() []string {
	if len(s.Scopes) == 0 {
		return []string{cloudPlatform}
	}
	return slices.Clone(s.Scopes)
}

// Validate names the field that Google would refuse, and what it would take.
func (s Settings) Validate() error {
	if !resourceName.MatchString(s.name()) || strings.HasPrefix(s.Provider, "https:projects") {
		return fmt.Errorf("audience %q: it must be //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, with the project's number",
			exchangers.Clean(s.Provider))
	}
	if s.ServiceAccount != "" && !account.MatchString(s.ServiceAccount) {
		return fmt.Errorf("service_account %q: it must be NAME@PROJECT.iam.gserviceaccount.com or a unique ID", exchangers.Clean(s.ServiceAccount))
	}
	if s.ServiceAccount == "" && (s.Lifetime != 0 || s.ImpersonationEndpoint != "") {
		return errors.New("lifetime, impersonation_endpoint: they are for a service_account, which is not set")
	}
	if len(s.Scopes) > maxScopes {
		return fmt.Errorf("scopes: at most %d", maxScopes)
	}
	for _, v := range s.Scopes {
		if !scope.MatchString(v) {
			return fmt.Errorf("scopes: %q must be an https URL like %s", exchangers.Clean(v), cloudPlatform)
		}
	}
	if err := exchangers.CheckEndpoint("impersonation_endpoint", s.ImpersonationEndpoint); err != nil {
		return err
	}
	return s.Lifetime.CheckRange("lifetime", time.Minute, 12*time.Hour)
}
