package azure

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// A Cloud is one emulated Entra ID with its tenants. It is safe for concurrent
// use.
type Cloud struct {
	LoginFaults, ARMFaults sandbox.Faults

	cfg     Config
	now     func() time.Time
	issuers *sandbox.Issuers
	signer  *sandbox.Signer

	mu      sync.Mutex // guards the rest
	tenants map[string]*tenant
	revoked map[string]time.Time // by client ID: continuous access ended for what is older
}

type tenant struct {
	id, domain string
	apps       map[string]App // by client ID
}

// New returns a Cloud, or the first thing in cfg that Entra would not have
// created, as a [*CreateError].
func New(cfg Config) (*Cloud, error) {
	c := &Cloud{cfg: cfg, signer: sandbox.NewSigner(cfg.Key), tenants: map[string]*tenant{}, revoked: map[string]time.Time{}}
	if c.cfg.Skew == 0 {
		c.cfg.Skew = Skew
	}
	if c.cfg.Audience == "" {
		c.cfg.Audience = Audience
	}
	if c.cfg.ARM == nil {
		c.cfg.ARM = []string{"https://management.azure.com", "https://management.azure.com/"}
	}
	c.now = c.LoginFaults.Clock(cfg.Now)
	c.LoginFaults.Shape, c.ARMFaults.Shape = c.loginFault, armFault
	cfg.Issuers.Now, cfg.Issuers.Check, cfg.Issuers.MaxKeys = c.now, checkDiscovery, 100
	c.issuers = sandbox.NewIssuers(cfg.Issuers)
	for _, r := range cfg.Resources {
		if !guid.MatchString(r) && !strings.Contains(r, "://") || strings.ContainsAny(r, " \t\n") {
			return nil, bad("resource %q is neither an App ID URI nor a GUID", r)
		}
	}
	for _, t := range cfg.Tenants {
		if err := c.PutTenant(t); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// checkDiscovery refuses what Entra's parser stumbles over: endpoints that are
// there and empty, and no subject type.
func checkDiscovery(m *sandbox.Metadata) error {
	for _, name := range []string{"authorization_endpoint", "token_endpoint", "userinfo_endpoint"} {
		if v, ok := m.Document[name]; ok && (v == nil || v == "") {
			return fmt.Errorf("%w: %s is empty", sandbox.ErrDiscovery, name)
		}
	}
	if l, ok := m.Document["subject_types_supported"].([]any); !ok || len(l) == 0 {
		return fmt.Errorf("%w: subject_types_supported is empty", sandbox.ErrDiscovery)
	}
	return nil
}

// Issuers is the cloud's view of the issuers that its credentials name.
func (c *Cloud) Issuers() *sandbox.Issuers { return c.issuers }

// PutTenant creates the tenant, or replaces it with its apps.
func (c *Cloud) PutTenant(t Tenant) error {
	if err := t.check(); err != nil {
		return err
	}
	made := &tenant{id: t.ID, domain: t.Domain, apps: map[string]App{}}
	for _, a := range t.Apps {
		if err := a.check(c.issuers, c.cfg.Audience); err != nil {
			return err
		}
		if _, ok := made.apps[a.ClientID]; ok {
			return conflict("app %s stands twice", a.ClientID)
		}
		made.apps[a.ClientID] = a
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tenants[t.ID] = made
	return nil
}

// HasTenant says whether there is a tenant of that ID.
func (c *Cloud) HasTenant(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tenants[id] != nil
}

// PutApp creates or replaces an app in a tenant.
func (c *Cloud) PutApp(tenantID string, a App) error {
	if err := a.check(c.issuers, c.cfg.Audience); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tenants[tenantID]
	if t == nil {
		return errors.New("there is no such tenant")
	}
	t.apps[a.ClientID] = a
	return nil
}

// DeleteApp deletes an app. Its tokens live on until they expire.
func (c *Cloud) DeleteApp(tenantID, clientID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tenants[tenantID]; t != nil {
		delete(t.apps, clientID)
	}
}

// RevokeSessions tells the resources that what the app has is not to be taken
// any more: they challenge those of its tokens that are for continuous access
// and were made before now. Others live until they expire.
func (c *Cloud) RevokeSessions(clientID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked[clientID] = c.now().Truncate(time.Second)
}

// tenant finds a tenant's ID by GUID or domain, in any case.
func (c *Cloud) tenant(name string) (string, bool) {
	name = strings.ToLower(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, t := range c.tenants {
		if id == name || t.domain != "" && t.domain == name {
			return id, true
		}
	}
	return "", false
}

func (c *Cloud) app(tenantID, clientID string) (App, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tenants[tenantID]
	if t == nil {
		return App{}, false
	}
	a, ok := t.apps[strings.ToLower(clientID)]
	return a, ok
}
