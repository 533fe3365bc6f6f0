package azure

import (
	"net/http"
	"slices"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// ARM serves the one protected call of the sandbox: GET / or /whoami with an
// access token for Resource Manager tells whose it is, until it expires.
func (c *Cloud) ARM() http.Handler {
	return c.ARMFaults.Wrap(sandbox.Serve("azure_arm", c.now, c.cfg.Log, c.serveARM))
}

func (c *Cloud) serveARM(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	w.Header().Set("X-Ms-Request-Id", e.ID)
	if r.Method != http.MethodGet || r.URL.Path != "/" && r.URL.Path != "/whoami" {
		e.Code = "NotFound"
		writeARM(w, http.StatusNotFound, e.Code, "There is no such resource.")
		return
	}
	raw := sandbox.Bearer(r)
	if raw != "" {
		e.Token = sandbox.HashToken(raw)
	}
	t, exp, code, text := c.accessToken(raw)
	if code == "" {
		if challenge := c.challenge(t); challenge != "" {
			e.Code, e.Reason = "TokenIssuedBeforeRevocationTimestamp", "the app's sessions were revoked"
			w.Header().Set("WWW-Authenticate", challenge)
			writeARM(w, http.StatusUnauthorized, e.Code, "Continuous access evaluation resulted in challenge.")
			return
		}
	}
	if code != "" {
		e.Code, e.Reason = code, text
		w.Header().Set("WWW-Authenticate", `Bearer authorization_uri="https://login.windows.net/", error="invalid_token", error_description="`+text+`"`)
		writeARM(w, http.StatusUnauthorized, code, text)
		return
	}
	out := map[string]any{"expires": exp.UTC().Format(time.RFC3339)}
	for _, name := range []string{"oid", "appid", "tid", "aud"} {
		out[name] = t.Claims[name]
	}
	writeJSON(w, http.StatusOK, out)
}

// accessToken verifies a token of ours through the key set that Login
// publishes. A code says what is wrong with it.
func (c *Cloud) accessToken(raw string) (t *sandbox.JWT, exp time.Time, code, text string) {
	if raw == "" {
		return nil, exp, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
	}
	t, err := c.verified(raw)
	if err != nil {
		return nil, exp, "InvalidAuthenticationToken", "The access token is invalid."
	}
	tid, _ := t.Text("tid")
	iss, _ := t.Text("iss")
	if _, ok := c.tenant(tid); !ok || iss != tokenIssuer(tid) {
		return nil, exp, "InvalidAuthenticationTokenTenant", "The access token is from the wrong issuer."
	}
	if aud, err := t.Text("aud"); err != nil || !slices.Contains(c.cfg.ARM, aud) {
		return nil, exp, "InvalidAuthenticationTokenAudience", "The access token has been obtained for the wrong audience or resource."
	}
	exp, err1 := t.Time("exp")
	nbf, err2 := t.Time("nbf")
	now := c.now()
	if err1 != nil || err2 != nil || !now.Before(exp) || now.Before(nbf) {
		return nil, exp, "ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than the current UTC time."
	}
	return t, exp, "", ""
}

func (c *Cloud) verified(raw string) (*sandbox.JWT, error) {
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return nil, err
	}
	set, err := c.signer.KeySet()
	if err != nil {
		return nil, err
	}
	keys, err := sandbox.ParseKeySet(set)
	if err != nil {
		return nil, err
	}
	own := sandbox.Metadata{Keys: keys}
	k, err := own.Key(t.KeyID)
	if err != nil {
		return nil, err
	}
	return t, t.Verify(k.Public, "RS256")
}
