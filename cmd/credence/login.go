package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/login"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/cmd/cli"
)

// loginOf is where people log in by complete settings; nil: nowhere.
func loginOf(s *login.Settings, m *joinMethods) (*server.Login, error) {
	if s == nil {
		return nil, nil
	}
	ca := ""
	if s.CAFile != "" {
		text, err := cli.ReadSmall(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("login.ca_file: %w", err)
		}
		ca = string(text)
		if ca == "" {
			return nil, errors.New("login.ca_file: it is empty")
		}
	}
	roots, err := bearer.ParseRoots(ca)
	if err != nil {
		return nil, fmt.Errorf("login.ca_file: %w", err)
	}
	v, err := login.New(login.Config{Settings: *s, Get: m.get(roots), Now: m.now})
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	return &server.Login{
		Issuer: s.Issuer, ClientID: s.ClientID, RedirectURI: s.RedirectURI, Scopes: s.Scopes, CA: ca,
		Verify: func(ctx context.Context, token []byte, nonce string) (broker.Login, error) {
			p, err := v.Verify(ctx, token, nonce)
			return broker.Login{User: p.Facts, Unknown: p.Unknown, Once: p.Digest, Expires: p.Expires}, err
		},
	}, nil
}
