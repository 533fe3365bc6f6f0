package clouds

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/setup"
)

// plan reads the files of setup, and makes room for their clouds beside what
// the configuration says itself.
func (c *Config) plan(b *builder) error {
	if b.read == nil || len(c.Setup) == 0 {
		return nil
	}
	var plans [][]byte
	for _, file := range c.Setup {
		text, err := b.read(file)
		if err != nil {
			return err
		}
		plans = append(plans, text)
	}
	read, err := setup.Read(plans...)
	if err != nil {
		return fmt.Errorf("%v: %w", c.Setup, err)
	}
	b.plans = *read
	if p := read.AWS; p != nil && c.AWS == nil {
		c.AWS = &AWS{Account: p.Account, Region: p.Region}
	}
	if p := read.GCP; p != nil {
		made := *cmp.Or(c.GCP, &GCP{})
		for _, q := range p.QuotaProjects {
			made.QuotaProjects = append(slices.Clip(made.QuotaProjects), QuotaProject(q))
		}
		c.GCP = &made
	}
	if p := read.Azure; p != nil {
		made := *cmp.Or(c.Azure, &Azure{Audience: p.Audience, Resources: defaultResources()})
		made.Resources = slices.Concat(made.Resources, p.Resources)
		c.Azure = &made
	}
	return nil
}

// create creates in the clouds what the plans say.
func (b builder) create(made built) error {
	if p := b.plans.AWS; p != nil {
		for _, t := range p.TrustAnchors {
			if err := made.aws.PutTrustAnchor(t); err != nil {
				return err
			}
		}
		for _, q := range p.Profiles {
			if err := made.aws.PutProfile(q); err != nil {
				return err
			}
		}
		for _, r := range p.Roles {
			if err := made.aws.PutRole(r); err != nil {
				return err
			}
		}
		for _, q := range p.OIDCProviders {
			if err := made.aws.PutOIDCProvider(q); err != nil {
				return err
			}
		}
	}
	if p := b.plans.GCP; p != nil {
		if err := createGCP(made.gcp, p); err != nil {
			return err
		}
	}
	if p := b.plans.Azure; p != nil {
		for _, t := range p.Tenants {
			if err := createTenant(made.azure, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// createGCP adds to a pool that the configuration has, too.
func createGCP(cloud *gcp.Cloud, p *gcp.Config) error {
	for _, pool := range p.Pools {
		if !cloud.HasPool(pool.Name()) {
			if err := cloud.PutPool(gcp.Pool{Project: pool.Project, ID: pool.ID, Disabled: pool.Disabled}); err != nil {
				return err
			}
		}
		for _, q := range pool.Providers {
			if err := cloud.PutProvider(pool.Name(), q); err != nil {
				return err
			}
		}
	}
	for _, s := range p.ServiceAccounts {
		if err := cloud.PutServiceAccount(s); err != nil {
			return err
		}
	}
	return nil
}

func createTenant(cloud *azure.Cloud, t azure.Tenant) error {
	if !cloud.HasTenant(t.ID) {
		return cloud.PutTenant(t)
	}
	for _, a := range t.Apps {
		if err := cloud.PutApp(t.ID, a); err != nil {
			return err
		}
	}
	return nil
}
