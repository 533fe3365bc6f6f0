package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/authority/upstream/disk"
	"github.com/credence-id/credence/broker/authority/upstream/vault"
)

// upstreamFile is who certifies the trust domain's CAs: exactly one.
type upstreamFile struct {
	CSR   *struct{}     `yaml:"csr"`   // a person: credence ca csr, credence ca install
	Disk  *disk.Config  `yaml:"disk"`  // a CA's key and certificate in files
	Vault *vault.Config `yaml:"vault"` // HashiCorp Vault's or OpenBao's PKI engine
}

// anchorFile is what the bundle holds under a corporate root.
type anchorFile struct {
	Upstream        *upstreamFile `yaml:"upstream"`          // default: a root of our own
	Anchor          string        `yaml:"anchor"`            // root, or ours: our own CA instead of the corporate root
	RootIsDedicated bool          `yaml:"root_is_dedicated"` // that root signs nothing but this trust domain's CAs
	SharedRoot      string        `yaml:"shared_root"`       // accepted: it signs others too, each of whom can speak for us
	NameConstraints bool          `yaml:"name_constraints"`  // our CAs permit URIs of our trust domain only
}

// kind names the upstream; empty: none.
func (u *upstreamFile) kind() (string, error) {
	if u == nil {
		return "", nil
	}
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{{"csr", u.CSR != nil}, {"disk", u.Disk != nil}, {"vault", u.Vault != nil}} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	if len(kinds) != 1 {
		return "", fmt.Errorf("upstream: %d kinds are given: exactly one of csr, disk and vault is wanted, such as upstream: {csr: {}}", len(kinds))
	}
	return kinds[0], nil
}

// check holds the fields against each other.
func (f *anchorFile) check() error {
	kind, err := f.Upstream.kind()
	if err != nil {
		return err
	}
	switch {
	case f.Anchor != "" && f.Anchor != "root" && f.Anchor != "ours":
		return fmt.Errorf("anchor: %q: root or ours is wanted", f.Anchor)
	case f.SharedRoot != "" && f.SharedRoot != "accepted":
		return fmt.Errorf("shared_root: %q: accepted is the one word that it takes", f.SharedRoot)
	case f.SharedRoot != "" && f.RootIsDedicated:
		return errors.New("shared_root: and root_is_dedicated contradict each other: one of them is wanted")
	case f.Anchor == "ours" && (kind == "disk" || kind == "vault"):
		return fmt.Errorf("anchor: ours with upstream %s would put a new anchor into every bundle at each renewal: take anchor: root, or upstream: {csr: {}}", kind)
	case (kind == "disk" || kind == "vault") && f.SharedRoot == "" && !f.RootIsDedicated:
		return errors.New("upstream: its root goes into our bundle, and every CA under that root could speak for us: say root_is_dedicated: true (it signs nothing else) or shared_root: accepted")
	}
	if kind == "disk" {
		err = f.Upstream.Disk.Validate()
	}
	if kind == "vault" {
		err = f.Upstream.Vault.Validate()
	}
	if err != nil {
		return fmt.Errorf("upstream.%s: %w", kind, err)
	}
	return nil
}

// into fills in an authority's configuration.
func (f *anchorFile) into(c *authority.Config, now func() time.Time) (err error) {
	kind, err := f.Upstream.kind()
	if err != nil {
		return err
	}
	c.UpstreamName, c.Anchor, c.NameConstraints = kind, f.Anchor, f.NameConstraints
	switch {
	case f.RootIsDedicated:
		c.SharedRoot = "dedicated"
	case f.SharedRoot != "":
		c.SharedRoot = "shared"
	}
	switch kind {
	case "disk":
		cfg := *f.Upstream.Disk
		cfg.Now = now
		c.Upstream, err = disk.New(cfg)
	case "vault":
		cfg := *f.Upstream.Vault
		cfg.Now = now
		c.Upstream, err = vault.New(cfg)
	}
	return err
}
