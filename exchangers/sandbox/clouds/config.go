// Package clouds is all emulated clouds in one process, as one file says: what
// credence sandbox run and credence dev serve. It builds the clouds, serves each
// of their services at a listener of its own, keeps the record of requests, and
// has the switchboard of faults.
//
// It trusts its configuration and whoever reaches the switchboard, which is to
// be let out on a Unix socket of the owner's alone. Judging requests is left to
// the clouds; reading the file strictly, certificates and that socket to the
// program.
package clouds

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Config is sandbox.yaml. The comments of its fields are its manual; what is
// left out of it has no cloud. Where a field holds PEM or a JWK Set it is the
// name of a file, or the text itself.
type Config struct {
	Issuers   Issuers `yaml:"issuers"`
	Listen    Listen  `yaml:"listen"`
	TLS       TLS     `yaml:"tls"`
	Addresses string  `yaml:"addresses"` // JSON file with all URLs and the CA file, written when all listen; empty: none
	Faults    string  `yaml:"faults"`    // socket of the switchboard; empty: none
	Record    int     `yaml:"record"`    // how many requests are remembered; default 1000

	Setup []string `yaml:"setup"` // files that credence target setup NAME -o json wrote: created too

	AWS   *AWS   `yaml:"aws"`
	GCP   *GCP   `yaml:"gcp"`
	Azure *Azure `yaml:"azure"`
	OAuth *OAuth `yaml:"oauth"`
	Vault *Vault `yaml:"vault"`
}

// Issuers says how the clouds reach the issuers of tokens.
type Issuers struct {
	CAFile  string            `yaml:"ca_file"` // roots of their web servers; default: this machine's
	Resolve map[string]string `yaml:"resolve"` // host to the host:port where it is to be found, for names that no DNS knows
	KeyAge  Duration          `yaml:"key_age"` // how long keys are believed; default 1h
	Refetch Duration          `yaml:"refetch"` // at least so long between fetches because of an unknown kid; default 1m
	Timeout Duration          `yaml:"timeout"` // of one document; default 5s
	// An issuer on loopback may have a port. No real cloud lets it.
	LenientLoopbackIssuer bool `yaml:"lenient_loopback_issuer"`
}

// Listen is where each service listens; default 127.0.0.1:0, any free port.
type Listen struct {
	RolesAnywhere string `yaml:"rolesanywhere"`
	STS           string `yaml:"sts"`
	GCPSTS        string `yaml:"gcp_sts"`
	GCPSTSMTLS    string `yaml:"gcp_sts_mtls"`
	GCPIAM        string `yaml:"gcp_iamcredentials"`
	GCPWhoami     string `yaml:"gcp_whoami"`
	Entra         string `yaml:"entra"`
	AzureARM      string `yaml:"azure_arm"`
	OAuthToken    string `yaml:"oauth_token"`
	OAuthWhoami   string `yaml:"oauth_whoami"`
	Vault         string `yaml:"vault"`
}

// TLS is how all services prove themselves: by a certificate in files, or by
// one that a CA made at the start signs, whose certificate is written to a file.
type TLS struct {
	Cert   string   `yaml:"cert"`
	Key    string   `yaml:"key"`
	CAFile string   `yaml:"ca_file"` // default sandbox-ca.pem; not with cert
	Names  []string `yaml:"names"`   // default localhost, 127.0.0.1 and ::1; not with cert
}

// AWS is one account in one region, whose partition is the region's.
type AWS struct {
	Account       string        `yaml:"account"`
	Region        string        `yaml:"region"`
	Skew          Duration      `yaml:"skew"`            // of signed requests; default 5m
	JWTLeeway     Duration      `yaml:"jwt_leeway"`      // how long STS takes an expired token, up to 5m; default 0s
	RatePerSecond int           `yaml:"rate_per_second"` // of CreateSession; default 10
	TrustAnchors  []TrustAnchor `yaml:"trust_anchors"`
	Profiles      []Profile     `yaml:"profiles"`
	Roles         []Role        `yaml:"roles"`
	OIDCProviders []Provider    `yaml:"oidc_providers"`
}

// TrustAnchor is one of Roles Anywhere.
type TrustAnchor struct {
	ARN          string `yaml:"arn"`
	Certificates string `yaml:"certificates"` // PEM, one or two
	CRLs         []CRL  `yaml:"crls"`         // at most two
	Disabled     bool   `yaml:"disabled"`
}

