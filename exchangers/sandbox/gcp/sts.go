package gcp

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

const (
	tokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
	jwtType         = "urn:ietf:params:oauth:token-type:jwt"
	idTokenType     = "urn:ietf:params:oauth:token-type:id_token"
	mtlsType        = "urn:ietf:params:oauth:token-type:mtls"
)

var audience = regexp.MustCompile(`^//iam\.googleapis\.com/(projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]+)/providers/([a-z0-9-]+)$`)

// STS serves POST /v1/token of sts.googleapis.com, for OIDC providers.
func (c *Cloud) STS() http.Handler {
	return c.STSFaults.Wrap(sandbox.Serve("gcp_sts", c.now, c.cfg.Log, func(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
		c.serveSTS(w, r, e, c.exchangeJWT)
	}))
}

// subject verifies the subject token in the parameters, and returns the scopes
// that were asked for.
type subject func(*http.Request, map[string]string) (verified, []string, *refusal)

// verified is what a subject token says once it is verified.
type verified struct {
	provider *provider
	claims   map[string]any // assertion
	expires  time.Time
}

func (c *Cloud) serveSTS(w http.ResponseWriter, r *http.Request, e *sandbox.Entry, verify subject) {
	w.Header().Set("X-Request-Id", e.ID)
	out, no := c.serveToken(r, e, verify)
	if no != nil {
		e.Code, e.Reason = no.code, no.reason()
		writeOAuth(w, no)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (c *Cloud) serveToken(r *http.Request, e *sandbox.Entry, verify subject) (map[string]any, *refusal) {
	if r.URL.Path != "/v1/token" {
		return nil, &refusal{status: http.StatusNotFound, code: "not_found", text: "The requested URL was not found on this server."}
	}
	if r.Method != http.MethodPost {
		return nil, &refusal{status: http.StatusMethodNotAllowed, code: "method_not_allowed", text: "Use POST."}
	}
	f, err := readParameters(r)
	if err != nil {
		return nil, invalid("Invalid request: "+err.Error(), err)
	}
	e.Fields = maps.Clone(f)
	if raw, ok := f["subject_token"]; ok {
		e.Token = sandbox.HashToken(raw)
		delete(e.Fields, "subject_token")
	}
	v, scopes, no := verify(r, f)
	if no != nil {
		return nil, no
	}
	return c.exchange(v, scopes)
}

func oauth(code, text string, why error) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, text: text, why: why}
}

func invalid(text string, why error) *refusal { return oauth("invalid_request", text, why) }

// jsonNames are the parameters in a JSON body, in both spellings in use.
var jsonNames = map[string]string{
	"audience": "audience", "scope": "scope", "options": "options",
	"grant_type": "grant_type", "grantType": "grant_type",
	"requested_token_type": "requested_token_type", "requestedTokenType": "requested_token_type",
	"subject_token": "subject_token", "subjectToken": "subject_token",
	"subject_token_type": "subject_token_type", "subjectTokenType": "subject_token_type",
}

func readParameters(r *http.Request) (map[string]string, error) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		return sandbox.ReadForm(r)
	}
	o, err := sandbox.ReadJSON(r)
	if err != nil {
		return nil, err
	}
	f := map[string]string{}
	for given, v := range o {
		name, ok := jsonNames[given]
		s, isText := v.(string)
		switch {
		case !ok:
			return nil, fmt.Errorf("unknown name %q", given)
		case !isText || s == "":
			return nil, &sandbox.FieldError{Field: given, Err: sandbox.ErrEmpty}
		case f[name] != "":
			return nil, &sandbox.FieldError{Field: name, Err: sandbox.ErrDuplicate}
		}
		f[name] = s
	}
	return f, nil
}

// exchangeJWT is the subject of an OIDC provider.
func (c *Cloud) exchangeJWT(r *http.Request, f map[string]string) (verified, []string, *refusal) {
	p, scopes, no := c.target(f, jwtType, idTokenType)
	if no != nil {
		return verified{}, nil, no
	}
	if p.TrustStore != nil {
		return verified{}, nil, invalid(`Invalid value for "subject_token_type"`, errors.New("the provider is an X.509 provider"))
	}
	t, exp, no := c.verify(r.Context(), p, f["subject_token"])
	if no != nil {
		return verified{}, nil, no
	}
	return verified{p, t.Claims, exp}, scopes, nil
}

func (c *Cloud) exchange(v verified, scopes []string) (map[string]any, *refusal) {
	p, exp := v.provider, v.expires
	a, no := mapped(p, v.claims)
	if no != nil {
		return nil, no
	}
	now := c.now()
	if limit := now.Add(time.Hour); exp.After(limit) {
		exp = limit
	}
	out := map[string]any{
		"access_token": c.issue(token{principal: p.principal(a), members: p.members(a), scopes: scopes, expires: exp}),
		"token_type":   "Bearer", "issued_token_type": accessTokenType,
	}
	// The real service leaves out a life of less than about two seconds.
	if life := int(exp.Sub(now) / time.Second); life >= 2 {
		out["expires_in"] = life
	}
	return out, nil
}

// target checks all parameters but the subject token, whose type must be one
// of those given.
func (c *Cloud) target(f map[string]string, types ...string) (*provider, []string, *refusal) {
	switch {
	case f["grant_type"] == "":
		return nil, nil, invalid(`Invalid value for "grant_type"`, nil)
	case f["grant_type"] != tokenExchange:
		return nil, nil, oauth("unsupported_grant_type", "Unsupported grant_type: "+f["grant_type"], nil)
	case f["requested_token_type"] != accessTokenType:
		return nil, nil, invalid(`Invalid value for "requested_token_type"`, nil)
	case !slices.Contains(types, f["subject_token_type"]):
		return nil, nil, invalid(`Invalid value for "subject_token_type"`, fmt.Errorf("this host takes %v", types))
	case f["subject_token"] == "":
		return nil, nil, invalid(`Invalid value for "subject_token"`, nil)
	}
	m := audience.FindStringSubmatch(f["audience"])
	if m == nil {
		return nil, nil, invalid(`Invalid value for "audience"`, nil)
	}
	scopes := strings.Fields(f["scope"])
	if !checkScopes(scopes) {
		return nil, nil, oauth("invalid_scope", "The scope is missing or invalid.", nil)
	}
	p := c.provider(m[1], m[2])
	if p == nil {
		return nil, nil, oauth("invalid_target", `The target service indicated by the "audience" parameters is invalid. `+
			`This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`, nil)
	}
	return p, scopes, nil
}

// mapped applies mapping and condition.
func mapped(p *provider, claims map[string]any) (attributes, *refusal) {
	a, err := p.apply(claims)
	switch {
	case err != nil:
		return a, invalid("Unable to map the attributes of the credential.", err)
	case a.subject == "":
		return a, invalid("The mapped attribute google.subject must not be empty.", nil)
	case len(a.subject) > 127:
		return a, invalid("The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your attribute mapping "+
			"or the incoming assertion to produce a mapped attribute that is less than 127 bytes.", nil)
	case a.size() > 8<<10:
		return a, invalid("The size of the mapped attributes exceeds the 8 KB limit.", nil)
	}
	if ok, err := p.admits(claims, a); err != nil || !ok {
		return a, oauth("unauthorized_client", "The given credential is rejected by the attribute condition.", err)
	}
	return a, nil
}
