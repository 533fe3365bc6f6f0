package oidc

import (
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/join/bearer"
)

// A preset is what is known of an issuer.
type preset struct {
	named         bool   // the settings name the issuer
	host          string // where it is unless the settings say otherwise; empty: there is one only
	enterprises   bool
	organizations bool
	audience      bool // a token's audience can't be chosen: the settings have to name it
	at            func(s *Settings, host string) string

	durable []string // facts by which a node is banned

	// names are short ones for claims whose own are addresses; an empty one makes
	// facts of an object's members.
	names map[string]string
}

// presets are the methods, by name. What each issuer says of its tokens is in
// its manual under "OpenID Connect"; names of facts are those of the claims.
var presets = map[string]preset{
	"oidc": {named: true, durable: []string{"sub"}},
	"github": {
		host: "github.com", enterprises: true, durable: []string{"repository_id"},
		at: func(s *Settings, host string) string {
			switch {
			case host != "github.com":
				return "https://" + host + "/_services/token"
			case s.Enterprise != "":
				return "https://token.actions.githubusercontent.com/" + s.Enterprise
			}
			return "https://token.actions.githubusercontent.com"
		},
	},
	"gitlab": {
		host: "gitlab.com", durable: []string{"project_id"},
		at: func(_ *Settings, host string) string { return "https://" + host },
	},
	"circleci": {
		organizations: true, durable: []string{"project_id"},
		names: map[string]string{
			"oidc.circleci.com/project-id": "project_id", "oidc.circleci.com/context-ids": "context_ids",
			"oidc.circleci.com/vcs-origin": "vcs_origin", "oidc.circleci.com/vcs-ref": "vcs_ref", "oidc.circleci.com/ssh-rerun": "ssh_rerun",
		},
		at: func(s *Settings, _ string) string { return "https://oidc.circleci.com/org/" + s.Organization },
	},
	"azure_devops": {
		organizations: true, audience: true, durable: []string{"sub"},
		at: func(s *Settings, _ string) string { return "https://vstoken.dev.azure.com/" + s.Organization },
	},
	"terraform_cloud": {
		host: "app.terraform.io", durable: []string{"terraform_workspace_id"},
		at: func(_ *Settings, host string) string { return "https://" + host },
	},
	"aws_oidc": {named: true, durable: []string{"sub"}, names: map[string]string{"https://sts.amazonaws.com/": ""}},
}

// Methods are the names of the methods of this package.
func Methods() (names []string) {
	for name := range presets {
		names = append(names, name)
	}
	return names
}

// rename returns claims under the names of facts. It refuses two that would have one.
func (p preset) rename(claims map[string]any) (map[string]any, error) {
	out := make(map[string]any, len(claims))
	put := func(name string, value any) error {
		if _, twice := out[name]; twice {
			return fmt.Errorf("it says %q twice", name)
		}
		out[name] = value
		return nil
	}
	for claim, value := range claims {
		name, known := p.names[claim]
		members, object := value.(map[string]any)
		var err error
		switch {
		case !known:
			err = put(claim, value)
		case name != "":
			err = put(name, value)
		case object:
			for member, v := range members {
				err = errors.Join(err, put(member, v))
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// issuer is whom a rule trusts.
func (p preset) issuer(s *Settings) (string, error) {
	if p.named {
		if s.Issuer == "" {
			return "", errors.New("issuer: is required: whose tokens are taken, as they say it in iss")
		}
		if err := bearer.CheckIssuer(s.Issuer); err != nil {
			return "", fmt.Errorf("issuer: %w", err)
		}
		return s.Issuer, nil
	}
	if p.organizations && !segmentPattern.MatchString(s.Organization) {
		return "", fmt.Errorf("organization: %.80q: its ID is required", s.Organization)
	}
	if s.Enterprise != "" && !segmentPattern.MatchString(s.Enterprise) {
		return "", fmt.Errorf("enterprise: %.80q: a slug is wanted", s.Enterprise)
	}
	host := p.host
	if s.Host != "" {
		if !hostPattern.MatchString(s.Host) {
			return "", fmt.Errorf("host: %.80q: a host name is wanted, in lower case", s.Host)
		}
		host = s.Host
	}
	if s.Enterprise != "" && host != p.host {
		return "", errors.New("enterprise: is for github.com, not for a host of your own")
	}
	return p.at(s, host), nil
}
