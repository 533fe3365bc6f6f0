package clouds

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/oauth"
	"github.com/credence-id/credence/exchangers/sandbox/setup"
	"github.com/credence-id/credence/exchangers/sandbox/vault"
)

// A builder makes the clouds of a Config. Without read it looks at no file, and
// lets certificates that it has not seen be good ones.
type builder struct {
	read func(file string) ([]byte, error)
	now  func() time.Time
	log  func(sandbox.Entry)

	plans setup.Clouds // what setup comes to
}

// built are the clouds that there are.
type built struct {
	aws   *aws.Cloud
	gcp   *gcp.Cloud
	azure *azure.Cloud
	oauth *oauth.Server
	vault *vault.Server

	targets map[string]map[string]any
}

func (c *Config) build(b builder) (made built, err error) {
	issuers, err := c.Issuers.wiring(b)
	if err != nil {
		return made, err
	}
	if err := c.plan(&b); err != nil {
		return made, fmt.Errorf("setup: %w", err)
	}
	made.targets = b.plans.Targets
	if c.AWS != nil {
		if made.aws, err = c.AWS.build(b, issuers); err != nil {
			return made, err
		}
	}
	if c.GCP != nil {
		if made.gcp, err = c.GCP.build(b, issuers); err != nil {
			return made, err
		}
	}
	if c.Azure != nil {
		if made.azure, err = c.Azure.build(b, issuers); err != nil {
			return made, err
		}
	}
	if err := b.create(made); err != nil {
		return made, fmt.Errorf("setup: %w", err)
	}
	if c.OAuth != nil {
		if made.oauth, err = c.OAuth.build(b, issuers); err != nil {
			return made, err
		}
	}
	if c.Vault != nil {
		made.vault, err = c.Vault.build(b, issuers)
	}
	return made, err
}

func (i Issuers) wiring(b builder) (sandbox.IssuersConfig, error) {
	cfg := sandbox.IssuersConfig{LenientLoopbackIssuer: i.LenientLoopbackIssuer, MaxAge: time.Duration(i.KeyAge), Refetch: time.Duration(i.Refetch), Timeout: time.Duration(i.Timeout)}
	if len(i.Resolve) > 0 {
		cfg.DialContext = i.dial
	}
	if b.read == nil {
		return cfg, nil
	}
	if i.CAFile == "" {
		var err error
		cfg.Roots, err = x509.SystemCertPool()
		return cfg, err
	}
	roots, err := b.certificates(i.CAFile)
	if err != nil {
		return cfg, fmt.Errorf("issuers.ca_file: %w", err)
	}
	cfg.Roots = x509.NewCertPool()
	for _, c := range roots {
		cfg.Roots.AddCert(c)
	}
	return cfg, nil
}

// dial reaches a host where resolve says that it is.
func (i Issuers) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if to, ok := i.Resolve[host]; ok {
		addr = to
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// text is what a field holds, or the file that it names; nil if that is not to
// be read.
func (b builder) text(field string) ([]byte, error) {
	switch {
	case field == "":
		return nil, errors.New("nothing is there")
	case strings.Contains(field, "-----BEGIN ") || strings.HasPrefix(strings.TrimSpace(field), "{"):
		return []byte(field), nil
	case b.read == nil:
		return nil, nil
	}
	return b.read(field)
}

func (b builder) certificates(field string) ([]*x509.Certificate, error) {
	text, err := b.text(field)
	if err != nil {
		return nil, err
	}
	if text == nil {
		return []*x509.Certificate{unseen()}, nil
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is a %s: only certificates are wanted", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no PEM certificate")
	}
	return all, nil
}

// unseen stands for a CA in a file that is not read.
var unseen = sync.OnceValue(func() *x509.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err) // of a template that is always the same
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
})

