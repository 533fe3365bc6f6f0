package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/spiffe"
	"github.com/credence-id/credence/federation"
)

// verifySVID judges the X509-SVIDs by which nodes join: a peer's by its bundle, while
// that is confirmed; one of ours by what the broker knows of it too.
func (p *brokerParts) verifySVID(own spiffeid.TrustDomain, now func() time.Time) spiffe.Verify {
	return func(ctx context.Context, certs []*x509.Certificate) (spiffeid.ID, error) {
		claimed, err := federation.LeafID(certs[0])
		if err != nil {
			return spiffeid.ID{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
		}
		var bundles x509bundle.Source = p.authority
		if td := claimed.TrustDomain(); td != own {
			if err := p.believed(td); err != nil {
				return spiffeid.ID{}, err
			}
			bundles = p.peers.Set()
		}
		id, chains, err := federation.VerifyX509(certs, bundles, now())
		if err != nil {
			return spiffeid.ID{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
		}
		if id.TrustDomain() != own {
			return id, nil
		}
		leaf, issuer := chains[0][0], sha256.Sum256(chains[0][1].RawSubjectPublicKeyInfo)
		return id, p.broker.Stands(ctx, broker.Evidence{
			ID: id, Kind: broker.KindX509, Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), Authority: hex.EncodeToString(issuer[:16]),
			IssuedAt: leaf.NotBefore, Expires: leaf.NotAfter,
		})
	}
}

// believed says whether a peer's bundle may be judged by now.
func (p *brokerParts) believed(td spiffeid.TrustDomain) error {
	status, ok := p.peers.Status(td)
	if !ok {
		return fmt.Errorf("%w: %s is no peer", join.ErrEvidence, td)
	}
	return status.Confirmed()
}
