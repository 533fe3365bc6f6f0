package azure

import (
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/join/pkcs7"
)

const (
	maxTenants      = 32
	maxCertificates = 64
	// defaultMaxAge is how long Azure gives the same token again.
	defaultMaxAge = 24 * time.Hour
)

// What Require says.
const (
	both         = "both"
	tokenAlone   = "token"
	attestedOnly = "attested"
)

// Versions of tokens, as they say it themselves.
const (
	version1 = "1.0"
	version2 = "2.0"
)

// A cloud is one of Azure's.
type cloud struct {
	issuers map[string]string // of a tenant, by version
	signer  string            // the name of its metadata service
}

var clouds = map[string]cloud{
	"public": {map[string]string{version1: "https://sts.windows.net/%s/", version2: "https://login.microsoftonline.com/%s/v2.0"}, "metadata.azure.com"},
	"usgov":  {map[string]string{version1: "https://sts.windows.net/%s/", version2: "https://login.microsoftonline.us/%s/v2.0"}, "metadata.azure.us"},
	"china":  {map[string]string{version1: "https://sts.chinacloudapi.cn/%s/", version2: "https://login.partner.microsoftonline.cn/%s/v2.0"}, "metadata.azure.cn"},
}

// rootsPEM are the roots under which Azure's metadata service has its certificates,
// by "Azure Certificate Authority details", as Debian's ca-certificates has them.
//
//go:embed roots.pem
var rootsPEM string

// Settings are those of a JoinRule.
type Settings struct {
	// Tenants whose managed identities may join, by ID: issuers are made of these.
	// Required unless require is attested.
	Tenants []string `yaml:"tenants,omitempty"`
	// Audience is what tokens say in aud. Azure makes tokens for what the tenant has an
	// app registration of: make one for this trust domain, with an App ID URI such as
	// api://credence.example.org, and say that here, or its client ID if its tokens are
	// of version 2 (requestedAccessTokenVersion: 2). Required unless require is attested.
	Audience string `yaml:"audience,omitempty"`
	// SharedAudience lets Audience be one of Microsoft's own, such as
	// https://management.azure.com/, which needs no app registration. That is weaker:
	// every program of the machine has tokens for it and shows them to others, and each
	// who gets one can show it here.
	SharedAudience bool `yaml:"shared_audience,omitempty"`
	// Require says what a node shows: both (the default), token or attested.
	Require string `yaml:"require,omitempty"`
	// Cloud is public (the default), usgov or china.
	Cloud string `yaml:"cloud,omitempty"`
	// MaxAge since a token was issued; default 24h: Azure gives the same one again
	// until it ends.
	MaxAge bearer.Duration `yaml:"max_age,omitempty"`

	// JWKS are the issuers' keys, where they can't be asked: a JWK Set.
	JWKS string `yaml:"jwks,omitempty"`
	// CA certificates (PEM) that the issuers' are of, where it isn't a public one's.
	CA string `yaml:"ca,omitempty"`
	// Roots (PEM) that the documents' signers end in; default: DigiCert Global Root G2
	// and Microsoft RSA Root Certificate Authority 2017.
	Roots string `yaml:"roots,omitempty"`
	// Intermediates (PEM) between roots and signers. None is built in: Azure sends
	// only the signer's own certificate, and nothing that it links is fetched. Those
	// that Azure has are in "Azure Certificate Authority details".
	Intermediates string `yaml:"intermediates,omitempty"`
}

func (s *Settings) wantsToken() bool    { return s.Require != attestedOnly }
func (s *Settings) wantsDocument() bool { return s.Require != tokenAlone }

func (s *Settings) cloud() string {
	if s.Cloud == "" {
		return "public"
	}
	return s.Cloud
}

func (s *Settings) maxAge() time.Duration {
	if s.MaxAge != 0 {
		return time.Duration(s.MaxAge)
	}
	return defaultMaxAge
}

// Validate says what is wrong with settings, the field's name first.
func (s *Settings) Validate() error {
	if !slices.Contains([]string{"", both, tokenAlone, attestedOnly}, s.Require) {
		return fmt.Errorf("require: %.40q: %s, %s or %s is wanted", s.Require, both, tokenAlone, attestedOnly)
	}
	if _, ok := clouds[s.cloud()]; !ok {
		return fmt.Errorf("cloud: %.40q: public, usgov or china is wanted", s.Cloud)
	}
	if err := s.checkToken(); err != nil {
		return err
	}
	if !s.wantsDocument() {
		if s.Roots != "" || s.Intermediates != "" {
			return errors.New("roots: and intermediates are of documents, and require wants none")
		}
		return nil
	}
	_, err := s.signers()
	return err
}

