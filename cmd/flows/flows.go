// Package flows names the flows of Targets, and the package that exchanges for
// each: for the agents, and for the broker's token endpoint.
package flows

import (
	"fmt"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/oauth"
)

// All are the flows of Targets: for each, a function that returns a pointer to
// its empty settings.
func All() map[string]func() exchangers.Settings {
	return map[string]func() exchangers.Settings{
		"aws_roles_anywhere": func() exchangers.Settings { return new(aws.RolesAnywhere) },
		"aws_web_identity":   func() exchangers.Settings { return new(aws.WebIdentity) },
		"gcp":                func() exchangers.Settings { return new(gcp.Settings) },
		"azure":              func() exchangers.Settings { return new(azure.Settings) },
		"oauth":              func() exchangers.Settings { return new(oauth.Settings) },
	}
}

// Exchanger builds the exchanger of what was parsed.
func Exchanger(parsed exchangers.Target) (exchangers.Exchanger, error) {
	switch s := parsed.Settings.(type) {
	case *aws.RolesAnywhere, *aws.WebIdentity:
		return aws.New(aws.Config{Settings: s, Endpoint: parsed.Endpoint, CAFile: parsed.CAFile})
	case *gcp.Settings:
		return gcp.New(gcp.Config{Settings: s, Endpoint: parsed.Endpoint, CAFile: parsed.CAFile})
	case *azure.Settings:
		return azure.New(azure.Config{Settings: s, Endpoint: parsed.Endpoint, CAFile: parsed.CAFile})
	case *oauth.Settings:
		return oauth.New(oauth.Config{Settings: s, Endpoint: parsed.Endpoint, CAFile: parsed.CAFile})
	}
	return nil, fmt.Errorf("flow %q has settings but no exchanger", parsed.Flow)
}
