package azure

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// Settings are the settings of azure.
type Settings struct {
	// The tenant: its ID, or a domain of it.
	Tenant string `yaml:"tenant" json:"tenant"`
	// Client ID (not object ID) of the app or user-assigned managed identity
	// that has a federated identity credential for our issuer, this SPIFFE ID
	// and the audience.
	ClientID string `yaml:"client_id" json:"client_id"`
	// What the token is for: one resource and /.default, such as
	// https://management.azure.com/.default.
	Scope string `yaml:"scope" json:"scope"`
	// public, usgov or china; the default is the authority's, or public.
	Cloud string `yaml:"cloud,omitempty" json:"cloud,omitempty"`
	// The federated identity credential's; the default is the cloud's:
	// api://AzureADTokenExchange, or that with USGov or China after it.
	TokenAudience string `yaml:"audience,omitempty" json:"audience,omitempty"`
	// URL of the authority; the default is the cloud's, in the public one
	// https://login.microsoftonline.com. The Target's endpoint comes before it.
	Authority string `yaml:"authority,omitempty" json:"authority,omitempty"`
	// Asks for tokens that live longer and that a resource may challenge
	// (continuous access evaluation). Only for programs that handle a claims
	// challenge.
	ContinuousAccess bool `yaml:"continuous_access,omitempty" json:"continuous_access,omitempty"`
}

var (
	guid     = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	domain   = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,63}$`)
	scope    = regexp.MustCompile(`^[!-~]{1,590}/\.default$`)
	audience = regexp.MustCompile(`^[!-~]{1,600}$`)
)

// Limits implements exchangers.Limited. Nobody knows whose credentials an unset
// client_id will count.
func (s Settings) Limits() exchangers.Limits {
	l := exchangers.Limits{Provider: "Entra", SPIFFEID: maxField, Credentials: maxCredentials}
	if s.ClientID != unset {
		l.App = "client_id " + strings.ToLower(s.ClientID)
	}
	return l
}

// Audience of the JWT-SVID.
func (s Settings) Audience() string {
	if s.TokenAudience != "" {
		return s.TokenAudience
	}
	return s.place().audience
}

// Validate names the field that Entra would refuse, and what it would take.
func (s Settings) Validate() error {
	switch {
	case !guid.MatchString(s.Tenant) && !domain.MatchString(s.Tenant):
		return fmt.Errorf("tenant %q: it must be the tenant's ID or a domain of it", exchangers.Clean(s.Tenant))
	case !guid.MatchString(s.ClientID):
		return fmt.Errorf("client_id %q: it must be the application (client) ID, like 00000000-0000-0000-0000-000000000000", exchangers.Clean(s.ClientID))
	case !scope.MatchString(s.Scope):
		return fmt.Errorf("scope %q: it must be one resource and /.default, like https://management.azure.com/.default", exchangers.Clean(s.Scope))
	case !audience.MatchString(s.Audience()):
		return errors.New("audience: it must be 1 to 600 printable characters without spaces")
	}
	if _, ok := places[s.Cloud]; s.Cloud != "" && !ok {
		return fmt.Errorf("cloud %q: it must be public, usgov or china, or left out", exchangers.Clean(s.Cloud))
	}
	if err := checkAuthority("authority", s.Authority); err != nil {
		return err
	}
	return s.checkPlace("authority", s.Authority)
}