// CRL is an imported revocation list.
type CRL struct {
	CRL      string `yaml:"crl"` // PEM
	Disabled bool   `yaml:"disabled"`
}

// Profile is one of Roles Anywhere.
type Profile struct {
	ARN                   string              `yaml:"arn"`
	Roles                 []string            `yaml:"roles"`
	Duration              Duration            `yaml:"duration"` // default 1h
	SessionPolicy         Policy              `yaml:"session_policy"`
	AcceptRoleSessionName bool                `yaml:"accept_role_session_name"`
	AttributeMappings     map[string][]string `yaml:"attribute_mappings"` // default: all of subject and issuer; DNS, URI and Name/* of the SAN
	Disabled              bool                `yaml:"disabled"`
}

// Role is one of IAM.
type Role struct {
	ARN                string   `yaml:"arn"`
	MaxSessionDuration Duration `yaml:"max_session_duration"` // default 1h
	TrustPolicy        Policy   `yaml:"trust_policy"`
	MayAssume          []string `yaml:"may_assume"` // roles that its own permissions let it assume
}

// Provider is an OIDC provider of IAM.
type Provider struct {
	URL         string   `yaml:"url"`
	ClientIDs   []string `yaml:"client_ids"`
	Thumbprints []string `yaml:"thumbprints"` // SHA-1, for a web server that no root verifies
}

// A Duration is written like 90s, 15m or 24h.
type Duration time.Duration

