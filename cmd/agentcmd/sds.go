package agentcmd

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/sds"
	"github.com/credence-id/credence/cmd/cli"
)

// sdsFile is how Envoy's secrets are named, as SPIRE's agent has it.
type sdsFile struct {
	SVIDName       string `yaml:"default_svid_name"`        // the first SVID; default "default"
	BundleName     string `yaml:"default_bundle_name"`      // what verifies our own trust domain; default ROOTCA
	AllBundlesName string `yaml:"default_all_bundles_name"` // and federated ones besides; default ALL
	// Roots as trusted_ca, instead of for Envoy's SPIFFE certificate validator.
	DisableSPIFFECertValidation bool `yaml:"disable_spiffe_cert_validation"`
}

// complete fills the names in that are not given. They must be told apart from
// each other and from what are names anyway.
func (f *sdsFile) complete() error {
	cli.SetDefault(&f.SVIDName, "default")
	cli.SetDefault(&f.BundleName, "ROOTCA")
	cli.SetDefault(&f.AllBundlesName, "ALL")
	seen := map[string]bool{}
	for _, n := range []struct{ field, name string }{
		{"default_svid_name", f.SVIDName}, {"default_bundle_name", f.BundleName}, {"default_all_bundles_name", f.AllBundlesName},
	} {
		switch {
		case len(n.name) > 255 || n.name == "*" || strings.HasPrefix(n.name, "spiffe://"):
			return fmt.Errorf("sds.%s: %q: at most 255 bytes are wanted, not * (everything) nor a SPIFFE ID", n.field, n.name)
		case seen[n.name]:
			return fmt.Errorf("sds.%s: %q: another secret has that name", n.field, n.name)
		}
		seen[n.name] = true
	}
	return nil
}

func (f *sdsFile) config(a *agent.Agent, log *slog.Logger) sds.Config {
	return sds.Config{
		TrustDomain: a.TrustDomain(), Identities: func(p *caller.Process) sds.View { return a.Identities(p) },
		Names:                       sds.Names{SVID: f.SVIDName, Bundle: f.BundleName, AllBundles: f.AllBundlesName},
		DisableSPIFFECertValidation: f.DisableSPIFFECertValidation, Log: log,
	}
}
