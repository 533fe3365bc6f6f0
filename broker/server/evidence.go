package server

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/federation"
)

const (
	maxJTI = 256
	// maxLearners bounds who wait for a peer's bundle because of a key that is
	// not known: strangers name any.
	maxLearners = 4
)

// A badToken says what is wrong with a token, to whoever shows it and wrote it:
// nothing of ours is in it.
type badToken struct{ why string }

func (b *badToken) Error() string { return "the subject_token is refused: " + b.why }

func bad(format string, args ...any) error { return &badToken{fmt.Sprintf(format, args...)} }

// verifiedJWT judges a token as evidence. It is made for us alone, fresh, and
// signed by whom its subject belongs to. What its header or its issuer claims is
// never followed.
func (s *Server) verifiedJWT(ctx context.Context, token string) (broker.Evidence, error) {
	var none broker.Evidence
	j, err := federation.ParseJWT(token)
	if err != nil {
		return none, bad("%v", err)
	}
	once, err := s.forUs(j)
	if err != nil {
		return none, err
	}
	key, err := s.verifyJWT(ctx, j)
	if err != nil {
		return none, fmt.Errorf("verifying a token of %s: %w: %w", j.ID, join.ErrEvidence, err)
	}
	jti, _ := j.Claims["jti"].(string)
	return broker.Evidence{
		ID: j.ID, Kind: broker.KindJWT, Serial: jti, Authority: key, Once: once, IssuedAt: j.IssuedAt, Expires: j.Expires,
	}, nil
}

// forUs checks what a token says of itself, before anything is done about its
// signature, and returns by what it is spent.
func (s *Server) forUs(j *federation.JWT) (once [sha256.Size]byte, err error) {
	for _, name := range []string{"jwk", "jku", "x5c", "x5u", "b64"} {
		if _, there := j.Header[name]; there {
			return once, bad("its header has %s: keys come from bundles alone", name)
		}
	}
	for _, name := range []string{"act", "may_act"} {
		if _, there := j.Claims[name]; there {
			return once, bad("it has the claim %s: what an exchange gave is not exchanged again", name)
		}
	}
	if len(j.Audiences) != 1 || j.Audiences[0] != s.cfg.Policy.TokenEndpoint {
		return once, bad("its aud must be %s, and nothing else", s.cfg.Policy.TokenEndpoint)
	}
	now := s.cfg.Now()
	switch {
	case j.IssuedAt.IsZero():
		return once, bad("it has no iat")
	case j.IssuedAt.After(now.Add(clockSkew)):
		return once, bad("its iat lies in the future")
	case j.Expires.Sub(j.IssuedAt) > identity.EvidenceTTL:
		return once, bad("it lives longer than %s", identity.EvidenceTTL)
	case !j.Expires.After(now), j.Expires.Before(j.IssuedAt): // what comes out of it would have to end before it begins
		return once, bad("it has expired")
	}
	if err := j.CheckTimes(now); err != nil {
		return once, bad("%v", err)
	}
	if id, there := j.Claims["jti"]; there {
		text, ok := id.(string)
		if !ok || text == "" || len(text) > maxJTI {
			return once, bad("its jti is not a string of 1 to %d bytes", maxJTI)
		}
		return spentBy(j.ID, "jti", text), nil
	}
	return spentBy(j.ID, "signed", j.Signed), nil
}

// spentBy digests parts, none of which holds what parts them.
func spentBy(id spiffeid.ID, kind, text string) [sha256.Size]byte {
	return sha256.Sum256([]byte("jwt-svid\n" + id.TrustDomain().Name() + "\n" + kind + "\n" + text))
}

// verifyJWT checks the signature, asking a peer once more for its bundle where
// the key is not known.
func (s *Server) verifyJWT(ctx context.Context, j *federation.JWT) (key string, err error) {
	td := j.ID.TrustDomain()
	if td == s.cfg.TrustDomain {
		if iss, _ := j.Claims["iss"].(string); iss != s.cfg.Issuer {
			return "", fmt.Errorf("its iss is %.300q", iss)
		}
		return j.Verify(s.ownJWT())
	}
	key, err = j.Verify(s.cfg.Peers.Set())
	var unknown *federation.UnknownKeyError
	if !errors.As(err, &unknown) {
		return key, err
	}
	select {
	case s.learners <- struct{}{}:
		defer func() { <-s.learners }()
	default:
		return "", err
	}
	if asked, failed := s.cfg.Peers.RefreshFor(ctx, td); !asked || failed != nil {
		return "", err
	}
	return j.Verify(s.cfg.Peers.Set())
}

// ownJWT are the keys that verify our own tokens.
func (s *Server) ownJWT() *jwtbundle.Bundle {
	keys := make(map[string]crypto.PublicKey)
	for _, k := range s.cfg.Authority.Bundle().JWTKeys {
		keys[k.ID] = k.Key
	}
	return jwtbundle.FromJWTAuthorities(s.cfg.TrustDomain, keys)
}

// verifiedX509 judges the certificates that a caller showed in TLS, as they
// stand now: it may have connected long ago.
func (s *Server) verifiedX509(certs []*x509.Certificate) (broker.Evidence, error) {
	var none broker.Evidence
	id, chains, err := federation.VerifyX509(certs, s, s.cfg.Now())
	if err != nil {
		return none, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	if len(chains) == 0 || len(chains[0]) < 2 {
		return none, fmt.Errorf("%w: no chain", join.ErrEvidence)
	}
	leaf, issuer := chains[0][0], sha256.Sum256(chains[0][1].RawSubjectPublicKeyInfo)
	return broker.Evidence{
		ID: id, Kind: broker.KindX509, Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), Authority: hex.EncodeToString(issuer[:16]),
		IssuedAt: leaf.NotBefore, Expires: leaf.NotAfter,
	}, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source over our own bundle
// and the peers', each for its trust domain alone.
func (s *Server) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td == s.cfg.TrustDomain {
		return s.cfg.Authority.GetX509BundleForTrustDomain(td)
	}
	return s.cfg.Peers.Set().GetX509BundleForTrustDomain(td)
}

// admitted says why evidence that verifies is not taken, or "": of a peer only
// what its Peer accepts, and while its bundle is confirmed.
func (s *Server) admitted(e broker.Evidence) string {
	td := e.ID.TrustDomain()
	if td == s.cfg.TrustDomain {
		return ""
	}
	status, ok := s.cfg.Peers.Status(td)
	switch {
	case !ok:
		return "it is no peer"
	case !status.Peer.Accepts(e.ID):
		return "no pattern in accept of its Peer takes its path"
	}
	if err := status.Confirmed(); err != nil {
		return err.Error()
	}
	return ""
}
