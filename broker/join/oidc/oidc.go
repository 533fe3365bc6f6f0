// Package oidc is the join method of machines that an OpenID issuer vouches for:
// CI jobs of GitHub, GitLab, CircleCI, Azure DevOps and Terraform Cloud, roles
// of an AWS account, and whatever else has an issuer of its own.
//
// A node shows a token. It is checked against the keys that exactly one issuer
// publishes, the one that the JoinRule names: no token chooses where we ask. It
// must be for our audience alone, by default credence://TRUST DOMAIN/join, so
// that a token made for somebody else is nothing here; and it must be young and
// is taken once, so that who reads it in a log later has nothing. Elsewhere ours
// is nothing, for nobody else has that audience.
//
// Whose jobs may join is left to the rule's allow terms over node.METHOD.* facts.
// A node is banned by what its token names (the repository, not the run), and
// cannot come back by the token it came with: it asks its issuer for another, if
// the issuer gives a second one.
package oidc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// A Spend takes what a digest stands for once, until it ends. An error for which
// Config.Spent holds means that it was taken before.
type Spend func(ctx context.Context, digest [sha256.Size]byte, ends, now time.Time) error

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings *Settings // of a method: its name is where its facts are, node.METHOD.*
	Audience string    // unless the settings say otherwise
	Get      bearer.Get
	Spend    Spend
	Spent    func(error) bool
	Now      func() time.Time
}

type method struct {
	cfg      Config
	preset   preset
	prefix   string // of its facts
	verifier *bearer.Verifier
}

// New returns the method of a rule. It keeps the issuer's keys, so one rule has
// one method for as long as it stands.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	p := presets[cfg.Settings.method]
	issuer, err := p.issuer(cfg.Settings)
	if err != nil {
		return nil, err
	}
	if cfg.Settings.Audience != "" {
		cfg.Audience = cfg.Settings.Audience
	}
	b := bearer.Config{Issuer: issuer, Audience: cfg.Audience, Algorithms: cfg.Settings.Algorithms, MaxAge: time.Duration(cfg.Settings.MaxAge), Now: cfg.Now}
	if cfg.Settings.JWKS != "" {
		if b.Keys, err = bearer.NewStatic([]byte(cfg.Settings.JWKS)); err != nil {
			return nil, fmt.Errorf("jwks: %w", err)
		}
	} else {
		b.Keys = bearer.NewRemote(issuer, cfg.Get, cfg.Now)
	}
	m := method{cfg: cfg, preset: p, prefix: "node." + cfg.Settings.method}
	m.verifier, err = bearer.New(b)
	return m, err
}

// Join takes a token, once.
func (m method) Join(ctx context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
	once := bearer.Once{Verifier: m.verifier, Spend: m.cfg.Spend, Spent: m.cfg.Spent, Now: m.cfg.Now, Hint: "ask its issuer for another"}
	return once.Join(ctx, evidence, m.proof)
}

// proof is what a token's claims prove.
func (m method) proof(token bearer.Token) (join.Proof, error) {
	claims, err := m.preset.rename(token.Claims)
	if err != nil {
		return join.Proof{}, err
	}
	facts, err := bearer.Facts(m.prefix, claims)
	if err != nil {
		return join.Proof{}, err
	}
	banned := m.preset.durable
	if len(m.cfg.Settings.BanBy) > 0 {
		banned = m.cfg.Settings.BanBy
	}
	key := []string{m.verifier.Issuer()}
	for _, claim := range banned {
		values := facts.Get(m.prefix + "." + claim)
		if len(values) != 1 || values[0] == "" {
			return join.Proof{}, fmt.Errorf("it has no single %s, by which its node could be banned", claim)
		}
		key = append(key, values[0])
	}
	return join.Proof{Name: join.NodeName(token.Subject), Facts: facts, DurableKey: join.Durable(key...), Instance: hex.EncodeToString(token.Digest[:])}, nil
}
