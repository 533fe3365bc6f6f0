package authority

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Installed says what Install made of a chain.
type Installed struct {
	Anchor   Status // in the bundle
	CA       Status // ours; the anchor itself under anchor ours
	PathLen  int    // of ours; -1: not bounded
	Warnings []string
}

// Install takes the certificate that a PKI made of CSR's request: ours first,
// then each one's issuer, up to and with the root (or, under anchor ours, as far
// as it goes). Everything is checked before anything is kept; an error that is
// ErrRefused names the certificate, the field and what it should be. The anchor
// is published; ActivateRoot takes our CA into use, and Install itself where the
// anchor is the active root already or there is no other. Called again with the
// same chain, it returns the same.
func (a *Authority) Install(ctx context.Context, chain []*x509.Certificate) (Installed, error) {
	return a.InstallUnder(ctx, chain, "")
}

// InstallUnder is Install where the operator says what else the root signs, as
// Config.SharedRoot does; empty: as configured.
func (a *Authority) InstallUnder(ctx context.Context, chain []*x509.Certificate, shared string) (Installed, error) {
	var done Installed
	switch shared {
	case "":
		shared = a.cfg.SharedRoot
	case rootIsDedicated, rootIsShared:
	default:
		return done, refused("what else the root signs is %q: want dedicated or shared", shared)
	}
	err := a.act("installing a CA", ctx, func(now time.Time) error {
		if a.cfg.Upstream != nil {
			return refused("upstream %s certifies us by itself", a.cfg.UpstreamName)
		}
		ours, err := a.ours(chain)
		if err != nil {
			return err
		}
		if err := a.vet(ctx, ours, chain, shared, now); err != nil {
			return err
		}
		anchor := a.anchorID(chain[len(chain)-1])
		if a.cfg.Anchor == anchorOurs {
			anchor = ours.ID
		}
		if ours.State == Prepared || !bytes.Equal(ours.Chain[0], chain[0].Raw) {
			if err := a.oneAtATime(a.live.Load(), anchor); err != nil {
				return err
			}
			if err := a.change(ctx, a.installation(ours, chain, shared, now)...); err != nil {
				return err
			}
			a.cfg.Log.InfoContext(ctx, "CA installed", "authority", ours.ID, "anchor", anchor)
		}
		if err := a.settle(ctx, now); err != nil {
			return err
		}
		done = Installed{Anchor: a.status(anchor), CA: a.status(ours.ID), PathLen: pathLen(chain[0]), Warnings: a.warnings(chain)}
		_, err = a.renewCRLs(ctx)
		return err
	})
	return done, err
}

func pathLen(c *x509.Certificate) int {
	if c.MaxPathLen > 0 || c.MaxPathLenZero {
		return c.MaxPathLen
	}
	return -1
}

// ours finds whose key the first certificate is for: one that CSR made and that
// nothing was signed with yet, or one installed with this very certificate.
func (a *Authority) ours(chain []*x509.Certificate) (Record, error) {
	if len(chain) == 0 || slices.Contains(chain, nil) {
		return Record{}, refused("chain: is empty, should begin with our certificate")
	}
	find := func(c *x509.Certificate) (Record, bool) {
		r, ok := a.live.Load().find(digest(c.RawSubjectPublicKeyInfo).String()[:32])
		return r, ok && r.KeyRef != "" && (r.Use == Domain || r.Use == Root)
	}
	r, ok := find(chain[0])
	switch {
	case !ok && slices.ContainsFunc(chain, func(c *x509.Certificate) bool { _, ok := find(c); return ok }):
		return r, refused("chain: our certificate is not the first, should be: put them in order, each one's issuer after it")
	case !ok:
		return r, refused("key: certificate 1 (%q) is not for the key of our request, should be (was another request made since?)", chain[0].Subject.String())
	case r.State == Prepared || r.State == Published:
		return r, nil
	case r.State == Revoked:
		return r, refused("key: %s was given up, should be that of the last request", r.ID)
	case !bytes.Equal(r.Chain[0], chain[0].Raw):
		return r, refused("key: %s is in use with another certificate, should be a new one: make a request for another CA", r.ID)
	}
	return r, nil
}