// UnmarshalYAML tells where a duration is that cannot be read.
func (d *Duration) UnmarshalYAML(node ast.Node) error {
	text, ok := node.(*ast.StringNode)
	if !ok {
		return &yaml.SyntaxError{Message: "a duration is written like 90s, 15m or 24h", Token: node.GetToken()}
	}
	parsed, err := time.ParseDuration(text.Value)
	if err != nil {
		return &yaml.SyntaxError{Message: fmt.Sprintf("%q is no duration: write it like 90s, 15m or 24h", text.Value), Token: node.GetToken()}
	}
	*d = Duration(parsed)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// A Policy is a policy document: its JSON as a text, or as YAML.
type Policy string

// UnmarshalYAML takes a text as it is, and anything else as what to write as
// JSON.
func (p *Policy) UnmarshalYAML(read func(any) error) error {
	var text string
	if read(&text) == nil {
		*p = Policy(text)
		return nil
	}
	var document map[string]any
	if err := read(&document); err != nil {
		return err
	}
	b, err := json.Marshal(document)
	*p = Policy(b)
	return err
}

// GCP is one organization.
type GCP struct {
	Skew            Duration         `yaml:"skew"` // default 60s
	Pools           []Pool           `yaml:"pools"`
	ServiceAccounts []ServiceAccount `yaml:"service_accounts"`
	QuotaProjects   []QuotaProject   `yaml:"quota_projects"`
	// Access tokens of up to 12h, as by constraints/iam.allowServiceAccountCredentialLifetimeExtension.
	AllowLifetimeExtension bool `yaml:"allow_lifetime_extension"`
	// Subject tokens may live more than 24h. The documents forbid it; the real cloud was seen to take them.
	LenientTokenLife bool `yaml:"lenient_token_life"`
}

// Pool is a workload identity pool.
type Pool struct {
	Project   string         `yaml:"project"` // its number
	ID        string         `yaml:"id"`
	Disabled  bool           `yaml:"disabled"`
	Providers []PoolProvider `yaml:"providers"`
}

// PoolProvider is an OIDC or an X.509 provider: exactly one of the two.
type PoolProvider struct {
	ID                 string            `yaml:"id"`
	Disabled           bool              `yaml:"disabled"`
	OIDC               *OIDC             `yaml:"oidc"`
	X509               *X509             `yaml:"x509"`
	AttributeMapping   map[string]string `yaml:"attribute_mapping"`
	AttributeCondition string            `yaml:"attribute_condition"`
}

// OIDC is what an OIDC provider has besides.
type OIDC struct {
	Issuer           string   `yaml:"issuer"`
	AllowedAudiences []string `yaml:"allowed_audiences"` // default: the provider's full resource name
	JWKS             string   `yaml:"jwks"`              // uploaded; default: the issuer's own
}

// X509 is the trust store of an X.509 provider.
type X509 struct {
	TrustAnchors  string `yaml:"trust_anchors"` // PEM, one to three
	Intermediates string `yaml:"intermediates"` // PEM, at most ten
}

// ServiceAccount can be impersonated by those whom its bindings name.
type ServiceAccount struct {
	Email    string    `yaml:"email"`
	UniqueID string    `yaml:"unique_id"` // decimal
	Disabled bool      `yaml:"disabled"`
	Bindings []Binding `yaml:"bindings"`
}

// Binding gives a role on a service account.
type Binding struct {
	Role    string   `yaml:"role"`
	Members []string `yaml:"members"`
}

// QuotaProject can be charged by its consumers.
type QuotaProject struct {
	ID        string   `yaml:"id"`
	Consumers []string `yaml:"consumers"`
}

// Azure is one Microsoft Entra ID.
type Azure struct {
	Skew         Duration `yaml:"skew"`          // default 5m
	Audience     string   `yaml:"audience"`      // of managed identities' credentials; default api://AzureADTokenExchange
	Resources    []string `yaml:"resources"`     // for which tokens can be had; default https://management.azure.com
	ARMAudiences []string `yaml:"arm_audiences"` // that azure_arm takes; default https://management.azure.com, with and without a slash
	Tenants      []Tenant `yaml:"tenants"`
	// RS384, RS512 and PS256 to PS512 are taken too. The documents promise RS256 alone.
	LenientAlgorithms bool `yaml:"lenient_algorithms"`
}

// Tenant is a directory.
type Tenant struct {
	ID     string `yaml:"id"`
	Domain string `yaml:"domain"`
	Apps   []App  `yaml:"apps"`
}

// App is an app registration, or a user-assigned managed identity.
type App struct {
	Kind        string       `yaml:"kind"` // application (default) or managed identity
	ClientID    string       `yaml:"client_id"`
	ObjectID    string       `yaml:"object_id"`
	Credentials []Credential `yaml:"federated_credentials"`
}

// Credential is a federated identity credential.
type Credential struct {
	Name       string `yaml:"name"`
	Issuer     string `yaml:"issuer"`
	Subject    string `yaml:"subject"`
	Audience   string `yaml:"audience"`   // default: the cloud's
	Expression string `yaml:"expression"` // claimsMatchingExpression, in place of subject
}

// OAuth is one OAuth 2.0 authorization server: token exchange (RFC 8693), and a
// JWT as grant and as client authentication (RFC 7523).
type OAuth struct {
	Identifier           string   `yaml:"identifier"`            // the one audience of every JWT presented, an https URL
	Skew                 Duration `yaml:"skew"`                  // default 60s
	ClientAuthentication bool     `yaml:"client_authentication"` // every token exchange has a client assertion too
	Grants               []Grant  `yaml:"grants"`
}

// Grant is what the subject of an issuer may have.
type Grant struct {
	Issuer    string   `yaml:"issuer"`
	Subject   string   `yaml:"subject"`
	ClientID  string   `yaml:"client_id"` // of the client that the subject is
	Scopes    []string `yaml:"scopes"`
	Resources []string `yaml:"resources"` // and audiences that may be asked for
}

// Vault is one OpenBao or Vault: its auth methods jwt and cert. Keys are called
// as its API has them; durations are written with a unit.
type Vault struct {
	Skew   Duration `yaml:"skew"` // default 60s
	Mounts []Mount  `yaml:"mounts"`
}

// Mount is one auth method, either jwt or cert.
type Mount struct {
	Namespace string     `yaml:"namespace"` // default: the root
	Path      string     `yaml:"path"`
	JWT       *VaultJWT  `yaml:"jwt"`
	Cert      *VaultCert `yaml:"cert"`
}

// VaultJWT is the configuration of auth method jwt.
type VaultJWT struct {
	DiscoveryURL  string         `yaml:"oidc_discovery_url"`
	BoundIssuer   string         `yaml:"bound_issuer"`       // default: oidc_discovery_url
	SupportedAlgs []string       `yaml:"jwt_supported_algs"` // default: all that are asymmetric
	Roles         []VaultJWTRole `yaml:"roles"`
}

// VaultJWTRole is a role of auth method jwt.
type VaultJWTRole struct {
	Name            string              `yaml:"name"`
	BoundAudiences  []string            `yaml:"bound_audiences"`
	BoundSubject    string              `yaml:"bound_subject"` // it or bound_claims is required
	BoundClaims     map[string][]string `yaml:"bound_claims"`
	BoundClaimsType string              `yaml:"bound_claims_type"` // string (default) or glob
	UserClaim       string              `yaml:"user_claim"`
	TokenTTL        Duration            `yaml:"token_ttl"` // default 768h
	TokenPolicies   []string            `yaml:"token_policies"`
}

// VaultCert is auth method cert.
type VaultCert struct {
	Roles []VaultCertRole `yaml:"roles"`
}

// VaultCertRole is a role of auth method cert.
type VaultCertRole struct {
	Name           string   `yaml:"name"`
	Certificate    string   `yaml:"certificate"` // PEM, CAs
	AllowedURISANs []string `yaml:"allowed_uri_sans"`
	TokenTTL       Duration `yaml:"token_ttl"` // default 768h
	TokenPolicies  []string `yaml:"token_policies"`
}

// Check fills defaults in and refuses what no cloud would create. It reads no
// file: what they hold is looked at by New. An error begins with the path of its
// field.
func (c *Config) Check() error {
	if c.AWS == nil && c.GCP == nil && c.Azure == nil && c.OAuth == nil && c.Vault == nil && len(c.Setup) == 0 {
		return fmt.Errorf("aws: one of aws, gcp, azure, oauth, vault and setup is required: what is there to be judged?")
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		return fmt.Errorf("tls: cert and key go together")
	}
	if c.TLS.Cert != "" && (c.TLS.CAFile != "" || len(c.TLS.Names) > 0) {
		return fmt.Errorf("tls: ca_file and names are of a CA made at the start, which cert and key replace")
	}
	if c.TLS.Cert == "" {
		setDefault(&c.TLS.CAFile, "sandbox-ca.pem")
		if len(c.TLS.Names) == 0 {
			c.TLS.Names = []string{"localhost", "127.0.0.1", "::1"}
		}
	}
	if c.Record == 0 {
		c.Record = 1000
	}
	if c.Record < 0 || c.Record > 100_000 {
		return fmt.Errorf("record: %d: 1 to 100000 requests are remembered", c.Record)
	}
	for _, f := range c.Listen.fields() {
		setDefault(f.address, "127.0.0.1:0")
		if _, _, err := net.SplitHostPort(*f.address); err != nil {
			return fmt.Errorf("listen.%s: %q: host:port is wanted", f.service, *f.address)
		}
	}
	if err := c.Issuers.check(); err != nil {
		return err
	}
	c.defaults()
	_, err := c.build(builder{now: time.Now})
	return err
}

func (i Issuers) check() error {
	for host, to := range i.Resolve {
		if _, _, err := net.SplitHostPort(to); err != nil || host == "" || strings.ContainsAny(host, ":/") && net.ParseIP(host) == nil {
			return fmt.Errorf("issuers.resolve: %s: %s: a host is wanted, and the host:port where it is", host, to)
		}
	}
	for name, d := range map[string]Duration{"key_age": i.KeyAge, "refetch": i.Refetch, "timeout": i.Timeout} {
		if d < 0 {
			return fmt.Errorf("issuers.%s: %s: less than zero", name, time.Duration(d))
		}
	}
	return nil
}

func (c *Config) defaults() {
	if c.Azure == nil {
		return
	}
	if c.Azure.Resources == nil {
		c.Azure.Resources = defaultResources()
	}
	for i := range c.Azure.Tenants {
		for j := range c.Azure.Tenants[i].Apps {
			setDefault(&c.Azure.Tenants[i].Apps[j].Kind, "application")
			for k := range c.Azure.Tenants[i].Apps[j].Credentials {
				setDefault(&c.Azure.Tenants[i].Apps[j].Credentials[k].Audience, c.Azure.audience())
			}
		}
	}
}

func defaultResources() []string { return []string{"https://management.azure.com"} }

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

type listenField struct {
	service string
	address *string
}

func (l *Listen) fields() []listenField {
	return []listenField{
		{"rolesanywhere", &l.RolesAnywhere}, {"sts", &l.STS},
		{"gcp_sts", &l.GCPSTS}, {"gcp_sts_mtls", &l.GCPSTSMTLS}, {"gcp_iamcredentials", &l.GCPIAM}, {"gcp_whoami", &l.GCPWhoami},
		{"entra", &l.Entra}, {"azure_arm", &l.AzureARM}, {"oauth_token", &l.OAuthToken}, {"oauth_whoami", &l.OAuthWhoami}, {"vault", &l.Vault},
	}
}
