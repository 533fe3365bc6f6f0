package gcp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

var (
	accountCall = regexp.MustCompile(`^/v1/projects/([^/]+)/serviceAccounts/([^/:]+):(generateAccessToken|generateIdToken)$`)
	accountName = regexp.MustCompile(`^projects/-/serviceAccounts/([^/:]+)$`)
	seconds     = regexp.MustCompile(`^[0-9]{1,9}s$`)
)

// IAMCredentials serves generateAccessToken and generateIdToken of
// iamcredentials.googleapis.com.
func (c *Cloud) IAMCredentials() http.Handler {
	return c.IAMFaults.Wrap(sandbox.Serve("gcp_iamcredentials", c.now, c.cfg.Log, c.serveIAM))
}

func (c *Cloud) serveIAM(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	w.Header().Set("X-Request-Id", e.ID)
	out, no := c.generate(r, e)
	if no != nil {
		e.Code, e.Reason = no.code, no.reason()
		writeStatus(w, no)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (c *Cloud) generate(r *http.Request, e *sandbox.Entry) (map[string]any, *refusal) {
	m := accountCall.FindStringSubmatch(r.URL.Path)
	if m == nil || r.Method != http.MethodPost {
		return nil, &refusal{status: http.StatusNotFound, code: "NOT_FOUND", text: "Requested entity was not found."}
	}
	caller, ok := c.caller(r, e)
	if !ok {
		return nil, unauthenticated()
	}
	if no := c.charge(r, caller); no != nil {
		return nil, no
	}
	if m[1] != "-" {
		return nil, argument("Invalid form of name: the project must be the wildcard -.")
	}
	body, err := sandbox.ReadJSON(r)
	if err != nil {
		return nil, argument("Invalid JSON payload received. " + err.Error())
	}
	e.Fields = map[string]string{"account": m[2], "method": m[3]}
	if m[3] == "generateAccessToken" {
		return c.accessToken(caller, m[2], body)
	}
	return c.idToken(caller, m[2], body)
}

func (c *Cloud) accessToken(caller token, account string, body map[string]any) (map[string]any, *refusal) {
	if no := known(body, "name", "delegates", "scope", "lifetime"); no != nil {
		return nil, no
	}
	scopes, ok := list(body["scope"])
	if !ok || !checkScopes(scopes) {
		return nil, argument("Scope is missing or invalid: each must be an OAuth 2.0 scope URL of googleapis.com.")
	}
	life, no := c.lifetime(body["lifetime"])
	if no != nil {
		return nil, no
	}
	s, no := c.impersonate(caller, account, body["delegates"], "iam.serviceAccounts.getAccessToken")
	if no != nil {
		return nil, no
	}
	exp := c.now().Add(life).Truncate(time.Second)
	raw := c.issue(token{principal: s.Email, account: s.Email, members: []string{"serviceAccount:" + s.Email}, scopes: scopes, expires: exp})
	return map[string]any{"accessToken": raw, "expireTime": exp.UTC().Format(time.RFC3339)}, nil
}

func (c *Cloud) idToken(caller token, account string, body map[string]any) (map[string]any, *refusal) {
	if no := known(body, "name", "delegates", "audience", "includeEmail", "include_email"); no != nil {
		return nil, no
	}
	aud, _ := body["audience"].(string)
	if aud == "" {
		return nil, argument("Audience is required.")
	}
	s, no := c.impersonate(caller, account, body["delegates"], "iam.serviceAccounts.getOpenIdToken")
	if no != nil {
		return nil, no
	}
	now := c.now()
	claims := map[string]any{"iss": "https://accounts.google.com", "aud": aud, "azp": s.UniqueID, "sub": s.UniqueID,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	if body["includeEmail"] == true || body["include_email"] == true {
		claims["email"], claims["email_verified"] = s.Email, true
	}
	raw, err := c.signer.Sign(claims)
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, code: "INTERNAL", text: "Internal error encountered.", why: err}
	}
	return map[string]any{"token": raw}, nil
}

// Certs serves the JWK Set of the ID tokens' key at GET /oauth2/v3/certs.
func (c *Cloud) Certs() http.Handler {
	return sandbox.Serve("gcp_certs", c.now, c.cfg.Log, func(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
		set, err := c.signer.KeySet()
		if r.URL.Path != "/oauth2/v3/certs" || r.Method != http.MethodGet || err != nil {
			e.Code = "NOT_FOUND"
			writeStatus(w, &refusal{status: http.StatusNotFound, code: e.Code, text: "Requested entity was not found."})
			return
		}
		writeJSON(w, http.StatusOK, json.RawMessage(set))
	})
}

// impersonate returns the account if caller may act as it: directly with either
// role, or through delegates, each of which must let the one before it create
// tokens. Whether an account is missing, disabled or closed is one answer.
func (c *Cloud) impersonate(caller token, account string, delegates any, permission string) (ServiceAccount, *refusal) {
	chain, ok := list(delegates)
	if !ok {
		return ServiceAccount{}, argument("Invalid delegates.")
	}
	if !caller.mayCallIAM() {
		return ServiceAccount{}, denied(permission, "Request had insufficient authentication scopes.", "ACCESS_TOKEN_SCOPE_INSUFFICIENT")
	}
	text := "Permission '" + permission + "' denied on resource (or it may not exist)."
	roles := []string{TokenCreator}
	if len(chain) == 0 {
		roles = append(roles, WorkloadIdentityUser)
	}
	members := caller.members
	for _, d := range chain {
		m := accountName.FindStringSubmatch(d)
		if m == nil {
			return ServiceAccount{}, argument("Invalid form of delegate: projects/-/serviceAccounts/ACCOUNT.")
		}
		s, ok := c.account(m[1])
		if !ok || !s.grants(roles, members) {
			return ServiceAccount{}, denied("iam.serviceAccounts.implicitDelegation", text, "IAM_PERMISSION_DENIED")
		}
		members = []string{"serviceAccount:" + s.Email}
	}
	s, ok := c.account(account)
	if !ok || !s.grants(roles, members) {
		return ServiceAccount{}, denied(permission, text, "IAM_PERMISSION_DENIED")
	}
	return s, nil
}

func (s ServiceAccount) grants(roles, members []string) bool {
	return slices.ContainsFunc(s.Bindings, func(b Binding) bool {
		return slices.Contains(roles, b.Role) &&
			slices.ContainsFunc(b.Members, func(m string) bool { return slices.Contains(members, m) })
	})
}

func (c *Cloud) lifetime(v any) (time.Duration, *refusal) {
	if v == nil {
		return time.Hour, nil
	}
	s, _ := v.(string)
	if !seconds.MatchString(s) {
		return 0, argument("Invalid value at 'lifetime': a duration such as 3600s is expected.")
	}
	n, err := strconv.Atoi(strings.TrimSuffix(s, "s"))
	longest := 3600
	if c.cfg.AllowLifetimeExtension {
		longest = 43200
	}
	switch {
	case err != nil || n > longest:
		return 0, argument(fmt.Sprintf("The access token lifetime cannot exceed %d seconds. A longer one needs the organization policy "+
			"constraint constraints/iam.allowServiceAccountCredentialLifetimeExtension.", longest))
	case n == 0:
		return 0, argument("Lifetime of access token must be larger then zero.")
	}
	return time.Duration(n) * time.Second, nil
}

func known(body map[string]any, names ...string) *refusal {
	for name := range body {
		if !slices.Contains(names, name) {
			return argument(fmt.Sprintf("Invalid JSON payload received. Unknown name %q: Cannot find field.", name))
		}
	}
	return nil
}

// list reads an optional list of strings.
func list(v any) ([]string, bool) {
	if v == nil {
		return nil, true
	}
	in, ok := v.([]any)
	var out []string
	for _, e := range in {
		s, isText := e.(string)
		out, ok = append(out, s), ok && isText
	}
	return out, ok
}

func argument(text string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "INVALID_ARGUMENT", text: text}
}

func unauthenticated() *refusal {
	return &refusal{status: http.StatusUnauthorized, code: "UNAUTHENTICATED",
		text: "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential."}
}

func denied(permission, text, reason string) *refusal {
	return &refusal{status: http.StatusForbidden, code: "PERMISSION_DENIED", text: text, detail: map[string]any{
		"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "iam.googleapis.com",
		"metadata": map[string]string{"permission": permission},
	}}
}
