package identity

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// Bounds of the claims that one Identity adds.
const (
	maxClaims      = 64
	maxClaimsBytes = 4 << 10
	maxClaimsDepth = 6
)

// registeredClaims mean something to those who verify tokens: an Identity
// that could set them could forge it (RFC 7519 §4.1, RFC 7800, RFC 8693 §4,
// RFC 9068, OpenID Connect Core §2).
var registeredClaims = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti",
	"act", "may_act", "cnf", "client_id", "azp", "scope", "scp",
	"nonce", "auth_time", "acr", "amr", "at_hash", "c_hash", "sid", "sub_id", "events",
}

// cloneClaims copies claims, which are JSON's types and Go's integers. The
// copy shares nothing with what the caller may still change.
func cloneClaims(claims map[string]any) (map[string]any, error) {
	if claims == nil {
		return nil, nil
	}
	if len(claims) > maxClaims {
		return nil, fmt.Errorf("%d claims: at most %d are taken", len(claims), maxClaims)
	}
	for name := range claims {
		if slices.Contains(registeredClaims, name) {
			return nil, fmt.Errorf("%q is a registered claim: Credence alone sets it", name)
		}
	}
	left := maxClaimsBytes
	clone, err := cloneClaim(claims, maxClaimsDepth, &left)
	if err == nil && left < 0 {
		err = fmt.Errorf("claims are more than %d bytes", maxClaimsBytes)
	}
	if err != nil {
		return nil, err
	}
	return clone.(map[string]any), nil
}

// cloneClaim spends left for each byte that it copies, and for each value.
func cloneClaim(v any, depth int, left *int) (any, error) {
	if *left -= 2; depth == 0 || *left < 0 {
		return nil, fmt.Errorf("claims are more than %d bytes or %d deep", maxClaimsBytes, maxClaimsDepth)
	}
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		*left -= 8
		return v, nil
	case float64:
		*left -= 8
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("claim of %v, which JSON can't say", v)
		}
		return v, nil
	case string:
		*left -= len(v)
		if !utf8.ValidString(v) {
			return nil, errors.New("a claim is not UTF-8")
		}
		return v, nil
	case []string:
		all := make([]any, len(v))
		for i := range v {
			all[i] = v[i]
		}
		return cloneClaimList(all, depth, left)
	case []any:
		return cloneClaimList(v, depth, left)
	case map[string]any:
		return cloneClaimMap(v, depth, left)
	default:
		return nil, fmt.Errorf("claim of type %T: want strings, numbers, booleans, lists and maps", v)
	}
}

func cloneClaimList(v []any, depth int, left *int) (any, error) {
	clone := make([]any, 0, min(len(v), maxClaimsBytes))
	for _, x := range v {
		c, err := cloneClaim(x, depth-1, left)
		if err != nil {
			return nil, err
		}
		clone = append(clone, c)
	}
	return clone, nil
}

func cloneClaimMap(v map[string]any, depth int, left *int) (any, error) {
	clone := make(map[string]any, min(len(v), maxClaims))
	for name, x := range v {
		if *left -= len(name); name == "" || !utf8.ValidString(name) {
			return nil, errors.New("a claim's name is empty or not UTF-8")
		}
		c, err := cloneClaim(x, depth-1, left)
		if err != nil {
			return nil, err
		}
		clone[name] = c
	}
	return clone, nil
}