func (a *AWS) build(b builder, issuers sandbox.IssuersConfig) (*aws.Cloud, error) {
	cloud, err := aws.New(aws.Config{
		Account: a.Account, Region: a.Region, Skew: time.Duration(a.Skew), JWTLeeway: time.Duration(a.JWTLeeway), RatePerSecond: a.RatePerSecond,
		Roots: issuers.Roots, DialContext: issuers.DialContext, LenientLoopbackIssuer: issuers.LenientLoopbackIssuer,
		FetchTimeout: issuers.Timeout, KeyAge: issuers.MaxAge, KeyRefetch: issuers.Refetch, Now: b.now, Log: b.log,
	})
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	for i, t := range a.TrustAnchors {
		if err := t.put(b, cloud); err != nil {
			return nil, fmt.Errorf("aws.trust_anchors[%d]: %w", i, err)
		}
	}
	for i, p := range a.Profiles {
		err := cloud.PutProfile(aws.Profile{
			ARN: p.ARN, RoleARNs: p.Roles, Duration: time.Duration(p.Duration), SessionPolicy: string(p.SessionPolicy),
			AcceptRoleSessionName: p.AcceptRoleSessionName, AttributeMappings: p.AttributeMappings, Enabled: !p.Disabled,
		})
		if err != nil {
			return nil, fmt.Errorf("aws.profiles[%d]: %w", i, err)
		}
	}
	for i, r := range a.Roles {
		err := cloud.PutRole(aws.Role{ARN: r.ARN, MaxSessionDuration: time.Duration(r.MaxSessionDuration), TrustPolicy: string(r.TrustPolicy), MayAssume: r.MayAssume})
		if err != nil {
			return nil, fmt.Errorf("aws.roles[%d]: %w", i, err)
		}
	}
	for i, p := range a.OIDCProviders {
		if err := cloud.PutOIDCProvider(aws.OIDCProvider{URL: p.URL, ClientIDs: p.ClientIDs, Thumbprints: p.Thumbprints}); err != nil {
			return nil, fmt.Errorf("aws.oidc_providers[%d]: %w", i, err)
		}
	}
	return cloud, nil
}

func (t TrustAnchor) put(b builder, cloud *aws.Cloud) error {
	certificates, err := b.certificates(t.Certificates)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	a := aws.TrustAnchor{ARN: t.ARN, Certificates: certificates, Enabled: !t.Disabled}
	for _, list := range t.CRLs {
		text, err := b.text(list.CRL)
		if err != nil {
			return fmt.Errorf("crls: %w", err)
		}
		if text != nil {
			a.CRLs = append(a.CRLs, aws.CRL{Data: text, Enabled: !list.Disabled})
		}
	}
	return cloud.PutTrustAnchor(a)
}

func (g *GCP) build(b builder, issuers sandbox.IssuersConfig) (*gcp.Cloud, error) {
	cfg := gcp.Config{Issuers: issuers, AllowLifetimeExtension: g.AllowLifetimeExtension, LenientTokenLife: g.LenientTokenLife, Skew: time.Duration(g.Skew), Now: b.now, Log: b.log}
	for _, q := range g.QuotaProjects {
		cfg.QuotaProjects = append(cfg.QuotaProjects, gcp.QuotaProject{ID: q.ID, Consumers: q.Consumers})
	}
	cloud, err := gcp.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("gcp.quota_projects: %w", err)
	}
	for i, p := range g.Pools {
		pool := gcp.Pool{Project: p.Project, ID: p.ID, Disabled: p.Disabled}
		if err := cloud.PutPool(pool); err != nil {
			return nil, fmt.Errorf("gcp.pools[%d]: %w", i, err)
		}
		seen := map[string]bool{}
		for j, q := range p.Providers {
			made, err := q.provider(b)
			if err == nil && seen[q.ID] {
				err = fmt.Errorf("provider %q stands twice", q.ID)
			}
			if err == nil {
				err = cloud.PutProvider(pool.Name(), made)
			}
			if err != nil {
				return nil, fmt.Errorf("gcp.pools[%d].providers[%d]: %w", i, j, err)
			}
			seen[q.ID] = true
		}
	}
	for i, s := range g.ServiceAccounts {
		account := gcp.ServiceAccount{Email: s.Email, UniqueID: s.UniqueID, Disabled: s.Disabled}
		for _, n := range s.Bindings {
			account.Bindings = append(account.Bindings, gcp.Binding{Role: n.Role, Members: n.Members})
		}
		if err := cloud.PutServiceAccount(account); err != nil {
			return nil, fmt.Errorf("gcp.service_accounts[%d]: %w", i, err)
		}
	}
	return cloud, nil
}

func (p PoolProvider) provider(b builder) (gcp.Provider, error) {
	made := gcp.Provider{ID: p.ID, Disabled: p.Disabled, AttributeMapping: p.AttributeMapping, AttributeCondition: p.AttributeCondition}
	if (p.OIDC == nil) == (p.X509 == nil) {
		return made, errors.New("one of oidc and x509 is wanted")
	}
	var err error
	if p.X509 != nil {
		made.TrustStore = &gcp.TrustStore{}
		if made.TrustStore.Anchors, err = b.certificates(p.X509.TrustAnchors); err != nil {
			return made, fmt.Errorf("trust_anchors: %w", err)
		}
		if p.X509.Intermediates != "" {
			if made.TrustStore.Intermediates, err = b.certificates(p.X509.Intermediates); err != nil {
				return made, fmt.Errorf("intermediates: %w", err)
			}
		}
		return made, nil
	}
	made.Issuer, made.AllowedAudiences = p.OIDC.Issuer, p.OIDC.AllowedAudiences
	if p.OIDC.JWKS != "" {
		if made.KeySet, err = b.text(p.OIDC.JWKS); err != nil {
			return made, fmt.Errorf("jwks: %w", err)
		}
		made.KeySet = bytes.TrimSpace(made.KeySet)
		if b.read == nil && len(made.KeySet) == 0 {
			made.KeySet = nil
		}
	}
	return made, nil
}

