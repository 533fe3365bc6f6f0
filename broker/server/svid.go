package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

// ownLife is how long the broker's own X509-SVID lives, renewed at half.
const ownLife = 4 * time.Hour

// ownSVID is the broker's X509-SVID, /credence/broker, renewed under open
// listeners.
type ownSVID struct {
	current atomic.Pointer[ownCert]
	failed  atomic.Bool // the last renewal did
}

type ownCert struct {
	plain, anchored *tls.Certificate
	renewAt         time.Time
}

// certificate is the chain without the root; nil: there is no issuing CA yet.
func (o *ownSVID) certificate() *tls.Certificate { return o.current.Load().plain }

// errNoCA is why listeners refuse handshakes where a corporate PKI has not
// certified us yet.
var errNoCA = errors.New("the broker has no SVID: no CA is installed yet (credence ca csr, credence ca install)")

// withAnchor is the chain with the root at its end, by which a node that has
// only a pin finds the anchor.
func (o *ownSVID) withAnchor() (*tls.Certificate, error) {
	if c := o.current.Load().anchored; c != nil {
		return c, nil
	}
	return nil, errNoCA
}

// firstOwn makes the first SVID. Where no CA is installed yet there is none, and
// operators alone are served.
func (s *Server) firstOwn(ctx context.Context) error {
	err := s.renewOwn(ctx)
	if err != nil && len(s.cfg.Authority.Bundle().X509Authorities) == 0 {
		s.cfg.Log.WarnContext(ctx, "operators alone are served", "reason", errNoCA)
		s.svid.current.Store(&ownCert{renewAt: s.cfg.Now().Add(5 * time.Second)})
		return nil
	}
	return err
}

// renew makes a new key and signs it.
func (s *Server) renewOwn(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return fmt.Errorf("making the broker's key: %w", err)
	}
	digest, err := identity.DigestKey(key.Public())
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	grant, err := identity.ForBroker(s.cfg.TrustDomain, digest, now, now.Add(ownLife))
	if err != nil {
		return fmt.Errorf("renewing the broker's SVID: %w", err)
	}
	chain, err := s.cfg.Authority.SignX509(ctx, grant, key.Public())
	if err != nil {
		return fmt.Errorf("renewing the broker's SVID: %w", err)
	}
	bundle, err := s.cfg.Authority.GetX509BundleForTrustDomain(s.cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("renewing the broker's SVID: %w", err)
	}
	plain := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		plain.Certificate = append(plain.Certificate, c.Raw)
	}
	anchored := *plain
	if anchor := issuerOf(chain[len(chain)-1], bundle.X509Authorities()); anchor != nil {
		anchored.Certificate = append(append([][]byte{}, plain.Certificate...), anchor.Raw)
	}
	life := chain[0].NotAfter.Sub(now)
	s.svid.current.Store(&ownCert{plain, &anchored, now.Add(life/2 - rand.N(life/20+1))})
	return nil
}

func issuerOf(c *x509.Certificate, anchors []*x509.Certificate) *x509.Certificate {
	for _, a := range anchors {
		if c.CheckSignatureFrom(a) == nil {
			return a
		}
	}
	return nil
}

// keepOwn renews the broker's SVID until ctx ends, at once when the bundle no
// longer verifies it (a root was dropped), and when another CA signs than its own:
// that may be on a list, by which agents take nobody for the broker who shows it. A
// failed renewal is tried again every few seconds: the old one serves meanwhile.
func (s *Server) keepOwn(ctx context.Context) {
	var seen *authority.Bundle
	var signs *x509.Certificate
	for {
		lists := s.cfg.Authority.CRLsChanged()
		if b := s.cfg.Authority.Bundle(); b != seen {
			if !verifies(b, s.svid.certificate()) {
				s.svid.retryAt(s.cfg.Now())
			}
			seen = b
		}
		if chain := s.cfg.Authority.IssuingChain(); len(chain) > 0 && !chain[0].Equal(signs) {
			signs = chain[0]
			if own := s.svid.certificate(); own != nil && own.Leaf.CheckSignatureFrom(signs) != nil {
				s.svid.retryAt(s.cfg.Now())
			}
		}
		// Looked at each minute: a machine that slept counts no timers.
		wait := s.svid.current.Load().renewAt.Sub(s.cfg.Now())
		select {
		case <-ctx.Done():
			return
		case <-seen.Changed():
			continue
		case <-lists:
			continue
		case <-time.After(min(max(wait, 0), time.Minute)):
		}
		if s.cfg.Now().Before(s.svid.current.Load().renewAt) {
			continue
		}
		if len(seen.X509Authorities) == 0 { // the bundle changes when a CA is installed
			s.svid.retryAt(s.cfg.Now().Add(time.Minute))
			continue
		}
		err := s.renewOwn(ctx)
		s.svid.failed.Store(err != nil)
		if err != nil {
			s.cfg.Log.ErrorContext(ctx, "broker's SVID not renewed", "error", err)
			s.svid.retryAt(s.cfg.Now().Add(5 * time.Second))
		}
	}
}

// verifies says whether a bundle verifies a chain; there may be none.
func verifies(b *authority.Bundle, cert *tls.Certificate) bool {
	if cert == nil {
		return false
	}
	last, err := x509.ParseCertificate(cert.Certificate[len(cert.Certificate)-1])
	return err == nil && issuerOf(last, b.X509Authorities) != nil
}

func (o *ownSVID) retryAt(t time.Time) {
	c := *o.current.Load()
	c.renewAt = t
	o.current.Store(&c)
}
