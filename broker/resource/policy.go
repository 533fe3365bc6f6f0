package resource

import (
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/exchangers"
)

// PolicyTarget is what decisions, and lints, need to know of a Target.
func PolicyTarget(t exchangers.Target, revision uint64) identity.Target {
	target := identity.Target{Name: t.Name, Revision: revision, Audience: t.Settings.Audience()}
	if s, ok := t.Settings.(interface{ TokenLife() time.Duration }); ok {
		target.TTL = s.TokenLife()
	}
	if s, ok := t.Settings.(exchangers.Limited); ok {
		l := s.Limits()
		target.Limits = identity.Limits{Provider: l.Provider, SPIFFEID: l.SPIFFEID, WantsRDN: l.WantsRDN, App: l.App, Credentials: l.Credentials}
	}
	return target
}

// PolicySource is what lints need to know of a JoinRule.
func PolicySource(r join.Rule) identity.Source {
	s := identity.Source{Rule: r.Name, Method: r.Method}
	if f, ok := r.Settings.(interface{ Fixed() map[string]string }); ok {
		s.Fixed = f.Fixed()
	}
	return s
}