func (a *Azure) audience() string {
	if a.Audience == "" {
		return azure.Audience
	}
	return a.Audience
}

func (a *Azure) build(b builder, issuers sandbox.IssuersConfig) (*azure.Cloud, error) {
	cloud, err := azure.New(azure.Config{
		Issuers: issuers, Audience: a.Audience, Resources: a.Resources, ARM: a.ARMAudiences, LenientAlgorithms: a.LenientAlgorithms,
		Skew: time.Duration(a.Skew), Now: b.now, Log: b.log,
	})
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	seen := map[string]bool{}
	for i, t := range a.Tenants {
		made := azure.Tenant{ID: t.ID, Domain: t.Domain}
		for _, app := range t.Apps {
			made.Apps = append(made.Apps, app.app())
		}
		err := cloud.PutTenant(made)
		if err == nil && seen[t.ID] {
			err = fmt.Errorf("tenant %s stands twice", t.ID)
		}
		if err != nil {
			return nil, fmt.Errorf("azure.tenants[%d]: %w", i, err)
		}
		seen[t.ID] = true
	}
	return cloud, nil
}

func (o *OAuth) build(b builder, issuers sandbox.IssuersConfig) (*oauth.Server, error) {
	cfg := oauth.Config{Issuers: issuers, Identifier: o.Identifier, ClientAuthentication: o.ClientAuthentication, Skew: time.Duration(o.Skew), Now: b.now, Log: b.log}
	for _, g := range o.Grants {
		cfg.Grants = append(cfg.Grants, oauth.Grant{Issuer: g.Issuer, Subject: g.Subject, ClientID: g.ClientID, Scopes: g.Scopes, Resources: g.Resources})
	}
	server, err := oauth.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("oauth: %w", err)
	}
	return server, nil
}

func (v *Vault) build(b builder, issuers sandbox.IssuersConfig) (*vault.Server, error) {
	cfg := vault.Config{Issuers: issuers, Skew: time.Duration(v.Skew), Now: b.now, Log: b.log}
	for i, m := range v.Mounts {
		made := vault.Mount{Namespace: m.Namespace, Path: m.Path}
		var err error
		if m.JWT != nil {
			made.JWT, err = m.JWT.method()
		}
		if m.Cert != nil && err == nil {
			made.Cert, err = m.Cert.method(b)
		}
		if err != nil {
			return nil, fmt.Errorf("vault.mounts[%d]: %w", i, err)
		}
		cfg.Mounts = append(cfg.Mounts, made)
	}
	server, err := vault.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	return server, nil
}

func (j *VaultJWT) method() (*vault.JWT, error) {
	made := &vault.JWT{DiscoveryURL: j.DiscoveryURL, BoundIssuer: j.BoundIssuer, SupportedAlgs: j.SupportedAlgs}
	for _, r := range j.Roles {
		if t := r.BoundClaimsType; t != "" && t != "string" && t != "glob" {
			return nil, fmt.Errorf("role %q: bound_claims_type %q is neither string nor glob", r.Name, t)
		}
		made.Roles = append(made.Roles, vault.JWTRole{
			Name: r.Name, BoundAudiences: r.BoundAudiences, BoundSubject: r.BoundSubject, BoundClaims: r.BoundClaims, Glob: r.BoundClaimsType == "glob",
			UserClaim: r.UserClaim, Token: vault.Token{TTL: time.Duration(r.TokenTTL), Policies: r.TokenPolicies},
		})
	}
	return made, nil
}

func (c *VaultCert) method(b builder) (*vault.Cert, error) {
	made := &vault.Cert{}
	for _, r := range c.Roles {
		certificates, err := b.certificates(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("role %q: certificate: %w", r.Name, err)
		}
		made.Roles = append(made.Roles, vault.CertRole{
			Name: r.Name, Certificates: certificates, AllowedURISANs: r.AllowedURISANs, Token: vault.Token{TTL: time.Duration(r.TokenTTL), Policies: r.TokenPolicies},
		})
	}
	return made, nil
}

func (a App) app() azure.App {
	made := azure.App{Kind: azure.Kind(a.Kind), ClientID: a.ClientID, ObjectID: a.ObjectID}
	for _, c := range a.Credentials {
		made.Credentials = append(made.Credentials, azure.Credential{
			Name: c.Name, Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, Expression: c.Expression,
		})
	}
	return made
}
