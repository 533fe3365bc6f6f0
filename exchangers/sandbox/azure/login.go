package azure

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// Login serves the authority: for each tenant its OpenID configuration, keys
// and token endpoint.
func (c *Cloud) Login() http.Handler {
	return c.LoginFaults.Wrap(sandbox.Serve("entra", c.now, c.cfg.Log, c.serveLogin))
}

func (c *Cloud) serveLogin(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	w.Header().Set("X-Ms-Request-Id", e.ID)
	w.Header().Set("X-Ms-Ests-Server", "2.1.0 - sandbox")
	name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var out any
	var no *refusal
	switch path {
	case "v2.0/.well-known/openid-configuration":
		out, no = c.configuration(r, name)
	case "discovery/v2.0/keys":
		out, no = c.keys()
	case "oauth2/v2.0/token":
		out, no = c.token(r, name, e)
	default:
		no = &refusal{http.StatusNotFound, "invalid_request", 900144, "There is no such endpoint.", nil}
	}
	if no != nil {
		c.writeError(w, r, e, no)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (c *Cloud) findTenant(name string) (string, *refusal) {
	lower := strings.ToLower(name)
	switch {
	case lower == "common" || lower == "organizations" || lower == "consumers":
		return "", invalidRequest(50059, "No tenant-identifying information found in either the request or implied by any provided credentials.", nil)
	case !guid.MatchString(lower) && !domainName.MatchString(lower):
		return "", invalidRequest(900023, "Specified tenant identifier '"+name+"' is neither a valid DNS name, nor a valid external domain.", nil)
	}
	id, ok := c.tenant(name)
	if !ok {
		return "", invalidRequest(90002, "Tenant '"+name+"' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", nil)
	}
	return id, nil
}

// configuration is what client libraries read first. They want the issuer's
// host to be the authority's.
func (c *Cloud) configuration(r *http.Request, name string) (any, *refusal) {
	id, no := c.findTenant(name)
	if no != nil {
		return nil, no
	}
	base := c.cfg.Authority
	if base == "" {
		base = "https://" + r.Host
	}
	base += "/" + id
	return map[string]any{
		"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token", "jwks_uri": base + "/discovery/v2.0/keys",
		"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
		"response_types_supported":              []string{"code", "id_token"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"token_endpoint_auth_methods_supported": []string{"private_key_jwt"},
	}, nil
}

func (c *Cloud) keys() (any, *refusal) {
	set, err := c.signer.KeySet()
	if err != nil {
		return nil, &refusal{http.StatusInternalServerError, "server_error", 90033, "A transient error has occurred.", err}
	}
	return json.RawMessage(set), nil
}

func (c *Cloud) token(r *http.Request, name string, e *sandbox.Entry) (any, *refusal) {
	if r.Method != http.MethodPost {
		return nil, invalidRequest(900561, "The endpoint only accepts POST requests. Received a "+r.Method+" request.", nil)
	}
	id, no := c.findTenant(name)
	if no != nil {
		return nil, no
	}
	f, no := readForm(r)
	if no != nil {
		return nil, no
	}
	e.Fields = maps.Clone(f)
	delete(e.Fields, "client_assertion")
	delete(e.Fields, "client_secret")
	if raw := f["client_assertion"]; raw != "" {
		e.Token = sandbox.HashToken(raw)
	}
	app, no := c.client(id, f)
	if no != nil {
		return nil, no
	}
	if no := c.assertion(r.Context(), r.Host, app, f); no != nil {
		return nil, no
	}
	resource, no := c.resource(f["scope"])
	if no != nil {
		return nil, no
	}
	continuous, no := c.claims(f["claims"])
	if no != nil {
		return nil, no
	}
	return c.grant(id, app, resource, continuous)
}

func readForm(r *http.Request) (map[string]string, *refusal) {
	f, err := sandbox.ReadForm(r)
	var field *sandbox.FieldError
	if errors.As(err, &field) && field.Field != "" {
		return nil, invalidRequest(90100, "The '"+field.Field+"' parameter is empty or not valid.", err)
	}
	if err != nil {
		no := missingParameter("grant_type")
		no.why = err
		return nil, no
	}
	return f, nil
}

// client checks the parameters that name the app and the grant.
func (c *Cloud) client(tenantID string, f map[string]string) (App, *refusal) {
	switch {
	case f["grant_type"] == "":
		return App{}, missingParameter("grant_type")
	case f["grant_type"] != "client_credentials":
		return App{}, refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '"+f["grant_type"]+"'.", nil)
	case f["client_id"] == "":
		return App{}, missingParameter("client_id")
	case f["scope"] == "":
		return App{}, missingParameter("scope")
	}
	a, ok := c.app(tenantID, f["client_id"])
	if !ok {
		return App{}, refuse("unauthorized_client", 700016, fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'. "+
			"This can happen if the application has not been installed by the administrator of the tenant.", f["client_id"], tenantID), nil)
	}
	return a, nil
}

// resource returns the App ID URI of the one <resource>/.default. The three
// OpenID scopes, which libraries always add, do not count.
func (c *Cloud) resource(scope string) (string, *refusal) {
	var found []string
	for _, s := range strings.Fields(scope) {
		if s != "openid" && s != "offline_access" && s != "profile" {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return "", refuse("invalid_scope", 70011, "The provided value for the input parameter 'scope' is not valid. One resource is expected: "+scope, nil)
	}
	resource, ok := strings.CutSuffix(found[0], "/.default")
	if !ok {
		return "", refuse("invalid_scope", 1002012, "The provided value for scope "+scope+" is not valid. Client credential flows must have a scope value "+
			"with /.default suffixed to the resource identifier (application ID URI).", nil)
	}
	if !slices.Contains(c.cfg.Resources, resource) {
		return "", refuse("invalid_resource", 500011, "The resource principal named "+resource+" was not found in the tenant.", nil)
	}
	return resource, nil
}

func (c *Cloud) grant(tenantID string, a App, resource string, continuous bool) (any, *refusal) {
	now := c.now()
	claims := map[string]any{
		"aud": resource, "iss": tokenIssuer(tenantID), "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"appid": a.ClientID, "appidacr": "2", "idp": tokenIssuer(tenantID), "idtyp": "app",
		"oid": a.ObjectID, "sub": a.ObjectID, "tid": tenantID, "uti": sandbox.NewID(), "ver": "1.0",
	}
	if continuous {
		claims["xms_cc"] = []string{"CP1"}
		claims["exp"] = now.Add(continuousLife).Unix()
	}
	raw, err := c.signer.Sign(claims)
	if err != nil {
		return nil, &refusal{http.StatusInternalServerError, "server_error", 90033, "A transient error has occurred.", err}
	}
	life := int64(3599)
	if continuous {
		life = int64(continuousLife/time.Second) - 1
	}
	return map[string]any{"token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": raw}, nil
}

// tokenIssuer is the issuer of version 1 access tokens.
func tokenIssuer(tenantID string) string { return "https://sts.windows.net/" + tenantID + "/" }