// vet is every check of an installed chain.
func (a *Authority) vet(ctx context.Context, ours Record, chain []*x509.Certificate, shared string, now time.Time) error {
	root, _ := a.live.Load().find(a.anchorID(chain[len(chain)-1]))
	if a.cfg.Anchor == anchorRoot && shared == "" && root.KeyRef == "" {
		return refused("%s", errSharedRoot)
	}
	if err := checkAlgorithms(chain); err != nil {
		return refused("%s", err)
	}
	top := chain[len(chain)-1]
	switch {
	case selfSigned(chain[0]):
		return refused("issuer: our certificate is self-signed, should be signed by the corporate PKI")
	case a.cfg.Anchor == anchorRoot && (len(chain) < 2 || !selfSigned(top)):
		return refused("chain: ends with %q, issued by %q, should go on to the self-signed root", top.Subject.String(), top.Issuer.String())
	}
	if err := a.checkPath(chain, true, now, now.Add(2*a.cfg.Lives.Issuing)); err != nil {
		return refused("%s", err)
	}
	key, err := openKey(ctx, a.cfg.RootKeys, ours)
	if err != nil {
		return err
	}
	path := chain
	if a.cfg.Anchor == anchorOurs {
		path = chain[:1]
	}
	if err := a.tryChain(key, path, true, now); err != nil {
		return refused("%s", err)
	}
	return nil
}

// installation are the records of a CA that is certified, and of its anchor.
func (a *Authority) installation(ours Record, chain []*x509.Certificate, shared string, now time.Time) []Record {
	ours.NotAfter = chain[0].NotAfter
	for _, c := range chain {
		ours.NotAfter = earliest(ours.NotAfter, c.NotAfter)
	}
	if ours.State == Prepared {
		ours.PublishedAt = stamp(now)
	}
	ours.State, ours.Chain = Published, nil
	if a.cfg.Anchor == anchorOurs {
		ours.Use, ours.Parent, ours.Chain = Root, "", [][]byte{chain[0].Raw}
		return []Record{ours}
	}
	for _, c := range chain[:len(chain)-1] {
		ours.Chain = append(ours.Chain, c.Raw)
	}
	root := chain[len(chain)-1]
	ours.Use, ours.Parent = Domain, a.anchorID(root)
	if r, ok := a.live.Load().find(ours.Parent); ok && r.published() {
		if r.Reason == shared || r.KeyRef != "" {
			return []Record{ours}
		}
		r.Reason = shared // what was said of it last
		return []Record{ours, r}
	}
	return []Record{ours, a.foreignRoot(root, shared, now)}
}

// anchorID is the ID of a root: of one of our own that has this very
// certificate, whose key may be offline, or of a corporate one.
func (a *Authority) anchorID(c *x509.Certificate) string {
	for _, r := range a.live.Load().of(Root, "") {
		if r.KeyRef != "" && bytes.Equal(r.Chain[0], c.Raw) {
			return r.ID
		}
	}
	return rootID(c)
}

// warnings are what works, but not everywhere or not for long.
func (a *Authority) warnings(chain []*x509.Certificate) []string {
	var w []string
	ours := chain[0]
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if leavesOnly(ours) {
		add("path length 0: this CA signs SVIDs itself, and each rotation needs the PKI team (path length 1 would not)")
	}
	if len(ours.URIs) == 0 {
		add("subjectAltName: our CA has no SPIFFE ID (X509-SVID §3.2 asks for %s); some validators miss it", a.cfg.TrustDomain.IDString())
	}
	if !signsCRLs(ours) {
		add("keyUsage: lacks cRLSign: there is no CRL of what this CA signs, and no SVID or issuing CA of its names one")
	}
	length := len(chain) + 1
	if !leavesOnly(ours) {
		length++
	}
	if a.cfg.Anchor == anchorRoot && length > cloudPath {
		add("chain: is %d certificates from SVID to root; AWS Roles Anywhere and Google Cloud take %d", length, cloudPath)
	}
	for _, c := range chain {
		if len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains) > 0 {
			add("nameConstraints: %q bounds DNS names (permitted %q, excluded %q): SVIDs with others do not verify, nor for GnuTLS and Java those with a CN that looks like one", c.Subject.String(), c.PermittedDNSDomains, c.ExcludedDNSDomains)
		}
		if len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0 {
			add("nameConstraints: %q bounds URIs: GnuTLS, Mbed TLS and rustls refuse such chains", c.Subject.String())
		}
	}
	if a.cfg.Anchor == anchorOurs {
		add("anchor ours: the bundle holds a certificate that is not self-signed; OpenSSL needs -partial_chain for it, and clouds whose anchors must be self-signed do not take it")
	}
	return w
}
