package workloadapi

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/federation"
)

// validate holds a token against all rules of SPIFFE JWT-SVID for a validator,
// with keys of the trust domain of its subject alone, and against what is
// revoked. But for that, iat limits nothing.
func validate(token, audience string, bundles map[spiffeid.TrustDomain]*agent.Bundle, revoked *agent.Cutoffs, now time.Time) (spiffeid.ID, map[string]any, error) {
	var none spiffeid.ID
	if audience == "" { // then no token is for us (SPIFFE JWT-SVID §3.2)
		return none, nil, errors.New("no audience to validate it for")
	}
	j, err := federation.ParseJWT(token)
	if err != nil {
		return none, nil, err
	}
	key, err := j.Verify(authorities(bundles))
	if err != nil {
		return none, nil, err
	}
	if err := j.CheckTimes(now); err != nil {
		return none, nil, err
	}
	if !slices.Contains(j.Audiences, audience) {
		return none, nil, fmt.Errorf("it is not for audience %q", audience)
	}
	if err := revoked.Check(j.ID, key, j.IssuedAt, j.Expires); err != nil {
		return none, nil, err
	}
	return j.ID, j.Claims, nil
}

// authorities is a jwtbundle.Source over what the agent holds for a caller.
type authorities map[spiffeid.TrustDomain]*agent.Bundle

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (a authorities) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	b, ok := a[td]
	if !ok {
		return nil, fmt.Errorf("no bundle of trust domain %s", td)
	}
	return jwtbundle.FromJWTAuthorities(td, b.JWTAuthorities), nil
}
