package oauth_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
)

// FuzzAnswer holds both parsers to what they promise of any bytes: an error or
// a usable credential, never both; nothing secret in an error; and no
// credential of what an ordinary reader sees an error in.
func FuzzAnswer(f *testing.F) {
	for _, body := range []string{
		`{"access_token":"a","token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","expires_in":600,"scope":"a b"}`,
		`{"access_token":"a","token_type":"Bearer","expires_in":600,"error":"x","error":""}`,
		`{"error":"invalid_grant","error_description":"canary-of-jwt\r\n"}`,
		`{"request_id":"r","auth":{"client_token":"hvs.x","lease_duration":1200,"num_uses":0,"mfa_requirement":null},"errors":null}`,
		`{"auth":{"client_token":"hvs.x","lease_duration":1200},"errors":["permission denied"]}`,
		`<html>`, ``, `{"auth":[]}`, `{"errors":{"a":1}}`, "{\"access_token\":\"\xff\"}",
	} {
		f.Add(200, []byte(body))
		f.Add(400, []byte(body))
	}
	at := time.Unix(1700000000, 0)
	header := http.Header{"Content-Type": {"application/json"}}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		for name, read := range map[string]func(int, http.Header, []byte, time.Time, exchangers.Secret) (exchangers.Credential, error){"token": oauth.Token, "login": oauth.Login} {
			cred, err := read(status, header, body, at, exchangers.NewSecret("canary-of-jwt"))
			if err != nil {
				var e *exchangers.Error
				if cred != (exchangers.Credential{}) || !errors.As(err, &e) || e.Class == "" || len(e.Message) > 512 || strings.ContainsAny(e.Error(), "\r\n\x00") || strings.Contains(e.Error(), "canary-of-jwt") {
					t.Errorf("%s: %v, %v", name, cred, err)
				}
				continue
			}
			if cred.Check(at) != nil || status != 200 || cred.Expires.Sub(at) > 1<<31*time.Second || strings.ContainsAny(cred.Bearer.Token.Reveal(), " \r\n\x00") {
				t.Errorf("%s: %v", name, cred)
			}
			var plain struct{ Error, Errors any }
			if json.Unmarshal(body, &plain) != nil || plain.Error != nil && plain.Error != "" {
				t.Errorf("%s: an error was not seen: %s", name, body)
			}
			if all, ok := plain.Errors.([]any); name == "login" && plain.Errors != nil && (!ok || len(all) > 0) && plain.Errors != "" {
				t.Errorf("%s: errors were not seen: %s", name, body)
			}
		}
	})
}
