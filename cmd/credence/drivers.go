package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/oauth"
)

// registry names the join methods that need a JoinRule, and the flows.
func registry() resource.Registry {
	return resource.Registry{
		Flows: map[string]func() exchangers.Settings{
			"aws_roles_anywhere": func() exchangers.Settings { return new(aws.RolesAnywhere) },
			"aws_web_identity":   func() exchangers.Settings { return new(aws.WebIdentity) },
			"gcp":                func() exchangers.Settings { return new(gcp.Settings) },
			"azure":              func() exchangers.Settings { return new(azure.Settings) },
			"oauth":              func() exchangers.Settings { return new(oauth.Settings) },
		},
	}
}

// joinMethod builds the method of a rule.
func joinMethod(s *store.Store, now func() time.Time) func(join.Rule) (join.Method, error) {
	return func(r join.Rule) (join.Method, error) {
		if r.Method != token.Method {
			return nil, fmt.Errorf("%w: join method %q is not one that this program has", broker.ErrRequest, r.Method)
		}
		return token.NewMethod(token.Config{
			Spend: func(ctx context.Context, hash []byte, by string, now time.Time) (string, map[string]string, error) {
				return s.SpendToken(ctx, hash, by, now)
			},
			Refused: func(err error) bool {
				return errors.Is(err, broker.ErrSpent) || errors.Is(err, broker.ErrNotFound)
			},
			Now: now,
		}), nil
	}
}

// exchanger builds the exchanger of a target.
func exchanger(t agent.Target) (exchangers.Exchanger, error) {
	settings, ok := registry().Flows[t.Flow]
	if !ok {
		return nil, fmt.Errorf("flow %q is not one that this program has: update the agent", t.Flow)
	}
	parsed, err := exchangers.ParseWire(t.Settings, settings())
	if err != nil {
		return nil, err
	}
	return exchangerOf(parsed)
}

// exchangerFor builds the exchanger of a target in the broker, for callers who
// have no agent: what it gives ends within a life, and has no more than scopes.
func exchangerFor(t broker.Target, life time.Duration, scopes []string) (exchangers.Exchanger, error) {
	settings, ok := registry().Flows[t.Flow]
	if !ok {
		return nil, fmt.Errorf("flow %q is not one that this program has", t.Flow)
	}
	parsed, err := exchangers.ParseWire(t.Settings, settings())
	if err != nil {
		return nil, err
	}
	narrower, ok := parsed.Settings.(exchangers.Narrower)
	if !ok {
		return nil, fmt.Errorf("target %s: %w: nothing is known of how long what flow %s gives lives", t.Name, exchangers.ErrLife, t.Flow)
	}
	if parsed.Settings, err = narrower.Narrow(life, scopes); err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return exchangerOf(parsed)
}

// exchangerOf builds the exchanger of what was parsed.
func exchangerOf(parsed exchangers.Target) (exchangers.Exchanger, error) {
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
