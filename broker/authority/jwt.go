package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

var b64 = base64.RawURLEncoding

// SignJWT signs the JWT-SVID that g grants, in JWS compact form. It refuses the
// zero Grant, one made more than 30 s ago and one for an X509-SVID. From its iat
// to its exp it lives as long as the Grant does, an hour at most, and it ends
// no later than the Grant. In a new trust domain it
// waits for the first RS256 key, as long as ctx lets it.
func (a *Authority) SignJWT(ctx context.Context, g identity.Grant) (string, error) {
	now := a.cfg.Now()
	err := a.checkJWT(g, now)
	if err == nil && g.Alg() == "RS256" && a.live.Load().active("RS256") == "" {
		err = a.Ready(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("signing a JWT-SVID for %s: %w", g.ID(), err)
	}
	iat, exp := a.jwtLife(g, now)
	longer(&a.ahead.jwt, exp.Sub(now))
	for {
		key := a.live.Load().jwt[g.Alg()]
		if key == nil {
			return "", fmt.Errorf("signing a JWT-SVID for %s: %w", g.ID(), a.noKey(g.Alg()))
		}
		end := exp
		if exp.After(key.LastExpiry) {
			promised, again, err := a.promise(ctx, key.Record, now, exp)
			if err != nil {
				return "", fmt.Errorf("signing a JWT-SVID for %s: %w", g.ID(), err)
			}
			if again {
				continue
			}
			end = promised
		}
		token, err := a.signToken(key, g, iat, end)
		if err != nil {
			return "", fmt.Errorf("signing a JWT-SVID for %s: %w", g.ID(), err)
		}
		return token, nil
	}
}

// noKey says why there is no key of alg to sign with.
func (a *Authority) noKey(alg string) error {
	if why := a.problems.of(problemKey + a.live.Load().active(alg)); why != "" {
		return errors.New(why)
	}
	return fmt.Errorf("there is no active %s key", alg)
}

// jwtLife counts the granted life from an iat that lies back by what clocks may
// be off, or by half of a life that is too short for that.
func (a *Authority) jwtLife(g identity.Grant, now time.Time) (iat, exp time.Time) {
	life := min(g.Expires().Sub(g.Made()), a.cfg.Lives.MaxJWT)
	iat = now.Add(-min(a.cfg.Lives.Backdate, life/2)).Truncate(time.Second)
	return iat, earliest(iat.Add(life), g.Expires()).Truncate(time.Second)
}

func (a *Authority) checkJWT(g identity.Grant, now time.Time) error {
	if err := a.checkGrant(g, now); err != nil {
		return err
	}
	switch {
	case a.cfg.Issuer == "":
		return errors.New("this broker has no issuer, so no JWT-SVIDs")
	case !g.Key().IsZero():
		return errors.New("the grant is for an X509-SVID")
	case len(g.Audiences()) == 0 || slices.Contains(g.Audiences(), ""): // SPIFFE JWT-SVID §3.2
		return errors.New("the grant has no audience, or an empty one")
	case g.Alg() != "RS256" && g.Alg() != "ES256":
		return fmt.Errorf("the grant is for algorithm %q: want RS256 or ES256", g.Alg())
	}
	return nil
}

// jwtHeader is SPIFFE JWT-SVID §2: these three and no other.
func jwtHeader(r Record) []byte {
	header := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, r.Alg, r.ID)
	return append(b64.AppendEncode(nil, []byte(header)), '.')
}

func (a *Authority) signToken(key *jwtKey, g identity.Grant, iat, exp time.Time) (string, error) {
	claims, err := a.claims(g, iat, exp)
	if err != nil {
		return "", err
	}
	token := b64.AppendEncode(bytes.Clone(key.header), claims)
	hash := sha256.Sum256(token)
	signature, err := key.signer.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("signing with key %s: %w", key.ID, err)
	}
	if signature, err = checkSignature(key.signer.Public(), hash[:], signature); err != nil {
		return "", fmt.Errorf("signing with key %s: %w", key.ID, err)
	}
	return string(b64.AppendEncode(append(token, '.'), signature)), nil
}

// registered are the claims that an identity cannot set.
var registered = []string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "act"}

// claims are SPIFFE JWT-SVID §3: one audience is written as a string, times
// are integers (AWS refuses others), and there is no nbf.
func (a *Authority) claims(g identity.Grant, iat, exp time.Time) ([]byte, error) {
	claims := make(map[string]any, len(g.Claims())+6)
	maps.Copy(claims, g.Claims())
	for _, name := range registered {
		if _, taken := claims[name]; taken {
			return nil, fmt.Errorf("the grant adds claim %q, which is ours to set", name)
		}
	}
	jti := make([]byte, 16)
	if _, err := rand.Read(jti); err != nil {
		return nil, fmt.Errorf("making a jti: %w", err)
	}
	if g.Act() != "" {
		claims["act"] = map[string]string{"sub": g.Act()}
	}
	claims["iss"] = a.cfg.Issuer
	claims["sub"] = g.ID().String()
	claims["aud"] = g.Audiences()
	if len(g.Audiences()) == 1 {
		claims["aud"] = g.Audiences()[0]
	}
	claims["iat"], claims["exp"] = iat.Unix(), exp.Unix()
	claims["jti"] = b64.EncodeToString(jti)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(claims); err != nil {
		return nil, fmt.Errorf("encoding the claims: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// checkSignature verifies what a signer returned, since a faulty one could
// give its key away, and returns it as JWS writes it (RFC 7518 §3.3, §3.4).
func checkSignature(pub crypto.PublicKey, hash, signature []byte) ([]byte, error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return signature, rsa.VerifyPKCS1v15(pub, crypto.SHA256, hash, signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, hash, signature) {
			return nil, errors.New("the signature does not verify")
		}
		var rs struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(signature, &rs); err != nil || len(rest) > 0 {
			return nil, errors.New("the signature is no ECDSA signature")
		}
		raw := make([]byte, 64)
		rs.R.FillBytes(raw[:32])
		rs.S.FillBytes(raw[32:])
		return raw, nil
	}
	return nil, fmt.Errorf("a key of type %T does not sign JWT-SVIDs", pub)
}
