package azure

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// continuousLife is how long a token for continuous access lives.
const continuousLife = 24 * time.Hour

var errClaims = errors.New("only access_token.xms_cc and access_token.nbf are known")

// claims reads the claims that a client asks for: what it is capable of
// (xms_cc), and those that a resource challenged it for (nbf). It says whether
// the client is capable of continuous access.
func (c *Cloud) claims(text string) (bool, *refusal) {
	if text == "" {
		return false, nil
	}
	continuous, err := c.readClaims(text)
	if err != nil {
		return false, invalidRequest(90100, "The 'claims' parameter is empty or not valid.", err)
	}
	return continuous, nil
}

func (c *Cloud) readClaims(text string) (continuous bool, err error) {
	o, err := sandbox.ParseObject([]byte(text))
	if err != nil {
		return false, err
	}
	wanted, ok := o["access_token"].(map[string]any)
	if !ok || len(o) != 1 || len(wanted) == 0 {
		return false, errClaims
	}
	for name, v := range wanted {
		claim, ok := v.(map[string]any)
		switch {
		case !ok:
			return false, errClaims
		case name == "xms_cc":
			values, ok := claim["values"].([]any)
			if !ok || len(claim) != 1 || len(values) == 0 {
				return false, errClaims
			}
			continuous = slices.ContainsFunc(values, func(v any) bool { return v == "CP1" || v == "cp1" })
		case name == "nbf":
			text, _ := claim["value"].(string)
			sec, err := strconv.ParseInt(text, 10, 64)
			if err != nil || claim["essential"] != true || len(claim) != 2 {
				return false, errClaims
			}
			if time.Unix(sec, 0).After(c.now().Add(c.cfg.Skew)) {
				return false, fmt.Errorf("no token of now is valid from %d on", sec)
			}
		default:
			return false, errClaims
		}
	}
	return continuous, nil
}

// challenge is what a resource answers to a token for continuous access whose
// app was revoked since, or empty.
func (c *Cloud) challenge(t *sandbox.JWT) string {
	app, _ := t.Text("appid")
	iat, err := t.Time("iat")
	c.mu.Lock()
	since, ok := c.revoked[app]
	c.mu.Unlock()
	if err != nil || !ok || t.Claims["xms_cc"] == nil || !iat.Before(since) {
		return ""
	}
	claims, err := json.Marshal(map[string]any{"access_token": map[string]any{"nbf": map[string]any{
		"essential": true, "value": strconv.FormatInt(since.Unix(), 10)}}})
	if err != nil {
		panic(err) // texts alone
	}
	return fmt.Sprintf(`Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", error="insufficient_claims", claims="%s"`,
		base64.StdEncoding.EncodeToString(claims))
}
