package aws

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// ErrNotFound is what changing a resource that does not exist wraps.
var ErrNotFound = errors.New("no such resource")

// A Cloud is one account in one region. It is safe for concurrent use.
type Cloud struct {
	AnywhereFaults, STSFaults sandbox.Faults // the clock is STSFaults'

	cfg     Config
	issuers *sandbox.Issuers
	bucket  *bucket

	mu        sync.RWMutex // guards the maps; what stands in them is not changed
	anchors   map[string]anchor
	profiles  map[string]profile
	roles     map[string]role
	providers map[string]OIDCProvider // by URL
	sessions  map[string]session      // by access key ID
}

// New returns a Cloud, or an error that names what in cfg is missing or what AWS
// would not accept.
func New(cfg Config) (*Cloud, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cloud{
		cfg:       cfg,
		anchors:   map[string]anchor{},
		profiles:  map[string]profile{},
		roles:     map[string]role{},
		providers: map[string]OIDCProvider{},
		sessions:  map[string]session{},
	}
	c.AnywhereFaults.Shape, c.STSFaults.Shape = anywhereFault, stsFault
	c.cfg.Now = c.STSFaults.Clock(cfg.Now)
	c.bucket = newBucket(cfg.RatePerSecond, c.cfg.Now())
	c.issuers = sandbox.NewIssuers(sandbox.IssuersConfig{
		Roots: cfg.Roots, LenientLoopbackIssuer: cfg.LenientLoopbackIssuer, DialContext: cfg.DialContext,
		Timeout: cfg.FetchTimeout, MaxAge: cfg.KeyAge, Refetch: cfg.KeyRefetch, Now: c.cfg.Now, Check: checkKeyCount, Thumbprints: c.thumbprints,
	})
	if err := c.fill(); err != nil {
		return nil, err
	}
	return c, nil
}

// Issuers is the cloud's view of the issuers that its providers name.
func (c *Cloud) Issuers() *sandbox.Issuers { return c.issuers }

func (c *Cloud) thumbprints(url string) []string {
	p, _ := get(c, c.providers, url)
	return p.Thumbprints
}

func (c *Cloud) fill() error {
	return errors.Join(
		each(c.cfg.TrustAnchors, c.PutTrustAnchor), each(c.cfg.Profiles, c.PutProfile),
		each(c.cfg.Roles, c.PutRole), each(c.cfg.OIDCProviders, c.PutOIDCProvider))
}

func each[T any](list []T, put func(T) error) error {
	for _, v := range list {
		if err := put(v); err != nil {
			return err
		}
	}
	return nil
}

// PutTrustAnchor creates a trust anchor or replaces the one of that ARN.
func (c *Cloud) PutTrustAnchor(t TrustAnchor) error {
	a, err := newAnchor(t)
	if err == nil {
		err = c.owns(a.arn)
	}
	if err != nil {
		return err
	}
	put(c, c.anchors, t.ARN, a)
	return nil
}

// SetTrustAnchorEnabled enables or disables a trust anchor.
func (c *Cloud) SetTrustAnchorEnabled(arn string, enabled bool) error {
	return change(c, c.anchors, arn, func(a anchor) (anchor, error) { a.enabled = enabled; return a, nil })
}

// ImportCRL adds a revocation list to a trust anchor, which holds two at most.
func (c *Cloud) ImportCRL(anchorARN string, list CRL) error {
	return change(c, c.anchors, anchorARN, func(a anchor) (anchor, error) { return a.with(list) })
}

// SetCRLsEnabled enables or disables all revocation lists of a trust anchor.
func (c *Cloud) SetCRLsEnabled(anchorARN string, enabled bool) error {
	return change(c, c.anchors, anchorARN, func(a anchor) (anchor, error) {
		a.crls = slices.Clone(a.crls)
		for i := range a.crls {
			a.crls[i].enabled = enabled
		}
		return a, nil
	})
}

// PutProfile creates a profile or replaces the one of that ARN.
func (c *Cloud) PutProfile(p Profile) error {
	checked, err := newProfile(p)
	if err == nil {
		err = c.owns(checked.arn)
	}
	if err != nil {
		return err
	}
	put(c, c.profiles, p.ARN, checked)
	return nil
}

// SetProfileEnabled enables or disables a profile.
func (c *Cloud) SetProfileEnabled(arn string, enabled bool) error {
	return change(c, c.profiles, arn, func(p profile) (profile, error) { p.Enabled = enabled; return p, nil })
}

// PutRole creates a role or replaces the one of that ARN.
func (c *Cloud) PutRole(r Role) error {
	checked, err := newRole(r)
	if err != nil {
		return err
	}
	if a := checked.arn; a.account != c.cfg.Account || a.partition != partitionOf(c.cfg.Region) {
		return fmt.Errorf("role %s: %w: another account or partition", r.ARN, errConfig)
	}
	put(c, c.roles, r.ARN, checked)
	return nil
}

// PutOIDCProvider creates a provider or replaces the one of that URL.
func (c *Cloud) PutOIDCProvider(p OIDCProvider) error {
	if err := c.issuers.CheckURL(p.URL); err != nil {
		return fmt.Errorf("OIDC provider: %w", err)
	}
	if len(p.URL) > 255 || len(p.ClientIDs) > 100 {
		return fmt.Errorf("OIDC provider %s: %w: more than 255 characters or 100 client IDs", p.URL, errConfig)
	}
	if slices.ContainsFunc(p.ClientIDs, func(id string) bool { return id == "" || len(id) > 255 }) {
		return fmt.Errorf("OIDC provider %s: %w: client ID is empty or has more than 255 characters", p.URL, errConfig)
	}
	if len(p.Thumbprints) > 5 || slices.ContainsFunc(p.Thumbprints, func(h string) bool { return !thumbprintPattern.MatchString(h) }) {
		return fmt.Errorf("OIDC provider %s: %w: thumbprints are at most 5 SHA-1 digests of 40 lower-case hex digits", p.URL, errConfig)
	}
	p.ClientIDs, p.Thumbprints = slices.Clone(p.ClientIDs), slices.Clone(p.Thumbprints)
	put(c, c.providers, p.URL, p)
	return nil
}

// RemoveOIDCProvider removes a provider. What STS issued for its tokens lives on.
func (c *Cloud) RemoveOIDCProvider(url string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.providers[url]; !ok {
		return fmt.Errorf("OIDC provider %s: %w", url, ErrNotFound)
	}
	delete(c.providers, url)
	return nil
}

// owns refuses Roles Anywhere resources of other places.
func (c *Cloud) owns(a arn) error {
	if a.account != c.cfg.Account || a.region != c.cfg.Region {
		return fmt.Errorf("%s in account %s and region %s: %w: this cloud is %s, %s",
			a.resource, a.account, a.region, errConfig, c.cfg.Account, c.cfg.Region)
	}
	return nil
}

// ProviderARN is the ARN of the OIDC provider for a URL in this account, which
// trust policies name as Federated principal.
func (c *Cloud) ProviderARN(url string) string {
	return "arn:" + partitionOf(c.cfg.Region) + ":iam::" + c.cfg.Account + ":oidc-provider/" + providerName(url)
}

// providerName is what condition keys start with: the URL without its scheme.
func providerName(url string) string { return strings.TrimPrefix(url, "https://") }

func put[T any](c *Cloud, m map[string]T, name string, v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m[name] = v
}

func change[T any](c *Cloud, m map[string]T, name string, f func(T) (T, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := m[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	v, err := f(v)
	if err == nil {
		m[name] = v
	}
	return err
}

func get[T any](c *Cloud, m map[string]T, name string) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := m[name]
	return v, ok
}
