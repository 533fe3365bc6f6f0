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

const (
	maxScopes    = 32
	maxDelegates = 4
)

// Settings are the settings of gcp.
type Settings struct {
	// The provider's full resource name, projects/NUMBER/locations/global/
	// workloadIdentityPools/POOL/providers/PROVIDER, alone or with
	// //iam.googleapis.com/ or https://iam.googleapis.com/ before it. NUMBER is
	// the project's number, not its ID. The provider must have no allowed
	// audiences of its own, or this one, with https:.
	Provider string `yaml:"audience" json:"audience"`
	// jwt, which is the default, for an OIDC provider, or x509 for an X.509
	// provider, whose mapping must be google.subject=assertion.san.uri.
	SVID string `yaml:"svid,omitempty" json:"svid,omitempty"`
	// Email or unique ID of the service account to impersonate; the default is
	// none: the federated principal's own token.
	ServiceAccount string `yaml:"service_account,omitempty" json:"service_account,omitempty"`
	// Service accounts on the way there, at most 4: our principal may create
	// tokens of the first, each of the next, and the last of service_account.
	Delegates []string `yaml:"delegates,omitempty" json:"delegates,omitempty"`
	// Makes the credential an ID token of the service account for this
	// audience, in place of an access token. It has no scopes.
	IDTokenAudience string `yaml:"id_token_audience,omitempty" json:"id_token_audience,omitempty"`
	// ID of the project that the call for the service account's token is
	// charged to, instead of the account's own. Our principal needs
	// serviceusage.services.use there.
	QuotaProject string `yaml:"quota_project,omitempty" json:"quota_project,omitempty"`
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
	project      = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
	idAudience   = regexp.MustCompile(`^[!-~]{1,600}$`)
	scope        = regexp.MustCompile(`^https://[!-~]{1,240}$`)
)

// name is the resource name without a prefix.
func (s Settings) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(s.Provider, "https:"), "//iam.googleapis.com/")
}

// resource is what STS is asked for; it has no scheme there.
func (s Settings) resource() string { return "//iam.googleapis.com/" + s.name() }

// Audience of the JWT-SVID is the resource with its scheme; there is none where
// the X509-SVID is presented.
func (s Settings) Audience() string {
	if s.x509() {
		return ""
	}
	return "https:" + s.resource()
}

// Limits implements exchangers.Limited.
func (s Settings) Limits() exchangers.Limits {
	return exchangers.Limits{Provider: "Google Cloud", SPIFFEID: maxSubject}
}

func (s Settings) x509() bool { return s.SVID == "x509" }

func (s Settings) scopes() []string {
	if s.IDTokenAudience != "" {
		return nil
	}
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
	if s.SVID != "" && s.SVID != "jwt" && s.SVID != "x509" {
		return fmt.Errorf("svid %q: it must be jwt or x509, or left out", exchangers.Clean(s.SVID))
	}
	if s.ServiceAccount != "" && !account.MatchString(s.ServiceAccount) {
		return fmt.Errorf("service_account %q: it must be NAME@PROJECT.iam.gserviceaccount.com or a unique ID", exchangers.Clean(s.ServiceAccount))
	}
	if err := s.checkAccount(); err != nil {
		return err
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

// checkAccount judges what is for a service account alone.
func (s Settings) checkAccount() error {
	alone := s.Lifetime == 0 && s.ImpersonationEndpoint == "" && len(s.Delegates) == 0 && s.IDTokenAudience == "" && s.QuotaProject == ""
	switch {
	case s.ServiceAccount == "" && !alone:
		return errors.New("delegates, id_token_audience, quota_project, lifetime, impersonation_endpoint: they are for a service_account, which is not set")
	case s.IDTokenAudience != "" && (len(s.Scopes) > 0 || s.Lifetime != 0):
		return errors.New("scopes, lifetime: they are for access tokens; an ID token (id_token_audience) has no scopes and lives for 1h")
	case s.IDTokenAudience != "" && !idAudience.MatchString(s.IDTokenAudience):
		return errors.New("id_token_audience: it must be 1 to 600 printable characters without spaces")
	case s.QuotaProject != "" && !project.MatchString(s.QuotaProject):
		return fmt.Errorf("quota_project %q: it must be the project's ID, not its number", exchangers.Clean(s.QuotaProject))
	case len(s.Delegates) > maxDelegates:
		return fmt.Errorf("delegates: at most %d", maxDelegates)
	}
	for _, d := range s.Delegates {
		if !account.MatchString(d) {
			return fmt.Errorf("delegates: %q must be NAME@PROJECT.iam.gserviceaccount.com or a unique ID", exchangers.Clean(d))
		}
	}
	return nil
}
