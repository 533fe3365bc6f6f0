package oauth_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/oauth"
)

// An answer that holds a token and an error is an error, and its token is told
// to nobody.
//
// Regression: CVE-2026-46405
func TestATokenWithAnErrorIsNone(t *testing.T) {
	w := newWorld(t)
	rows := map[string]struct {
		settings *oauth.Settings
		answer   string
	}{
		"token": {&oauth.Settings{ClientAssertion: w.assertion()}, `{"access_token":"` + secret + `","token_type":"Bearer","expires_in":900,"error":"server_error","error_description":"for ` + secret + `"}`},
		"login": {&oauth.Settings{VaultJWT: w.vaultJWT()}, `{"auth":{"client_token":"` + secret + `","lease_duration":900},"errors":["error creating ` + secret + `"]}`},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			on := w.on(row.settings)
			on.spoiled(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(rw, row.answer)
			})
			cred, err := exchanger(t, row.settings, on).Exchange(t.Context(), w.svids(t))
			if e := refused(t, cred, err); !strings.Contains(e.Message, "[redacted]") {
				t.Errorf("%+v", e)
			}
		})
	}
}
