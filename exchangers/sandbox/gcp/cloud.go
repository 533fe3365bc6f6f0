package gcp

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// A Cloud is one emulated Google Cloud. It is safe for concurrent use.
type Cloud struct {
	STSFaults, MTLSFaults, IAMFaults, WhoamiFaults sandbox.Faults // the clock is STSFaults'

	cfg     Config
	now     func() time.Time
	issuers *sandbox.Issuers
	signer  *sandbox.Signer

	mu       sync.Mutex // guards the rest
	pools    map[string]*pool
	accounts map[string]ServiceAccount // by email
	tokens   map[string]token          // by sandbox.HashToken
}

type pool struct {
	disabled  bool
	providers map[string]*provider // by ID
}

// New returns a Cloud, or the first thing in cfg that Google would not have
// created.
func New(cfg Config) (*Cloud, error) {
	c := &Cloud{cfg: cfg, signer: sandbox.NewSigner(cfg.Key),
		pools: map[string]*pool{}, accounts: map[string]ServiceAccount{}, tokens: map[string]token{}}
	if c.cfg.Skew == 0 {
		c.cfg.Skew = Skew
	}
	c.now = c.STSFaults.Clock(cfg.Now)
	cfg.Issuers.Now = c.now
	c.issuers = sandbox.NewIssuers(cfg.Issuers)
	c.STSFaults.Shape, c.MTLSFaults.Shape, c.IAMFaults.Shape, c.WhoamiFaults.Shape = stsFault, stsFault, apiFault, apiFault
	for _, p := range cfg.Pools {
		if err := c.PutPool(p); err != nil {
			return nil, err
		}
	}
	for _, q := range cfg.QuotaProjects {
		if err := q.check(); err != nil {
			return nil, err
		}
	}
	for _, s := range cfg.ServiceAccounts {
		if err := c.PutServiceAccount(s); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Issuers is the cloud's view of the issuers that its providers name.
func (c *Cloud) Issuers() *sandbox.Issuers { return c.issuers }

// PutPool creates the pool, or replaces it with its providers.
func (c *Cloud) PutPool(p Pool) error {
	if err := p.check(); err != nil {
		return err
	}
	made := &pool{disabled: p.Disabled, providers: map[string]*provider{}}
	for _, q := range p.Providers {
		if made.providers[q.ID] != nil {
			return fmt.Errorf("pool %q: provider %q stands twice", p.ID, q.ID)
		}
		compiled, err := c.compile(p.Name(), q)
		if err != nil {
			return err
		}
		made.providers[q.ID] = compiled
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools[p.Name()] = made
	return nil
}

// HasPool says whether there is a pool of that name.
func (c *Cloud) HasPool(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pools[name] != nil
}

// DeletePool deletes the pool of that name (see [Pool.Name]).
func (c *Cloud) DeletePool(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pools, name)
}

// PutProvider creates or replaces a provider in the pool of that name.
func (c *Cloud) PutProvider(poolName string, p Provider) error {
	compiled, err := c.compile(poolName, p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.pools[poolName]
	if in == nil {
		return fmt.Errorf("provider %q: %w", p.ID, errNotFound)
	}
	in.providers[p.ID] = compiled
	return nil
}

// DeleteProvider deletes a provider from the pool of that name.
func (c *Cloud) DeleteProvider(poolName, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if in := c.pools[poolName]; in != nil {
		delete(in.providers, id)
	}
}

// PutServiceAccount creates or replaces the service account with its bindings.
func (c *Cloud) PutServiceAccount(s ServiceAccount) error {
	if err := s.check(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accounts[s.Email] = s
	return nil
}

// DeleteServiceAccount deletes the service account, and its tokens' power.
func (c *Cloud) DeleteServiceAccount(email string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.accounts, email)
}

// provider returns an enabled provider in an enabled pool, or nil.
func (c *Cloud) provider(poolName, id string) *provider {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.pools[poolName]
	if in == nil || in.disabled {
		return nil
	}
	if p := in.providers[id]; p != nil && !p.Disabled {
		return p
	}
	return nil
}

// account returns an enabled service account by email or unique ID.
func (c *Cloud) account(id string) (ServiceAccount, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(id, "@") {
		s, ok := c.accounts[id]
		return s, ok && !s.Disabled
	}
	for _, s := range c.accounts {
		if s.UniqueID == id {
			return s, !s.Disabled
		}
	}
	return ServiceAccount{}, false
}
