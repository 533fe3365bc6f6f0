package azure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// algorithms that Entra ID signs by.
var algorithms = []string{"RS256"}

// An issuer verifies the tokens of one tenant, in one of the two versions.
type issuer struct {
	verifier *bearer.Verifier
	tenant   string
	version  string
}

// A token is what one proves.
type token struct {
	tenant, object, client string
	identity               resource // what has the identity, or is it
	system                 bool     // it is the machine's own
	machine                resource // zero: the token names none
	digest                 [sha256.Size]byte
	expires                time.Time
}

// newIssuers makes those of the rule's tenants.
func newIssuers(cfg Config) (map[string]issuer, error) {
	s, all := cfg.Settings, map[string]issuer{}
	for _, tenant := range s.Tenants {
		for version, form := range clouds[s.cloud()].issuers {
			at := fmt.Sprintf(form, strings.ToLower(tenant))
			b := bearer.Config{Issuer: at, Audience: s.Audience, Algorithms: algorithms, MaxAge: s.maxAge(), Now: cfg.Now}
			var err error
			if b.Keys, err = keys(s, at, cfg); err != nil {
				return nil, err
			}
			v, err := bearer.New(b)
			if err != nil {
				return nil, err
			}
			all[at] = issuer{v, strings.ToLower(tenant), version}
		}
	}
	return all, nil
}

func keys(s *Settings, at string, cfg Config) (oidc.KeySet, error) {
	if s.JWKS == "" {
		return bearer.NewRemote(at, cfg.Get, cfg.Now), nil
	}
	set, err := bearer.NewStatic([]byte(s.JWKS))
	if err != nil {
		return nil, fmt.Errorf("jwks: %w", err)
	}
	return set, nil
}

// token verifies one by the issuer that it names, if that is one of the rule's.
func (m *method) token(ctx context.Context, shown []byte) (*token, error) {
	if len(shown) == 0 {
		return nil, fmt.Errorf("%w: the node shows none, and the rule wants one (join.audience in agent.yaml)", join.ErrEvidence)
	}
	named := bearer.Issuer(shown)
	i, ok := m.issuers[named]
	if !ok {
		return nil, fmt.Errorf("%w: it is of issuer %.200q, which is of none of the rule's tenants", join.ErrEvidence, named)
	}
	verified, err := i.verifier.Verify(ctx, shown)
	if err != nil {
		return nil, err
	}
	t, err := i.read(verified)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return t, nil
}

// read reads the claims of a verified token ("Access token claims reference").
func (i issuer) read(v bearer.Token) (*token, error) {
	t := &token{tenant: i.tenant, digest: v.Digest, expires: v.Expires}
	said := func(name string) string { text, _ := v.Claims[name].(string); return text }
	switch {
	case strings.ToLower(said("tid")) != i.tenant:
		return nil, fmt.Errorf("it is of tenant %.80q, and its issuer of %s", said("tid"), i.tenant)
	case said("ver") != i.version:
		return nil, fmt.Errorf("it is of version %.20q, and its issuer makes %s", said("ver"), i.version)
	case v.Claims["scp"] != nil || v.Claims["idtyp"] != nil && said("idtyp") != "app":
		return nil, errors.New("it is a person's, or made in a person's name")
	}
	t.object = strings.ToLower(said("oid"))
	if !guid.MatchString(t.object) || strings.ToLower(v.Subject) != t.object { // an application's subject is its object
		return nil, fmt.Errorf("its oid is %.80q, and its subject %.80q: they are no application's", said("oid"), v.Subject)
	}
	client, other := "appid", "azp"
	if i.version == version2 {
		client, other = other, client
	}
	t.client = strings.ToLower(said(client))
	if !guid.MatchString(t.client) || v.Claims[other] != nil {
		return nil, fmt.Errorf("its %s is %.80q, or it has %s too", client, said(client), other)
	}
	return t, t.name(v.Claims["xms_mirid"], v.Claims["xms_az_rid"])
}

// name reads which resource has the identity, and which machine the token was made
// on: the same, unless the identity is user-assigned.
func (t *token) name(identity, machine any) error {
	text, ok := identity.(string)
	if !ok {
		return errors.New("it is of no managed identity: it has no claim xms_mirid")
	}
	var err error
	if t.identity, err = parseResource(text); err != nil {
		return fmt.Errorf("its claim xms_mirid: %w", err)
	}
	if t.system = t.identity.kind != userAssigned; t.system {
		t.machine = t.identity
	}
	if machine == nil {
		return nil
	}
	if text, ok = machine.(string); !ok {
		return errors.New("its claim xms_az_rid is no text")
	}
	on, err := parseResource(text)
	switch {
	case err != nil:
		return fmt.Errorf("its claim xms_az_rid: %w", err)
	case on.kind == userAssigned:
		return errors.New("its claim xms_az_rid names no machine")
	case t.system && !on.within(t.identity):
		return errors.New("its claims xms_mirid and xms_az_rid name two machines")
	}
	t.machine = on
	return nil
}

func (t *token) facts(put func(name, value string)) {
	put("tenant", t.tenant)
	put("object_id", t.object)
	put("client_id", t.client)
	if !t.system {
		put("identity", t.identity.name)
		put("identity_group", t.identity.group)
		put("identity_subscription", t.identity.subscription)
	}
	put("subscription", t.machine.subscription)
	put("resource_group", t.machine.group)
	if t.machine.kind == scaleSet {
		put("scale_set", t.machine.name)
		put("scale_set_instance", t.machine.instance)
		return
	}
	put("vm", t.machine.name)
}
