package azure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// assertion checks the client assertion against the app's credentials: header,
// claims, credential, key, signature, time, each before the next is looked at.
func (c *Cloud) assertion(ctx context.Context, host string, a App, f map[string]string) *refusal {
	raw := f["client_assertion"]
	switch {
	case f["client_secret"] != "":
		return invalidClient(7000215, "Invalid client secret provided.", nil)
	case raw == "":
		return invalidClient(7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.", nil)
	case f["client_assertion_type"] == "":
		return missingParameter("client_assertion_type")
	case f["client_assertion_type"] != assertionType:
		return invalidRequest(50027, "Invalid client assertion type '"+f["client_assertion_type"]+"'.", nil)
	}
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return invalidRequest(50027, "JWT token is invalid or malformed.", err)
	}
	if no := c.header(t); no != nil {
		return no
	}
	if no := c.match(host, a, t); no != nil {
		return no
	}
	if no := c.signature(ctx, t); no != nil {
		return no
	}
	return c.times(t)
}

func (c *Cloud) header(t *sandbox.JWT) *refusal {
	algorithms := []string{"RS256"}
	if c.cfg.LenientAlgorithms {
		algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	}
	switch {
	case t.Type != "JWT" && t.Type != "http://openid.net/specs/jwt/1.0":
		return invalidRequest(5002727, "Invalid JWT header type specified. Allowed types: 'JWT','http://openid.net/specs/jwt/1.0'.", nil)
	case !slices.Contains(algorithms, t.Algorithm):
		return invalidRequest(5002738, fmt.Sprintf("Invalid JWT token. '%s' is not a supported signature algorithm. Supported signing algorithms are: '%s'",
			t.Algorithm, strings.Join(algorithms, ", ")), nil)
	case t.KeyID == "":
		return invalidClient(5002723, "Invalid JWT token. No certificate SHA-1 thumbprint, certificate SHA-256 thumbprint, nor keyId specified in token header.", nil)
	}
	return nil
}

const checkYours = "heck your federated identity credential Subject, Audience and Issuer against the presented assertion. " +
	"https://learn.microsoft.com/entra/workload-id/workload-identity-federation"

// match looks the credential up: issuer, then audience, then subject, byte by
// byte.
func (c *Cloud) match(host string, a App, t *sandbox.JWT) *refusal {
	iss, err1 := t.Text("iss")
	sub, err2 := t.Text("sub")
	aud, err3 := t.Audiences()
	switch {
	case err1 != nil:
		return missingClaim("iss", err1)
	case err3 != nil:
		return missingClaim("aud", err3)
	case err2 != nil:
		return missingClaim("sub", err2)
	}
	if len(aud) > 1 {
		return invalidClient(5002741, fmt.Sprintf("Number of audience values in the provided client credential exceed maximum allowed. "+
			"%d audience values provided, maximum allowed is 1.", len(aud)), nil)
	}
	if c.ours(iss, host) {
		return invalidRequest(700222, "AAD-issued tokens may not be used for federated identity flows.", nil)
	}
	if len(a.Credentials) == 0 {
		return invalidClient(70025, fmt.Sprintf("The client '%s' has no configured federated identity credentials.", a.ClientID), nil)
	}
	return find(a.Credentials, iss, aud[0], sub)
}

func find(all []Credential, iss, aud, sub string) *refusal {
	left := filter(all, func(c Credential) bool { return c.Issuer == iss })
	if len(left) == 0 {
		return invalidClient(700211, "No matching federated identity record found for presented assertion issuer '"+iss+"'. Please c"+checkYours, nil)
	}
	left = filter(left, func(c Credential) bool { return c.Audience == aud })
	if len(left) == 0 {
		return invalidRequest(700212, "No matching federated identity record found for presented assertion audience '"+aud+"'. Please c"+checkYours, nil)
	}
	exact := filter(left, func(c Credential) bool { return c.Expression == "" && c.Subject == sub })
	if len(exact) > 0 {
		return nil
	}
	if slices.ContainsFunc(left, func(c Credential) bool { return c.Expression != "" }) {
		return invalidRequest(7002241, "Claims matching expressions are not supported for the issuer '"+iss+"'.", nil)
	}
	return invalidClient(700213, "No matching federated identity record found for presented assertion subject '"+sub+"'. C"+checkYours, nil)
}

func missingClaim(name string, err error) *refusal {
	return invalidRequest(90014, "The required field '"+name+"' is missing from the credential. Ensure that you have all the necessary parameters for the login request.", err)
}

func filter(in []Credential, keep func(Credential) bool) []Credential {
	var out []Credential
	for _, c := range in {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// ours says whether Entra itself issued a token with that iss.
func (c *Cloud) ours(iss, host string) bool {
	own := []string{"https://sts.windows.net/", "https://login.microsoftonline.com/", "https://login.microsoftonline.us/",
		"https://login.partner.microsoftonline.cn/", "https://login.chinacloudapi.cn/", "https://sts.chinacloudapi.cn/", "https://" + host + "/"}
	if c.cfg.Authority != "" {
		own = append(own, c.cfg.Authority+"/")
	}
	return slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(iss, o) })
}

func (c *Cloud) signature(ctx context.Context, t *sandbox.JWT) *refusal {
	iss, _ := t.Text("iss") // match has read it
	k, err := c.issuers.Key(ctx, iss, t.KeyID)
	switch {
	case errors.Is(err, sandbox.ErrUnknownKey):
		return invalidClient(7000272, "The certificate with identifier '"+t.KeyID+"' used to sign the client assertion could not be found.", err)
	case err != nil:
		return invalidRequest(501661, "Request to External OIDC endpoint failed.", err)
	}
	if err = k.Fits(t.Algorithm); err == nil {
		err = t.Verify(k.Public, t.Algorithm)
	}
	switch {
	case errors.Is(err, sandbox.ErrSignature):
		return invalidClient(700027, "Client assertion failed signature validation.", err)
	case err != nil:
		return invalidRequest(5002730, "Invalid JWT token. Unsupported key for the signing algorithm.", err)
	}
	return nil
}

// times wants exp, and the present between iat, nbf where there is one, and
// exp, give or take the skew.
func (c *Cloud) times(t *sandbox.JWT) *refusal {
	exp, err1 := t.Time("exp")
	nbf, err2 := t.Time("nbf")
	iat, err3 := t.Time("iat")
	if errors.Is(err1, sandbox.ErrNoClaim) {
		return missingClaim("exp", err1)
	}
	if err := errors.Join(err1, present(err2), present(err3)); err != nil {
		return invalidRequest(50027, "JWT token is invalid or malformed.", err)
	}
	if nbf.Before(iat) {
		nbf = iat
	}
	now := c.now()
	if !now.Before(exp.Add(c.cfg.Skew)) || nbf.After(now.Add(c.cfg.Skew)) {
		const layout = "2006-01-02T15:04:05.0000000Z"
		return invalidClient(700024, fmt.Sprintf("Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s.",
			now.UTC().Format(layout), nbf.UTC().Format(layout), exp.UTC().Format(layout)), nil)
	}
	return nil
}

// present forgives a claim that is not there.
func present(err error) error {
	if errors.Is(err, sandbox.ErrNoClaim) {
		return nil
	}
	return err
}
