// Package gcp is the join method of Google's machines: a node shows the identity
// token of its Compute Engine instance, in format full, that the metadata server
// makes for each who asks there.
//
// Trusted are the keys that one issuer publishes, https://accounts.google.com unless
// the rule says otherwise: no token chooses whom we ask. It must be for our audience
// alone, by default credence://TRUST DOMAIN/join, and say which instance asked for
// it. The same issuer signs tokens of service accounts that name no instance, for
// whoever may speak for the account from anywhere; these are refused, unless the rule
// says unbound. An account's e-mail address counts only if the issuer says that it is
// verified, and it is a service account's: people have tokens of this issuer too.
//
// Any process of an instance can ask for its token. Each question makes another, and
// one is taken once and young, so that who reads it in a log later has nothing.
// Elsewhere ours is nothing, for nobody else has that audience.
//
// A node is banned by project and instance ID, which no other instance gets; where no
// instance is named, by the account's ID. It comes back by itself, by the next token.
package gcp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// Method is the method's name, and its facts are node.gcp.*.
const Method = "gcp"

const prefix = "node." + Method

// A Spend takes what a digest stands for once, until it ends. An error for which
// Config.Spent holds means that it was taken before.
type Spend func(ctx context.Context, digest [sha256.Size]byte, ends, now time.Time) error

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings *Settings
	Audience string     // unless the settings say otherwise
	Get      bearer.Get // asks the issuer
	Spend    Spend
	Spent    func(error) bool
	Now      func() time.Time
}

type method struct {
	cfg      Config
	verifier *bearer.Verifier
}

// New returns the method of a rule. It keeps the issuer's keys, so one rule has one
// method for as long as it stands.
func New(cfg Config) (join.Method, error) {
	s := cfg.Settings
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.Audience != "" {
		cfg.Audience = s.Audience
	}
	b := bearer.Config{Issuer: s.issuer(), Audience: cfg.Audience, Algorithms: algorithms, MaxAge: s.maxAge(), Now: cfg.Now}
	if s.JWKS != "" {
		keys, err := bearer.NewStatic([]byte(s.JWKS))
		if err != nil {
			return nil, fmt.Errorf("jwks: %w", err)
		}
		b.Keys = keys
	} else {
		b.Keys = bearer.NewRemote(b.Issuer, cfg.Get, cfg.Now)
	}
	verifier, err := bearer.New(b)
	return method{cfg, verifier}, err
}

// Join takes a token, once.
func (m method) Join(ctx context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
	once := bearer.Once{Verifier: m.verifier, Spend: m.cfg.Spend, Spent: m.cfg.Spent, Now: m.cfg.Now, Hint: "the metadata server makes another"}
	return once.Join(ctx, evidence, m.proof)
}

// proof is what a token's claims prove.
func (m method) proof(token bearer.Token) (join.Proof, error) {
	account, err := readAccount(token)
	if err != nil {
		return join.Proof{}, err
	}
	facts := map[string][]string{prefix + ".service_account": {account.email}, prefix + ".service_account_id": {account.id}}
	machine, named, err := readInstance(token)
	if err != nil {
		return join.Proof{}, err
	}
	p := join.Proof{Name: join.NodeName(account.email), Instance: hex.EncodeToString(token.Digest[:])}
	key := []string{m.verifier.Issuer(), "service_account", account.id}
	switch {
	case named:
		machine.facts(facts)
		p.Name, p.Instance = machine.name, ""
		key = []string{m.verifier.Issuer(), machine.project, machine.id}
	case !m.cfg.Settings.Unbound:
		return join.Proof{}, errors.New("it names no instance: one of Compute Engine in format full is wanted (unbound: true would take it)")
	}
	p.DurableKey = join.Durable(key...)
	p.Facts, err = identity.NewFacts(prefix, facts)
	return p, err
}