func (s *Settings) checkToken() error {
	if !s.wantsToken() {
		if len(s.Tenants) > 0 || s.Audience != "" || s.SharedAudience || s.MaxAge != 0 || s.JWKS != "" || s.CA != "" {
			return errors.New("tenants: audience, shared_audience, max_age, jwks and ca are of tokens, and require wants none")
		}
		return nil
	}
	if len(s.Tenants) == 0 || len(s.Tenants) > maxTenants {
		return fmt.Errorf("tenants: 1 to %d are required, by ID", maxTenants)
	}
	for _, tenant := range s.Tenants {
		if !guid.MatchString(strings.ToLower(tenant)) {
			return fmt.Errorf("tenants: %.80q: a tenant's ID is wanted", tenant)
		}
	}
	if err := s.checkAudience(); err != nil {
		return err
	}
	if err := bearer.CheckMaxAge(s.MaxAge); err != nil {
		return err
	}
	if _, err := bearer.ParseRoots(s.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if s.JWKS == "" {
		return nil
	}
	if s.CA != "" {
		return errors.New("ca: is for issuers that are asked, and jwks stands beside it")
	}
	if _, err := bearer.NewStatic([]byte(s.JWKS)); err != nil {
		return fmt.Errorf("jwks: %w", err)
	}
	return nil
}

// Microsoft's own audiences: domains of their URLs, and the applications that most
// have tokens for (Resource Manager, Azure AD Graph, Graph).
var (
	sharedDomains = []string{
		"azure.com", "azure.net", "azure.us", "azure.cn", "windows.net", "microsoft.com", "microsoft.us", "microsoftonline.com", "office.com", "office365.com",
		"core.usgovcloudapi.net", "usgovcloudapi.net", "chinacloudapi.cn", "cloudapi.de",
	}
	sharedApplications = []string{"797f4846-ba00-4fd7-ba43-dac1f8f63013", "00000002-0000-0000-c000-000000000000", "00000003-0000-0000-c000-000000000000"}
)

func (s *Settings) checkAudience() error {
	if s.Audience == "" {
		return errors.New("audience: is required: the App ID URI, or client ID, of an app registration that you make for this trust domain")
	}
	if err := bearer.CheckAudience(s.Audience); err != nil {
		return err
	}
	if !s.SharedAudience && shared(s.Audience) {
		return fmt.Errorf("audience: %.200q is Microsoft's own: every program of a machine has tokens for it and shows them to others, who could join by them (shared_audience: true would take that)", s.Audience)
	}
	return nil
}

func shared(audience string) bool {
	if slices.Contains(sharedApplications, strings.TrimPrefix(strings.ToLower(audience), "spn:")) {
		return true
	}
	u, err := url.Parse(audience)
	if err != nil || u.Scheme == "api" {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	return slices.ContainsFunc(sharedDomains, func(domain string) bool { return host == domain || strings.HasSuffix(host, "."+domain) })
}

// IssuerRoots are what the issuers' certificates are verified by; nil: the system's.
func (s *Settings) IssuerRoots() *x509.CertPool {
	roots, _ := bearer.ParseRoots(s.CA)
	return roots
}

func (s *Settings) signers() (*signers, error) {
	roots, intermediates, err := s.certificates()
	if err != nil {
		return nil, err
	}
	all := &signers{roots: x509.NewCertPool(), intermediates: intermediates, name: clouds[s.cloud()].signer}
	for _, c := range roots {
		all.roots.AddCert(c)
	}
	return all, nil
}

func (s *Settings) certificates() (roots, intermediates []*x509.Certificate, err error) {
	text := s.Roots
	if text == "" {
		text = rootsPEM
	}
	if roots, err = parseCertificates(text); err != nil {
		return nil, nil, fmt.Errorf("roots: %w", err)
	}
	if intermediates, err = parseCertificates(s.Intermediates); err != nil {
		return nil, nil, fmt.Errorf("intermediates: %w", err)
	}
	return roots, intermediates, nil
}

func parseCertificates(text string) (all []*x509.Certificate, err error) {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" || !c.IsCA || !pkcs7.Cheap(c.PublicKey) {
			return nil, errors.New("what stands there is no CA's certificate, or its key is too small or too large")
		}
		all = append(all, c)
	}
	if strings.TrimSpace(string(rest)) != "" || len(all) > maxCertificates || text != "" && len(all) == 0 {
		return nil, fmt.Errorf("1 to %d certificates in PEM are wanted, and nothing else", maxCertificates)
	}
	return all, nil
}

// Endings are when the certificates end by which documents are verified.
func (s *Settings) Endings() []join.Ending {
	if !s.wantsDocument() {
		return nil
	}
	roots, intermediates, _ := s.certificates()
	return join.EndingsOf(slices.Concat(roots, intermediates)...)
}
